"""What a saved run's heads, neurons and layers are worth, and a smaller run without some of them.

    python -m pruning importance RUN                     # heat maps layers × heads, and a CSV file
    python -m pruning prune RUN --heads 100 --out RUN2   # keep the 100 most important heads
    python -m pruning prune RUN --layers 4 --out RUN2    # or --neurons 0.7, or --remove 0:3,7
    python -m pruning prune RUN --heads 96 --per-layer --rounds 4 --out RUN2     # 8 in each of 12
    python -m pruning report RUN RUN2                    # scores, size, speed, multiply-adds

Each command has its own --help. The pruned run is a run: python evaluate.py RUN2 opens it, and
python train_multitask.py --from RUN2 trains it further, to recover what was lost."""

from functools import partial

import torch

from bert import UserError
from common.cli import add_run_flags, quoted, run_command, run_script
from common.tables import rows_table, write_csv
from multitask.model import chosen_tasks
from multitask.session import RunSession
from multitask.settings import SHARED
from pruning import removal, report
from pruning.gates import GATES, NORMS, normalize, zero_importance
from pruning.measure import draw_heat_maps, measure, of_all_tasks, training_sample
from pruning.selection import ORDERS, choose, left_after_rounds, parse_budget, parse_heads

REMOVE = {"heads": removal.remove_heads, "neurons": removal.remove_neurons,
          "layers": removal.remove_layers}


def add_measure_flags(parser):
    add_run_flags(parser, "run", "--data", "--device")
    parser.add_argument("--tasks", help="measure on these of the run's tasks (default: all)")
    parser.add_argument("--examples", type=int, default=1000, metavar="N",
                        help="random training examples of each task (default: 1000; 0: all)")
    parser.add_argument("--norm", default="global", choices=NORMS,
                        help="divide importance by the norm of all parts (default) or of a layer's")
    parser.add_argument("--seed", type=int, default=0, help="of the examples and of random order")


def check_numbers(args):
    for name, minimum in {"examples": 0, "seed": 0, "rounds": 1}.items():
        number = getattr(args, name, minimum)
        if not minimum <= number < 2 ** 32:
            raise UserError(f"--{name} is {number}; it must be {minimum} or more, and below 2^32")


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
    check_numbers(args)
    session, part = RunSession(args), args.of.removesuffix("s")
    raw = measure(session.model, sample(session, args), session.settings, session.device, args.of)
    scores = {task: normalize(values, args.norm) for task, values in raw.items()}
    if len(raw) > 1 and SHARED in session.model.encoders:
        scores["sum"] = of_all_tasks(raw, args.norm)
    rows = [{"task": task, "layer": layer, part: layer if part == "layer" else number,
             "raw": f"{raw[task][layer, number]:.9g}" if task in raw else "",    # not of the sum
             "importance": f"{value:.9g}"}
            for task, values in scores.items() for layer, row in enumerate(values.tolist())
            for number, value in enumerate(row) if value == value]           # no NaN: it is gone
    with session.results(args.out, "importance") as folder:
        write_csv(folder / f"{args.of}.csv", rows)
        draw_heat_maps(scores, folder / f"{args.of}.png", part)
    if args.of != "neurons":
        last = list(scores)[-1]
        print(f"importance of each {part}, in hundredths ({last})\n" + rows_table([
            {rf"layer \ {part}": layer} | {
                str(number): f"{100 * value:.0f}".replace("nan", ".")
                for number, value in enumerate(row)}
            for layer, row in enumerate(scores[last].tolist())], left=0))
    print(f"\n{folder / args.of}.csv and .png")


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
    parser.add_argument("--per-layer", action="store_true", help="keep as many in every layer")
    parser.add_argument("--rounds", type=int, default=1, metavar="N",
                        help="remove a share in each of N rounds, measured anew (default: 1)")
    parser.add_argument("--mask", action="store_true", help="switch heads off instead of removing")
    add_run_flags(parser, "--overwrite")


def prune(args):
    """Write a new run without the heads (or neurons, or layers) that matter least."""
    check_numbers(args)
    if args.remove and (args.order != "importance" or args.per_layer or args.rounds > 1):
        raise UserError("--remove says what goes; --order, --per-layer and --rounds are for "
                        "--heads, --neurons and --layers")
    RunSession(args).derive_and_compare(args.out, args.overwrite, partial(remove, args))
    out = quoted(args.out)
    print(f"next: python train_multitask.py --from {out}, or python evaluate.py {out}")


def remove(args, session):
    """Remove from the session's encoder what the flags name or choose."""
    kind = next((kind for kind in GATES if getattr(args, kind) is not None), "heads")
    heads, layers = parse_heads(args.remove or (), "remove")
    if args.mask and (layers or kind != "heads"):
        raise UserError("--mask switches heads off; it cannot remove neurons or layers")
    cut = removal.mask_heads if args.mask else REMOVE[kind]
    if not args.remove:
        prune_to_budget(args, session, kind, cut)
    if heads:
        cut(session.model.bert, heads)
    if layers:
        removal.remove_layers(session.model.bert, layers)


def prune_to_budget(args, session, kind, cut):
    """Remove parts by `cut` in --rounds until the budget is met. UserError before anything is
    measured if they cannot be removed."""
    bert, scores = session.model.bert, parts_left(session.model.bert, kind, args.mask)
    now = there = int((~scores.isnan()).sum())
    keep = parse_budget(getattr(args, kind), scores.numel(), kind)
    choose(scores, keep, per_layer=args.per_layer)           # nothing to remove: UserError
    if not args.mask:
        removal.check_removable(bert, kind)
    splits = {} if args.order == "random" else sample(session, args)
    step = len(scores) if args.per_layer else 1
    for left in left_after_rounds(there, keep, args.rounds, step):
        scores = parts_left(bert, kind, args.mask)
        if splits:
            raw = measure(session.model, splits, session.settings, session.device, kind)
            scores += of_all_tasks(raw, args.norm)
        chosen = choose(scores, left, args.order, args.seed, args.per_layer)
        cut(bert, chosen)
        now -= sum(map(len, chosen.values()))
        print(f"{now:,} of {there:,} {kind} are left")


def parts_left(bert, kind, mask):
    """[layers, parts]: 0, or NaN where a part is gone; with `mask`, or switched off."""
    scores = zero_importance(bert.config, kind)
    for layer, heads in bert.config.masked_heads.items() if mask else ():
        scores[layer, heads] = torch.nan
    return scores


COMMANDS = {"importance": (show_importance, add_importance_flags),
            "prune": (prune, add_prune_flags), "report": (report.report, report.add_flags)}
main = partial(run_command, "pruning", __doc__, COMMANDS)

if __name__ == "__main__":
    run_script(main)
