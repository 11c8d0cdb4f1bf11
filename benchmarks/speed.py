"""Training steps and evaluation beside transformers' BertModel: same weights, same batches, in
turn.

    pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py                          # needs PLAINBERT_WEIGHTS and PLAINBERT_DATA

Both sides start from lists of token ids, and both train with fused AdamW and the same clipping.
transformers pads each batch to its longest sentence and takes the dev files in their own order.
"""

import copy
import os
import statistics
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.side_by_side import Peer, Side, in_turn, padded, ratio, seconds
from bert import Bert, Tokenizer
from multitask.evaluation import load_split, run_split
from multitask.model import build_model
from multitask.schedule import BatchSampler
from multitask.settings import Settings

STEPS, WARM, REPEATS, SIZE = 30, 3, 3, 32
NAMES = ("plainbert", "transformers")
CPU = torch.device("cpu")


@torch.inference_mode()
def evaluate_padded(model, splits):
    model.eval()
    outputs = {}
    for task, split in splits.items():
        starts = range(0, len(split), SIZE)
        chunks = [range(i, min(i + SIZE, len(split))) for i in starts]
        outputs[task] = torch.cat([model(task, padded(split, chunk)) for chunk in chunks])
    return outputs


def evaluate_ours(model, splits):
    return {task: run_split(model, task, split, CPU, nullcontext) for task, split in splits.items()}


def compare_evaluation(ours, peer, splits):
    a, b = evaluate_ours(ours, splits), evaluate_padded(peer, splits)
    difference = max((a[task] - b[task]).abs().max() for task in splits)
    times = ([], [])
    for _ in range(REPEATS):
        times[0].append(seconds(evaluate_ours, ours, splits))
        times[1].append(seconds(evaluate_padded, peer, splits))
    examples = sum(map(len, splits.values()))
    print(f"\nevaluation of all dev files (outputs differ by at most {difference:.1e})")
    for name, values in zip(NAMES, times):
        print(f"  {name:30} {examples / statistics.median(values):7.1f} examples/s")
    ratio("speed of ours / of theirs", times[1], times[0])


def main():
    if not {"PLAINBERT_WEIGHTS", "PLAINBERT_DATA"} <= set(os.environ):
        sys.exit("set PLAINBERT_WEIGHTS and PLAINBERT_DATA; README.md says to what")
    weights, data = os.environ["PLAINBERT_WEIGHTS"], Path(os.environ["PLAINBERT_DATA"]) / "cs224n"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, "
          f"{torch.get_num_threads()} CPU threads, {Path(weights).name}")
    settings = Settings(bert=weights, data=str(data))
    tokenizer = Tokenizer.from_pretrained(weights)
    ours = build_model(Bert.from_pretrained(weights), settings)
    peer = Peer(weights, copy.deepcopy(ours.heads))
    compare_evaluation(ours, peer, {task: load_split(task, "dev", data, tokenizer, settings)
                                    for task in settings.task_names})
    split = load_split("sst", "train", data, tokenizer, settings)
    order, sides = BatchSampler(len(split), SIZE, seed=0), (
        Side(ours, split, split.batch), Side(peer, split, partial(padded, split)))
    times = in_turn("training step, SST batches of 32 in random order", "step",
                    dict(zip(NAMES, sides)), [next(order) for _ in range(STEPS)], WARM)
    ratio("speed of ours / of theirs", times[NAMES[1]], times[NAMES[0]])


if __name__ == "__main__":
    main()
