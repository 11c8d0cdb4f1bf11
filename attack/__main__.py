"""How robust is a saved run? Change a few words of sentences that it classifies rightly.

    python -m attack RUN --task sst --limit 200
    python -m attack RUN --task sst --method all --lm tiny       # beside three other attacks
    python -m attack RUN --task para --sentence 2                # of a pair one text may change

Prints examples with the changed words in brackets and a table, and writes RUN/attack/: a file
TASK-METHOD.jsonl with the settings, the victim's fingerprint and every example. A stopped attack
goes on with the same command. Success counts only for the new text, tokenized again. The purpose is
to measure robustness: such examples mislead this model, and often no other.
"""

import json
import math

from attack import report
from attack.baselines import METHODS
from attack.examples import Attack
from bert import UserError
from bert.checkpoint import pretraining_heads
from bert.errors import check_known
from bert.files import atomic_write
from bert.json_files import NUMBER, check_type, read_json_lines
from common.cli import Parser, StopSignal, UserStop, add_run_flags, run_script
from common.log import progress_bar
from multitask.evaluation import model_fingerprint
from multitask.model import chosen_tasks
from multitask.session import RunSession
from multitask.tasks import TASKS
from pretraining.model import MaskedLM, load_head, open_checkpoint

NUMBERS = {                                       # flag → default, minimum, maximum, help
    "limit": (200, 0, math.inf, "attack so many random examples of the dev set (0: all)"),
    "max_changed": (0.2, 0, 1, "share of the words that may change; at least one may"),
    "candidates": (50, 2, math.inf, "nearest words by embedding that may stand at a position"),
    "steps": (100, 1, math.inf, "of Adam in the first round"),
    "least": (0, 0, math.inf, "multistep: at least so many steps in each round, N_min (the authors "
                              "also ran 5)"),
    "samples": (10, 1, 10_000, "gumbel: samples in a step"),
    "similarity": (None, 0, math.inf, "weight λ of the similarity (default: 20; gumbel 1, hotflip "
                                      "0, as published)"),
    "fluency": (1.0, 0, math.inf, "weight μ of the fluency, which needs --lm"),
    "seed": (0, 0, 2 ** 32, "of the examples and samples"),
    "show": (5, 0, math.inf, "examples to print"),
}
PART = {*NUMBERS, "sentence", "lm", "judge"} - {"show"}      # of the settings that make a result

RECORD = {                                                   # a line of TASK-METHOD.jsonl
    "id": str, "adversarial": str, "marked": tuple[str, str], "success": bool,
    "misled_as_ids": bool, "changed": int, "words": int, "tokens": range(1, 2 ** 31),
    **dict.fromkeys(("soft_margin", "hard_margin", "forward", "backward"), NUMBER)}


def parse(arguments):
    parser = Parser(prog="python -m attack", description=__doc__)
    add_run_flags(parser, "run", "--data", "--device", "--precision")
    parser.add_argument("--task", help="one of the run's tasks (default: the first with classes)")
    parser.add_argument("--method", default="multistep", help=f"all, or some of "
                        f"{', '.join(METHODS)} (default: multistep)")
    parser.add_argument("--sentence", type=int, default=2, choices=(1, 2), help="the text of a "
                        "pair that may change (default: 2)")
    parser.add_argument("--lm", default="", metavar="CHECKPOINT", help="masked language model with "
                        "the run's vocabulary, for similarity and fluency (default: none, and the "
                        "victim's own states give the similarity)")
    parser.add_argument("--judge", default="", metavar="CHECKPOINT", help="encoder that the "
                        "reported similarity is of (default: the checkpoint the run began with)")
    for name, (default, _, _, text) in NUMBERS.items():
        parser.add_argument(flag(name), default=default, metavar="N", help=text + (
            "" if default is None else f" (default: {default})"),
            type=int if isinstance(default, int) else float)
    parser.add_argument("--out", metavar="FOLDER", help="of the results (default: RUN/attack)")
    parser.add_argument("--overwrite", action="store_true", help="begin anew")
    args = parser.parse_args(arguments)
    for name, (_, minimum, maximum, _) in NUMBERS.items():
        value = getattr(args, name)
        if value is not None and not minimum <= value <= maximum:
            limit = f" and {maximum:g} or less" if maximum < math.inf else ""
            raise UserError(f"{flag(name)} is {value}; it must be {minimum} or more{limit}")
    args.methods = list(METHODS) if args.method == "all" else args.method.split(",")
    for method in args.methods:
        check_known(method, METHODS, "method", where="--method")
    return args


def flag(name):
    return "--" + name.replace("_", "-")


