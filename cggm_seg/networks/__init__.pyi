from .decoders import UnimodalDecoder as UnimodalDecoder
from .deeplab import OUTPUT_STRIDE as OUTPUT_STRIDE
from .deeplab import Features as Features
from .deeplab import MultiEncoderDeepLabV3Plus as MultiEncoderDeepLabV3Plus
from .deeplab import build_network as build_network
