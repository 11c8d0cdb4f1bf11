"""A small Bert whose edits show."""

import pytest
import torch

from bert import Bert
from bert.matrices import MATRICES


@pytest.fixture
def bert(checkpoint):
    bert = Bert.from_pretrained(checkpoint)
    with torch.no_grad():
        for layer in bert.layers:
            for name in MATRICES.values():
                layer.get_submodule(name).weight.mul_(20)
    return bert
