from .decoders import ModalityFeatures as ModalityFeatures
from .decoders import UnimodalDecoder as UnimodalDecoder
from .deeplab import MultiEncoderDeepLabV3Plus as MultiEncoderDeepLabV3Plus
from .encoders import OUTPUT_STRIDE as OUTPUT_STRIDE
from .ensemble import Ensemble as Ensemble
