"""Zero Time Waste beside its parts and plain exits at equal cost, and NetCut's depth beside β and
the same depth trained directly, for given runs of one classification task each.

    python benchmarks/early_exit.py runs/sst-1 runs/sst-2 runs/rte-1 --out runs/early_exit
    python benchmarks/early_exit.py runs/sst-1 --parts exits,speed       # without NetCut
    python benchmarks/early_exit.py runs/sst-1 --parts netcut --betas 0,0.1 --epochs 1

Writes a JSON file for each measurement, and table.md, to --out. What is there already is not
measured again, and a stopped training goes on, so other --epochs need another --out. Runs whose
names differ only behind the last "-" (seeds) are averaged.

exits    thresholds are chosen on one half of dev and scored on the other, in 10 random halvings
speed    processor time and wall time of `python -m early_exit curve`, Zero Time Waste alone
netcut   NetCut from the run for each β (its last step), and the run's lowest layers trained for as
         many epochs (the best of them)
"""

import json
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from bert import UserError  # noqa: E402
from bert.files import write_json  # noqa: E402
from common import flags  # noqa: E402
from common.cli import Parser, StopSignal, UserStop, run_script  # noqa: E402
from common.flags import parse_numbers  # noqa: E402
from common.tables import markdown_table  # noqa: E402
from early_exit import curve  # noqa: E402
from early_exit.exits import METHODS  # noqa: E402
from multitask.metrics import main_scores  # noqa: E402
from multitask.runs import read_fields, read_scores, read_settings  # noqa: E402
from multitask.session import RunSession  # noqa: E402
from multitask.settings import Settings  # noqa: E402
from multitask.tasks import TASKS  # noqa: E402

HALVINGS = 10
KINDS = {method: ("--method", method) for method in METHODS} | {         # each one's flags
    "ztw-cls": ("--method", "ztw", "--reads", "cls")}
SAME = ("data", "tasks", "limit", "strict_rows", "pairs", "pooling", "head", "head_dropout",
        "batch_size", "head_lr", "precision", "optimizer", "warmup", "weight_decay", "clip")


def command(*words):
    """Run a command; Ctrl-C lets it save what it has."""
    with StopSignal():
        code = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT).returncode
    if code == 130:
        raise UserStop("stopped; the same command goes on")
    if code:
        raise UserError(f"python {' '.join(map(str, words))} failed; what was done is kept")


def is_complete(folder):
    """Whether a run was trained to its end and its scores were written, the last of its files."""
    return (folder / "metrics.json").is_file() and read_fields(folder)["complete"]


def check(runs):
    """UserError unless these are runs of one classification task each, of different names."""
    for run in runs:
        tasks = read_settings(run)[1].task_names
        if len(tasks) > 1 or TASKS[tasks[0]].is_regression:
            raise UserError(f"{run} has the tasks {', '.join(tasks)}; take runs of one "
                            f"classification each (--tasks sst)")
    if len({run.name for run in runs}) < len(runs):
        raise UserError("two runs have the same name, and results are kept by name")


def exits_run(run, method, out):
    """The run with exits of this method, unless it is there → its folder."""
    folder = out / f"{run.name}-{method}"
    if not is_complete(folder):
        command("-m", "early_exit", "train", run.resolve(), *KINDS[method], "--out",
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
    everything = torch.arange(len(measured.split))
    for seed in range(HALVINGS):
        half = curve.halves(len(measured.split), seed)
        at_loss = curve.at_loss(measured, curve.LOSS, *half)
        found.append([*(curve.at_budget(measured, budget, *half).score
                        for budget in curve.BUDGETS),
                      at_loss.cost, at_loss.score - measured.full_score(half[1])])
    *budgets, cost, change = torch.tensor(found).mean(dim=0).tolist()
    write_json(path, {"budgets": budgets, "mean": sum(budgets) / len(budgets), "cost": cost,
                      "change": change,
                      "exits": [measured.score(log_q, everything) for log_q in measured.log_q],
                      "whole": measured.full_score(everything)})


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
                "--out", folder, "--overwrite")
    alpha = read_fields(folder)["edits"][-1]["netcut"]["alpha"]
    depth = alpha.index(max(alpha)) + 1
    direct = train_depth(run, depth, len(alpha), epochs, out)
    scores = [main_scores(read_scores(place))["mean"] for place in (folder, direct)]
    write_json(path, {"depth": depth, "alpha": max(alpha), "score": scores[0],
                      "direct": scores[1]})


def train_depth(run, depth, layers, epochs, out):
    """Train the lowest layers of the run, unless they are, as NetCut trains all of them → folder"""
    folder = (out / f"{run.name}-depth-{depth}").resolve()
    if is_complete(folder):
        return folder
    if (folder / "last").is_dir():                           # it was stopped
        command("train_multitask.py", "--resume", folder)
        return folder
    start = run.resolve()
    if depth < layers:
        start = folder.with_name(folder.name + "-start")
        gone = [word for n in range(depth, layers) for word in ("--remove", n)]
        command("-m", "pruning", "prune", run.resolve(), *gone, "--out", start, "--overwrite")
    settings = read_settings(run)[1]
    same = Settings(**{name: getattr(settings, name) for name in SAME}, from_run=str(start),
                    epochs=round(epochs) or 1, out=str(folder), overwrite=True)
    command("train_multitask.py", *shlex.split(flags.command(same)))
    return folder


def averaged(out, runs, part):
    """{task's name: [fields of all its runs' JSON files]} of one part, where it was measured"""
    found = {}
    for run in runs:
        path = out / f"{run.name}-{part}.json"
        if path.is_file():
            name = run.name.rpartition("-")[0] or run.name
            found.setdefault(name, []).append(json.loads(path.read_text()))
    return found


def mean(values):
    return sum(values) / len(values)


def tables(out, runs, betas):
    """→ what was measured so far, as Markdown"""
    exits = [["", "", *(f"{budget:.0%}" for budget in curve.BUDGETS), "mean", "whole model",
              "cost at a loss ≤ 0.01", "score there", "each exit alone", "runs"]]
    for method in KINDS:
        for name, found in averaged(out, runs, method).items():
            numbers = [mean(column) for column in zip(*(f["budgets"] for f in found))]
            exits.append([name, f"`{method}`", *(f"{n:.3f}" for n in (*numbers, mean(numbers))),
                          f"{mean([f['whole'] for f in found]):.3f}",
                          f"{mean([f['cost'] for f in found]):.0%}",
                          f"{mean([f['change'] for f in found]):+.3f}",
                          " ".join(f"{mean(column):.3f}" for column in
                                   zip(*(f.get("exits", []) for f in found))), str(len(found))])
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
    check(args.runs)
    args.out.mkdir(parents=True, exist_ok=True)
    for run in args.runs:
        for method in KINDS if "exits" in args.parts else ():
            measure_exits(run, method, args.out)
        if "speed" in args.parts:
            measure_speed(run, args.out)
        for beta in betas if "netcut" in args.parts else ():
            measure_netcut(run, beta, args.epochs, args.out)
        (args.out / "table.md").write_text(tables(args.out, args.runs, betas), encoding="utf-8")
    print((args.out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_script(main)
