"""The encoder with BERT's masked-LM head: forward, open, save. V = vocabulary, H = hidden size,
N = tokens of the batch, M = masked ones."""

import torch
import torch.nn.functional as F
from torch import nn

from bert import Bert, Tokenizer, UserError
from bert.checkpoint import check_names_and_shapes, tensors_to_save
from bert.config import ACTIVATIONS
from bert.files import write_json, write_tensors
from pretraining.distillation import DistillationHead

HEAD = "cls.predictions."            # prefix of the masked-LM head's names in a checkpoint


class MaskedLMHead(nn.Module):
    """z = E·LayerNorm(GELU(Wh + b)) + c.  E [V, H] are the word embeddings (tied weights).
    Parameters are named as in a checkpoint, without the prefix HEAD."""

    def __init__(self, config):
        super().__init__()
        dense = nn.Linear(config.hidden_size, config.hidden_size)
        nn.init.normal_(dense.weight, std=config.initializer_range)
        nn.init.zeros_(dense.bias)
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.transform = nn.ModuleDict({"dense": dense, "LayerNorm": norm})
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden, word_embeddings):
        """hidden [M, H], word_embeddings [V, H] → logits [M, V]"""
        hidden = self.transform["LayerNorm"](self.activation(self.transform["dense"](hidden)))
        return F.linear(hidden, word_embeddings, self.bias)


class MaskedLM(nn.Module):
    """Encoder and masked-LM head; with teacher_width [D] also a DistillationHead."""

    def __init__(self, bert, teacher_width=None):
        super().__init__()
        self.bert, self.head = bert, MaskedLMHead(bert.config)
        self.distillation_head = (DistillationHead(bert.config.hidden_size, teacher_width)
                                  if teacher_width else None)

    def forward(self, batch, all_rows=False):
        """A masking.Batch → logits [M, V] of its masked tokens, and their last hidden states [M, H]
        (the last layer computes no others), or with all_rows those of all tokens [N, H]."""
        layout, rows = batch.layout, batch.output_rows
        hidden, _ = self.bert.embed(layout.pad(batch.ids), layout, layout.pad(batch.types))
        hidden = self.bert.encode(hidden, layout, output_rows=None if all_rows else rows)
        chosen = hidden.index_select(0, rows.rows) if all_rows else hidden               # [M, H]
        return self.head(chosen, self.bert.word_embeddings.weight), hidden


def open_checkpoint(name):
    """→ tokenizer, encoder of a checkpoint. UserError if one has ids that the other lacks."""
    tokenizer, bert = Tokenizer.from_pretrained(name), Bert.from_pretrained(name)
    tokenizer.check_fits(bert.config, name)
    return tokenizer, bert


def load_head(head, tensors, checkpoint):
    """Load the head's weights from `tensors`, the pretraining_heads of `checkpoint` → whether there
    are any. The decoder's, tied to the embeddings, are not read."""
    own = {name.removeprefix(HEAD): tensor for name, tensor in tensors.items()
           if name.startswith(HEAD) and not name.startswith(HEAD + "decoder.")}
    if own:
        check_names_and_shapes(f"the masked-LM head of {checkpoint}", head.state_dict(), own)
        head.load_state_dict(own)
    return bool(own)


def save_checkpoint(folder, model, scores, other_heads=None):
    """Write encoder, masked-LM head and other_heads {name: tensor} in the Hugging Face layout, and
    scores as metrics.json. UserError if the model has tensors that these files do not hold."""
    with torch.device("meta"):
        plain = type(model.bert)(model.bert.config, model.bert.attention_name)
    check_names_and_shapes(f"the encoder to be saved in {folder}", plain.state_dict(),
                           model.bert.state_dict())
    if lost := [name for name in model.state_dict()
                if name.partition(".")[0] not in ("bert", "head", "distillation_head")]:
        raise UserError(f"{', '.join(lost)} would not be saved: a checkpoint holds the encoder and "
                        f"MaskedLMHead; make the module a part of one of them")
    tensors = {"bert." + name: tensor for name, tensor in tensors_to_save(model.bert).items()}
    tensors |= {HEAD + name: tensor for name, tensor in model.head.state_dict().items()}
    tensors |= other_heads or {}
    write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", model.bert.config.to_dict() | {
        "architectures": ["BertForMaskedLM"], "dtype": "float32"})
    write_json(folder / "metrics.json", scores)
