"""Gradient surgery, PCGrad (Yu et al. 2020, arXiv 2001.06782, algorithm 1).

    for each task i:            g'ᵢ = gᵢ
        for the others j, in a random order:
            if g'ᵢ·gⱼ < 0:      g'ᵢ ← g'ᵢ − (g'ᵢ·gⱼ)/‖gⱼ‖² gⱼ        (gⱼ as it was, never g'ⱼ)
    the update is Σ g'ᵢ

Every g'ᵢ is a combination Σ cⱼgⱼ, so the products gᵢ·gⱼ decide it all (the Gram matrix: T×T for T
tasks). The projections are done on the coefficients c; the gradients, millions of numbers each, are
read twice: once for their products and once for the sum.

Only weights that all tasks share can conflict. A head's gradient must be excluded: it would enlarge
‖gⱼ‖, so that conflicts are removed only in part, and its projection would change other heads."""

import math
from functools import partial
from itertools import combinations, combinations_with_replacement

import torch

PIECE = 2 ** 17             # numbers of every task's gradient that fit into a CPU's cache at once


def draw_orders(tasks, seed, step):
    """→ for each task a random order of the others, determined by (seed, step)."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return [[j for j in torch.randperm(tasks, generator=generator).tolist() if j != i]
            for i in range(tasks)]


def pcgrad(gradients, orders, per_tensor=False, reuse=False):
    """gradients[task][tensor] (None where a task does not reach a tensor) → the combined gradient
    of each tensor (None where no task reaches it), and the products [tensors, T, T]. A task's
    gradient is one vector, or with `per_tensor` one for each tensor. `reuse`: in their place."""
    grams = gram_matrices(gradients)
    whole = coefficients(grams.sum(dim=0).tolist(), orders)
    combined = [combine(of_tasks, coefficients(gram.tolist(), orders) if per_tensor else whole,
                        reuse) for of_tasks, gram in zip(zip(*gradients), grams)]
    return combined, grams


def pop_grads(parameters):
    """Remove the parameters' gradients and return them, [gradient or None]."""
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradients


def set_grads(parameters, gradients):
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient


def coefficients(gram, orders):
    """The algorithm above on coefficients. gram: T lists of T floats, gram[i][j] = gᵢ·gⱼ; orders:
    for each task i the others in order → c, a list of T floats with Σ g'ᵢ = Σ c[j] gⱼ."""
    total = [0.0] * len(gram)
    for i, others in enumerate(orders):
        mine = [float(k == i) for k in range(len(gram))]     # g'ᵢ = gᵢ
        for j in others:
            dot = sum(c * gram[k][j] for k, c in enumerate(mine))        # g'ᵢ·gⱼ
            if dot < 0 < gram[j][j]:                         # 0: ‖gⱼ‖² is too small for a float
                mine[j] -= dot / gram[j][j]
        total = [t + c for t, c in zip(total, mine)]
    return total


def gram_matrices(gradients):
    """gradients[task][tensor] → [tensors, T, T] products, float64 on the CPU. The only
    synchronization with a GPU in surgery."""
    places, products = [], []
    for tensor, of_tasks in enumerate(zip(*gradients)):
        present = {i: g.flatten() for i, g in enumerate(of_tasks) if g is not None}
        for pieces in zip(*(g.split(PIECE if g.device.type == "cpu" else g.numel())
                            for g in present.values())):
            for (i, a), (j, b) in combinations_with_replacement(zip(present, pieces), 2):
                places.append((tensor, i, j))
                products.append(a @ b)
    grams = torch.zeros(len(gradients[0]), len(gradients), len(gradients), dtype=torch.float64)
    if products:
        grams.index_put_(tuple(torch.tensor(places).T), torch.stack(products).double().cpu(),
                         accumulate=True)
    return grams + grams.triu(1).transpose(1, 2)


def combine(own, weights, reuse=False):
    """Σ weights[i]·own[i] over the tasks that have a gradient; None if none has."""
    total = None
    for gradient, weight in zip(own, weights):
        if total is not None and gradient is not None:
            total.add_(gradient, alpha=weight)
        elif gradient is not None:
            total = gradient.mul_(weight) if reuse else gradient * weight
    return total


def cosines(grams, names):
    """[tensors, T, T] products → {"a·b": cosine of the tasks' whole gradients}"""
    gram = grams.sum(dim=0)
    return {f"{names[i]}·{names[j]}":
            (gram[i, j] / math.sqrt(gram[i, i] * gram[j, j] or 1.0)).item()
            for i, j in combinations(range(len(names)), 2)}


def pcgrad_step(gradients, seed, step, per_tensor=False):
    """gradients[task][tensor] → the combined gradient of each tensor, and the products."""
    return pcgrad(gradients, draw_orders(len(gradients), seed, step), per_tensor, reuse=True)


SURGERY = {"pcgrad": pcgrad_step, "pcgrad-tensor": partial(pcgrad_step, per_tensor=True)}
