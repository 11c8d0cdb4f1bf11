"""One step of AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2), for the course only:
training uses torch's fused kernel (common/optimization.py)."""


def adamw_step(weight, gradient, first, second, step, lr=1e-3, betas=(0.9, 0.999), eps=1e-8,
               weight_decay=0.01):
    """→ (new weight, new first moment m, new second moment v) after step number `step`, counted
    from 1. `gradient`, and `first` and `second`, the moments before this step, have the shape of
    `weight`; betas = (β₁, β₂). The given tensors stay as they are."""
    first = betas[0] * first + (1 - betas[0]) * gradient
    second = betas[1] * second + (1 - betas[1]) * gradient ** 2
    mean, variance = first / (1 - betas[0] ** step), second / (1 - betas[1] ** step)
    return weight - lr * (mean / (variance.sqrt() + eps) + weight_decay * weight), first, second
