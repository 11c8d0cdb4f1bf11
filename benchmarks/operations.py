"""How many operations a GPU is given for one forward pass in training, counted without a GPU (and
beside transformers' BertModel). Times they are not: a GPU that is given small ones waits for the
CPU, so fewer are faster there; with large batches their size counts.

    pip install -r benchmarks/requirements.txt
    python benchmarks/operations.py                          # needs a build of torch with CUDA

32 sequences of 8 to 44 tokens in bert-base's shape; the last layer of plainbert computes [CLS]
alone. Views are not counted, and scaled_dot_product_attention counts as one operation.
"""

import sys
from pathlib import Path

import torch
from transformers import BertConfig as PeerConfig
from transformers import BertModel

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent))
from fake_cuda import Operations, fake_gpu, move

import lora
from bert import Bert, BertConfig, Layout
from common.cli import Parser, run_script
from common.tables import text_table
from multitask.data import Batch
from multitask.methods import settings_class

SHAPE = {"vocab_size": 6000, "hidden_size": 768, "num_hidden_layers": 12,
         "num_attention_heads": 12, "intermediate_size": 3072}
ADAPTERS = [("a", 10), ("b", 11), ("c", 11)]                 # how many sequences each serves
TARGETS = settings_class().lora_targets.split(",")           # the default of --lora-targets
GPU = torch.device("cuda")


def example_batch():
    """→ a Batch on the CPU"""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 45, (32,), generator=generator)
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    layout = Layout(mask)
    return Batch(mask, torch.zeros_like(mask), layout, layout.cls_rows(), None)


def ours(bert, batch):
    hidden, layout = bert.embed(batch.input_ids, batch.layout, batch.token_type_ids)
    return bert.encode(hidden, layout, output_rows=batch.cls_rows)


def peer(model, batch):
    return model(batch.input_ids, batch.layout.mask.long(), batch.token_type_ids)


def count(forward, model, batch, bf16):
    with torch.autocast("cuda", torch.bfloat16, bf16), Operations() as operations:
        forward(model, batch)
    return str(operations.count)


def main():
    Parser(description=__doc__).parse_args()
    if not torch.backends.cuda.is_built():
        sys.exit("this torch is built without CUDA; use a build with it (no GPU is needed)")
    batch, adapted = example_batch(), Bert(BertConfig(**SHAPE))
    lora.attach(adapted, TARGETS, 8, [name for name, _ in ADAPTERS])
    sides = {"transformers": (peer, BertModel(PeerConfig(**SHAPE, attn_implementation="sdpa"),
                                              add_pooling_layer=False), batch),
             "plainbert": (ours, Bert(BertConfig(**SHAPE)), batch),
             "plainbert, three LoRA adapters in the batch": (
                 ours, adapted, batch.with_adapters(ADAPTERS))}
    rows = [["operations of a forward pass", "fp32", "bf16"]]
    with fake_gpu():
        for name, (forward, model, of_side) in sides.items():
            move(model.train())
            of_side = of_side.to(GPU)
            rows.append([name] + [count(forward, model, of_side, bf16) for bf16 in (False, True)])
    print(f"torch {torch.__version__}\n\n{text_table(rows)}")


if __name__ == "__main__":
    run_script(main)
