"""One encoder, a head for each task."""

from torch import nn

from bert import UserError
from multitask.heads import HEADS
from multitask.tasks import TASKS

READS = ("cls", "pooler", "mean")


class MultitaskModel(nn.Module):
    """`heads` is {task: module}; `read` says what is read of the encoder: the last layer at [CLS],
    BERT's pooler on top of it, or the mean of all tokens. A pair is one vector if encoded jointly,
    or two. `adapters` is {task: the adapter (lora/) that serves it}, or empty without any."""

    def __init__(self, bert, heads, pairs="joint", read="cls", adapters=()):
        super().__init__()
        self.bert, self.heads = bert, nn.ModuleDict(heads)
        self.pairs, self.read = pairs, read
        self.adapters = dict(adapters)

    def vectors(self, batch):
        """[sequences, H]: one vector a sequence. The last layer computes only what is read here."""
        hidden, layout = self.bert.embed(batch.input_ids, batch.layout, batch.token_type_ids)
        if self.read == "mean":
            hidden = layout.pad(self.bert.encode(hidden, layout))        # [sequences, tokens, H]
            return hidden.sum(dim=1) / layout.mask.sum(dim=1, keepdim=True)
        first = self.bert.encode(hidden, layout, read=batch.first)
        return self.bert.pool(first) if self.read == "pooler" else first

    def forward(self, task, batch):
        """→ the task's outputs [B, outputs], in float32."""
        if self.adapters:
            batch = batch.served_by([(self.adapters.get(task), batch.layout.batch)])
        return self.answer(task, self.vectors(batch))

    def answer(self, task, vectors):
        """What the task's head makes of the encoder's vectors [sequences, H]."""
        both = vectors.chunk(2) if TASKS[task].pair and self.pairs == "separate" else (vectors,)
        return self.heads[task](*both).float()


def build_head(task, kind, width, pairs, dropout):
    """A new head of this kind for a task; UserError where they do not fit."""
    if kind not in TASKS[task].heads:
        raise UserError(f"{task} has no {kind!r} head; it may have {', '.join(TASKS[task].heads)}")
    vectors = 2 if TASKS[task].pair and pairs == "separate" else 1
    if kind == "cosine" and vectors == 1:
        raise UserError("a cosine compares two sentence vectors, and --pairs joint has only one "
                        "for both sentences; add --pairs separate, or choose another --head")
    return HEADS[kind](width, vectors, TASKS[task].outputs, dropout)
