from .cohort import Predictions as Predictions
from .cohort import predict_cases as predict_cases
from .options import ComputeOptions as ComputeOptions
from .options import FileOptions as FileOptions
from .options import InferOptions as InferOptions
from .slices import InferenceSettings as InferenceSettings
from .volume import predict_probabilities as predict_probabilities
from .volume import predict_volume as predict_volume
