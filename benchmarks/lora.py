"""LoRA beside peft on transformers, and beside our own full fine-tune: same weights, same batches,
in turn.

    pip install -r benchmarks/requirements.txt
    python benchmarks/lora.py                           # needs PLAINBERT_WEIGHTS and PLAINBERT_DATA

Rank 8 on query, key, value and attention output; SST batches of 32 in random order; both sides start
from lists of token ids, and train with fused AdamW and the same clipping. peft refuses adapters that
differ within a batch in training, so that side is measured at inference, where it allows them.
"""

import copy
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import peft
import torch
import transformers
from speed import SIZE, Peer, padded, seconds
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
import lora
from bert import Bert, Tokenizer
from lora.files import load, save
from multitask import runs
from multitask.evaluation import load_split
from multitask.sampling import Batches
from multitask.settings import Settings
from multitask.tasks import TASKS

STEPS, WARM = 40, 4
RANK, TARGETS, NAMES = 8, ("query", "key", "value", "output"), ("one", "two", "three")
MODULES = ["query", "key", "value", "attention.output.dense"]           # transformers' names
MIXED = [("one", 11), ("two", 11), ("three", 10)]


def our_batch(split, adapters, indices):
    batch = split.batch(indices)
    return batch._replace(layout=batch.layout.served_by(adapters),
                          first=batch.first.served_by(adapters))


def peers_with_peft(weights, heads):
    """transformers' encoder with three adapters of peft's, the first one active."""
    peer = Peer(weights, heads)
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=MODULES)
    peer.bert = peft.get_peft_model(peer.bert, config, adapter_name=NAMES[0])
    for name in NAMES[1:]:
        peer.bert.add_adapter(name, config)
    peer.bert.set_adapter(NAMES[0])
    return peer


class Side:
    """A model that trains: step(indices) is one training step, infer(indices) one forward."""

    def __init__(self, model, split, make_batch, **options):
        self.model, self.split, self.make_batch, self.options = model, split, make_batch, options
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)

    def step(self, indices):
        self.model.train()
        outputs = self.model("sst", self.make_batch(indices))
        TASKS["sst"].loss(outputs, self.split.labels[indices]).backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.inference_mode()
    def infer(self, indices):
        self.model.eval()
        self.model("sst", self.make_batch(indices))

    def memory(self, indices):
        """Megabytes that gradients and AdamW's state take, after a step."""
        TASKS["sst"].loss(self.model("sst", self.make_batch(indices)),
                          self.split.labels[indices]).backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        states = [v for state in self.optimizer.state.values() for v in state.values()]
        self.optimizer.zero_grad()
        return sum(t.numel() * t.element_size() for t in gradients + states) / 1e6


def in_turn(what, sides, batches, work, unit="examples/s"):
    """Time `work` of every side on the same batches, one after the other → {side: [seconds]}."""
    times = {name: [] for name in sides}
    for indices in batches:
        for name, side in sides.items():
            times[name].append(seconds(getattr(side, work), indices))
    times = {name: values[WARM:] for name, values in times.items()}
    print(f"\n{what}")
    for name, values in times.items():
        print(f"  {name:34} {SIZE / statistics.median(values):7.1f} {unit}")
    return times


def ratio(what, above, below):
    """The median of the ratios of paired times."""
    ratios = [a / b for a, b in zip(above, below)]
    print(f"  {what:34} {statistics.median(ratios):7.2f}×  (median of {len(ratios)} pairs; "
          f"{min(ratios):.2f} to {max(ratios):.2f})")


class PeftMixed(Peer):
    """peft's way of several adapters in one batch: a name for each row."""

    def forward(self, task, batch):
        rows = [name for name, count in MIXED for _ in range(count)]
        hidden = self.bert(**batch, adapter_names=rows).last_hidden_state
        return self.heads[task].out(hidden[:, 0])


