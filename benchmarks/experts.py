"""Experts on fine-tuned runs: what sparse activations cost in accuracy and save in multiply-adds,
by rule and router, and when skipping experts saves time.

    python benchmarks/experts.py runs/sst-1 runs/sst-2 runs/rte-1 --out runs/experts
    python benchmarks/experts.py --speed

For each run: python -m experts relu, split (for each of --experts) and curve, in folders of --out.
Parts that are finished are not repeated, and a stopped part goes on. Runs whose names differ only
in the number at the end are seeds of one row. Prints the tables of docs/experts.md and writes
results.json. --speed measures one layer alone: batch × experts × share.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bert import Bert, BertConfig  # noqa: E402
from bert.files import write_json  # noqa: E402
from common.cli import Parser, run_script  # noqa: E402
from common.tables import markdown_table  # noqa: E402
from experts.layers import masked, skipping  # noqa: E402
from experts.split import insert_experts  # noqa: E402
from multitask.metrics import main_scores  # noqa: E402
from multitask.runs import read_scores  # noqa: E402

POINT, TOLERANCE = 0.01, 0.003         # "within 1 point"; of comparisons at equal multiply-adds
COSTS = (0.3, 0.4, 0.5)                # shares of the FFN's multiply-adds that are compared


def command(*words):
    subprocess.run([sys.executable, *map(str, words)], check=True, cwd=ROOT)


def finished(folder):
    path = folder / "run.json"
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["complete"]


def measure(run, args):
    """→ {"gelu": score, "relu": score, experts: [row of the curve]} of one run."""
    folder = args.out.resolve() / run.name
    relu, found = folder / "relu", {}
    if not finished(relu):
        command("-m", "experts", "relu", run.resolve(), "--out", relu, *args.relu.split())
    for experts in args.experts:
        sparse = folder / f"experts-{experts}"
        if not finished(sparse):
            again = ["--overwrite"] if (sparse / "run.json").is_file() else []
            command("-m", "experts", "split", relu, "--out", sparse, "--experts", experts,
                    "--precision", "fp32", *again)
        command("-m", "experts", "curve", sparse, *args.curve.split())
        rows = json.loads((sparse / "experts" / "curve.json").read_text(encoding="utf-8"))["rows"]
        found[experts] = list(rows.values())
    return {"gelu": main_score(run), "relu": main_score(relu), "curves": found}


def main_score(folder):
    return main_scores(read_scores(folder))["mean"]


def score_at(rows, cost):
    """The score at this share of the FFN's multiply-adds, between the two nearest points of a
    curve; NaN outside the curve."""
    points = sorted((row["ffn"], row["mean"]) for row in rows)
    for (low, before), (high, after) in zip(points, points[1:]):
        if low <= cost <= high:
            return before + (after - before) * (cost - low) / max(high - low, 1e-12)
    return float("nan")


def of(rows, norms, rule):
    return [row for row in rows if row["norms"] == norms and row["rule"] == rule]


def averages(results, experts):
    """The rows of the curve that all seeds have, each the mean over the seeds."""
    curves = [{(row["norms"], row["rule"], row["tau"]): row for row in result["curves"][experts]}
              for result in results]
    shared = [key for key in curves[0] if all(key in curve for curve in curves)]
    return [curves[0][key] | {what: mean(curve[key][what] for curve in curves)
                              for what in ("ffn", "model", "ms", "mean")} for key in shared]


def cheapest(rows, goal):
    """The row of the fewest multiply-adds whose score is not below `goal`; None if none is."""
    good = [row for row in rows if row["mean"] >= goal]
    return min(good, key=lambda row: row["ffn"]) if good else None


def report(results, args):
    """Print two tables over {run: result}: the cheapest τ within a point, and equal costs."""
    groups = {}
    for name, result in results.items():
        groups.setdefault(re.sub(r"-\d+$", "", name), []).append(result)
    header = ["task", "seeds", "experts", "GELU", "ReLU, all experts", "rule, τ", "score", "FFN",
              "model"]
    first = [header]
    second = [["task", "experts", "FFN", "max", "cumulative", "top-k", "oracle, max", "random"]]
    for task, group in groups.items():
        gelu, relu = (mean(result[name] for result in group) for name in ("gelu", "relu"))
        for experts in args.experts:
            rows = averages(group, experts)
            best = cheapest(of(rows, "router", "max") + of(rows, "router", "cumulative"),
                            gelu - POINT)
            chosen = ["–"] * 4 if best is None else [
                f"{best['rule']}, {best['tau']:g}", f"{best['mean']:.3f}", f"{best['ffn']:.1%}",
                f"{best['model']:.1%}"]
            first.append([task, str(len(group)), str(experts), f"{gelu:.3f}", f"{relu:.3f}",
                          *chosen])
            for cost in COSTS:
                second.append([task, str(experts), f"{cost:.0%}", *(
                    f"{score_at(of(rows, norms, rule), cost):.3f}" for norms, rule in
                    (("router", "max"), ("router", "cumulative"), ("router", "top-k"),
                     ("oracle", "max"), ("random", "top-k")))])
    print(f"\n{markdown_table(first)}\n{markdown_table(second)}")
    return {"within a point": first, "at equal multiply-adds": second}


# ------------------------------------------------------------------------------- one layer's speed


def seconds(functions, repeats):
    """The least processor time of each function, called in turn."""
    times = [[] for _ in functions]
    for _ in range(repeats):
        for function, found in zip(functions, times):
            began = time.process_time()
            function()
            found.append(time.process_time() - began)
    return [min(found) for found in times]


@torch.inference_mode()
def speed(repeats):
    """Time of a dense layer, divided by the time of the same layer with router, rule and skipping
    (and with masking), for random tokens and random choices of experts."""
    table = [["hidden", "experts", "share run", *(f"{n:,} tokens" for n in (64, 256, 1024, 4096))]]
    for hidden in (384, 768):
        for experts in (8, 16, 32, 64):
            bert = Bert(BertConfig(vocab_size=10, hidden_size=hidden, num_hidden_layers=1,
                                   intermediate_size=4 * hidden, hidden_act="relu"))
            insert_experts(bert, experts, 72 if hidden == 384 else 144)
            for share in (0.1, 0.25, 0.5):
                table.append([str(hidden), str(experts), f"{share:.0%}", *(
                    ratios(bert.layers[0].ffn, tokens, share, repeats)
                    for tokens in (64, 256, 1024, 4096))])
                print(table[-1], flush=True)
    print(f"\n{torch.get_num_threads()} CPU threads; dense ÷ skipping (dense ÷ masking)\n\n"
          f"{markdown_table(table)}")


def ratios(ffn, tokens, share, repeats):
    hidden = torch.randn(tokens, ffn.fc_in.in_features)
    order = torch.rand(tokens, ffn.experts)
    count = max(1, round(share * ffn.experts))
    mask = torch.zeros_like(order).scatter(1, order.topk(count, dim=1).indices, 1).bool()

    def chosen(run):
        norms = ffn.router(hidden)
        (norms >= 0.1 * norms.amax(dim=1, keepdim=True)).sum().item()    # what a rule costs
        return run(ffn, hidden, mask)

    dense, skip, mask_all = seconds([lambda: ffn(hidden, None), lambda: chosen(skipping),
                                     lambda: chosen(masked)], repeats)
    return f"{dense / skip:.2f} ({dense / mask_all:.2f})"


def main(arguments=None):
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="fine-tuned runs (GELU)")
    parser.add_argument("--out", type=Path, default=Path("runs/experts"))
    parser.add_argument("--experts", default="64", help="numbers of experts (default: %(default)s)")
    parser.add_argument("--relu", default="", help="more flags of python -m experts relu")
    parser.add_argument("--curve", default="--passes 1", help="flags of python -m experts curve")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args(arguments)
    if args.speed:
        return speed(args.repeats)
    args.experts = [int(number) for number in args.experts.split(",")]
    results = {}
    for run in args.runs:
        results[run.name] = measure(run, args)
        write_json(args.out / "results.json", results | {"tables": report(results, args)})


if __name__ == "__main__":
    run_script(main)
