from .mlp import MultimodalMLP as MultimodalMLP
from .transformer import MultimodalTransformer as MultimodalTransformer
from .transformer import SequenceNetwork as SequenceNetwork
from .transformer import sequence_heads as sequence_heads
