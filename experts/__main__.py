"""A saved run's feed-forward networks as experts, of which each token runs some.

    python -m experts relu RUN --out RELU                # ReLU for GELU, trained to sparse zeros
    python -m experts split RELU --experts 16 --out SPARSE       # experts, and routers for them
    python evaluate.py SPARSE --tau 0.9                  # each token runs the experts it needs
    python -m experts curve SPARSE                       # score against multiply-adds and time

Each command has its own --help. A run that relu or split made is a run, which every script opens.
Without --tau, all experts run: the scores are those of RELU.
"""

import time
from argparse import Namespace
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from bert import UserError
from bert.files import write_json
from bert.json_files import read_results
from common.cli import add_run_flags, quoted, run_command, run_script
from common.flags import parse_numbers, with_absolute_paths
from common.log import progress_bar
from common.plots import draw_curves
from common.tables import rows_table, write_csv
from experts.binding import cost
from experts.layers import expert_layers, select_experts
from experts.rules import NORMS, RULES, Selection
from experts.sparsity import zero_fraction
from experts.split import ffn_inputs, fit_routers, split
from multitask import methods, runs
from multitask.evaluation import TOKENS, check_outputs, model_fingerprint
from multitask.metrics import main_scores
from multitask.session import RunSession
from pruning.measure import training_sample

AGAIN = ("from_run", "relu", "sparsity", "distill", "epochs", "lr", "seed")      # equal: resume
ROW = {"norms": str, "rule": str} | dict.fromkeys(("tau", "ffn", "model", "ms"), float)
TOP_K = (1/16, 1/8, 3/16, 1/4, 5/16, 3/8, 1/2, 5/8, 3/4, 1)  # of the experts, in a curve


def add_relu_flags(parser):
    add_run_flags(parser, "run", "--data", "--device", "--precision", "--overwrite")
    parser.add_argument("--out", required=True, metavar="RELU", help="the new run")
    parser.add_argument("--sparsity", default="relu-l1:3e-2:linear", metavar="PENALTY",
                        help="penalty:weight[:schedule], or none (default: %(default)s)")
    parser.add_argument("--distill", type=float, default=100.0, metavar="WEIGHT",
                        help="of the distance to RUN's hidden states (default: 100; 0: none)")
    parser.add_argument("--epochs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--lr", type=float, help="default: RUN's")
    parser.add_argument("--seed", type=int, help="default: RUN's")


def relu_settings(args):
    """→ the Settings of the training run that `relu` starts: RUN's, changed."""
    _, old, _ = runs.read_settings(args.run)
    if getattr(old, "lora", 0):
        raise UserError(f"{args.run} has adapters on a frozen encoder, and relu trains the encoder "
                        f"itself; merge them first (python -m lora merge), or take another run")
    given = {"lr": args.lr, "data": args.data, "precision": args.precision, "seed": args.seed}
    class_ = methods.settings_class()
    given = {name: value for name, value in given.items() if value is not None}
    settings = class_(**asdict(old) | given | {
        "from_run": str(Path(args.run).resolve()), "out": args.out, "overwrite": args.overwrite,
        "relu": True, "sparsity": "" if args.sparsity == "none" else args.sparsity,
        "distill": args.distill, "epochs": args.epochs, "steps": 0, "patience": 0,
        "freeze": False, "keep_heads": "", "device": args.device})
    settings = with_absolute_paths(settings, "data")
    return replace(settings, **{name: getattr(class_, name) for name in settings.without_effect()})


