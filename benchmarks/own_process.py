"""Memory, measured in a process of its own (called by benchmarks/speed.py). Prints JSON.

    python benchmarks/own_process.py steps ours          # MiB after loading, peak of five steps
    python benchmarks/own_process.py steps transformers
    python benchmarks/own_process.py flat 2000           # MiB after each tenth of so many steps

PLAINBERT_WEIGHTS and PLAINBERT_DATA: see README.md. Linux only, because it reads /proc.
"""

import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.bench import batches  # noqa: E402
from benchmarks.side_by_side import Peer, PeerSide, Side  # noqa: E402
from bert import Bert, Tokenizer  # noqa: E402
from multitask.evaluation import load_split  # noqa: E402
from multitask.model import build_head, build_model  # noqa: E402
from multitask.settings import Settings  # noqa: E402

STEPS, SIZE, SAMPLES = 5, 32, 10


def status(field):
    """MiB of a field of /proc/self/status: VmRSS, or VmHWM, its peak. Unlike ru_maxrss, which a
    process inherits from the one that starts it, they are of this program alone."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", text)[1]) / 1024


def side_of(kind, weights, data):
    """→ the Side or PeerSide of these weights, on SST's training sentences"""
    settings = Settings(bert=str(weights), data=str(data), tasks="sst")
    tokenizer = Tokenizer.from_pretrained(weights)
    split = load_split("sst", "train", data, tokenizer, settings)
    if kind == "ours":
        return Side(build_model(Bert.from_pretrained(weights), settings), split), split
    width = json.loads((Path(weights) / "config.json").read_text())["hidden_size"]
    head = build_head("sst", "linear", width, "joint", 0.0)
    return PeerSide(Peer(weights, {"sst": head}), split), split


def steps(kind):
    """→ [MiB after loading, at the peak of STEPS training steps]"""
    side, split = side_of(kind, os.environ["PLAINBERT_WEIGHTS"],
                          Path(os.environ["PLAINBERT_DATA"]) / "cs224n")
    loaded, order = status("VmRSS"), batches(split, SIZE)
    for _ in range(STEPS):
        side.step(next(order))
    return [loaded, status("VmHWM")]


def flat(count):
    """→ [MiB after each tenth of `count` steps of the tiny model, batches of 8]"""
    side, split = side_of("ours", "tiny", ROOT / "data")
    order, found = batches(split, 8), []
    for step in range(1, count + 1):
        side.step(next(order))
        if step % (count // SAMPLES) == 0:
            found.append(status("VmRSS"))
    return found


if __name__ == "__main__":
    what, argument = sys.argv[1:]
    print(json.dumps(steps(argument) if what == "steps" else flat(int(argument))))
