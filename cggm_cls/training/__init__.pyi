from .config import SequenceConfig as SequenceConfig
from .experiments import run_experiment as run_experiment
