from .config import FoodConfig as FoodConfig
from .config import IemocapConfig as IemocapConfig
from .config import MfeatConfig as MfeatConfig
from .config import MosiConfig as MosiConfig
from .config import SequenceConfig as SequenceConfig
from .experiments import run_experiment as run_experiment
