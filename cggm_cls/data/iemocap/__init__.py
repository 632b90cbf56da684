"""Features of IEMOCAP."""
