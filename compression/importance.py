"""How much each row of a matrix matters, for the codec `weighted`."""

import torch

from compression.stored import find_modules
from multitask.evaluation import load_split

EXAMPLES, BATCH_SIZE = 256, 16                               # training examples of each task


def fisher_importance(session, matrices):
    """{(layer, matrix): [n]}: Σ (∂loss/∂w)² over the weights of each row and over batches of
    training examples (Hsu et al. 2022, Fisher-weighted SVD). The loss is that of the session's
    run. Side effect: the weights of these matrices require gradients afterwards."""
    model, settings = session.model.eval(), session.settings
    weights = {target: module.weight.requires_grad_()
               for target, module in find_modules(model.bert, matrices).items()}
    importance = {target: torch.zeros(len(weight)) for target, weight in weights.items()}
    for task in model.heads:
        split = load_split(task, "train", settings.data, session.tokenizer, settings, EXAMPLES)
        for rows in torch.arange(len(split)).split(BATCH_SIZE):
            batch = split.batch(rows.tolist()).to(session.device)
            loss = settings.loss_of(task)(model(task, batch), batch.labels)
            gradients = torch.autograd.grad(loss, list(weights.values()))
            for target, gradient in zip(weights, gradients):
                importance[target] += gradient.square().sum(dim=1).cpu()
    return importance
