"""Multiply-adds of leaving after each layer, from pruning's count of a layer."""

import torch

from early_exit.leaving import task_exits
from pruning.cost import layer_cost, matrix_cost


def exit_costs(model, task, lengths):
    """lengths [segments, B] in tokens → multiply-adds of each example [M + 1, B] if it leaves after
    layer 0, 1, … (the last: not at all), exits included; and [B] of the model without exits."""
    bert, exits, adapter = model.encoder(task), task_exits(model, task), model.adapters.get(task)
    ones, pooled_rows = torch.ones_like(lengths), None if model.poolings[task].all_rows else True
    pooler = matrix_cost(bert.pooler) * len(lengths) if model.pooling_name == "pooler" else 0
    plain, found = 0, []

    def cost(number, queries):
        return layer_cost(bert, number, lengths, queries, adapter).sum(dim=0)

    for number, _, rows in bert.walk(pooled_rows):
        plain = plain + cost(number, lengths if rows is None else ones)
        found.append(plain + exits.multiply_adds(min(number, len(exits) - 1)))
    found[-1] = found[-1] + pooler
    return torch.stack(found), plain + pooler


def cost_of(early_exit, model):
    """What a pass with exits cost → {"multiply_adds": their share of the whole model's, "left":
    {task: the share of its examples that leave after layer 0, 1, …}}; tasks without exits are
    left out."""
    done = whole = 0
    shares = {}
    for task, batches in early_exit.left.items():
        counts = torch.zeros(len(task_exits(model, task)) + 1)
        for lengths, left in batches:
            costs, plain = exit_costs(model, task, lengths.cpu())
            done += int(costs.gather(0, left.cpu()[None]).sum())
            whole += int(plain.sum())
            counts += torch.bincount(left.cpu(), minlength=len(counts))
        shares[task] = (counts / counts.sum()).tolist()
    return {"multiply_adds": done / whole if whole else 1.0, "left": shares}
