"""What a saved run's heads, neurons and layers are worth, and a smaller run without some of them.

    python -m pruning importance RUN                     # heat maps layers × heads, and a CSV file
    python -m pruning prune RUN --heads 100 --out RUN2   # the 100 most important heads stay
    python -m pruning prune RUN --layers 4 --out RUN2    # or --neurons 0.7, or --remove 0:3,7
    python -m pruning report RUN RUN2                    # scores, size, speed, multiply-adds

Each command has its own --help. The pruned run is a run: python evaluate.py RUN2 opens it, and
python train_multitask.py --from RUN2 trains it on, to recover what was lost.
"""

import sys
from functools import partial
from math import ceil
from pathlib import Path

import torch

from bert import UserError
from bert.errors import did_you_mean
from common.cli import Parser, run_script
from common.device import pick_device
from multitask import runs
from multitask.model import chosen_tasks
from multitask.settings import SHARED
from pruning.gates import original_count
from pruning.measure import across_tasks, measure, of_all_tasks, scored
from pruning.plots import draw_heat_maps, in_text, write_csv
from pruning.removal import check_plain, mask_heads, remove_heads, remove_layers, remove_neurons
from pruning.report import report
from pruning.selection import (
    ORDERS,
    check_even,
    choose,
    parse_budget,
    parse_heads,
    ranks_by_importance,
)

KINDS = ("heads", "neurons", "layers")


def measurer(args, model, tokenizer, settings, device):
    """→ a function of the kind of parts: {task: raw importance of each} of the model as it is."""
    tasks = chosen_tasks(model, args.tasks)
    return partial(measure, model, tokenizer, settings, tasks, device, examples=args.examples,
                   seed=args.seed, data=args.data)


def show_importance(args):
    """Measure how much each task's loss depends on every head (or neuron, or layer) of a run."""
    model, tokenizer, settings, _ = runs.open_run(args.run)
    device, _ = pick_device(args.device)
    raw = measurer(args, model.to(device), tokenizer, settings, device)(kind=args.of)
    scores = scored(raw, args.of, args.norm)
    if SHARED not in model.encoders:                         # encoders have no sum
        scores = {task: scores[task] for task in raw}
    folder, part = Path(args.out or Path(args.run) / "importance"), args.of.removesuffix("s")
    write_csv(folder / f"{args.of}.csv", raw, scores, part)
    draw_heat_maps(folder / f"{args.of}.png", scores, part)
    last = list(scores)[-1]
    if args.of != "neurons":
        print(f"importance of each {part}, in hundredths ({last})\n{in_text(scores[last])}\n")
    if args.of == "heads" and SHARED in model.encoders:
        ranks = ranks_by_importance(across_tasks(raw), blocks=ceil(len(model.bert.layers) / 3))
        high = sorted({layer for (layer, _), rank in ranks.items() if rank == max(ranks.values())})
        print(f"layers whose heads matter most, for LoRA of a higher rank: "
              f"{', '.join(map(str, high))}")
    print(f"{folder / args.of}.csv and .png")


def prune(args):
    """Write a new run without the heads (or neurons, or layers) that matter least."""
    def edit(model, tokenizer, settings, device):
        before = sum(p.numel() for p in model.bert.parameters())
        if args.remove:
            remove_named(model.bert, args.remove, args.mask)
        else:
            prune_to_budget(model.bert, args, measurer(args, model, tokenizer, settings, device))
        after = sum(p.numel() for p in model.bert.parameters())
        print(f"encoder: {before:,} parameters → {after:,}")

    folder = runs.derive_run(args, edit)
    print(f"next: python train_multitask.py --from {folder}, or python evaluate.py {folder}")


def prune_to_budget(bert, args, measured):
    """Remove parts in --rounds, each time by fresh importance, until as many are left as wanted."""
    kind, text = next((k, getattr(args, k)) for k in KINDS if getattr(args, k) is not None)
    if args.mask and kind != "heads":
        raise UserError(f"--mask switches heads off; it cannot stand beside --{kind}")
    if not args.mask:
        check_plain(bert, kind, range(len(bert.layers)))
    layers = len(bert.layers)
    keep = parse_budget(text, layers * original_count(bert.config, kind), kind)
    if args.per_layer:
        check_even(keep, layers)
    there = int((~removed_mask(bert, kind, args.mask)).sum())
    if there <= keep:
        raise UserError(f"{there:,} {kind} are there and {keep:,} are to be kept, so nothing would "
                        f"be removed; keep fewer")
    step = layers if args.per_layer else 1
    goals = [there - round((there - keep) * number / args.rounds)
             for number in range(1, args.rounds + 1)]
    for goal in sorted({goal - goal % step for goal in goals} - {there}, reverse=True):
        gone = removed_mask(bert, kind, args.mask)
        scores = torch.zeros(gone.shape)
        if args.order != "random":
            scores = of_all_tasks(measured(kind=kind), kind, args.norm)
        chosen = choose(scores.masked_fill(gone, torch.nan), goal, args.order, args.per_layer,
                        args.seed)
        remove(bert, kind, chosen, args.mask)
        print(f"{int((~removed_mask(bert, kind, args.mask)).sum()):,} of {there:,} {kind} are left")


