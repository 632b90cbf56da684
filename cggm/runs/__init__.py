"""What every training script shares: command line, configuration, run folder, checkpoints, logs."""
