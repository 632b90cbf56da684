from .config import BratsConfig as BratsConfig
from .trained import TrainedNetwork as TrainedNetwork
from .training import SegmentationTraining as SegmentationTraining
from .training import prepare_training as prepare_training
from .training import train_or_cross_validate as train_or_cross_validate