def open_lm(name, session):
    """→ a MaskedLM with the victim's vocabulary, and whether it has its head; None without --lm."""
    if not name:
        return None, False
    tokenizer, bert = open_checkpoint(name)
    if tokenizer.backend.get_vocab() != session.tokenizer.backend.get_vocab():
        raise UserError(f"--lm {name} has another vocabulary than the run, so it cannot read the "
                        f"attack's words; give a checkpoint with the run's own vocabulary (python "
                        f"-m pretraining --init trains one)")
    lm = MaskedLM(bert).to(session.device).eval().requires_grad_(False)
    has_head = load_head(lm.head, pretraining_heads(name), name)
    if not has_head:
        print(f"{name} has no masked-LM head: it gives the similarity, and there is no fluency")
    return lm, has_head


def open_judge(args, session, task):
    """→ the encoder and tokenizer of the reported similarity, never those that are optimized."""
    name = args.judge or session.settings.bert
    if args.judge and args.judge == args.lm:
        raise UserError(f"--judge and --lm are both {args.lm}; the similarity must be judged by "
                        f"another encoder than the one that the attack raises it with")
    if not args.judge and name == args.lm:                   # then the victim's states are free
        return session.model.encoder(task), session.tokenizer
    try:
        return open_checkpoint(name)[::-1]
    except UserError:
        if args.judge:
            raise
        print(f"the checkpoint {name} is gone; tiny judges the similarity instead")
        return open_checkpoint("tiny")[::-1]


def read_lines(path, header, overwrite, attack):
    """→ the records of an attack that was stopped, or []. UserError if it was another one."""
    if overwrite or not path.is_file():
        return []
    lines = read_json_lines(path, dict)
    if not lines or lines[0] != header:
        raise UserError(f"{path} is of an attack with other settings, or on another model; "
                        f"--overwrite replaces it, or choose another --out")
    labels, texts = range(len(TASKS[attack.task].label_names)), len(TASKS[attack.task].columns)
    kind = RECORD | {"label": labels, "after": labels, "texts": tuple[(str,) * texts]}
    for number, line in enumerate(lines[1:], start=2):
        check_type(line, kind, f"{path} line {number}")
    return lines[1:]


def run_method(attack, method, path, header, overwrite):
    """Attack all examples → the records. Written batch by batch: a stopped attack loses one."""
    def write(records):
        with atomic_write(path) as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n"
                               for line in (header, *records)).encode())

    batches = [{attack.examples[n].id for n in numbers} for numbers in attack.batches]
    records, total = read_lines(path, header, overwrite, attack), sum(map(len, batches))
    found = {record["id"] for record in records}
    done = set().union(*(batch for batch in batches if batch <= found))
    records = [record for record in records if record["id"] in done]
    with StopSignal() as stop, progress_bar(method, total, "example", len(records)) as bar:
        for numbers in attack.batches:
            if attack.examples[numbers[0]].id in done:
                continue
            if stop.asked:
                raise UserStop(f"stopped after {bar.n} of {total} examples; the same command goes "
                               f"on")
            records += attack.attack(numbers, method)
            write(records)
            bar.update(len(numbers))
            bar.set_postfix(misled=sum(record["success"] for record in records), refresh=False)
    write(records)
    return records


def main(arguments=None):
    args = parse(arguments)
    session = RunSession(args)
    names = chosen_tasks(session.model, args.task, "--task")
    task = next((name for name in names if not TASKS[name].is_regression), names[0])
    if args.task and len(names) > 1:
        raise UserError(f"--task {args.task} names {len(names)} tasks; an attack is on one")
    victim = model_fingerprint(session.model, {}, session.precision)
    settings = {name: getattr(args, name) for name in sorted(PART)} | {"task": task}
    lm, has_head = open_lm(args.lm, session)
    attack = Attack(session, task, settings, lm, has_head)
    if not attack.batches:
        raise UserError(f"of {len(attack.examples)} examples {len(attack.right)} are classified "
                        f"rightly, and none of these has a word that could change; there is "
                        f"nothing to attack")
    judge, columns = open_judge(args, session, task), {}
    with session.results(args.out, "attack") as folder:
        for method in args.methods:
            header = {"method": method, "settings": settings, "victim": victim}
            path = folder / f"{task}-{method}.jsonl"
            records = run_method(attack, method, path, header, args.overwrite)
            report.judge_records(records, attack, judge, lm if has_head else None)
            columns[method] = report.summary(records, attack)
            print(report.side_by_side(records, task, args.show))
    print(f"{report.table(columns)}\n\n{report.about(attack)}\n{folder}/: {task}-*.jsonl")


if __name__ == "__main__":
    run_script(main)
