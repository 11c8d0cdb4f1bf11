"""One encoder for all tasks, or one for each; for each task a pooling and a head."""

import copy
import warnings

import torch
from torch import nn

from bert import UserError
from bert.checkpoint import check_names_and_shapes
from bert.errors import check_known
from bert.r_softmax import configure
from multitask.heads import HEADS, POOLINGS
from multitask.settings import SHARED
from multitask.tasks import TASKS


class MultitaskModel(nn.Module):
    """`encoders` is {"shared": bert} or {task: bert}, `heads` {task: module}, `pooling` a name of
    POOLINGS, `adapters` {task: the adapter that serves it}, or empty. A pair is one vector if
    encoded jointly, or two.

    A further module made in __init__ is trained at the heads' learning rate, saved and opened with
    them. An nn.ModuleDict by task, as `heads` is, has one module for each task."""

    def __init__(self, encoders, heads, pairs="joint", pooling="cls", adapters=()):
        super().__init__()
        if pooling == "pooler":
            for bert in encoders.values():
                bert.check_pooler()
        width = next(iter(encoders.values())).config.hidden_size
        self.encoders, self.heads = nn.ModuleDict(encoders), nn.ModuleDict(heads)
        self.poolings = nn.ModuleDict({task: POOLINGS[pooling](width) for task in heads})
        self.pairs, self.pooling_name, self.adapters = pairs, pooling, dict(adapters)
        self.early_exit = None           # or an early_exit.EarlyExit, which then does the pass

    @property
    def hidden_size(self):
        """H, the hidden size of the encoder or encoders."""
        return next(iter(self.encoders.values())).config.hidden_size

    @property
    def bert(self):
        """The encoder that all tasks share."""
        if SHARED not in self.encoders:
            raise UserError(f"the model has an encoder for each task ({', '.join(self.encoders)}), "
                            f"and this needs one that all share")
        return self.encoders[SHARED]

    def encoder(self, task):
        return self.encoders[task if task in self.encoders else SHARED]

    def part(self, name):
        """A tensor's name in state_dict() → its part of the model, and the task that this part is
        named after or None: "heads.sst.out.weight" → ("heads.sst", "sst")."""
        first, second = (name.split(".") + [""])[:2]
        return (f"{first}.{second}", second) if second in self.heads else (first, None)

    def own_state(self, tasks=None):
        """{name: tensor} of all but the encoders, or of what these tasks alone use."""
        return {name.removeprefix("heads."): tensor for name, tensor in self.state_dict().items()
                if not name.startswith("encoders.") and (not tasks or self.part(name)[1] in tasks)}

    @torch.no_grad()
    def load_own_state(self, tensors, path, tasks=None):
        """Copy `tensors` of the file `path` into own_state(tasks). UserError unless they fit."""
        check_names_and_shapes(path, own := self.own_state(tasks), tensors, "run.json")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def with_adapter(self, task, batch):
        """The batch with a layout that names the task's adapter, unless it names some already."""
        if not self.adapters or batch.layout.adapters is not None:
            return batch
        return batch.with_adapters([(self.adapters.get(task), batch.layout.batch)])

    def forward(self, task, batch, inputs_embeds=None):
        """→ the task's outputs [B, outputs], in float32. inputs_embeds [sequences, tokens, H]
        replaces the batch's word embeddings."""
        if self.early_exit is not None:
            return self.early_exit(self, task, batch, inputs_embeds)
        return self.apply_head(task, self.vectors(task, batch, inputs_embeds))

    def vectors(self, task, batch, inputs_embeds=None):
        """→ [sequences, H], one vector a sequence."""
        bert, batch = self.encoder(task), self.with_adapter(task, batch)
        input_ids = batch.input_ids if inputs_embeds is None else None
        hidden, layout = bert.embed(input_ids, batch.layout, batch.token_type_ids, inputs_embeds)
        hidden = bert.encode(hidden, layout, output_rows=self.pooled_rows(task, batch))
        return self.pool(task, hidden, layout)

    def pooled_rows(self, task, batch):
        """The selection of the last layer's rows that the task's pooling needs; None: all rows."""
        return None if self.poolings[task].all_rows else batch.cls_rows

    def pool(self, task, hidden, layout):
        """The last layer's pooled_rows → [sequences, H]"""
        return self.poolings[task](self.encoder(task), hidden, layout)

    def apply_head(self, task, vectors, head=None):
        """vectors [sequences, H] → the outputs [B, outputs] of the task's head (or of `head`), in
        float32."""
        separate = TASKS[task].pair and self.pairs == "separate"
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            return (head or self.heads[task])(*(vectors.chunk(2) if separate else (vectors,)))


