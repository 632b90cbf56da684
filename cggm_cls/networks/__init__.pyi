from .transformer import MultimodalTransformer as MultimodalTransformer
from .transformer import sequence_heads as sequence_heads
