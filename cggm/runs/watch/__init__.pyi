from .journal import Journal as Journal
from .logs import Picture as Picture
from .progress import TrainingProgress as TrainingProgress
from .recorder import RunRecorder as RunRecorder
from .recorder import method_record as method_record