def relu(args):
    """Replace GELU by ReLU in a run's feed-forward networks and train it further, so that most
    activations become zero: on its tasks, with a penalty on activations, and with the run as it was
    as teacher of the hidden states. It is a training run: if it is stopped, the same command, or
    python train_multitask.py --resume RELU, goes on."""
    import train_multitask  # the script with the one training loop

    settings = relu_settings(args)
    if runs.is_saved_run(args.out) and not args.overwrite:
        before = runs.read_settings(args.out)[1]
        if all(getattr(before, name, None) == getattr(settings, name) for name in AGAIN):
            return train_multitask.main(["--resume", args.out])
    with runs.choose_folder(settings) as folder:
        train_multitask.train(settings, folder)
    session = RunSession(Namespace(run=folder, device=args.device))
    for name, bert in session.model.encoders.items():
        share = zero_fraction(bert, session.evaluate)
        print(f"{name}: {share:.1%} of the activations are zero on dev")
    print(f"next: python -m experts split {quoted(folder)} --out {quoted(f'{folder}-experts')}")


def add_split_flags(parser):
    add_run_flags(parser, "run", "--data", "--limit", "--device", "--precision", "--overwrite")
    parser.add_argument("--out", required=True, metavar="SPARSE", help="the new run")
    parser.add_argument("--experts", type=int, default=16, metavar="E",
                        help="experts of each layer (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=8000, metavar="N",
                        help="random training examples of each task, for the routers (default: "
                             "%(default)s; 0: all)")
    parser.add_argument("--width", type=int, default=0, metavar="N",
                        help="of the routers (default: so that they cost 2.5 %% of the layer)")
    parser.add_argument("--epochs", type=int, default=10, help="of the routers' training")
    parser.add_argument("--seed", type=int, default=0)


def split_command(args):
    """Split every feed-forward network of a run into experts of similar neurons, and train routers
    that predict how much each expert adds. The new run's outputs are those of RUN, until --tau
    lets tokens skip experts."""
    for flag, minimum in {"examples": 0, "width": 0, "epochs": 1, "seed": 0}.items():
        if not minimum <= getattr(args, flag) < 2 ** 32:
            raise UserError(f"--{flag} is {getattr(args, flag)}; it must be {minimum} or more, and "
                            f"below 2^32")
    RunSession(args).derive_and_compare(args.out, args.overwrite, partial(insert, args))
    out = quoted(args.out)
    print(f"next: python evaluate.py {out} --tau 0.9, or python -m experts curve {out}")


def insert(args, session):
    """Split the session's encoder as the flags say, and train the routers."""
    model, bert = session.model.eval(), session.model.bert
    sample = training_sample(session.tokenizer, session.settings, list(model.heads), args.examples,
                             args.seed)
    split(bert, args.experts, args.width, args.seed)
    batches = [(task, part, rows) for task, part in sample.items()
               for rows in part.by_length(TOKENS)]

    def forward(item):
        task, part, rows = item
        outputs = model(task, part.batch(rows).to(session.device))
        check_outputs(outputs, task, [part.ids[i] for i in rows])
        bar.update()

    with progress_bar("inputs", len(batches), "batch", leave=False) as bar:
        inputs = ffn_inputs(bert, batches, forward, seed=args.seed)
    with progress_bar("routers", len(inputs) * args.epochs, "epoch", leave=False) as bar:
        errors = fit_routers(bert, inputs, args.epochs, seed=args.seed, progress=bar.update)
    print(rows_table([
        {"layer": str(number), "experts": ffn.experts, "of neurons": ffn.size, "tokens": len(rows),
         "router's width": ffn.router.down.out_features, "unexplained variance": f"{error:.1%}",
         "cost": f"{ffn.router_multiply_adds / ffn.dense_multiply_adds:.1%}"}
        for number, (ffn, rows, error) in enumerate(zip(expert_layers(bert), inputs, errors))]))


def add_curve_flags(parser):
    add_run_flags(parser, "run", "--data", "--limit", "--device", "--precision")
    parser.add_argument("--out", metavar="FOLDER", help="of the results (default: RUN/experts)")
    parser.add_argument("--taus", default="0.3,0.5,0.6,0.7,0.8,0.85,0.9,0.95,0.98,0.99,0.999,1",
                        help="of the rules max and cumulative (default: %(default)s)")
    parser.add_argument("--norms", default=",".join(NORMS),
                        help="sources of the experts' norms (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=2, metavar="N",
                        help="passes over dev, of which the fastest counts (default: %(default)s)")


