from .files import find_checkpoints as find_checkpoints
from .load import load_checkpoint as load_checkpoint
from .load import load_network_weights as load_network_weights
from .save import RunProgress as RunProgress
from .save import Stateful as Stateful
from .save import save_checkpoint as save_checkpoint
from .saver import Saver as Saver
