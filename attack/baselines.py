"""What multi-step quantization is compared with. Each has the same objective, candidates, budget of
changed words and arguments, and returns the chosen candidates [M] and the soft margins [b].

    argmax     the same Θ and Adam, then every position takes its most probable word at once
    gumbel     GBDA (Guo et al. 2021): Adam on the mean score of Gumbel-softmax samples, then up to
               100 samples of whole texts
    hotflip    Ebrahimi et al. 2018: the swap that the gradient promises most of, then the next
"""

import torch

from attack.multistep import multistep, relax, start


def argmax(objective, problem, steps, lr, **others):
    """One quantization of all positions at the end."""
    _, probabilities, soft = relax(objective, problem, steps, lr)
    return problem.within_budget(probabilities.argmax(dim=1), -probabilities[:, 0]), soft


def gumbel_noise(problem, generators):
    """[M, K], drawn for each example from its own generator."""
    width, parts = problem.candidates.size(1), []
    counts = problem.example.bincount(minlength=len(problem.labels)).tolist()
    for number, count in zip(problem.numbers.tolist(), counts):
        draw = torch.rand(count, width, generator=generators[number]).clamp_min(1e-9)
        parts.append(-(-draw.log()).log())
    return torch.cat(parts).to(problem.row.device)           # words lie example by example


def gumbel(objective, whole, generators, steps, lr, samples, tries=100, **others):
    """Θ = 15 at the word that stands there; temperature 1."""
    logits, soft = start(whole, 15.0).requires_grad_(), None
    adam = torch.optim.Adam([logits], lr=lr)
    for step in range(steps):
        adam.zero_grad()
        soft = torch.zeros(len(whole.labels), device=whole.row.device)
        for _ in range(samples):
            probabilities = (logits + gumbel_noise(whole, generators)).softmax(dim=1)
            _, margins, gradient = objective.gradient(whole, probabilities, step)
            probabilities.backward(-gradient / samples)
            soft += margins / samples
        adam.step()
    return sample_texts(objective, whole, logits.detach(), generators, tries), soft


def sample_texts(objective, whole, logits, generators, tries):
    """→ of each example the first text of up to `tries` samples that misleads the victim, or that
    of the lowest margin."""
    problem, result = whole, torch.zeros_like(whole.positions)
    lowest = torch.full((len(whole.labels),), torch.inf, device=result.device)
    for _ in range(tries):
        order = -logits.softmax(dim=1)[:, 0]
        chosen = (logits + gumbel_noise(problem, generators)).argmax(dim=1)
        chosen = problem.within_budget(chosen, order)
        margins = objective.hard_margins(problem, chosen)
        better = margins < lowest[problem.numbers]
        words = better[problem.example]
        result[problem.positions[words]] = chosen[words]
        lowest[problem.numbers[better]] = margins[better]
        if (margins < 0).all():
            break
        problem, words = problem.keep(margins >= 0)
        logits = logits[words]
    return result


def hotflip(objective, whole, **others):
    """Greedy: after each swap a new gradient. The objective's λ and μ are 0 in the original."""
    problem, result = whole, torch.zeros_like(whole.positions)
    soft = torch.full((len(whole.labels),), torch.nan)
    while True:
        chosen = result[problem.positions]
        _, margins, gradient = objective.gradient(problem, problem.one_hot(chosen))
        spent = problem.total((chosen > 0).float()) >= problem.budget
        done = (margins < 0) | spent
        if done.all():
            return result, soft
        if done.any():
            problem, words = problem.keep(~done)
            gradient, chosen = gradient[words], chosen[words]
        promise, word = (gradient - gradient[:, :1])[:, 1:].max(dim=1)
        at = problem.top_positions(promise.masked_fill(chosen > 0, -torch.inf))
        result[problem.positions[at]] = word[at] + 1


# name → function, its λ (similarity) and its rate of learning
METHODS = {"multistep": (multistep, 20.0, 1.0), "argmax": (argmax, 20.0, 1.0),
           "gumbel": (gumbel, 1.0, 0.3), "hotflip": (hotflip, 0.0, 0.0)}
