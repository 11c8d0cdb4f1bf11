"""What the tests of adapters share: a small Bert's shape, a ragged batch, and hidden states."""

import torch

import lora
from bert import Layout
from bert.matrices import MATRICES

SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 20, "initializer_range": 0.3}
ALL = tuple(MATRICES)
MASK = (torch.arange(9) < torch.tensor([3, 9, 5, 1, 7, 2])[:, None]).long()
IDS = torch.randint(1, 60, MASK.shape, generator=torch.Generator().manual_seed(1)) * MASK


def perturb(bert, *names):
    """Change these adapters as training does: B and R are not zero, LayerNorms not pretrained."""
    for name in names:
        for parameter in lora.adapter_parameters(bert, name).values():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return bert


def states(bert, name="active", ids=IDS, mask=MASK):
    """Last hidden states; all sequences are served by this adapter, or by the active one."""
    if name != "active":
        mask = Layout(mask).with_adapters([(name, len(ids))])
    return bert(ids, mask).last_hidden_state


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)
