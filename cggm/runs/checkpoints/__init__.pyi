from .files import find_checkpoints as find_checkpoints
from .files import prune as prune
from .state import Progress as Progress
from .state import Stateful as Stateful
from .state import load_checkpoint as load_checkpoint
from .state import save_checkpoint as save_checkpoint
