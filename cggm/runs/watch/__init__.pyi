from .journal import Journal as Journal
from .logs import Picture as Picture
from .progress import TrainingProgress as TrainingProgress
