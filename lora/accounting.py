"""How many parameters must be stored: the base once, and for each task only its adapter and head.

    incremental = heads + all adapters          bundled = base + incremental

LoRA-XS stores only R. Counting needs shapes alone: a model on torch's meta device will do.
"""

from lora.adapters import detached
from lora.targets import adapter_names, adapter_parameters


def count(bert, heads=0):
    """→ {"base", "heads", "adapters": {name: …}, "incremental", "bundled"}, in parameters. `heads`:
    the number of parameters outside the encoder."""
    with detached(bert):
        base = sum(parameter.numel() for parameter in bert.parameters())
    adapters = {name: sum(parameter.numel() for parameter in adapter_parameters(bert, name).values())
                for name in adapter_names(bert)}
    incremental = heads + sum(adapters.values())
    return {"base": base, "heads": heads, "adapters": adapters, "incremental": incremental,
            "bundled": base + incremental}
