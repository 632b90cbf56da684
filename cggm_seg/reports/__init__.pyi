from .examples import keep_validation as keep_validation
from .report import report_evaluation as report_evaluation
from .report import write_segmentation_report as write_segmentation_report
