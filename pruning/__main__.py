"""Measure how much a saved run's heads, neurons and layers matter, and make a smaller run.

    python -m pruning importance RUN                     # heat maps layers × heads, and a CSV file
    python -m pruning prune RUN --heads 100 --out RUN2   # keep the 100 most important heads
    python -m pruning prune RUN --layers 4 --out RUN2    # or --neurons 0.7, or --remove 0:3,7
    python -m pruning report RUN RUN2                    # scores, size, speed, multiply-adds

Each command has its own --help. python evaluate.py RUN2 opens the pruned run, and
python train_multitask.py --from RUN2 trains it further, to recover the lost score.
"""

from functools import partial
from pathlib import Path

import torch

from bert import UserError
from common.cli import add_run_flags, run_command, run_script
from common.tables import write_csv
from multitask.model import chosen_tasks
from multitask.report import score_table
from multitask.session import RunSession
from multitask.settings import SHARED
from pruning import report
from pruning.gates import GATES, normalize, zero_importance
from pruning.heat_maps import csv_rows, draw_heat_maps, in_text
from pruning.measure import measure, of_all_tasks
from pruning.removal import mask_heads, remove_heads, remove_layers, remove_neurons
from pruning.selection import ORDERS, choose, parse_budget, parse_heads


def add_measure_flags(parser):
    add_run_flags(parser, "run", "--data", "--device")
    parser.add_argument("--tasks", help="measure on these of the run's tasks (default: all)")
    parser.add_argument("--examples", type=int, default=1000, metavar="N",
                        help="random training examples of each task (default: 1000; 0: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N",
                        help="seed of the choice of examples, and of --order random")


def measure_session(session, args, kind):
    """{task: raw importance} of the session's model, on the examples that the flags select."""
    if min(args.examples, args.seed) < 0:
        raise UserError(f"--examples {args.examples} --seed {args.seed}: give 0 or more of both")
    session.model.requires_grad_(False)                      # only gates need gradients
    return measure(session.model, session.tokenizer, session.settings,
                   chosen_tasks(session.model, args.tasks), session.device, kind, args.examples,
                   args.seed)


def add_importance_flags(parser):
    add_measure_flags(parser)
    parser.add_argument("--of", default="heads", choices=GATES, help="default: heads")
    parser.add_argument("--out", metavar="FOLDER", help="for the files (default: RUN/importance)")


def show_importance(args):
    """Measure how much each task's loss depends on every head (or neuron, or layer) of a run."""
    session, part = RunSession(args), args.of.removesuffix("s")
    raw = measure_session(session, args, args.of)
    scores = {task: normalize(values) for task, values in raw.items()}
    if len(raw) > 1 and SHARED in session.model.encoders:
        scores["sum"] = of_all_tasks(raw)
    path = Path(args.out or session.run / "importance") / args.of
    write_csv(path.with_suffix(".csv"), csv_rows(raw, scores, part))
    draw_heat_maps(path.with_suffix(".png"), scores, part)
    if args.of != "neurons":
        last = list(scores)[-1]
        print(f"importance of each {part}, in hundredths ({last})\n{in_text(scores[last])}\n")
    print(f"{path}.csv and .png")


def add_prune_flags(parser):
    add_measure_flags(parser)
    parts = parser.add_mutually_exclusive_group(required=True)
    parts.add_argument("--heads", metavar="N", help="keep N heads (100), or a fraction (0.7)")
    parts.add_argument("--neurons", metavar="N", help="keep N feed-forward neurons")
    parts.add_argument("--layers", metavar="N", help="keep N layers")
    parts.add_argument("--remove", action="append", metavar="LAYER:HEAD,HEAD",
                       help="remove these heads, or (LAYER alone) a layer; may be repeated")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the new run")
    parser.add_argument("--order", default="importance", choices=ORDERS,
                        help="keep the most important, random or (inverse) the least important")
    parser.add_argument("--mask", action="store_true", help="switch heads off instead of removing")
    add_run_flags(parser, "--overwrite")


def prune(args):
    """Write a new run without the heads (or neurons, or layers) that matter least."""
    if args.remove and args.order != "importance":
        raise UserError("--remove says what goes; --order is for --heads, --neurons and --layers")
    folder, scores = RunSession(args).derive(args.out, args.overwrite, partial(remove, args))
    print(f"{score_table(scores)}\n\nrun: {folder}\n"
          f"next: python train_multitask.py --from {folder}, or python evaluate.py {folder}")


def remove(args, session):
    """Remove the parts that the flags name, or choose parts by --order."""
    bert = session.model.bert
    before = sum(p.numel() for p in bert.parameters())
    kind = next((kind for kind in GATES if getattr(args, kind) is not None), "heads")
    parts, layers = parse_heads(args.remove or (), "remove")
    if args.mask and (layers or kind != "heads"):
        raise UserError("--mask switches heads off; it cannot remove neurons or layers")
    if not args.remove:
        parts = choose_parts(session, args, kind)
    if kind == "layers":
        parts, layers = {}, list(parts)
    if parts:
        change = remove_neurons if kind == "neurons" else mask_heads if args.mask else remove_heads
        change(bert, parts)
    if layers:
        remove_layers(bert, layers)
    print(f"encoder: {before:,} parameters → {sum(p.numel() for p in bert.parameters()):,}")


def choose_parts(session, args, kind):
    """{layer: [part]} to remove, by importance and the budget of --heads, --neurons or --layers."""
    config = session.model.bert.config
    scores = zero_importance(config, kind)
    keep = parse_budget(getattr(args, kind), scores.numel(), kind)
    for layer, heads in config.masked_heads.items() if args.mask else ():
        scores[layer, heads] = torch.nan
    choose(scores, keep)                                     # UserError if nothing to remove
    if args.order != "random":
        scores += of_all_tasks(measure_session(session, args, kind))
    return choose(scores, keep, args.order, args.seed)


COMMANDS = {"importance": (show_importance, add_importance_flags),
            "prune": (prune, add_prune_flags), "report": (report.report, report.add_flags)}


def main(arguments=None):
    return run_command("pruning", __doc__, COMMANDS, arguments)


if __name__ == "__main__":
    run_script(main)
