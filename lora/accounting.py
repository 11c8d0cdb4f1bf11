"""Count the parameters to store: the base once, and for each task only its adapter and head.

    incremental = heads + all adapters          bundled = base + incremental
"""

from lora.adapters import adapter_names, adapter_parameters, detached


def count(bert, heads=0):
    """→ {"base", "heads", "adapters": {name: …}, "incremental", "bundled"}, in parameters; LoRA-XS
    stores only R. `heads`: the number of parameters outside the encoder. The model may be
    on torch's meta device."""
    with detached(bert):
        base = sum(parameter.numel() for parameter in bert.parameters())
    sizes = {name: sum(parameter.numel() for parameter in adapter_parameters(bert, name).values())
             for name in adapter_names(bert)}
    incremental = heads + sum(sizes.values())
    return {"base": base, "heads": heads, "adapters": sizes, "incremental": incremental,
            "bundled": base + incremental}
