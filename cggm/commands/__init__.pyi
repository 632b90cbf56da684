from .command import main as main
from .scripts import called_as as called_as
from .scripts import find_scripts as find_scripts
from .scripts import split_words as split_words
from .scripts import spoken as spoken
from .streams import lasting_streams as lasting_streams
