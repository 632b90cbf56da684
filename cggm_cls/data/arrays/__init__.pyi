from .load import load_array_folder as load_array_folder
from .simulation import simulate_array_folder as simulate_array_folder
