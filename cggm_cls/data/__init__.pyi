from .sequences import Batch as Batch
from .sequences import MaskedSequence as MaskedSequence
from .sequences import Measure as Measure
from .sequences import RaggedSequences as RaggedSequences
from .sequences import SequenceDataset as SequenceDataset
from .sequences import TaskData as TaskData
from .sequences import content_digest as content_digest
from .sequences import move as move
