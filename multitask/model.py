"""One encoder for all tasks, or one for each, and a head for each task."""

import copy

from torch import nn

from bert import UserError
from multitask.heads import HEADS
from multitask.tasks import TASKS

READS = ("cls", "pooler", "mean")
SHARED = "shared"                                # the name of the one encoder that all tasks share


class MultitaskModel(nn.Module):
    """`encoders` is {"shared": bert} or {task: bert}, `heads` {task: module}; `read` says what is
    read of the encoder: the last layer at [CLS], BERT's pooler on top of it, or the mean of all
    tokens. A pair is one vector if encoded jointly, or two."""

    def __init__(self, encoders, heads, pairs="joint", read="cls"):
        super().__init__()
        self.encoders, self.heads = nn.ModuleDict(encoders), nn.ModuleDict(heads)
        self.pairs, self.read = pairs, read

    @property
    def bert(self):
        """The encoder that all tasks share."""
        if SHARED not in self.encoders:
            raise UserError(f"the model has an encoder for each task ({', '.join(self.encoders)}), "
                            f"and this needs one that all share")
        return self.encoders[SHARED]

    def encoder(self, task):
        return self.encoders[task if task in self.encoders else SHARED]

    def vectors(self, task, batch):
        """[sequences, H]: one vector a sequence. The last layer computes only what is read here."""
        bert = self.encoder(task)
        hidden, layout = bert.embed(batch.input_ids, batch.layout, batch.token_type_ids)
        if self.read == "mean":
            hidden = layout.pad(bert.encode(hidden, layout))             # [sequences, tokens, H]
            return hidden.sum(dim=1) / layout.mask.sum(dim=1, keepdim=True)
        first = bert.encode(hidden, layout, read=batch.first)
        return bert.pool(first) if self.read == "pooler" else first

    def forward(self, task, batch):
        """→ the task's outputs [B, outputs], in float32."""
        vectors = self.vectors(task, batch)
        both = vectors.chunk(2) if TASKS[task].pair and self.pairs == "separate" else (vectors,)
        return self.heads[task](*both).float()


def build_model(bert, settings):
    """`bert` with a new head for each task; with --encoders separate, a copy of it for each."""
    if settings.encoders == "shared":
        return with_heads({SHARED: bert}, settings)
    return with_heads({task: copy.deepcopy(bert) for task in settings.task_names}, settings)


def with_heads(encoders, settings):
    """{"shared": bert} or {task: bert} with a new head for each task."""
    width = next(iter(encoders.values())).config.hidden_size
    heads = {task: build_head(task, kind, width, settings.pairs, settings.head_dropout)
             for task, kind in settings.head_kinds.items()}
    return MultitaskModel(encoders, heads, settings.pairs, settings.read)


def build_head(task, kind, width, pairs, dropout):
    """A new head of this kind for a task; UserError where they do not fit. The bias of a graded
    task's starts in the middle of the labels: else the first steps, which only move it there, have
    by far the largest gradients of all tasks."""
    if kind not in TASKS[task].heads:
        raise UserError(f"{task} has no {kind!r} head; it may have {', '.join(TASKS[task].heads)}")
    vectors = 2 if TASKS[task].pair and pairs == "separate" else 1
    if kind.endswith("cosine") and vectors == 1:
        raise UserError("a cosine compares two sentence vectors, and --pairs joint has only one "
                        "for both sentences; add --pairs separate, or choose another --head")
    head = HEADS[kind](width, vectors, TASKS[task].outputs, dropout)
    if TASKS[task].graded and hasattr(head, "out"):
        nn.init.constant_(head.out.bias, TASKS[task].highest / 2)
    return head
