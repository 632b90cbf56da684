from .config import SequenceConfig as SequenceConfig
from .config import SequenceNetworkConfig as SequenceNetworkConfig
from .experiments import run_experiment as run_experiment
