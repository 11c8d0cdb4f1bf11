"""LASER's sweep beside evaluating every edited model whole, and a factored model beside its dense
one.

    pip install -r benchmarks/requirements.txt
    python benchmarks/laser.py RUN                 # a saved run: --pairs joint, linear heads on CLS
    python benchmarks/laser.py RUN --limit 200     # with the first rows of the dev files only

The time of the sweep includes decompositions and files. Of the evaluations of whole models (ours,
and the padded ones of transformers) every ninth is run, and the time of all is extrapolated.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.side_by_side import Peer, evaluate_padded
from laser import Intervention, apply
from laser.interventions import format_stack
from laser.output_cache import OutputCache
from laser.sweep import KEEPS, grid, parse_layers
from multitask.evaluation import run_split
from multitask.session import RunSession
from multitask.tasks import TASKS

CPU, EVERY, REPEATS, KEEP = torch.device("cpu"), 9, 5, 0.3


def timed(function, *arguments):
    began = time.perf_counter()
    found = function(*arguments)
    return found, time.perf_counter() - began


def evaluate_whole(model, splits):
    return {task: run_split(model, task, split, CPU, nullcontext) for task, split in splits.items()}


def margin(task, outputs):
    """[n] how far each example's outputs are from another prediction; 0 where all are graded."""
    if TASKS[task].is_regression:
        return torch.zeros(len(outputs))
    if outputs.size(1) == 1:
        return outputs.abs().squeeze(1)
    first, second = outputs.topk(2, dim=1).values.T
    return first - second


def compare(outputs, stack, whole):
    """→ the largest difference of outputs; fails where a clear prediction differs."""
    worst = 0.0
    for task, expected in whole.items():
        found = outputs.tables[task][outputs.rows[format_stack(stack)]]
        difference, clear = float((found - expected).abs().max()), margin(task, expected) > 2e-4
        predict = TASKS[task].predict
        assert torch.equal(predict(found)[clear], predict(expected)[clear])
        worst = max(worst, difference)
    return worst


def compare_sweep(session):
    model, splits = session.model, session.first_splits
    layers = parse_layers("upper", len(model.bert.layers))
    stacks = [(i,) for i in grid(model.bert, layers, ("fc_in", "fc_out"), KEEPS)]
    evaluate_whole(model, splits)                            # warm
    with tempfile.TemporaryDirectory() as folder:
        outputs = OutputCache(session, Path(folder) / "outputs.safetensors")
        _, sweep = timed(outputs.add, stacks)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20
    ours, worst = [], 0.0
    for stack in stacks[EVERY // 2::EVERY]:
        undo = apply(model.bert, stack)
        whole, seconds = timed(evaluate_whole, model, splits)
        undo()
        ours.append(seconds)
        worst = max(worst, compare(outputs, stack, whole))
    peer = Peer(session.run / "model", model.heads)
    padded = [timed(evaluate_padded, peer, splits)[1] for _ in range(2)]
    whole, padded = (statistics.mean(times) * len(stacks) for times in (ours, padded))
    print(f"{len(stacks)} interventions on layers {layers}, {sum(map(len, splits.values())):,} dev "
          f"examples\n  sweep            {sweep:8.1f} s\n"
          f"  whole, ours      {whole:8.1f} s   {whole / sweep:5.1f}×  (mean of {len(ours)})\n"
          f"  whole, padded    {padded:8.1f} s   {padded / sweep:5.1f}×  (transformers)\n"
          f"  outputs differ by at most {worst:.1e}; predictions agree wherever the margin is "
          f"above 2e-4\n  peak memory of the process {memory:.2f} GiB")


def compare_factored(model, splits):
    def parameters():
        return sum(p.numel() for p in model.bert.parameters())

    stack = [Intervention(layer, matrix, KEEP) for layer in range(len(model.bert.layers))
             for matrix in ("fc_in", "fc_out")]
    times, sizes = ([], []), []
    undo = apply(model.bert, stack)
    sizes.append(parameters())
    undo()
    for _ in range(REPEATS):
        for factored, seconds in zip((False, True), times):
            undo = apply(model.bert, stack, factored)
            if factored:
                sizes[1:] = [parameters()]
            seconds.append(timed(evaluate_whole, model, splits)[1])
            undo()
    ratios = [a / b for a, b in zip(*times)]
    print(f"keep {KEEP} on every FFN matrix\n"
          f"  dense     {sizes[0]:12,} parameters  {statistics.median(times[0]):6.2f} s\n"
          f"  factored  {sizes[1]:12,} parameters  {statistics.median(times[1]):6.2f} s   "
          f"{statistics.median(ratios):.2f}×  (median of {REPEATS} pairs; {min(ratios):.2f} to "
          f"{max(ratios):.2f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--limit", type=int, default=0)
    parser.set_defaults(device="cpu", precision="fp32")
    args = parser.parse_args()
    session = RunSession(args)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, fp32, {args.run}")
    compare_sweep(session)
    compare_factored(session.model, session.first_splits)


if __name__ == "__main__":
    main()
