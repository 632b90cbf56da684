from .plan import SWEEP as SWEEP
from .plan import Plan as Plan
from .records import RecordStore as RecordStore
from .report import report_folder as report_folder
from .results import write_results as write_results
from .trainings import ComparisonProgress as ComparisonProgress
from .trainings import Queue as Queue
from .trainings import locked as locked
