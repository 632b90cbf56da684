from .cohort import InferenceSettings as InferenceSettings
from .cohort import Predictions as Predictions
from .cohort import predict_cases as predict_cases
from .cohort import predict_volume as predict_volume
from .options import ComputeOptions as ComputeOptions
from .options import FileOptions as FileOptions
from .options import InferOptions as InferOptions
