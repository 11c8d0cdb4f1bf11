"""What every script shares.

cli.py          one-sentence errors, sub-commands, Ctrl-C      flags.py       settings as flags
device.py       --device and --precision, peak memory          log.py         log.jsonl, progress bar
tables.py       text, Markdown, CSV                            plots.py       figures, curves
optimization.py learning rate schedule, optimizers             train_state.py the state to resume from
run_folder.py   a new run's folder, and its record
"""