def round_trip(bert, tokenizer, weights, texts):
    """Adapters of ours opened by peft, and peft's by us: the largest difference of hidden states."""
    batch, mask = tokenizer(texts), None
    mask = batch["attention_mask"].bool()
    bert = lora.attach(copy.deepcopy(bert), TARGETS, RANK, ("ours",), alpha=16, layernorms=True)
    for parameter in lora.parameters(bert, "ours").values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    differences = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(bert, "ours", folder)
        plain = transformers.BertModel.from_pretrained(weights).eval()
        theirs = peft.PeftModel.from_pretrained(plain, folder).eval()
        differences.append(theirs(**batch).last_hidden_state - bert(**batch).last_hidden_state)
        theirs.save_pretrained(Path(folder) / "theirs")
        again = Bert.from_pretrained(weights)
        load(again, Path(folder) / "theirs", "again")
        lora.activate(again, "again")
        differences.append(theirs(**batch).last_hidden_state - again(**batch).last_hidden_state)
    print("\nadapters with LayerNorms, hidden states of both sides differ by at most\n"
          + "\n".join(f"  {what:34} {d[mask].abs().max():.1e}" for what, d in
                      zip(("ours opened by peft", "peft's opened by us"), differences)))


def main():
    if not {"PLAINBERT_WEIGHTS", "PLAINBERT_DATA"} <= set(os.environ):
        sys.exit("set PLAINBERT_WEIGHTS and PLAINBERT_DATA; README.md says to what")
    weights, data = os.environ["PLAINBERT_WEIGHTS"], Path(os.environ["PLAINBERT_DATA"]) / "cs224n"
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft "
          f"{peft.__version__}, {torch.get_num_threads()} CPU threads, {Path(weights).name}")
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_pretrained(weights)
    settings = Settings(bert=weights, data=str(data), tasks="sst")
    split = load_split("sst", "train", data, tokenizer, settings)
    full = runs.build_model(Bert.from_pretrained(weights), settings)
    ours = copy.deepcopy(full)
    lora.attach(ours.bert, TARGETS, RANK, NAMES)
    theirs = peers_with_peft(weights, copy.deepcopy(full.heads))
    single, mixed = partial(our_batch, split, [("a", SIZE)]), partial(our_batch, split, MIXED)
    order = Batches(len(split), SIZE, seed=0)
    batches = [next(order) for _ in range(STEPS + WARM)]

    sides = {"full fine-tune": Side(full, split, split.batch),
             "LoRA": Side(ours, split, single),
             "LoRA, three adapters in the batch": Side(ours, split, mixed),
             "peft on transformers": Side(theirs, split, partial(padded, split))}
    times = in_turn("training step", sides, batches, "step")
    ratio("LoRA's speed / peft's", times["peft on transformers"], times["LoRA"])
    ratio("LoRA's time / full fine-tune's", times["LoRA"], times["full fine-tune"])
    ratio("mixed batch's time / single's", times["LoRA, three adapters in the batch"],
          times["LoRA"])
    print("\ngradients and optimizer state")
    for name, side in sides.items():
        print(f"  {name:34} {side.memory(batches[0]):7.2f} MB for "
              f"{sum(p.numel() for p in side.trained):,} trained parameters")

    mixing = PeftMixed.__new__(PeftMixed)
    vars(mixing).update(vars(theirs))
    sides = {"LoRA": sides["LoRA"], "LoRA, three adapters": sides["LoRA, three adapters in the batch"],
             "peft": sides["peft on transformers"],
             "peft, three adapters": Side(mixing, split, partial(padded, split))}
    times = in_turn("inference", sides, batches, "infer")
    ratio("our mixed batch's time / single's", times["LoRA, three adapters"], times["LoRA"])
    ratio("peft's mixed batch / single", times["peft, three adapters"], times["peft"])
    ratio("our mixed speed / peft's", times["peft, three adapters"], times["LoRA, three adapters"])
    round_trip(full.bert, tokenizer, weights, ["A dull, dull film .", "the story was never boring"])


if __name__ == "__main__":
    main()
