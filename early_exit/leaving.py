"""Run a model with exits: examples leave the batch layer by layer, so that the rest is smaller.

A MultitaskModel calls its attribute `early_exit` in place of its own pass. `model.encoder(task)`
has `exits`, an nn.ModuleDict {task: Exits}; tasks without exits use the whole model.
"""

import torch
import torch.nn.functional as F

from early_exit.exits import as_outputs

PAYS = 0.15          # of a layer's time, which it takes to remove examples from a batch


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

    def batch_tokens(self, model, task, tokens):
        """The tokens of a batch: half as many again where examples leave, as it becomes smaller."""
        leaves = self.threshold < 1 and task_exits(model, task) is not None
        return tokens * 3 // 2 if leaves else tokens

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
        """→ outputs; `left` [B] receives the layer after which each example left. Those that left
        are removed from the batch where the layers that follow save more time than that takes."""
        bert, pooled_rows = model.encoder(task), model.pooled_rows(task, batch)
        hidden, layout = bert.embed(None if inputs_embeds is not None else batch.input_ids,
                                    batch.layout, batch.token_type_ids, inputs_embeds)
        layout, cls_rows = bert.with_products(layout, pooled_rows, 0)
        staying = torch.arange(len(left), device=left.device)    # numbers of the examples, [S]
        outputs = hidden.new_zeros(len(left), exits.outputs, dtype=torch.float32)
        logits, log_probs = None, hidden.new_zeros(0, len(left), exits.classes)     # [m, S, C]
        for number, layer, rows in bert.walk(pooled_rows):
            hidden = layer(hidden, layout, output_rows=None if rows is None else cls_rows)
            waiting = left[staying] == len(exits)                                # [S]
            if number == len(exits):                         # the last layer has the task's head
                answer = model.apply_head(task, model.pool(task, hidden, layout)).float()
                outputs[staying[waiting]] = answer[waiting]
                break
            states = read_states(hidden, layout, exits.segments)
            logits, log_probs, answer = next_exit(exits, number, states, logits, log_probs)
            leaving = waiting & (answer.amax(dim=1).exp() > self.threshold)
            outputs[staying[leaving]] = as_outputs(answer[leaving], exits.outputs)
            left[staying[leaving]] = number
            stay = (waiting & ~leaving).nonzero().squeeze(1)
            if not len(stay):
                break
            layers = len(exits) - number - (pooled_rows is not None)     # that compute all rows
            if (1 - len(stay) / len(staying)) * layers > PAYS:
                kept = layout.keep(torch.cat([stay + n * len(staying)
                                              for n in range(exits.segments)]))
                hidden = hidden.index_select(0, kept.rows)
                layout, cls_rows = (part.with_products(layout.products, layout.memory)
                                    for part in (kept, kept.cls_rows()))
                staying, logits, log_probs = staying[stay], logits[stay], log_probs[:, stay]
        return outputs


def read_states(hidden, layout, segments):
    """hidden [N, H] after a layer → [B, segments·2·H] in fp32: [CLS], and the mean of all tokens,
    of each sequence of an example, side by side"""
    hidden, offsets = hidden.float(), layout.offsets[:-1]    # of each sequence's first row
    rows = torch.arange(len(hidden), dtype=offsets.dtype, device=offsets.device)
    mean = F.embedding_bag(rows, hidden, offsets, mode="mean")
    first = hidden.index_select(0, layout.first_rows())
    return torch.cat(torch.cat([first, mean], dim=1).chunk(segments), dim=1)


def next_exit(exits, number, states, logits, log_probs):
    """The states [S, W] after a layer, the logits [S, C] of the exit before (None: the first) and
    log p of all before [m, S, C] → logits, log p with this exit's, and log q [S, C]"""
    with torch.autocast(states.device.type, enabled=False):
        logits = exits.logits(number, states, logits)
        log_probs = torch.cat([log_probs.float(), logits.log_softmax(dim=1)[None]])
        return logits, log_probs, exits.combine(number, log_probs)


@torch.inference_mode()
def layer_states(model, task, batch, segments):
    """→ what exits read after every layer but the last [B, M, W], and the model's outputs [B,
    outputs], both in float32. Nothing leaves."""
    bert, batch = model.encoder(task), model.with_adapter(task, batch)
    hidden, layout = bert.embed(batch.input_ids, batch.layout, batch.token_type_ids)
    rows, states = model.pooled_rows(task, batch), []
    hidden = bert.encode(hidden, layout, output_rows=rows, states=states)
    outputs = model.apply_head(task, model.pool(task, hidden, layout))
    return (torch.stack([read_states(state, layout, segments) for state in states[:-1]], dim=1),
            outputs.float())


def exit_layers(log_q, threshold):
    """log q [M, n, C] of every exit for every example → the layer after which each leaves [n]; M,
    the last one, if no exit is confident."""
    confident = log_q.amax(dim=2).exp() > threshold                          # [M, n]
    return torch.where(confident.any(dim=0), confident.int().argmax(dim=0), len(log_q))


def answers(log_q, final, layers):
    """log q [M, n, C], log p [n, C] of the model's head, the layers [n] after which the examples
    leave → log probabilities [n, C] of the answers"""
    return torch.cat([log_q, final[None]])[layers, torch.arange(len(layers))]
