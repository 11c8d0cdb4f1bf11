"""What was done to a run's encoder beside training its weights, so that the run opens again.

run.json lists the edits in order, each {"kind": …, and what that kind needs}; a model carries its
own list as `bert.edits`. To add a kind, add a line to EDITS.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import compression.stored
import laser.edit
from bert import UserError
from multitask import adapters


class Edit(NamedTuple):
    """How one kind is done again. `reshape(bert, edit)` changes modules before the saved weights
    are loaded into them; `restore(bert, edit, folder)` acts after, with the run's folder at
    hand. One that is not `lasting` leaves a plain model when it is restored: what is made of it
    needs no edit."""

    rebuild: Callable | None = None
    restore: Callable | None = None
    lasting: bool = True


EDITS = {                                                    # kind → Edit
    "lora": Edit(restore=adapters.restore),
    "remove_heads": Edit(), "mask_heads": Edit(),            # config.json gives the pruned shape
    "remove_neurons": Edit(), "remove_layers": Edit(),
    "laser": Edit(rebuild=laser.edit.rebuild),
    "compressed": Edit(compression.stored.rebuild, compression.stored.restore, lasting=False),
}


def rebuild(bert, edits):
    for edit in edits:
        if edit["kind"] not in EDITS:
            raise UserError(f"the run was edited by {edit['kind']!r}, which this version does not "
                            f"know; it knows {', '.join(EDITS) or 'no edit'}")
        if EDITS[edit["kind"]].rebuild is not None:
            EDITS[edit["kind"]].rebuild(bert, edit)


def restore(bert, edits, folder):
    for edit in sorted(edits, key=lambda edit: edit["kind"] == "lora"):  # adapters last
        if EDITS[edit["kind"]].restore is not None:
            EDITS[edit["kind"]].restore(bert, edit, Path(folder))
    bert.edits = [edit for edit in edits if EDITS[edit["kind"]].lasting]
