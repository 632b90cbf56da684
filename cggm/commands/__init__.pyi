from .command import main as main
from .scripts import called_as as called_as
from .scripts import find_scripts as find_scripts
from .scripts import spoken as spoken
