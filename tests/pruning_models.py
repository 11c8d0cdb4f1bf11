"""What the tests of pruning share: a small Bert, its outputs, head masks, batches and a loss."""

import torch
from parity import tiny_batch

from bert import Bert, BertConfig, Layout
from multitask.data import Batch

SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 20, "initializer_range": 0.3}


def small_bert():
    torch.manual_seed(0)
    bert = Bert(BertConfig(**SMALL)).eval()
    for name, parameter in bert.named_parameters():
        if name.endswith("bias"):                            # zeros would hide a removal
            torch.nn.init.normal_(parameter, std=0.3)
    return bert


def out(bert, **more):
    result = bert(**tiny_batch(), **more)
    return torch.cat([result.last_hidden_state.flatten(), result.pooler_output.flatten()])


def mask_without(heads, layers=3):
    mask = torch.ones(layers, 4)
    for layer, off in heads.items():
        mask[layer, list(off)] = 0
    return mask


def same(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def batches_of(sizes, dtype=torch.float32):
    """Batches of these sizes, cut out of 12 ragged sequences with labels."""
    generator = torch.Generator().manual_seed(2)
    mask = torch.arange(9) < torch.randint(1, 10, (12, 1), generator=generator)
    ids = torch.randint(1, 60, mask.shape, generator=generator) * mask
    labels = torch.rand(12, generator=generator).to(dtype)
    for part in torch.arange(12).split(sizes):
        layout = Layout(mask[part])
        yield Batch(ids[part], torch.zeros_like(ids[part]), layout, layout.cls_rows(), labels[part])


def losses(bert, batch, head_mask=None):
    """[B] one loss an example, which reads every token."""
    hidden, layout = bert.embed(batch.input_ids, batch.layout, batch.token_type_ids)
    states = layout.pad(bert.encode(hidden, layout, head_mask))          # [B, T, H]
    return (states.sin().sum(dim=(1, 2)) - batch.labels) ** 2
