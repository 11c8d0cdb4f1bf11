"""What every script shares.

cli.py           sentences for errors, sub-commands, Ctrl-C    flags.py        settings as flags
device.py        --device and --precision, peak memory         log.py          log.jsonl, the bar
tables.py        text, Markdown, CSV                           plots.py        figures, curves
optimization.py  learning rates, optimizers                    train_state.py  to resume from
run_folder.py    the folder of a new run, a run's record
"""
