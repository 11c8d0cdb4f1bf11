"""Run a model with exits: examples leave the batch layer by layer, so that the rest is smaller.

An exit reads [CLS] alone. Where examples leave, a layer is first computed for [CLS] alone, and then
for all rows of those that stay. An example that leaves after layer m costs what a model cut after
layer m costs, whose last layer computes [CLS] alone too. (Where bert/single_query.py does not fit,
on a GPU say, keys and values of those that stay are computed twice.) Where few left in the batch
before, all rows at once take less time.

A MultitaskModel calls its attribute `early_exit` in place of its own pass. `model.encoder(task)`
has `exits`, an nn.ModuleDict {task: Exits}; tasks without exits use the whole model.
"""

import torch

from early_exit.exits import as_outputs

CLS_FIRST = 0.15                                             # share of a batch that must leave


def task_exits(model, task):
    """The Exits of a task, or None."""
    exits = getattr(model.encoder(task), "exits", {})
    return exits[task] if task in exits else None


class EarlyExit:
    """Let an example leave at the first exit whose confidence, max q, is above `threshold`; from 1
    on nothing leaves, and the pass is the whole model's. `left` collects {task: [(lengths
    [segments, B] in tokens, layer after which each example left [B]), …]}; tasks without exits are
    not in it."""

    def __init__(self, threshold):
        self.threshold, self.left = threshold, {}
        self.shares = {}                         # {(task, layer): that left it, of the last batch}

    def __call__(self, model, task, batch, inputs_embeds=None):
        """→ the task's outputs [B, outputs]: those of its head, or log q of an exit"""
        exits = task_exits(model, task)
        if exits is None:
            return model.apply_head(task, model.vectors(task, batch, inputs_embeds))
        lengths = batch.layout.mask.sum(dim=1).view(exits.segments, -1)
        left = torch.full_like(lengths[0], len(exits))
        self.left.setdefault(task, []).append((lengths, left))
        return self.run(model, task, exits, model.with_adapter(task, batch), inputs_embeds, left)

    def run(self, model, task, exits, batch, inputs_embeds, left):
        """→ outputs; `left` [B] receives the layer after which each example left."""
        bert, cls_rows = model.encoder(task), batch.cls_rows
        hidden, layout = bert.embed(None if inputs_embeds is not None else batch.input_ids,
                                    batch.layout, batch.token_type_ids, inputs_embeds)
        staying = torch.arange(len(left), device=left.device)    # numbers of the examples, [S]
        outputs = hidden.new_zeros(len(left), exits.outputs, dtype=torch.float32)
        logits, log_probs = None, hidden.new_zeros(0, len(left), exits.classes)     # [m, S, C]
        for number, layer, rows in bert.walk(model.pooled_rows(task, batch)):
            if number == len(exits):                         # the last layer has the task's head
                hidden = layer(hidden, layout, output_rows=None if rows is None else cls_rows)
                outputs[staying] = model.apply_head(task, model.pool(task, hidden, layout)).float()
                break
            cls_first = self.shares.get((task, number), 0.0) > CLS_FIRST
            if cls_first:
                first = layer(hidden, layout, output_rows=cls_rows)
            else:
                hidden = layer(hidden, layout)
                first = hidden.index_select(0, cls_rows.rows)
            logits, log_probs, answer = next_exit(exits, number, first, logits, log_probs)
            leaving = answer.amax(dim=1).exp() > self.threshold              # [S]
            self.shares[task, number] = leaving.float().mean().item()
            if self.shares[task, number]:
                gone, stay = leaving.nonzero().squeeze(1), (~leaving).nonzero().squeeze(1)
                outputs[staying[gone]] = as_outputs(answer[gone], exits.outputs)
                left[staying[gone]] = number
                if not len(stay):
                    break
                kept = layout.keep(torch.cat([stay + n * len(staying)
                                              for n in range(exits.segments)]))
                hidden = hidden.index_select(0, kept.rows)
                layout, staying, cls_rows = kept, staying[stay], kept.cls_rows()
                logits, log_probs = logits[stay], log_probs[:, stay]
            if cls_first:
                hidden = layer(hidden, layout)
        return outputs


def next_exit(exits, number, first, logits, log_probs):
    """[CLS] after a layer [segments·S, H], the logits [S, C] of the exit before (None: the first)
    and log p of all before [m, S, C] → logits, log p with this exit's, and log q [S, C]"""
    with torch.autocast(first.device.type, enabled=False):
        logits = exits.logits(number, side_by_side(first.float(), exits.segments), logits)
        log_probs = torch.cat([log_probs.float(), logits.log_softmax(dim=1)[None]])
        return logits, log_probs, exits.combine(number, log_probs)


def side_by_side(vectors, segments):
    """[segments·B, H] → [B, segments·H]: the vectors of an example's sequences, side by side."""
    return torch.cat(vectors.chunk(segments), dim=1)


@torch.inference_mode()
def cls_states(model, task, batch, segments):
    """→ [CLS] after every layer but the last [B, M, segments·H], and the model's outputs [B,
    outputs], both in float32. Nothing leaves."""
    bert, batch = model.encoder(task), model.with_adapter(task, batch)
    hidden, layout = bert.embed(batch.input_ids, batch.layout, batch.token_type_ids)
    rows, states = model.pooled_rows(task, batch), []
    hidden = bert.encode(hidden, layout, output_rows=rows, states=states)
    outputs = model.apply_head(task, model.pool(task, hidden, layout))
    first = [side_by_side(state.index_select(0, batch.cls_rows.rows).float(), segments)
             for state in states[:-1]]
    return torch.stack(first, dim=1), outputs.float()


def exit_layers(log_q, threshold):
    """log q [M, n, C] of every exit for every example → the layer after which each leaves [n]; M,
    the last one, if no exit is confident."""
    confident = log_q.amax(dim=2).exp() > threshold                          # [M, n]
    return torch.where(confident.any(dim=0), confident.int().argmax(dim=0), len(log_q))


def answers(log_q, final, layers):
    """log q [M, n, C], log p [n, C] of the model's head, the layers [n] after which the examples
    leave → log probabilities [n, C] of the answers"""
    return torch.cat([log_q, final[None]])[layers, torch.arange(len(layers))]
