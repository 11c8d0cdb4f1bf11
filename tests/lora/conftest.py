import pytest
import torch
from lora_models import ALL, SMALL, perturb

import lora
from bert import Bert, BertConfig


@pytest.fixture
def bert():
    torch.manual_seed(0)
    return Bert(BertConfig(**SMALL)).eval()


@pytest.fixture
def adapted(bert):
    """A Bert with two adapters of different matrices and ranks, one with LayerNorms."""
    lora.attach(bert, ALL, 4, ("a",), alpha=8, layernorms=True)
    lora.attach(bert, rank={(0, "query"): 2, (2, "fc_out"): 3}, adapters=("b",))
    return perturb(bert, "a", "b")
