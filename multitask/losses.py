"""Losses of tasks, and the place for further ones. Outputs are [B, outputs], labels [B] floats."""

import torch.nn.functional as F


def cross_entropy(outputs, labels):
    return F.cross_entropy(outputs, labels.long())


def binary_cross_entropy(outputs, labels):
    return F.binary_cross_entropy_with_logits(outputs.squeeze(1), labels)


def squared_error(outputs, labels):
    return F.mse_loss(outputs.squeeze(1), labels)


def cosine_error(outputs, labels):
    """(cos − y/5)², where outputs are 5·cos (Fuest & Tacke)."""
    return squared_error(outputs / 5, labels / 5)


def further_losses(settings, model, task, batch, vectors, outputs):
    """→ {name: term} to add to the task's loss in a training step. Each term is a scalar, already
    weighted, and is logged and drawn under its name. vectors [sequences, H] are the encoder's,
    outputs [B, outputs] the head's. docs/extend.md adds a contrastive and an adversarial loss."""
    return {}
