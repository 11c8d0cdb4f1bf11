"""Masked language modeling on plain text (Devlin et al. 2019), with or without a teacher.

    loss = −mean log p(tokenₘ | text with masked tokens)              over the M masked tokens

__main__.py   python -m pretraining: the loop    run.py           its flags, model, data, folder
corpus.py     text → token ids → batches         masking.py       masked batches, scores on them
model.py      encoder + masked-LM head           distillation.py  the loss against a teacher
"""
