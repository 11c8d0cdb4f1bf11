"""Open a saved run: score a data folder, write the course's prediction files, or answer for one
text.

    python evaluate.py runs/first                        # its own dev sets
    python evaluate.py runs/first --split test           # predictions for the test files
    python evaluate.py runs/first --text "A dull, dull film."
    python evaluate.py runs/first --text "A cat sleeps." --pair "A cat is asleep."
    python evaluate.py runs/first --adapter sts=runs/other/adapters/sts     # its own left out
    python evaluate.py runs/first --report first.html    # one page: scores, pictures, wrong answers
    python evaluate.py --compare runs/first runs/second  # tables, and a picture
    python evaluate.py runs/first --laser 10:fc_out:0.1  # as if a matrix had lower rank
    python evaluate.py runs/exits --exit 0.9             # leave where an exit is that confident
    python evaluate.py runs/sparse --tau 0.9             # each token runs the experts it needs
"""

import json
import time
from dataclasses import replace
from pathlib import Path

from bert import UserError
from common.cli import Parser, add_run_flags, run_script
from common.run_folder import below, claim
from multitask.compilation import check_compilation, compiled_layers
from multitask.course import Example
from multitask.data import tokenize
from multitask.evaluation import evaluate, load_sets, run_split, write_predictions
from multitask.model import chosen_tasks
from multitask.report import compare, describe_prediction, score_table, tasks_that_judge
from multitask.runs import read_scores
from multitask.session import RunSession


def score(args, session):
    """Score the split of every task in a data folder and print the scores; then write prediction
    files."""
    as_trained = args.limit is None and not args.data and args.split == "dev"
    limit = session.settings.limit if as_trained else args.limit or 0
    splits = load_sets(chosen_tasks(session.model, args.tasks),
                       replace(session.settings, limit=limit), session.tokenizer, args.split)
    began = time.perf_counter()
    scores, predictions = evaluate(session.model, splits, session.device, session.autocast)
    found = costs(args, session.model, splits, time.perf_counter() - began)
    trained_on = Path(session.record["settings"]["data"])
    folder = Path(args.data or trained_on)
    own = not args.adapter and not args.limit and folder.resolve() == trained_on.resolve()
    flags = {"laser": args.laser, "early_exit": args.exit, "experts": args.tau}
    changed = next((name for name, flag in flags.items() if flag is not None), "")
    inside = Path(changed, "predictions") if own else None
    if args.json:
        print(json.dumps(scores | ({"cost": found} if found else {}), indent=2))
    else:
        counts = ", ".join(f"{task} {len(split):,}" for task, named in splits.items()
                           for split in named.values())
        note = f" (the first {limit:,} rows, as in training; --limit 0 takes all)"
        print(f"{args.split} of {folder}: {counts}" + (note if limit and as_trained else ""))
        print(score_table(scores, args.split) if scores
              else "these files hold no labels, so no scores")
        for line in cost_lines(found):
            print(line)
    to = save_predictions(args, inside, splits, predictions)
    if not args.json:
        print(f"predictions: {to}" if to else "another adapter, other data or not all rows: "
              "predictions go only to a --predictions FOLDER")


def save_predictions(args, inside, splits, predictions):
    """Write prediction files to --predictions, or else to the path `inside` the run (None: model,
    data or rows are not the run's) → the folder, if any. UserError if it cannot be written."""
    try:
        if args.predictions:
            write_predictions(args.predictions, splits, predictions)
        elif inside is not None:
            with claim(below(args.run, inside)) as folder:
                write_predictions(folder, splits, predictions)
            return folder
    except UserError as error:
        raise UserError(f"{error}. The scores are complete, but no predictions are kept; "
                        f"--predictions FOLDER puts them elsewhere") from error
    return args.predictions


def costs(args, model, splits, seconds):
    """→ what scoring `splits` with --exit or --tau has cost: seconds, and shares of multiply-adds;
    {} without these flags."""
    found = {}
    if args.exit is not None:
        from early_exit.cost import cost_of

        found = cost_of(model.early_exit, model)
    if args.tau is not None:
        from experts.binding import cost

        found = cost(model, splits)
    return found and found | {"seconds": round(seconds, 3)}


def cost_lines(found):
    """The result of costs as lines of text."""
    if "ffn" in found:
        yield (f"multiply-adds: {found['ffn']:.1%} of the feed-forward networks', "
               f"{found['model']:.1%} of the encoder's")
    if "left" in found:
        yield (f"cost: {found['multiply_adds']:.1%} of the whole model's multiply-adds, "
               f"{found['seconds']:.1f} seconds")
    for task, shares in found.get("left", {}).items():
        yield f"{task}: " + ", ".join(f"{share:.0%} leave after layer {number}"
                                      for number, share in enumerate(shares[:-1]))


