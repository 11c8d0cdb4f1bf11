"""What a saved run's heads, neurons and layers are worth, and a smaller run without some of them.

    python -m pruning importance RUN                     # heat maps layers × heads, and a CSV file
    python -m pruning prune RUN --heads 100 --out RUN2   # keep the 100 most important heads
    python -m pruning prune RUN --layers 4 --out RUN2    # or --neurons 0.7, or --remove 0:3,7
    python -m pruning prune RUN --heads 96 --per-layer --rounds 4 --out RUN2     # 8 in each of 12
    python -m pruning report RUN RUN2                    # scores, size, speed, multiply-adds

Each command has its own --help. The pruned run is a run: python evaluate.py RUN2 opens it, and
python train_multitask.py --from RUN2 trains it further, to recover what was lost.
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
from pruning.gates import GATES, NORMS, normalize, zero_importance
from pruning.heat_maps import csv_rows, draw_heat_maps, in_text
from pruning.measure import measure, of_all_tasks, training_sample
from pruning.removal import (
    check_removable,
    mask_heads,
    remove_heads,
    remove_layers,
    remove_neurons,
)
from pruning.selection import ORDERS, choose, left_after_rounds, parse_budget, parse_heads


def add_measure_flags(parser):
    add_run_flags(parser, "run", "--data", "--device")
    parser.add_argument("--tasks", help="measure on these of the run's tasks (default: all)")
    parser.add_argument("--examples", type=int, default=1000, metavar="N",
                        help="random training examples of each task (default: 1000; 0: all)")
    parser.add_argument("--norm", default="global", choices=NORMS,
                        help="divide importance by the norm of all parts (default), or of the "
                             "parts of each layer")
    parser.add_argument("--seed", type=int, default=0, metavar="N",
                        help="of the examples and of random order")


def check_number(flag, number, least=0):
    if not least <= number < 2 ** 32:
        raise UserError(f"{flag} is {number}; it must be {least} or more, and below 2^32")


def check_measure_flags(args):
    check_number("--examples", args.examples)
    check_number("--seed", args.seed)


def sample(session, args):
    """→ {task: Split} of the training examples that the flags ask for."""
    return training_sample(session.tokenizer, session.settings,
                           chosen_tasks(session.model, args.tasks), args.examples, args.seed)


def add_importance_flags(parser):
    add_measure_flags(parser)
    parser.add_argument("--of", default="heads", choices=GATES, help="default: heads")
    parser.add_argument("--out", metavar="FOLDER", help="of the files (default: RUN/importance)")


def show_importance(args):
    """Measure how much each task's loss depends on every head (or neuron, or layer) of a run."""
    check_measure_flags(args)
    session, part = RunSession(args), args.of.removesuffix("s")
    raw = measure(session.model, sample(session, args), session.settings, session.device, args.of)
    scores = {task: normalize(values, args.norm) for task, values in raw.items()}
    if len(raw) > 1 and SHARED in session.model.encoders:
        scores["sum"] = of_all_tasks(raw, args.norm)
    path = Path(args.out or session.run / "importance") / args.of
    write_csv(path.with_suffix(".csv"), csv_rows(raw, scores, part))
    draw_heat_maps(path.with_suffix(".png"), scores, part)
    if args.of != "neurons":
        last = list(scores)[-1]
        print(f"importance of each {part}, in hundredths ({last})\n{in_text(scores[last], part)}\n")
    print(f"{path}.csv and .png")


