"""A saved run's adapter, merged into the weights: a run without adapters, whose outputs differ in
the last digits only.

    python -m lora merge RUN --out RUN2                  # the adapter that all tasks share
    python -m lora merge RUN --task sts --out RUN2       # that of sts, and the tasks it serves

Heads are removed (python -m pruning) and matrices reduced (python -m laser) where no adapter lies
on them.
"""

import sys
from dataclasses import replace

import lora
from bert import UserError
from common.cli import Parser, run_script
from multitask.model import chosen_tasks


def tasks_to_keep(model, task):
    """The tasks that the chosen adapter serves; `task` None: the run's only adapter."""
    serves = model.adapters
    if not serves:
        raise UserError("the run has no adapters: its encoder is plain already")
    if task is None and len(set(serves.values())) > 1:
        raise UserError(f"the run has adapters for {', '.join(serves)}, and an encoder can hold "
                        f"only one for good; choose with --task")
    chosen = serves[chosen_tasks(model, task, "--task")[0]]
    return [name for name, adapter in serves.items() if adapter == chosen]


def merge(model, settings, tasks):
    """The adapter of `tasks` goes into the weights, all else that is not theirs goes → settings of
    the run that is left."""
    lora.merge(model.bert, model.adapters[tasks[0]])
    lora.detach(model.bert)
    model.bert.edits = [edit for edit in model.bert.edits if edit["kind"] != "lora"]
    model.adapters = {}
    for task in set(model.heads) - set(tasks):
        del model.heads[task]
    kinds = ",".join(f"{task}={settings.head_kinds[task]}" for task in tasks)
    return replace(settings, tasks=",".join(tasks), head=kinds, train_tasks="", surgery="none",
                   task_lr="", task_epochs="", **{f.name: f.default for f in adapter_fields()})


def main(arguments=None):
    parser = Parser(prog="python -m lora", description=__doc__)
    parser.add_argument("command", choices=("merge",))
    parser.add_argument("run", metavar="RUN", help="folder of a saved run")
    parser.add_argument("--out", required=True, help="folder of the new run")
    parser.add_argument("--task", help="merge the adapter that serves it (default: the only one)")
    parser.add_argument("--data", help="folder with the data files (default: the run's own)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in --out")
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        return print(__doc__)
    args = parser.parse_args(arguments)

    def edit(model, tokenizer, settings, device):
        return merge(model, settings, tasks_to_keep(model, args.task))

    derive_run(args, edit)


if __name__ == "__main__":
    run_script(main)
