from .heads import unimodal_heads as unimodal_heads
from .transformer import MultimodalTransformer as MultimodalTransformer
