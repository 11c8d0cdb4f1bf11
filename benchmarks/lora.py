"""LoRA compared with peft on transformers, and with a full fine-tune here: same weights, same
batches, in turn.

    pip install -r benchmarks/requirements.txt
    python benchmarks/lora.py                           # needs PLAINBERT_WEIGHTS and PLAINBERT_DATA

Rank 8 on query, key, value and attention output; SST batches of 32 in random order. Both start
from lists of token ids, and train with fused AdamW and the same clipping. peft trains no batch with
several adapters, so only inference is compared for those.
"""

import copy
import os
import sys
import tempfile
from pathlib import Path

import peft
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent))
import lora
from benchmarks.side_by_side import (
    Peer,
    PeerSide,
    Side,
    in_turn,
    padded,
    quiet_transformers,
    ratio,
)
from bert import Bert, Tokenizer
from common.cli import Parser, run_script
from multitask.evaluation import load_split
from multitask.model import build_model
from multitask.schedule import BatchSampler
from multitask.settings import Settings

SIZE, STEPS, WARM, RANK = 32, 40, 4, 8
TARGETS = ("query", "key", "value", "attention_output")
PEFT_TARGETS = ["query", "key", "value", "attention.output.dense"]
MIXED = [("one", 11), ("two", 11), ("three", 10)]            # (adapter, sequences) of a batch
NAMES = [name for name, _ in MIXED]
LORA, MIX, FULL, PEFT = "LoRA", "LoRA, three in the batch", "full fine-tune", "peft"
PEFT_MIX = "peft, three in the batch"


def megabytes(side, indices):
    """The memory of gradients and AdamW's state, in MB."""
    side.backward(indices)
    tensors = [p.grad for p in side.model.parameters() if p.grad is not None]
    tensors += [v for state in side.optimizer.state.values() for v in state.values()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
    side.optimizer.zero_grad()
    return size


def sides_of(weights, split, full):
    """{name: Side}"""
    one, three = copy.deepcopy(full), copy.deepcopy(full)
    lora.attach(one.bert, TARGETS, RANK, NAMES[:1])
    lora.attach(three.bert, TARGETS, RANK, NAMES)
    peer, config = Peer(weights, copy.deepcopy(full.heads)), peft.LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=PEFT_TARGETS)
    peer.bert = peft.get_peft_model(peer.bert, config, adapter_name=NAMES[0])
    for name in NAMES[1:]:
        peer.bert.add_adapter(name, config)
    peer.bert.set_adapter(NAMES[0])
    rows = [name for name, count in MIXED for _ in range(count)]
    return {FULL: Side(full, split),
            LORA: Side(one, split),
            MIX: Side(three, split, lambda indices: split.batch(indices).with_adapters(MIXED)),
            PEFT: PeerSide(peer, split),
            PEFT_MIX: PeerSide(peer, split, lambda indices: {**padded(split, indices),
                                                             "adapter_names": rows})}


def round_trip(bert, tokenizer, weights):
    """Print the largest difference between hidden states: of an adapter written here and opened in
    peft, and of the one that peft wrote then and that is opened here."""
    batch = tokenizer(["A dull, dull film .", "the story was never boring , and the end is good"])
    bert = lora.attach(copy.deepcopy(bert), TARGETS, RANK, ("one",), alpha=16, layernorms=True)
    for parameter in lora.adapter_parameters(bert.eval(), "one").values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        lora.save(bert, "one", folder)
        theirs = peft.PeftModel.from_pretrained(transformers.BertModel.from_pretrained(weights),
                                                folder).eval()
        theirs.save_pretrained(Path(folder, "theirs"))
        again = Bert.from_pretrained(weights)
        lora.load(again, Path(folder, "theirs"))
    print("\none adapter with LayerNorms: saved here, opened and saved in peft, opened here")
    for what, model in (("peft - before", bert), ("peft - opened again", again)):
        with torch.no_grad():
            difference = theirs(**batch).last_hidden_state - model(**batch).last_hidden_state
        print(f"  {what:30} {difference[batch['attention_mask'].bool()].abs().max():.1e}")


def main():
    Parser(description=__doc__).parse_args()
    if not {"PLAINBERT_WEIGHTS", "PLAINBERT_DATA"} <= set(os.environ):
        sys.exit("set PLAINBERT_WEIGHTS and PLAINBERT_DATA; README.md says to what")
    weights, data = os.environ["PLAINBERT_WEIGHTS"], Path(os.environ["PLAINBERT_DATA"]) / "cs224n"
    quiet_transformers()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft "
          f"{peft.__version__}, {torch.get_num_threads()} CPU threads, {Path(weights).name}")
    torch.manual_seed(0)
    tokenizer, settings = Tokenizer.from_pretrained(weights), Settings(tasks="sst")
    split = load_split("sst", "train", data, tokenizer, settings)
    full = build_model(Bert.from_pretrained(weights), settings)
    round_trip(full.bert, tokenizer, weights)

    sides, order = sides_of(weights, split, full), BatchSampler(len(split), SIZE, seed=0)
    batches = [next(order) for _ in range(WARM + STEPS)]
    training = {name: side for name, side in sides.items() if name != PEFT_MIX}
    times = in_turn("training step", "step", training, batches, WARM)
    ratio("speed of LoRA / of peft", times[PEFT], times[LORA])
    ratio("time of LoRA / of the full", times[LORA], times[FULL])
    ratio("time of three / of one", times[MIX], times[LORA])
    print("\ngradients and optimizer state")
    for name, side in training.items():
        print(f"  {name:30} {megabytes(side, batches[0]):7.2f} MB, "
              f"{sum(p.numel() for p in side.trained):,} numbers train")
    inferring = {name: side for name, side in sides.items() if name != FULL}
    times = in_turn("inference", "infer", inferring, batches, WARM)
    ratio("time of three / of one", times[MIX], times[LORA])
    ratio("peft's of three / of one", times[PEFT_MIX], times[PEFT])
    ratio("speed of three / peft's", times[PEFT_MIX], times[MIX])


if __name__ == "__main__":
    run_script(main)
