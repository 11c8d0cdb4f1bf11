"""Open a saved run: score a data folder, write the course's prediction files, or answer for one
text.

    python evaluate.py runs/first                        # its own dev sets
    python evaluate.py runs/first --split test           # predictions for the test files
    python evaluate.py runs/first --text "A dull, dull film."
    python evaluate.py runs/first --text "A cat sleeps." --pair "A cat is asleep."
    python evaluate.py runs/first --adapter sts=runs/other/adapters/sts     # its own left out
    python evaluate.py --compare runs/first runs/second  # a table, and a picture
    python evaluate.py runs/first --laser 10:fc_out:0.1  # as if a matrix had lower rank
"""

import json
from dataclasses import replace
from pathlib import Path

from bert import UserError
from common.cli import Parser, add_run_flags, run_script
from multitask.course import Example
from multitask.data import tokenize
from multitask.evaluation import evaluate, load_sets, run_split, write_predictions
from multitask.model import chosen_tasks
from multitask.report import compare, describe_prediction, score_table
from multitask.session import RunSession
from multitask.tasks import TASKS


def score(args, session):
    """Score the split of every task in a data folder → scores; prediction files are written."""
    as_trained = args.limit is None and not args.data and args.split == "dev"
    limit = session.settings.limit if as_trained else args.limit or 0
    splits = load_sets(chosen_tasks(session.model, args.tasks),
                       replace(session.settings, limit=limit), session.tokenizer, args.split)
    scores, predictions = evaluate(session.model, splits, session.device, session.autocast)
    trained_on = Path(session.record["settings"]["data"])
    folder = Path(args.data or trained_on)
    own = not args.adapter and not args.limit and folder.resolve() == trained_on.resolve()
    to = args.predictions or own and Path(args.run, "laser" if args.laser else "", "predictions")
    if to:
        write_predictions(to, splits, predictions)
    if args.json:
        return scores
    counts = ", ".join(f"{task} {len(split):,}" for task, named in splits.items()
                       for split in named.values())
    note = f" (the first {limit:,} rows, as in training; --limit 0 takes all)"
    print(f"{args.split} of {folder}: {counts}" + (note if limit and as_trained else ""))
    print(score_table(scores, args.split) if scores else "these files hold no labels, so no scores")
    print(f"predictions: {to}" if to else "another adapter, other data or not all rows: "
          "predictions go only to a --predictions FOLDER")
    return scores


def answer(args, session):
    """Judge one text, or a pair of texts, by every task that fits → {task: {"label", …}}"""
    texts = (args.text,) if args.pair is None else (args.text, args.pair)
    if not all(text.strip() for text in texts):
        raise UserError("--text or --pair is empty; there is nothing to judge")
    model = session.model
    tasks = [task for task in model.heads if TASKS[task].pair == (args.pair is not None)]
    if not tasks:
        judged = "pairs of texts: add" if args.pair is None else "single texts: leave out"
        raise UserError(f"this run's tasks ({', '.join(model.heads)}) judge {judged} --pair")
    split = tokenize([Example("", texts, None)], session.tokenizer, model.pairs)
    answers = {task: describe_prediction(task, run_split(
        model, task, split, session.device, session.autocast)[0]) for task in tasks}
    if not args.json:
        for task, found in answers.items():
            number = next(name for name in found if name != "label")
            print(f"{task}: {found['label']} ({number} {found[number]:.2f})")
    return answers


def parse(arguments):
    parser = Parser(description=__doc__)
    parser.add_argument("run", nargs="?", help="folder of a saved run")
    parser.add_argument("--compare", metavar="RUN", nargs="+", help="put these runs side by side")
    parser.add_argument("--out", metavar="FOLDER", default="runs", help="of --compare's files")
    parser.add_argument("--split", default="dev", choices=("dev", "test"), help="default: dev")
    parser.add_argument("--tasks", help="only these of the run's tasks, as in sst,sts")
    parser.add_argument("--predictions", metavar="FOLDER", help="default: RUN/predictions, if "
                        "model, data and rows are the run's; with --laser RUN/laser/predictions")
    parser.add_argument("--adapter", metavar="TASK=FOLDER", action="append", default=[],
                        help="serve a task by the adapter in a folder (and the head in it, if any)")
    parser.add_argument("--text", help="judge this text instead of files")
    parser.add_argument("--pair", help="the text that --text is compared with")
    parser.add_argument("--laser", help="reduce layer:matrix:keep[,…] first: python -m laser")
    parser.add_argument("--json", action="store_true", help="print a JSON object, nothing else")
    add_run_flags(parser, "--data", "--limit", "--device", "--precision")
    args = parser.parse_args(arguments)
    if (args.run is None) == (args.compare is None):
        raise UserError("name one run to open, or --compare two or more")
    if args.pair is not None and args.text is None:
        raise UserError("--pair needs the --text that it is compared with")
    return args


def swap_adapter(model, adapter, quiet):
    """Serve a task by the adapter that one --adapter names, "task=folder"."""
    from lora.binding import swap

    task, equals, folder = adapter.partition("=")
    if not equals:
        raise UserError(f"--adapter {adapter!r} is not understood; write task=folder")
    chosen_tasks(model, task, "--adapter")
    has_head = swap(model, task, folder)
    if not quiet:
        whose = "its head" if has_head else "the run's own head"
        print(f"{task}: the adapter in {folder} and {whose}")


def main(arguments=None):
    args = parse(arguments)
    if args.compare:
        return compare(args.compare, Path(args.out))
    session = RunSession(args)
    for adapter in args.adapter:
        swap_adapter(session.model, adapter, args.json)
    if args.laser is not None:
        import laser  # only now: most runs are not reduced

        laser.apply(session.model.bert, laser.parse(args.laser))
    session.model.to(session.device)
    result = score(args, session) if args.text is None else answer(args, session)
    if args.json:
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_script(main)
