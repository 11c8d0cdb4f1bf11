"""What pretraining gave the tiny checkpoint: the same model with random weights beside it.

    python benchmarks/tiny.py                            # needs PLAINBERT_DATA; takes 15 minutes
    python benchmarks/tiny.py --sample                   # the default run on data/; 4 minutes

One epoch on the real course data, the better pair mode of each, three seeds; and how well hidden
tokens of the dev files, of which pretraining saw nothing, are guessed.
"""

import json
import os
import statistics
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import train_multitask
from bert import Bert, Tokenizer
from bert.checkpoint import pretraining_heads
from multitask.course import read_course_file
from multitask.tasks import TASKS
from pretraining.__main__ import HeldOut, load_head
from pretraining.corpus import Corpus
from pretraining.masking import MaskedLM, Masking

DATA = Path(os.environ.get("PLAINBERT_DATA", ".")) / "cs224n"
SEEDS = (0, 1, 2)
MODES = {"joint": (), "separate, cosine": ("--pairs", "separate", "--head", "sts=cosine")}


def random_checkpoint(folder, seed):
    """The tiny checkpoint's configuration and vocabulary, with the weights training starts from."""
    torch.manual_seed(seed)
    Bert(Bert.from_pretrained("tiny").config).save_pretrained(folder)
    Tokenizer.from_pretrained("tiny").save_pretrained(folder)
    return folder


def one_epoch(checkpoint, mode, seed, out):
    """→ metrics.json of a run"""
    train_multitask.main(["--bert", str(checkpoint), "--data", str(DATA), "--epochs", "1",
                          "--lr", "3e-4", "--seed", str(seed), "--out", str(out), *MODES[mode]])
    return json.loads((out / "metrics.json").read_text())


def masked_accuracy():
    """→ accuracy at hidden tokens of the dev files' texts, and of always guessing the commonest."""
    lines = list(dict.fromkeys(text for task in ("sst", "para", "sts") for example in
                               read_course_file(DATA / TASKS[task].files["dev"], TASKS[task])
                               for text in example.texts))
    tokenizer, model = Tokenizer.from_pretrained("tiny"), MaskedLM(Bert.from_pretrained("tiny"))
    load_head(model.head, pretraining_heads("tiny"), "tiny")
    text, numbers = Corpus(tokenizer, lines, 128), torch.arange(len(lines))
    held_out = HeldOut(text, numbers, numbers, Masking(tokenizer))
    scores = held_out.scores(model, None, torch.device("cpu"), nullcontext)
    return scores["masked_accuracy"], scores["commonest_token_accuracy"]


def sample():
    """The default run, and the same from random weights."""
    with tempfile.TemporaryDirectory() as folder:
        random = random_checkpoint(Path(folder) / "start", 0)
        for kind, more, seeds in (("pretrained", [], SEEDS), ("random", ["--bert", random], (0,))):
            for seed in seeds:
                out = Path(folder) / f"{kind}-{seed}"
                train_multitask.main([*map(str, more), "--seed", str(seed), "--out", str(out)])
                scores = json.loads((out / "metrics.json").read_text())
                main = [scores["sst"]["accuracy"], scores["para"]["accuracy"],
                        scores["sts"]["pearson"]]
                print(f"| {kind} | {seed} | " + " | ".join(f"{s:.3f}" for s in main))


def main():
    if sys.argv[1:] == ["--sample"]:
        return sample()
    right, commonest = masked_accuracy()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for kind in ("pretrained", "random"):
            for seed in SEEDS:
                start = random_checkpoint(folder / f"r{seed}", seed) if kind == "random" else "tiny"
                modes = sorted(MODES, key=lambda mode: -rows[kind, mode][0]["overall"]
                               if (kind, mode) in rows else 0)
                for mode in modes if seed == SEEDS[0] else modes[:1]:
                    out = folder / f"{kind}-{mode}-{seed}"
                    rows.setdefault((kind, mode), []).append(one_epoch(start, mode, seed, out))
    print(f"\nhidden tokens of the dev files: {right:.3f} right; commonest token {commonest:.3f}")
    print("\n| weights | pairs | seeds | sst | para | sts | overall |\n" + "|---" * 7 + "|")
    for (kind, mode), scores in rows.items():
        values = [[s["sst"]["accuracy"], s["para"]["accuracy"], s["sts"]["pearson"], s["overall"]]
                  for s in scores]
        means = " | ".join(f"{statistics.mean(column):.3f}" for column in zip(*values))
        print(f"| {kind} | {mode} | {len(scores)} | {means} |")


if __name__ == "__main__":
    main()