def chosen_tasks(model, text, flag="--tasks"):
    """"sst,sts" → ["sst", "sts"], of the tasks that the model has; no text: all of them."""
    names = text.replace(" ", "").split(",") if text else list(model.heads)
    for name in names:
        check_known(name, model.heads, "task of the run", where=flag)
    return names


def build_model(bert, settings):
    """`bert` with a new head for each task; with --encoders separate, a copy of it for each."""
    return with_heads({SHARED: bert} if settings.encoders == "shared" else
                      {task: copy.deepcopy(bert) for task in settings.task_names}, settings)


def model_from(saved, settings):
    """The model that the settings describe, made of a saved run's model: its encoder or encoders,
    and every head and further module of it that reads the same vectors and has the same shapes."""
    encoders, lacking = saved.encoders, set(settings.task_names) - set(saved.encoders)
    if SHARED not in encoders and settings.encoders == "shared":
        raise UserError(f"{settings.from_run} has an encoder for each task; add --encoders "
                        f"separate, or start from one: --bert {settings.from_run}/model/"
                        f"{next(iter(encoders))}")
    if SHARED not in encoders and lacking:
        raise UserError(f"{settings.from_run} has encoders for {', '.join(encoders)} and none for "
                        f"{', '.join(sorted(lacking))}; leave that out of --tasks")
    model = (build_model(saved.bert, settings) if SHARED in encoders else
             with_heads({task: encoders[task] for task in settings.task_names}, settings))
    for bert in model.encoders.values():
        learned = [name for name, _ in bert.named_parameters() if "attention_function." in name]
        if learned and bert.attention_name != settings.attention:
            raise UserError(f"{settings.from_run} has learned parameters of its attention; add "
                            f"--attention {bert.attention_name}")
        if bert.attention_name != settings.attention == "sdpa":
            warnings.warn(f"{settings.from_run} attends by {bert.attention_name} and this run by "
                          f"sdpa; --attention {bert.attention_name} keeps it", stacklevel=2)
        use_attention(bert, settings)
    old = _parts(saved)
    for (part, task), tensors in _parts(model).items():
        before, single = old.get((part, task), {}), task is not None and not TASKS[task].pair
        fits = (saved.pooling_name == model.pooling_name and (single or saved.pairs == model.pairs)
                and {k: v.shape for k, v in before.items()}
                == {k: v.shape for k, v in tensors.items()})
        for name, tensor in tensors.items() if fits else ():
            tensor.copy_(before[name])
        what = "head" if part.startswith("heads.") else "module"
        found = f"its {what} in the run" if fits else f"a new {what}"
        print(f"{part.removeprefix('heads.')}: {found}")
    return model


def use_attention(bert, settings):
    """Use --attention, with --zeros and its gradient where it is r-softmax."""
    bert.use_attention(settings.attention)
    configure(bert, zeros=settings.zeros, detached=settings.zeros_gradient == "detached")


def _parts(model):
    """{(part of the model beside the encoders, its task): {name: tensor}}"""
    found = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith("encoders."):
            found.setdefault(model.part(name), {})[name] = tensor
    return found


def with_heads(encoders, settings):
    """{"shared": bert} or {task: bert} with a new head for each task."""
    first = next(iter(encoders.values()))
    heads = {task: build_head(task, kind, first.config.hidden_size, settings.pairs,
                              settings.head_dropout)
             for task, kind in settings.head_kinds.items()}
    adapters = {task: name for edit in first.edits
                for task, name in edit.get("adapters", {}).items()}
    return MultitaskModel(encoders, heads, settings.pairs, settings.pooling, adapters)


def build_head(task, kind, width, pairs, dropout):
    """A new head of this kind for a task; UserError where they do not fit. The bias of a regression
    starts in the middle of the labels; else the first steps, with huge gradients, move it there."""
    if kind not in TASKS[task].heads:
        raise UserError(f"{task} has no {kind!r} head; it may have {', '.join(TASKS[task].heads)}")
    vectors = 2 if TASKS[task].pair and pairs == "separate" else 1
    if kind.endswith("cosine") and vectors == 1:
        raise UserError("a cosine compares two sentence vectors, and --pairs joint has only one "
                        "for both sentences; add --pairs separate, or choose another --head")
    head = HEADS[kind](width, vectors, TASKS[task].outputs, dropout)
    if TASKS[task].is_regression and hasattr(head, "out"):
        nn.init.constant_(head.out.bias, TASKS[task].max_label / 2)
    return head