def add_prune_flags(parser):
    add_measure_flags(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--heads", metavar="N", help="keep N heads (100), or a fraction (0.7)")
    what.add_argument("--neurons", metavar="N", help="keep N neurons of the feed-forward networks")
    what.add_argument("--layers", metavar="N", help="keep N layers")
    what.add_argument("--remove", action="append", metavar="LAYER:HEAD,HEAD",
                      help="remove these heads, or (LAYER alone) a layer; may be repeated")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the new run")
    parser.add_argument("--order", default="importance", choices=ORDERS,
                        help="keep the most important, random, or (inverse) the least important")
    parser.add_argument("--per-layer", action="store_true",
                        help="keep the same number in every layer")
    parser.add_argument("--rounds", type=int, default=1, metavar="N",
                        help="remove a share in each of N rounds, and measure importance anew in "
                             "each (default: 1)")
    parser.add_argument("--mask", action="store_true", help="switch heads off instead of removing")
    add_run_flags(parser, "--overwrite")


def prune(args):
    """Write a new run without the heads (or neurons, or layers) that matter least."""
    check_measure_flags(args)
    check_number("--rounds", args.rounds, least=1)
    if args.remove and (args.order != "importance" or args.per_layer or args.rounds > 1):
        raise UserError("--remove says what goes; --order, --per-layer and --rounds are for "
                        "--heads, --neurons and --layers")
    folder, scores = RunSession(args).derive(args.out, args.overwrite, partial(remove, args))
    print(f"{score_table(scores)}\n\nrun: {folder}\n"
          f"next: python train_multitask.py --from {folder}, or python evaluate.py {folder}")


def remove(args, session):
    """Remove from the session's encoder what the flags name or choose."""
    bert = session.model.bert
    before = sum(p.numel() for p in bert.parameters())
    kind = next((kind for kind in GATES if getattr(args, kind) is not None), "heads")
    heads, layers = parse_heads(args.remove or (), "remove")
    if args.mask and (layers or kind != "heads"):
        raise UserError("--mask switches heads off; it cannot remove neurons or layers")
    if not args.remove:
        prune_to_budget(args, session, kind)
    if heads:
        remove_parts(bert, "heads", heads, args.mask)
    if layers:
        remove_layers(bert, layers)
    print(f"encoder: {before:,} parameters → {sum(p.numel() for p in bert.parameters()):,}")


def prune_to_budget(args, session, kind):
    """Remove parts in --rounds, each time by importance measured anew, until --heads, --neurons or
    --layers are left. UserError before anything is measured if they cannot be removed."""
    model, scores = session.model, parts_left(session.model.bert, kind, args.mask)
    there, step = count(scores), len(scores) if args.per_layer else 1
    keep = parse_budget(getattr(args, kind), scores.numel(), kind)
    choose(scores, keep, per_layer=args.per_layer)           # nothing to remove: UserError
    if not args.mask:
        check_removable(model.bert, kind)
    splits = {} if args.order == "random" else sample(session, args)
    for left in left_after_rounds(there, keep, args.rounds, step):
        scores = parts_left(model.bert, kind, args.mask)
        if splits:
            raw = measure(model, splits, session.settings, session.device, kind)
            scores += of_all_tasks(raw, args.norm)
        chosen = choose(scores, left, args.order, args.seed, args.per_layer)
        remove_parts(model.bert, kind, chosen, args.mask)
        left = count(parts_left(model.bert, kind, args.mask))
        print(f"{left:,} of {there:,} {kind} are left")


def parts_left(bert, kind, mask):
    """[layers, parts]: 0, or NaN where a part is gone; with `mask`, or switched off."""
    scores = zero_importance(bert.config, kind)
    for layer, heads in bert.config.masked_heads.items() if mask else ():
        scores[layer, heads] = torch.nan
    return scores


def count(scores):
    return int((~scores.isnan()).sum())


def remove_parts(bert, kind, parts, mask):
    """Remove {layer: [part]}; with `mask`, switch these heads off."""
    if kind == "layers":
        remove_layers(bert, list(parts))
    else:
        cut = remove_neurons if kind == "neurons" else mask_heads if mask else remove_heads
        cut(bert, parts)


COMMANDS = {"importance": (show_importance, add_importance_flags),
            "prune": (prune, add_prune_flags), "report": (report.report, report.add_flags)}


def main(arguments=None):
    return run_command("pruning", __doc__, COMMANDS, arguments)


if __name__ == "__main__":
    run_script(main)
