from .files import load_mosi as load_mosi
from .simulation import simulate_mosi as simulate_mosi
