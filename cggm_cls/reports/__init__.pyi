from .report import write_report as write_report
from .samples import write_predictions as write_predictions
