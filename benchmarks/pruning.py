"""Does removing heads save the time it should? bert-base's shape (or MiniLM's) with 44 and with 72
of 144 heads gone beside the whole encoder, and Prune-LoRA (30 % gone, adapters of rank 8 and 4,
LayerNorms train) beside our full fine-tune and beside the same by hand on transformers and peft.

    pip install -r benchmarks/requirements.txt
    python benchmarks/pruning.py                 # needs PLAINBERT_WEIGHTS (its vocabulary) and
    python benchmarks/pruning.py --shape minilm  # PLAINBERT_DATA (its cs224n/)

Weights are random, because their values change no time. The removed heads are drawn at random. A
saving is as large as it should be when its share of time is at least 0.6 of its share of
multiply-adds.
"""

import copy
import os
import sys
from pathlib import Path

import peft
import torch
import transformers
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
import lora
from benchmarks.side_by_side import Peer, PeerSide, Side, in_turn, ratio
from bert import Bert, BertConfig, Tokenizer
from common.cli import Parser, run_script
from multitask.evaluation import load_split
from multitask.model import MultitaskModel, build_head
from multitask.schedule import BatchSampler
from multitask.settings import Settings
from pruning import choose, multiply_adds, remove_heads

SHAPES = {"base": {}, "minilm": {"hidden_size": 384, "num_hidden_layers": 6,
                                 "intermediate_size": 1536}}
FEW, MANY = "44 of 144 heads gone", "72 of 144 heads gone"
FULL, ADAPTED, PRUNED, BY_HAND = "whole", "LoRA", "Prune-LoRA", "Prune-LoRA on peft"
TARGETS = ("query", "key", "value", "attention_output")
WARM = 1


def heads_to_go(bert, fraction):
    """{layer: [head]} at random"""
    scores = torch.zeros(len(bert.layers), bert.config.num_attention_heads)
    return choose(scores, scores.numel() - round(fraction * scores.numel()), "random")


def without(model, fraction):
    model = copy.deepcopy(model)
    remove_heads(model.bert, heads_to_go(model.bert, fraction))
    return model


def adapt(model):
    """Rank 8 in a third of the layers, else 4, and LayerNorms."""
    layers = range(len(model.bert.layers))
    lora.attach(model.bert, rank={(n, target): 8 if n < len(layers) / 3 else 4
                                  for n in layers for target in TARGETS}, layernorms=True)
    return model


def by_hand(full):
    """The same as adapt(without(full, 44/144)) on transformers and peft."""
    config = full.bert.config
    bert = transformers.BertModel(transformers.BertConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers, intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads, attn_implementation="sdpa"),
        add_pooling_layer=False)
    size = config.hidden_size // config.num_attention_heads
    for number, gone in heads_to_go(full.bert, 44 / 144).items():
        attention = bert.encoder.layer[number].attention
        rows = [head * size + i for head in range(config.num_attention_heads) if head not in gone
                for i in range(size)]
        for matrix in (attention.self.query, attention.self.key, attention.self.value):
            matrix.weight, matrix.bias = (nn.Parameter(x.data[rows]) for x in
                                          (matrix.weight, matrix.bias))
            matrix.out_features = len(rows)
        output = attention.output.dense
        output.weight = nn.Parameter(output.weight.data[:, rows].contiguous())
        output.in_features = len(rows)
    high = {rf"encoder\.layer\.{n}\.attention\..*": 8
            for n in range(config.num_hidden_layers) if n < config.num_hidden_layers / 3}
    return Peer(peft.get_peft_model(bert, peft.LoraConfig(
        r=4, lora_alpha=4, rank_pattern=high, alpha_pattern=high, modules_to_save=["LayerNorm"],
        target_modules=["query", "key", "value", "attention.output.dense"])),
        copy.deepcopy(full.heads))


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--size", type=int, default=32, help="sentences in a batch")
    args = parser.parse_args()
    if not {"PLAINBERT_WEIGHTS", "PLAINBERT_DATA"} <= set(os.environ):
        sys.exit("set PLAINBERT_WEIGHTS and PLAINBERT_DATA; README.md says to what")
    data = Path(os.environ["PLAINBERT_DATA"]) / "cs224n"
    tokenizer = Tokenizer.from_pretrained(os.environ["PLAINBERT_WEIGHTS"])
    split = load_split("sst", "train", data, tokenizer, Settings(), 100 * args.size)
    order = BatchSampler(len(split), args.size, seed=0)
    batches = [next(order) for _ in range(args.pairs + WARM)]
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft "
          f"{peft.__version__}, {torch.get_num_threads()} CPU threads, {args.shape} shape, batches "
          f"of {args.size} SST sentences")
    config = BertConfig(**SHAPES[args.shape])
    head = build_head("sst", "linear", config.hidden_size, "joint", 0.0)
    full = MultitaskModel({"shared": Bert(config)}, {"sst": head})
    models = {FULL: full, FEW: without(full, 44 / 144), MANY: without(full, 72 / 144)}
    training = models | {ADAPTED: adapt(copy.deepcopy(full)),
                         PRUNED: adapt(without(full, 44 / 144))}
    training = {name: Side(model, split) for name, model in training.items()}
    training[BY_HAND] = PeerSide(by_hand(full), split)
    for name in (PRUNED, BY_HAND):
        print(f"{name}: {sum(p.numel() for p in training[name].trained):,} numbers train")

    lengths = [len(ids) for ids in split.segments[0][0]]
    work = {name: multiply_adds(model.bert, lengths, torch.ones(len(lengths), dtype=torch.long))
            for name, model in models.items()}
    for what, kind in (("inference", "infer"), ("training step", "step")):
        sides = training if kind == "step" else {name: training[name] for name in models}
        times = in_turn(what, kind, sides, batches, WARM)
        for name in (FEW, MANY):
            less = 1 - work[name] / work[FULL]
            share = ratio(f"time of {name} / of whole", times[name], times[FULL])
            print(f"    {less:.1%} fewer multiply-adds, {1 - share:.1%} less time: "
                  f"{(1 - share) / less:.2f} of that share")
    ratio("time of Prune-LoRA / of the full", times[PRUNED], times[FULL])
    ratio("time of LoRA / of the full", times[ADAPTED], times[FULL])
    ratio("speed of Prune-LoRA / peft's", times[BY_HAND], times[PRUNED])


if __name__ == "__main__":
    run_script(main)
