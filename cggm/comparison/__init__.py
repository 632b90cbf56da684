"""What turns finished runs of several methods into statistics, tables and figures."""
