"""What every script shares: the command line, settings as flags, tables, plots, the log, the
optimizer, and the state and folder of a run."""
