"""What every script shares.

cli.py           sentences for errors, sub-commands, Ctrl-C    flags.py  settings as flags
run_folder.py    a run's folder, record, state to resume from  log.py    log.jsonl, the bar
device.py        --device and --precision, peak memory         plots.py  figures, curves
optimization.py  learning rates, optimizers                    tables.py text, Markdown, CSV
"""
