"""A saved run's feed-forward networks as experts, of which each token runs some.

    python -m experts relu RUN --out RELU                # ReLU for GELU, trained to sparse zeros
    python -m experts split RELU --experts 16 --out SPARSE       # experts, and routers for them
    python evaluate.py SPARSE --tau 0.9                  # each token runs the experts it needs
    python -m experts curve SPARSE                       # score against multiply-adds and time

Each command has its own --help. A run that relu or split made is a run, which every script opens.
Without --tau, all experts run: the scores are those of RELU.
"""

from argparse import Namespace
from dataclasses import asdict, fields, replace
from pathlib import Path

from bert import UserError
from common.cli import add_run_flags, run_command, run_script
from common.flags import with_absolute_paths
from common.log import progress_bar
from common.tables import text_table
from experts import curve
from experts.layers import expert_layers
from experts.routers import ffn_inputs, fit_routers, router_width
from experts.sparsity import zero_fraction
from experts.split import check_divisible, split
from multitask import methods, runs
from multitask.evaluation import TOKENS
from multitask.report import score_table
from multitask.session import RunSession
from multitask.settings import SHARED
from pruning.measure import training_sample

SPARSITY = "relu-l1:2e-3:warm-up"


def add_relu_flags(parser):
    add_run_flags(parser, "run", "--data", "--device", "--precision", "--overwrite")
    parser.add_argument("--out", required=True, metavar="RELU", help="the new run")
    parser.add_argument("--sparsity", default=SPARSITY, metavar="PENALTY",
                        help="penalty:weight[:schedule], or none (default: %(default)s)")
    parser.add_argument("--distill", type=float, default=1.0, metavar="WEIGHT",
                        help="of the distance to RUN's hidden states (default: 1; 0: none)")
    parser.add_argument("--epochs", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=0.0, help="default: RUN's")
    parser.add_argument("--seed", type=int, help="default: RUN's")


def relu_settings(args):
    """→ the Settings of the training run that `relu` starts: RUN's, changed."""
    record, old, _ = runs.read_settings(args.run)
    class_ = methods.settings_class()
    if getattr(old, "lora", 0):
        raise UserError(f"{args.run} has adapters on a frozen encoder, and relu trains the encoder "
                        f"itself; merge them first (python -m lora merge), or take another run")
    known = {f.name for f in fields(class_)}
    given = {name: value for name, value in asdict(old).items() if name in known}
    given |= {"from_run": str(Path(args.run).resolve()), "out": args.out, "relu": True,
              "sparsity": "" if args.sparsity == "none" else args.sparsity,
              "distill": args.distill, "epochs": args.epochs, "steps": 0, "patience": 0,
              "freeze": False, "keep_heads": "", "overwrite": args.overwrite}
    changed = {"lr": args.lr, "data": args.data, "precision": args.precision, "seed": args.seed}
    given |= {name: value for name, value in changed.items() if value}
    settings = with_absolute_paths(class_(**given | {"device": args.device}), "data")
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
        if all(getattr(before, name, None) == getattr(settings, name) for name in
               ("from_run", "relu", "sparsity", "distill", "epochs", "lr", "seed")):
            return train_multitask.main(["--resume", args.out])
    folder = runs.choose_folder(settings)
    train_multitask.train(settings, folder)
    session = RunSession(Namespace(run=folder, device=args.device))
    for name, bert in session.model.encoders.items():
        tasks = list(session.model.heads) if name == SHARED else [name]
        run = [(task, split.batch(rows).to(session.device)) for task in tasks
               for split in [session.first_splits[task]] for rows in split.by_length(TOKENS)]
        share = zero_fraction(bert, run, lambda pair: session.model(*pair))
        print(f"{name}: {share:.1%} of the activations are zero on dev")
    print(f"next: python -m experts split {folder} --out {folder}-experts")


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
    for flag in ("examples", "width", "epochs", "seed"):
        if not 0 <= getattr(args, flag) < 2 ** 32 or (flag == "epochs" and not args.epochs):
            raise UserError(f"--{flag} is {getattr(args, flag)}, which cannot be")

    def edit(session):
        model, bert = session.model.eval(), session.model.bert
        check_divisible(bert, args.experts)
        width = args.width or router_width(bert.config, args.experts)
        if width > bert.config.intermediate_size:
            raise UserError(f"--width {width} is wider than the layer, and would save nothing")
        sample = training_sample(session.tokenizer, session.settings, list(model.heads),
                                 args.examples, args.seed)
        split(bert, args.experts, args.width, args.seed)
        batches = [(task, part, rows) for task, part in sample.items()
                   for rows in part.by_length(TOKENS)]
        with progress_bar("inputs", len(batches), "batch", leave=False) as bar:
            inputs = ffn_inputs(bert, batches, lambda item: (bar.update(), model(
                item[0], item[1].batch(item[2]).to(session.device))), seed=args.seed)
        with progress_bar("routers", len(inputs) * args.epochs, "epoch", leave=False) as bar:
            errors = fit_routers(bert, inputs, args.epochs, seed=args.seed, progress=bar.update)
        print(text_table([["layer", "tokens", "unexplained"], *(
            [str(number), f"{len(rows):,}", f"{error:.1%}"]
            for number, (rows, error) in enumerate(zip(inputs, errors)))]))
        ffn = expert_layers(bert)[0]
        cost = sum(p.numel() for p in ffn.router.parameters()) / ffn.dense_multiply_adds
        print(f"{args.experts} experts a layer of {ffn.size} neurons; routers of width {width}, "
              f"{cost:.1%} of the multiply-adds of layer 0\n")

    folder, scores = RunSession(args).derive(args.out, args.overwrite, edit)
    print(f"{score_table(scores)}\n\nrun: {folder}\n"
          f"next: python evaluate.py {folder} --tau 0.9, or python -m experts curve {folder}")


COMMANDS = {"relu": (relu, add_relu_flags), "split": (split_command, add_split_flags),
            "curve": (curve.curve, curve.add_flags)}


def main(arguments=None):
    return run_command("experts", __doc__, COMMANDS, arguments)


if __name__ == "__main__":
    run_script(main)
