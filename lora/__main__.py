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
    """Replace session.model by a plain one with the adapter of `task` (None: the only one) merged
    in, for all tasks that this adapter serves; return its settings."""
    before, settings, by_task = session.model, session.settings, session.model.adapters
    if not by_task:
        raise UserError("the run has no adapters: its encoder is plain already")
    chosen = {by_task[name] for name in chosen_tasks(before, task, "--task")}
    if len(chosen) > 1:
        raise UserError(f"the run has adapters for {', '.join(by_task)}, and an encoder can hold "
                        f"only one; choose with --task")
    adapter, bert = chosen.pop(), before.bert
    lora.merge(bert, adapter)
    lora.detach(bert)
    bert.edits = [edit for edit in bert.edits if edit["method"] != "lora"]
    kinds = {name: settings.head_kinds[name] for name, own in by_task.items() if own == adapter}
    settings = replace(settings, tasks=",".join(kinds), train_tasks="", surgery="none",
                       head=",".join(f"{name}={kind}" for name, kind in kinds.items()),
                       **{f.name: f.default for f in fields(Flags)})
    session.model = merged = with_heads({SHARED: bert}, settings)
    names, old = merged.own_state(), before.own_state()
    merged.load_own_state({name: old[name] for name in old if name in names},
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
