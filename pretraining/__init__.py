"""Masked language modeling on plain text (Devlin et al. 2019), with or without a teacher.

    loss = −mean log p(tokenₘ | text with masked tokens)              over the M masked tokens

Reading order: corpus, masking (and scores), model, distillation, run (flags, folder), __main__.
"""
