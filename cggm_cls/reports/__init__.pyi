from .report import write_sequence_report as write_sequence_report
from .samples import write_predictions as write_predictions
