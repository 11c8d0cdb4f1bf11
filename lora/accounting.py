"""What must be stored: the base once, then for each task only its adapter and head.

    incremental = heads + every adapter          bundled = base + incremental

Counts are of parameters that are stored: of LoRA-XS only R. They need shapes only, so that a model
on torch's meta device will do.
"""

from lora.adapters import detached
from lora.targets import adapter_names, adapter_parameters


def dense(*widths):
    """The numbers of a stack of linear layers with biases: dense(768, 768, 5) is 594,437."""
    return sum((width + 1) * out for width, out in zip(widths, widths[1:]))


def count(bert, heads=0):
    """→ {"base", "heads", "adapters": {name: …}, "incremental", "bundled"}, in parameters. `heads`
    is a module or a number."""
    with detached(bert):
        base = sum(parameter.numel() for parameter in bert.parameters())
    if not isinstance(heads, int):
        heads = sum(parameter.numel() for parameter in heads.parameters())
    adapters = {name: sum(parameter.numel() for parameter in adapter_parameters(bert, name).values())
                for name in adapter_names(bert)}
    incremental = heads + sum(adapters.values())
    return {"base": base, "heads": heads, "adapters": adapters, "incremental": incremental,
            "bundled": base + incremental}


def table(counts, bytes_each=4):
    """The same as lines of text: parameters, bytes (of float32), and the part of the base."""
    rows = {"base": counts["base"], "heads": counts["heads"],
            **{f"adapter {name}": n for name, n in counts["adapters"].items()},
            "incremental": counts["incremental"], "bundled": counts["bundled"]}
    width = max(map(len, rows))
    lines = [f"{'stored':{width}} {'parameters':>12} {'bytes':>14} {'of the base':>12}"]
    lines += [f"{name:{width}} {n:12,} {n * bytes_each:14,} {n / counts['base']:12.2%}"
              for name, n in rows.items()]
    return "\n".join(lines)
