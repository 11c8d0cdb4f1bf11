"""Zero Time Waste beside its parts and plain exits at equal cost, and NetCut's depth beside β and
the same depth trained directly, for given runs of one classification task each.

    python benchmarks/early_exit.py runs/sst-1 runs/sst-2 runs/rte-1 --out runs/early_exit
    python benchmarks/early_exit.py runs/sst-1 --parts exits,speed       # without NetCut
    python benchmarks/early_exit.py runs/sst-1 --parts netcut --betas 0,0.1 --epochs 1

Writes a JSON file for each measurement, and table.md, to --out. What is there already is not
measured again, and a stopped training goes on. Runs whose names differ only behind the last "-"
(seeds) are averaged.

exits    thresholds are chosen on one half of dev and scored on the other, in 10 random halvings
speed    processor time and wall time of `python -m early_exit curve`, Zero Time Waste alone
netcut   NetCut from the run for each β, and the run's lowest layers trained for as many epochs
"""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from bert.files import write_json  # noqa: E402
from common.cli import Parser, run_script  # noqa: E402
from common.flags import parse_numbers  # noqa: E402
from common.tables import markdown_table  # noqa: E402
from early_exit import curve  # noqa: E402
from early_exit.exits import METHODS  # noqa: E402
from multitask.metrics import main_scores  # noqa: E402
from multitask.runs import read_fields, read_scores  # noqa: E402
from multitask.session import RunSession  # noqa: E402

HALVINGS = 10


def command(*words):
    subprocess.run([sys.executable, *map(str, words)], check=True, cwd=ROOT)


def is_complete(folder):
    return (folder / "run.json").is_file() and read_fields(folder)["complete"]


def exits_run(run, method, out):
    """The run with exits of this method, unless it is there → its folder."""
    folder = out / f"{run.name}-{method}"
    if not is_complete(folder):
        command("-m", "early_exit", "train", run.resolve(), "--method", method, "--out",
                folder.resolve(), "--overwrite")
    return folder


def measure_exits(run, method, out):
    """Scores at the budgets, and cost and change of the score at a loss of up to 0.01: means."""
    path = out / f"{run.name}-{method}.json"
    if path.is_file():
        return
    session = RunSession(Namespace(run=exits_run(run, method, out), device="auto"))
    (task,) = session.model.heads
    measured, found = curve.Measured(session, task), []
    for seed in range(HALVINGS):
        half = curve.halves(len(measured.split), seed)
        at_loss = curve.at_loss(measured, curve.LOSS, *half)
        found.append([*(curve.at_budget(measured, budget, *half).score
                        for budget in curve.BUDGETS),
                      at_loss.cost, at_loss.score - measured.full_score(half[1])])
    *budgets, cost, change = torch.tensor(found).mean(dim=0).tolist()
    write_json(path, {"budgets": budgets, "mean": sum(budgets) / len(budgets), "cost": cost,
                      "change": change,
                      "whole": measured.full_score(torch.arange(len(measured.split)))})


def measure_speed(run, out):
    path = out / f"{run.name}-speed.json"
    if path.is_file():
        return
    session = RunSession(Namespace(run=exits_run(run, "ztw", out), device="auto"))
    _, rows = curve.measure_task(session, next(iter(session.model.heads)), repeats=5, seed=0)
    write_json(path, {"threads": torch.get_num_threads(), "rows": rows})


