"""Masked language modeling on plain text (Devlin et al. 2019, arXiv 1810.04805), with or without a
larger BERT as teacher: `python -m pretraining --text FOLDER --out NEW`."""