def removed_mask(bert, kind, masks):
    """[layers, parts] True where a part is gone, or, of masks, switched off."""
    config = bert.config
    gone = torch.zeros(len(bert.layers), original_count(config, kind), dtype=torch.bool)
    for layer, row in enumerate(gone):
        if kind == "heads":
            row[config.pruned_heads.get(layer, [])] = True
            row[config.masked_heads.get(layer, []) if masks else []] = True
        elif kind == "neurons":
            row[config.ffn_size(layer):] = True
    return gone


def remove(bert, kind, chosen, mask=False):
    if kind == "layers":
        remove_layers(bert, list(chosen))
    elif kind == "neurons":
        remove_neurons(bert, chosen)
    else:
        (mask_heads if mask else remove_heads)(bert, chosen)


def remove_named(bert, texts, mask=False):
    """["0:3,7", "5"] → heads 3 and 7 of layer 0, and the whole of layer 5, are removed."""
    heads, layers = parse_heads(texts, "remove")
    if layers and mask:
        raise UserError(f"--mask switches heads off; --remove {layers[0]} is a layer")
    if heads:
        remove(bert, "heads", heads, mask)
    if layers:
        remove_layers(bert, layers)


def flags_of_measuring(parser):
    parser.add_argument("run", help="folder of a saved run")
    parser.add_argument("--tasks", help="judge by these of the run's tasks (default: all)")
    parser.add_argument("--examples", type=int, default=1000,
                        help="random training examples of each task (default: 1000; 0: all)")
    parser.add_argument("--norm", default="global", choices=("global", "layer"),
                        help="Wang et al.'s norm: over all heads (default), or over each layer's")
    parser.add_argument("--seed", type=int, default=0, help="of the examples and of random order")
    parser.add_argument("--data", help="folder with the data files (default: the run's own)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))


def flags_of_importance(parser):
    flags_of_measuring(parser)
    parser.add_argument("--of", default="heads", choices=KINDS, help="default: heads")
    parser.add_argument("--out", help="of the CSV file and the picture (default: RUN/importance)")


def flags_of_prune(parser):
    flags_of_measuring(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--heads", help="keep so many heads (100), or a fraction of all (0.7)")
    what.add_argument("--neurons", help="the same of neurons of the feed-forward networks")
    what.add_argument("--layers", help="the same of whole layers")
    what.add_argument("--remove", action="append", metavar="LAYER:HEAD,HEAD",
                      help="remove these heads, or (LAYER alone) a layer; may be repeated")
    parser.add_argument("--out", required=True, help="folder of the new run")
    parser.add_argument("--order", default="importance", choices=ORDERS,
                        help="what stays: the most important, any, or the least important")
    parser.add_argument("--per-layer", action="store_true", help="the same number in every layer")
    parser.add_argument("--rounds", type=int, default=1,
                        help="remove a part of them at a time, and measure anew (default: 1)")
    parser.add_argument("--mask", action="store_true", help="switch heads off instead, reversibly")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in --out")


def flags_of_report(parser):
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of saved runs")
    parser.add_argument("--csv", metavar="FILE", help="write the table there too")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))


COMMANDS = {
    "importance": (show_importance, flags_of_importance),
    "prune": (prune, flags_of_prune),
    "report": (report, flags_of_report),
}


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        return print(__doc__)
    if arguments[0] not in COMMANDS:
        raise UserError(f"there is no command {arguments[0]!r}"
                        f"{did_you_mean(arguments[0], COMMANDS)}; there are {', '.join(COMMANDS)}")
    work, flags = COMMANDS[arguments[0]]
    parser = Parser(prog=f"python -m pruning {arguments[0]}", description=work.__doc__)
    flags(parser)
    args = parser.parse_args(arguments[1:])
    for name, least in (("examples", 0), ("seed", 0), ("rounds", 1)):
        if not least <= getattr(args, name, least) < 2 ** 32:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be {least} or more, and "
                            f"below 2^32")
    if getattr(args, "remove", None) and (args.order, args.per_layer, args.rounds) != (
            "importance", False, 1):
        raise UserError("--remove says what goes; --order, --per-layer and --rounds choose it for "
                        "--heads, --neurons and --layers")
    return work(args)


if __name__ == "__main__":
    run_script(main)
