"""Exits between the layers of a saved run, and the depth at which it can be cut.

    python -m early_exit train RUN --out EXITS           # Zero Time Waste on the frozen encoder
    python -m early_exit train RUN --out EXITS --method sdn          # plain exits
    python evaluate.py EXITS --exit 0.9                  # leave at a probability above 0.9
    python -m early_exit curve EXITS                     # score against cost, thresholds to use
    python -m early_exit netcut RUN --beta 0.01 --out SHALLOW        # a run with fewer layers

Each command has its own --help. EXITS is RUN with exits beside it: without --exit it predicts as
RUN does. SHALLOW is an ordinary run. Regressions (sts) have no exits.
"""


from bert import UserError
from common.cli import add_run_flags, quoted, run_command, run_script
from common.tables import write_csv
from early_exit import curve
from early_exit.binding import attach, drop
from early_exit.exits import METHODS
from early_exit.leaving import task_exits
from early_exit.netcut_training import add_flags as add_netcut_flags
from early_exit.netcut_training import netcut
from early_exit.states import collect, segments_of
from early_exit.training import train_exits
from multitask.model import chosen_tasks
from multitask.report import score_table
from multitask.session import RunSession
from multitask.tasks import TASKS
from pruning.measure import training_sample


def add_train_flags(parser):
    add_run_flags(parser, "run", "--data", "--device", "--precision", "--overwrite")
    parser.add_argument("--out", required=True, metavar="EXITS", help="the new run")
    parser.add_argument("--method", default="ztw", choices=METHODS,
                        help="ztw (default): cascade and geometric ensemble; sdn: neither; cascade "
                             "or ensemble: one of the two; ztw-arithmetic: a mean of probabilities")
    parser.add_argument("--reads", default="mean", choices=("mean", "cls"),
                        help="mean (default): an exit reads [CLS] and the mean of all tokens; cls: "
                             "[CLS] alone, as in the paper")
    parser.add_argument("--tasks", help="only these of the run's tasks (default: all that are "
                                        "classifications)")
    parser.add_argument("--examples", type=int, default=10000, metavar="N",
                        help="random training examples of each task (default: 10000; 0: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N",
                        help="of the training; the examples are the same for each (default: 0)")


def check_number(flag, number, minimum=0):
    if not minimum <= number < 2 ** 32:
        raise UserError(f"{flag} is {number}; it must be {minimum} or more, and below 2^32")


def tasks_with_exits(model, text):
    """→ the tasks that get exits. UserError if a named one, or every one, is a regression, or if
    the encoder has one layer only."""
    named = chosen_tasks(model, text)
    tasks = [task for task in named if not TASKS[task].is_regression]
    others = [task for task in named if TASKS[task].is_regression]
    if others and (text or not tasks):
        raise UserError(f"{', '.join(others)} is a regression: it has no probability that could "
                        f"be above a threshold, so it can have no exits; leave it out of --tasks, "
                        f"or take a run with a classification")
    if others:
        print(f"{', '.join(others)}: a regression, which has no exits and always uses all layers")
    if any(len(model.encoder(task).layers) < 2 for task in tasks):
        raise UserError("the encoder has one layer, and exits stand between layers; take a run "
                        "with two or more")
    return tasks


def train(args):
    """Train exits after the layers of a saved run, whose encoder and heads stay as they are.

    The encoder runs once over the training examples; what exits read after every layer is kept in
    RUN/early_exit, so that a stopped command, or one with another --method, goes on from there.
    The classifiers are trained on 80 % of the examples, the ensembles on the rest."""
    check_number("--examples", args.examples, 0)
    check_number("--seed", args.seed)
    if 0 < args.examples < 10:
        raise UserError(f"--examples is {args.examples}; exits need 10 or more (0: all)")

    def edit(session):
        model, mean, (cascade, ensemble) = session.model, args.reads == "mean", METHODS[args.method]
        tasks = tasks_with_exits(model, args.tasks)
        for bert in model.encoders.values():
            drop(bert)
        samples = training_sample(session.tokenizer, session.settings, tasks, args.examples)
        exits = {}
        for task, split in samples.items():
            with session.results("", "early_exit") as place:
                path = place / f"states-{task}.safetensors"
                states, _ = collect(session, task, split, path, f"states, {task}")
            print(f"{task}: exits after {states.size(1)} layers, from {len(split):,} examples",
                  flush=True)
            exits[task] = train_exits(states, split.labels, TASKS[task].outputs,
                                      segments_of(model, task), cascade, ensemble, mean,
                                      seed=args.seed)
        attach(model, exits, cascade=cascade, ensemble=ensemble, mean=mean)

    folder, scores = RunSession(args).derive(args.out, args.overwrite, edit)
    print(f"{score_table(scores)}\n\nrun: {folder}\n"
          f"next: python -m early_exit curve {quoted(folder)}, or python evaluate.py "
          f"{quoted(folder)} --exit 0.9")


def add_curve_flags(parser):
    add_run_flags(parser, "run", "--data", "--limit", "--device", "--precision")
    parser.add_argument("--tasks", help="only these tasks (default: all with exits)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N",
                        help="timed passes at each threshold, in turn (default: 3)")
    parser.add_argument("--out", metavar="FOLDER", help="of the files (default: RUN/early_exit)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the halves of dev")


def show_curve(args):
    """Score against multiply-adds and against measured time of a run with exits.

    Thresholds for four budgets, and for a loss of at most 0.01, are chosen on one half of dev; the
    table is of the other half. Passes are timed in turn; "time" is the ratio to the model without
    exits. Writes curve.csv (all of dev), chosen.csv and curve.png."""
    check_number("--repeats", args.repeats, 1)
    check_number("--seed", args.seed)
    session = RunSession(args)
    named = chosen_tasks(session.model, args.tasks)
    tasks = [task for task in named if task_exits(session.model, task) is not None]
    if not tasks or (args.tasks and len(tasks) < len(named)):
        raise UserError(f"{args.run} has no exits for "
                        f"{', '.join(task for task in named if task not in tasks)}; train them "
                        f"first: python -m early_exit train {args.run} --out EXITS")
    curves, rows = [], []
    for task in tasks:
        found = curve.measure_task(session, task, args.repeats, args.seed)
        curves += found[0]
        rows += found[1]
    with session.results(args.out, "early_exit") as folder:
        write_csv(folder / "curve.csv", curves)
        write_csv(folder / "chosen.csv", rows)
        curve.draw(curves, rows, folder / "curve.png")
    print(f"{curve.table(rows)}\n\n{folder}/: curve.csv, chosen.csv, curve.png")


COMMANDS = {"train": (train, add_train_flags), "curve": (show_curve, add_curve_flags),
            "netcut": (netcut, add_netcut_flags)}


def main(arguments=None):
    return run_command("early_exit", __doc__, COMMANDS, arguments)


if __name__ == "__main__":
    run_script(main)
