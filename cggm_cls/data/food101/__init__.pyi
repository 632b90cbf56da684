from .backbones import ImageBackbone as ImageBackbone
from .backbones import TextBackbone as TextBackbone
from .extraction import ExtractionOptions as ExtractionOptions
from .extraction import extract_features as extract_features
from .samples import load_food101 as load_food101
from .samples import read_food101 as read_food101
from .simulation import simulate_features as simulate_features
