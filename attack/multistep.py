"""Multi-step quantization (Gaiński & Bałazy 2023): fix one word, let the others compensate, repeat.

    P = softmax(Θ), Θ = 10 at the word that stands there, else 0
    for k = 0, 1, 2, …:
        max(N / 2ᵏ, N_min) steps of Adam on Θ
        of the free positions, take the one where P has the largest entropy; of its five candidates
        by (P + cos(1_v - P, ∇_P score)) / 2, fix the one with the best score

Ours: after the first steps, as many positions as the budget of changed words allows stay free,
those where P has moved most; the others take their own word back and the free ones make up for it.
An example is done as soon as its fixed words, in the original text, mislead the classifier.
"""

import torch

CANDIDATES, WITHIN = 5, 0.5                                  # so many, so near to the best


def start(problem, coefficient):
    """Θ [M, K]: the coefficient at the word that stands there, else 0."""
    return coefficient * problem.one_hot(torch.zeros_like(problem.positions))


def optimize(objective, problem, logits, fixed, chosen, steps, lr, began=0):
    """Adam on Θ of the positions that are not fixed → Θ, P [M, K]"""
    logits = logits.detach().clone().requires_grad_()
    adam = torch.optim.Adam([logits], lr=lr)
    for step in range(steps):
        probabilities = mixed(problem, logits, fixed, chosen)
        gradient = objective.gradient(problem, probabilities, began + step)[2]
        adam.zero_grad()
        probabilities.backward(-gradient)
        adam.step()
    return logits.detach(), mixed(problem, logits, fixed, chosen).detach()


def mixed(problem, logits, fixed, chosen):
    """softmax(Θ), or one-hot where a word is fixed: [M, K]"""
    return torch.where(fixed[:, None], problem.one_hot(chosen), logits.softmax(dim=1))


def entropy(probabilities):
    return -(probabilities * probabilities.clamp_min(1e-12).log()).sum(dim=1)


def best_candidates(probabilities, gradient):
    """P and ∇_P of the score at some positions [b, K] → the candidates [b, 5] of each, and which of
    them come near enough to the best."""
    along = gradient - (gradient * probabilities).sum(dim=1, keepdim=True)           # (1_v - P)·∇
    length = (1 - 2 * probabilities + probabilities.square().sum(1, keepdim=True)).clamp_min(1e-12)
    cosine = along / (length.sqrt() * gradient.norm(dim=1, keepdim=True).clamp_min(1e-12))
    rating = (probabilities + (1 + cosine) / 2) / 2
    best = rating.topk(min(CANDIDATES, rating.size(1)), dim=1)
    return best.indices, best.values >= best.values[:, :1] - WITHIN


def quantize(objective, problem, probabilities, fixed, step):
    """→ the position [b] to fix in each example, and its candidate [b]."""
    _, _, gradient = objective.gradient(problem, probabilities, step)
    positions = problem.top_positions(entropy(probabilities).masked_fill(fixed, -1.0))
    candidates, near = best_candidates(probabilities[positions], gradient[positions])
    scores = []
    for tried, allowed in zip(candidates.T, near.T):
        hard = probabilities.clone()
        hard[positions] = torch.nn.functional.one_hot(tried, hard.size(1)).to(hard)
        with torch.no_grad():
            score, _ = objective(problem, hard, step)
        scores.append(score.masked_fill(~allowed, -torch.inf))
    best = torch.stack(scores).argmax(dim=0)
    return positions, candidates.gather(1, best[:, None]).squeeze(1)


def relax(objective, problem, steps, lr):
    """The first round, in which no word is fixed → Θ, P [M, K], the margins [b] at P."""
    nothing = torch.zeros_like(problem.positions)
    logits, probabilities = optimize(objective, problem, start(problem, 10.0), nothing > 0, nothing,
                                     steps, lr)
    with torch.no_grad():
        return logits, probabilities, objective.margins(problem, probabilities)[0]


def multistep(objective, whole, steps, least, lr, **others):
    """→ the chosen candidates [M] of the whole batch, and the margins [b] before quantization."""
    problem, began, k = whole, max(steps, least), 0
    logits, probabilities, soft = relax(objective, whole, began, lr)
    result = torch.zeros_like(whole.positions)
    chosen = result.clone()
    fixed = whole.within_budget(torch.ones_like(chosen), -probabilities[:, 0]) == 0
    while True:
        k += 1
        count = max(steps >> k, least)
        logits, probabilities = optimize(objective, problem, logits, fixed, chosen, count, lr,
                                         began)
        began += count
        at, word = quantize(objective, problem, probabilities, fixed, began)
        fixed[at], chosen[at] = True, word
        done = problem.total((~fixed).float()) == 0
        done |= objective.hard_margins(problem, chosen) < 0
        result[problem.positions] = chosen
        if done.all():
            return result, soft
        problem, words = problem.keep(~done)
        logits, fixed, chosen = logits[words], fixed[words], chosen[words]
