from .features import load_iemocap as load_iemocap
from .folds import fold_numbers as fold_numbers
from .simulation import simulate_iemocap as simulate_iemocap