def curve(args):
    """Score a run with experts at many τ, by each rule, and draw scores against multiply-adds (all
    and the feed-forward networks') and against measured milliseconds. Writes curve.csv and
    curve.png to RUN/experts, or --out. A stopped command resumes when it is called again."""
    if args.passes < 1:
        raise UserError(f"--passes is {args.passes}; it must be 1 or more")
    session = RunSession(args)
    chosen = selections(args, expert_layers(session.model.bert)[0].experts)
    with session.results(args.out, "experts") as folder:
        path = folder / "curve.json"
        fingerprint = model_fingerprint(session.model, session.first_splits, session.precision)
        known = read_results(path, fingerprint, ROW | dict.fromkeys(session.score_names, float))
        with progress_bar("curve", len(chosen), "setting", leave=False) as bar:
            for key, selection in chosen.items():
                if key not in known:
                    known[key] = measure(session, selection, args.passes)
                    write_json(path, {"fingerprint": fingerprint, "rows": known})
                bar.update()
        rows = [known[key] for key in chosen]
        write_csv(folder / "curve.csv", rows)
        draw(rows, folder / "curve.png")
    table = rows_table([row | {"tau": f"{row['tau']:g}", "ms": round(row["ms"])} for row in rows],
                       left=2)
    print(f"{table}\n\nffn and model: multiply-adds, routers included, as shares of all experts'\n"
          f"{folder}/: curve.csv, curve.png")


def selections(args, experts):
    """→ {name: Selection}: each source of norms with each rule; random ones with top-k alone."""
    taus = parse_numbers("--taus", args.taus, lambda tau: 0 <= tau <= 1, "numbers from 0 to 1")
    counts = sorted({max(1, round(experts * part)) for part in TOP_K})
    return {f"{norms} {rule} {tau:g}": Selection(rule, tau, norms)
            for norms in args.norms.split(",")
            for rule in (RULES if norms != "random" else ("top-k",))
            for tau in (counts if rule == "top-k" else taus)}


def measure(session, selection, passes):
    """→ a row of the table: the scores, the shares of multiply-adds, milliseconds for all of dev by
    the fastest of `passes` (of true norms they say nothing: norms take more than they save)."""
    seconds = []
    for _ in range(passes):
        torch.manual_seed(0)                                 # of random norms
        select_experts(session.model.bert, selection)
        began = time.perf_counter()
        scores, _ = session.evaluate()
        seconds.append(time.perf_counter() - began)
    return {"norms": selection.norms, "rule": selection.rule, "tau": selection.tau,
            **cost(session.model, session.splits), "ms": 1000 * min(seconds), **main_scores(scores)}


def draw(rows, path):
    """Draw the overall score, or the mean, against each cost; against time that of routers."""
    panels, score = [], "overall" if "overall" in rows[0] else "mean"
    labels = {"ffn": "share of the FFNs' multiply-adds",
              "model": "share of the encoder's multiply-adds", "ms": "milliseconds for dev"}
    for what in labels:
        curves = {}
        for row in sorted(rows, key=lambda row: row[what]):
            if what != "ms" or row["norms"] == "router":
                curves.setdefault(f"{row['norms']}, {row['rule']}", []).append(
                    (row[what], row[score]))
        panels.append((f"{score}, dev", curves))
    draw_curves(panels, path, xlabel=list(labels.values()))


COMMANDS = {"relu": (relu, add_relu_flags), "split": (split_command, add_split_flags),
            "curve": (curve, add_curve_flags)}
main = partial(run_command, "experts", __doc__, COMMANDS)

if __name__ == "__main__":
    run_script(main)
