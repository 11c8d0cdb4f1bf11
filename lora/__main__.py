"""Merge an adapter of a saved run into the weights and save a run without adapters. Its outputs
differ in the last digits only, and pruning and LASER can change its matrices.

    python -m lora merge RUN --out RUN2                  # the adapter that all tasks share
    python -m lora merge RUN --task sts --out RUN2       # the adapter of sts
"""

from dataclasses import fields, replace
from functools import partial

import lora
from bert import UserError
from common.cli import add_run_flags, run_command, run_script
from lora.binding import Flags
from multitask.model import chosen_tasks, with_heads
from multitask.report import score_table
from multitask.session import RunSession
from multitask.settings import SHARED


def merge_adapter(session, task):
    """Replace the session's model by one without adapters, with all tasks whose adapter is that of
    `task` (None: the run's only one) → its settings."""
    model, settings, by_task = session.model, session.settings, session.model.adapters
    if not by_task:
        raise UserError("the run has no adapters: its encoder is plain already")
    if task is None and len(set(by_task.values())) > 1:
        raise UserError(f"the run has adapters for {', '.join(by_task)}, and an encoder can hold "
                        f"only one; choose with --task")
    chosen = by_task[chosen_tasks(model, task, "--task")[0]]
    tasks = [name for name, adapter in by_task.items() if adapter == chosen]
    lora.merge(model.bert, chosen)
    lora.detach(model.bert)
    model.bert.edits = [edit for edit in model.bert.edits if edit["method"] != "lora"]
    heads = ",".join(f"{task}={settings.head_kinds[task]}" for task in tasks)
    settings = replace(settings, tasks=",".join(tasks), head=heads, train_tasks="", surgery="none",
                       **{f.name: f.default for f in fields(Flags)})
    session.model = with_heads({SHARED: model.bert}, settings)
    kept = session.model.own_state()
    session.model.load_own_state({name: t for name, t in model.own_state().items() if name in kept},
                                 f"the merged model of {session.run}")
    return settings


def merge(args):
    """Merge the adapter of a task, and keep all tasks that use this adapter."""
    folder, scores = RunSession(args).derive(
        args.out, args.overwrite, lambda session: merge_adapter(session, args.task))
    print(f"{score_table(scores)}\n\nrun: {folder}")


def add_merge_flags(parser):
    add_run_flags(parser, "run", "--data", "--device", "--overwrite")
    parser.add_argument("--out", metavar="RUN2", required=True, help="folder of the new run")
    parser.add_argument("--task", help="merge this task's adapter (default: the only one)")


main = partial(run_command, "lora", __doc__, {"merge": (merge, add_merge_flags)})

if __name__ == "__main__":
    run_script(main)
