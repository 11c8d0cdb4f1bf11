"""Score against cost: rules, τ and sources of norms on a run with experts."""

import json
import time
from pathlib import Path

import torch

from bert import UserError
from bert.files import write_json
from common.cli import add_run_flags
from common.flags import parse_numbers
from common.log import progress_bar
from common.plots import draw_curves
from common.tables import text_table, write_csv
from experts.binding import cost
from experts.layers import expert_layers, select_experts
from experts.rules import RULES, Selection
from multitask.evaluation import evaluate, model_fingerprint
from multitask.metrics import main_scores
from multitask.session import RunSession

TAUS = "0.3,0.5,0.6,0.7,0.8,0.85,0.9,0.95,0.98,0.99,0.999,1"


def add_flags(parser):
    add_run_flags(parser, "run", "--data", "--limit", "--device", "--precision")
    parser.add_argument("--out", metavar="FOLDER", help="of the results (default: RUN/experts)")
    parser.add_argument("--taus", default=TAUS, help="of the rules max and cumulative (default: "
                                                     "%(default)s)")
    parser.add_argument("--norms", default="router,oracle,random",
                        help="sources of the experts' norms (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=2, metavar="N",
                        help="passes over dev, of which the fastest counts (default: %(default)s)")


def selections(args, experts):
    """→ [Selection]: each source of norms with each rule. The random source has top-k alone."""
    taus = parse_numbers("--taus", args.taus, lambda tau: 0 <= tau <= 1, "numbers from 0 to 1")
    counts = sorted({max(1, round(experts * part / 16)) for part in (1, 2, 3, 4, 5, 6, 8, 10, 12,
                                                                     16)})
    found = []
    for norms in args.norms.split(","):
        for rule in RULES if norms != "random" else ("top-k",):
            found += [Selection(rule, tau, norms) for tau in (counts if rule == "top-k" else taus)]
    return found


def measure(session, selection, passes=2):
    """→ a row of the table: the scores, the shares of multiply-adds, milliseconds for all of dev by
    the fastest of `passes`; of true norms no time, because computing them takes more than it
    saves."""
    seconds = []
    for _ in range(passes):
        torch.manual_seed(0)                                 # of random norms
        select_experts(session.model.bert, selection)
        began = time.perf_counter()
        scores, _ = evaluate(session.model, session.splits, session.device, session.autocast)
        seconds.append(time.perf_counter() - began)
    row = {"norms": selection.norms, "rule": selection.rule, "tau": selection.tau,
           **cost(session.model, session.splits), "ms": 1000 * min(seconds), **main_scores(scores)}
    select_experts(session.model.bert, None)
    return row


def curve(args):
    """Score a run with experts at many τ, by each rule, and draw scores against multiply-adds (all
    and the feed-forward networks') and against measured milliseconds. Writes curve.csv and
    curve.png to RUN/experts, or --out. A stopped command resumes when it is called again."""
    if args.passes < 1:
        raise UserError(f"--passes is {args.passes}; it must be 1 or more")
    session = RunSession(args)
    chosen = selections(args, expert_layers(session.model.bert)[0].experts)
    folder = Path(args.out or session.run / "experts")
    path = folder / "curve.json"
    fingerprint = model_fingerprint(session.model, session.first_splits, session.precision)
    found = json.loads(path.read_text()) if path.is_file() else {}
    known = found["rows"] if found.get("fingerprint") == fingerprint else {}
    with progress_bar("curve", len(chosen), "setting", leave=False) as bar:
        for selection in chosen:
            key = f"{selection.norms} {selection.rule} {selection.tau:g}"
            if key not in known:
                known[key] = measure(session, selection, args.passes)
                write_json(path, {"fingerprint": fingerprint, "rows": known})
            bar.update()
    rows = [known[f"{s.norms} {s.rule} {s.tau:g}"] for s in chosen]
    write_csv(folder / "curve.csv", rows)
    draw(rows, folder / "curve.png")
    print(f"{table(rows)}\n\nffn and model: multiply-adds, routers included, as shares of all "
          f"experts'\n{folder}/: curve.csv, curve.png")


def score_name(row):
    """The score that a picture shows: the overall score, or the mean."""
    return "overall" if "overall" in row else "mean"


def table(rows):
    names = [name for name in rows[0] if name not in ("norms", "rule", "tau", "ffn", "model", "ms")]
    return text_table([["norms", "rule", "tau", "ffn", "model", "ms", *names], *(
        [row["norms"], row["rule"], f"{row['tau']:g}", f"{row['ffn']:.3f}", f"{row['model']:.3f}",
         f"{row['ms']:.0f}", *(f"{row[name]:.4f}" for name in names)] for row in rows)], left=2)


def draw(rows, path):
    panels = []
    for what, title in (("ffn", "multiply-adds of the feed-forward networks"),
                        ("model", "multiply-adds of the encoder"), ("ms", "milliseconds for dev")):
        curves = {}
        for row in rows:
            if what != "ms" or row["norms"] == "router":
                curves.setdefault(f"{row['norms']}, {row['rule']}", []).append(
                    (row[what], row[score_name(row)]))
        panels.append((f"{score_name(rows[0])} by {title}",
                       {name: sorted(points) for name, points in curves.items()}))
    draw_curves(panels, path, xlabel="cost")
