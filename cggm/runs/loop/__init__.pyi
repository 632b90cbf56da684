from .seeds import rng_state as rng_state
from .seeds import set_rng_state as set_rng_state
from .signals import Stopped as Stopped
from .signals import StopSignals as StopSignals
