from .run import export_run as export_run
