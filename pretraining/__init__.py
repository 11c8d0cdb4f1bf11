"""Masked language modeling on plain text (Devlin et al. 2019), with or without a teacher.

    loss = −mean log p(tokenₘ | text with masked tokens)              over the M masked tokens

__main__.py   python -m pretraining: the loop    settings.py      its flags
corpus.py     text → token ids → batches         masking.py       which tokens are hidden, and how
model.py      encoder + masked-LM head           distillation.py  the loss against a teacher
evaluation.py scores on held-out lines           run.py           what a run needs, its folder
"""