def measure_netcut(run, beta, epochs, out):
    """Depth, largest α and score of NetCut, and the score of that depth trained directly."""
    path = out / f"{run.name}-netcut-{beta:g}.json"
    if path.is_file():
        return
    folder = (out / path.stem).resolve()
    if not is_complete(folder):
        command("-m", "early_exit", "netcut", run.resolve(), "--beta", beta, "--epochs", epochs,
                "--out", folder)
    alpha = read_fields(folder)["edits"][-1]["netcut"]["alpha"]
    depth = alpha.index(max(alpha)) + 1
    direct = (out / f"{run.name}-depth-{depth}").resolve()
    if not is_complete(direct):
        start = run.resolve()
        if depth < len(alpha):
            start = direct.with_name(direct.name + "-start")
            gone = [word for n in range(depth, len(alpha)) for word in ("--remove", n)]
            command("-m", "pruning", "prune", run.resolve(), *gone, "--out", start, "--overwrite")
        settings = read_fields(run)["settings"]
        same = ["--data", settings["data"], "--tasks", settings["tasks"], "--precision",
                settings["precision"], "--head-lr", settings["head_lr"], "--pooling",
                settings["pooling"], "--batch-size", settings["batch_size"]]
        resume = ["--resume", direct] if (direct / "run.json").is_file() else [
            "--from", start, "--epochs", round(epochs) or 1, "--out", direct, *same]
        command("train_multitask.py", *resume)
    scores = [main_scores(read_scores(place))["mean"] for place in (folder, direct)]
    write_json(path, {"depth": depth, "alpha": max(alpha), "score": scores[0],
                      "direct": scores[1]})


def averaged(out, runs, part):
    """{task's name: [fields of all its runs' JSON files]} of one part, where it was measured"""
    found = {}
    for run in runs:
        path = out / f"{run.name}-{part}.json"
        if path.is_file():
            found.setdefault(run.name.rpartition("-")[0], []).append(json.loads(path.read_text()))
    return found


def mean(values):
    return sum(values) / len(values)


def tables(out, runs, betas):
    """→ what was measured so far, as Markdown"""
    exits = [["", "", *(f"{budget:.0%}" for budget in curve.BUDGETS), "mean", "whole model",
              "cost at a loss ≤ 0.01", "score there", "runs"]]
    for method in METHODS:
        for name, found in averaged(out, runs, method).items():
            numbers = [mean(column) for column in zip(*(f["budgets"] for f in found))]
            exits.append([name, f"`{method}`", *(f"{n:.3f}" for n in (*numbers, mean(numbers))),
                          f"{mean([f['whole'] for f in found]):.3f}",
                          f"{mean([f['cost'] for f in found]):.0%}",
                          f"{mean([f['change'] for f in found]):+.3f}", str(len(found))])
    speed = [["", "threshold", "multiply-adds", "score", "time, share of the whole model's"]]
    for name, found in averaged(out, runs, "speed").items():
        for rows in zip(*(f["rows"] for f in found)):
            speed.append([name, rows[0]["what"], f"{mean([r['multiply_adds'] for r in rows]):.0%}",
                          f"{mean([r['score'] for r in rows]):.3f}",
                          f"{mean([r['share'] for r in rows]):.2f}"])
    netcut = [["", "β", "layers left", "largest α", "score", "same depth trained directly",
               "runs"]]
    for beta in betas:
        for name, found in averaged(out, runs, f"netcut-{beta:g}").items():
            netcut.append([name, f"{beta:g}", *(f"{mean([f[key] for f in found]):.3g}"
                                                for key in ("depth", "alpha", "score", "direct")),
                           str(len(found))])
    return "\n".join(markdown_table(rows) for rows in (exits, speed, netcut) if len(rows) > 1)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/early_exit"))
    parser.add_argument("--parts", default="exits,speed,netcut")
    parser.add_argument("--betas", default="0,0.001,0.01,0.1")
    parser.add_argument("--epochs", type=float, default=1, help="of NetCut (default: 1)")
    args = parser.parse_args()
    betas = parse_numbers("--betas", args.betas, lambda beta: beta >= 0, "numbers, as in 0,0.1")
    args.out.mkdir(parents=True, exist_ok=True)
    for run in args.runs:
        for method in METHODS if "exits" in args.parts else ():
            measure_exits(run, method, args.out)
        if "speed" in args.parts:
            measure_speed(run, args.out)
        for beta in betas if "netcut" in args.parts else ():
            measure_netcut(run, beta, args.epochs, args.out)
        (args.out / "table.md").write_text(tables(args.out, args.runs, betas), encoding="utf-8")
    print((args.out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_script(main)