def answer(args, session):
    """Judge one text, or a pair of texts, by each task that fits, and print {task: {"label", …}}.
    Beside the answer stands the score that the saved model reaches on the task's dev set."""
    texts, model = (args.text,) if args.pair is None else (args.text, args.pair), session.model
    tasks = tasks_that_judge(chosen_tasks(model, args.tasks), texts)
    split = tokenize([Example("--text", texts, None)], session.tokenizer, model.pairs)
    answers = {task: describe_prediction(task, run_split(
        model, task, split, session.device, session.autocast)[0]) for task in tasks}
    for task, batches in model.early_exit.left.items() if model.early_exit else ():
        answers[task]["layer"] = int(batches[0][1])
    if args.json:
        print(json.dumps(answers, indent=2))
    else:
        for task, found in answers.items():
            number = next(name for name in found if name != "label")
            metric, score = next(iter(read_scores(args.run, [task])[task].items()))
            changed = args.adapter or any(
                flag is not None for flag in (args.laser, args.exit, args.tau))
            place = (f", left after layer {found['layer']} of 0 to "
                     f"{len(model.encoder(task).layers) - 1}") if "layer" in found else ""
            print(f"{task}: {found['label']} ({number} {found[number]:.2f}{place})"
                  + (f", dev {metric} {score:.3f}" if not changed else ""))


def parse(arguments):
    parser = Parser(description=__doc__)
    parser.add_argument("run", nargs="?", help="folder of a saved run")
    parser.add_argument("--compare", metavar="RUN", nargs="+", help="put these runs side by side")
    parser.add_argument("--out", metavar="FOLDER", default="runs", help="of --compare's files")
    parser.add_argument("--split", default="dev", choices=("dev", "test"), help="default: dev")
    parser.add_argument("--tasks", help="only these of the run's tasks, as in sst,sts")
    parser.add_argument("--predictions", metavar="FOLDER", help="default: RUN/predictions, if "
                        "model, data and rows are the run's; RUN/laser/predictions with --laser, "
                        "RUN/early_exit/… with --exit, RUN/experts/… with --tau")
    parser.add_argument("--adapter", metavar="TASK=FOLDER", action="append", default=[],
                        help="serve a task by the adapter in a folder (and the head in it, if any)")
    parser.add_argument("--report", metavar="FILE", help="write one HTML page of the dev sets: "
                        "scores, pictures, confusions, wrong answers, attention")
    parser.add_argument("--text", help="judge this text instead of files; with --report, draw its "
                                       "attention maps")
    parser.add_argument("--pair", help="the text that --text is compared with")
    parser.add_argument("--laser", help="reduce layer:matrix:keep[,…] first: python -m laser")
    parser.add_argument("--exit", metavar="THRESHOLD", help="leave at the first exit whose "
                        "probability is above this; for a run of python -m early_exit train")
    parser.add_argument("--tau", type=float, help="of a run with experts: each token runs those "
                        "that --rule chooses, from 0 (few) to 1 (all); see python -m experts")
    parser.add_argument("--rule", help="max (default), cumulative, or top-k: --tau experts for "
                        "every token")
    parser.add_argument("--compile", action="store_true", help="compile the encoder's layers first "
                        "(torch.compile), which takes a minute: for large files")
    parser.add_argument("--json", action="store_true", help="print a JSON object, nothing else")
    add_run_flags(parser, "--data", "--limit", "--device", "--precision")
    args = parser.parse_args(arguments)
    if (args.run is None) == (args.compare is None):
        raise UserError("name one run to open, or --compare two or more")
    given = [name for name, value in vars(args).items() if value != parser.get_default(name)]
    idle = set(given) - {"compare", "out"} if args.compare else {"out"} & set(given)
    if idle:
        raise UserError(f"--{min(idle)} has no effect here: " + (
            "--compare reads the scores that the runs have" if args.compare else
            "it is the folder of --compare's files; see --predictions and --report"))
    if args.text is not None and not args.report and (
            idle := {"data", "limit", "split", "predictions"} & set(given)):
        raise UserError(f"--{min(idle)} has no effect here: --text is judged instead of files")
    if args.pair is not None and args.text is None:
        raise UserError("--pair needs the --text that it is compared with")
    if args.report and (args.split == "test" or args.json or args.predictions or args.compare):
        raise UserError("--report writes one page of a run's dev sets; leave out --split test, "
                        "--json, --predictions and --compare")
    if args.exit is not None and args.tau is not None:
        raise UserError("--exit and --tau are two ways to spend less; give one of them")
    if args.compile and (args.text is not None or args.report):
        raise UserError("--compile is for scoring files; leave out --text and --report")
    if args.rule is not None and args.tau is None:
        raise UserError("--rule says how --tau chooses experts; add --tau")
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
    if args.exit is not None:
        from early_exit.binding import set_threshold

        set_threshold(session.model, args.exit, args.run,
                      [adapter.partition("=")[0] for adapter in args.adapter])
    if args.tau is not None:
        import experts

        experts.select_experts(session.model.bert,
                               experts.Selection(args.rule or "max", args.tau))
    session.model.to(session.device)
    work = score if args.text is None else answer
    if args.report:
        from multitask.html_report import write_report as work  # only now: few runs are reported
    if args.compile:
        check_compilation(session.model, session.device)
    with compiled_layers(args.compile):
        work(args, session)


if __name__ == "__main__":
    run_script(main)
