"""Leaving layer by layer, with untrained exits: the same answers as all layers for all examples."""

import pytest
import torch
from torch import nn

from bert import Bert, Tokenizer
from early_exit import leaving
from early_exit.exits import Exits, as_outputs, log_probabilities
from early_exit.leaving import EarlyExit, answers, exit_layers, layer_states
from multitask.course import Example
from multitask.data import tokenize
from multitask.methods import settings_class
from multitask.model import build_model

TEXTS = ("the cat is good .", "a dog was not very bad", "film", "the car is dull and poor ?",
         "is the song lovely", "a book", "the meal was great , great .", "not a house")


def with_exits(checkpoint, task, **settings):
    """→ a model whose exits are random and confident, and a batch of eight examples."""
    torch.manual_seed(2)
    settings = settings_class()(tasks=task, **settings)
    model = build_model(Bert.from_pretrained(checkpoint), settings).eval().requires_grad_(False)
    segments = 2 if settings.pairs == "separate" and task == "para" else 1
    exits = Exits(3, 32, model.heads[task].out.out_features, segments)
    for linear, std in zip(exits.classifiers, (0.1, 0.3, 0.9)):          # ever more confident
        nn.init.normal_(linear.weight, std=std)
    model.bert.exits = nn.ModuleDict({task: exits.requires_grad_(False)})
    texts = zip(TEXTS, reversed(TEXTS)) if task == "para" else zip(TEXTS)
    examples = [Example(str(n), pair, 0.0) for n, pair in enumerate(texts)]
    split = tokenize(examples, Tokenizer.from_pretrained(checkpoint), settings.pairs)
    batch = split.batch(range(len(TEXTS)))
    exits.standardize(layer_states(model, task, batch, segments)[0])
    return model, exits, batch, segments


@pytest.mark.parametrize("pays", [0, 0.5, 9])                # removed at once, sometimes, never
@pytest.mark.parametrize("task, settings", [("sst", {}), ("para", {"pairs": "separate"}),
                                            ("sst", {"pooling": "mean"})])
def test_examples_leave_as_if_nobody_had_left_before(deep_checkpoint, task, settings, pays,
                                                     monkeypatch):
    monkeypatch.setattr(leaving, "PAYS", pays)
    model, exits, batch, segments = with_exits(deep_checkpoint, task, **settings)
    states, outputs = layer_states(model, task, batch, segments)
    log_q, final = exits(states), log_probabilities(outputs)
    assert states.shape == (8, 3, segments * 64)
    confidences = log_q.amax(dim=2).exp().flatten().sort().values
    thresholds, seen = ((confidences[1:] + confidences[:-1]) / 2).tolist()[::8], set()
    for threshold in (*thresholds, 0.0, 1.0):
        layers = exit_layers(log_q, threshold)
        model.early_exit = early_exit = EarlyExit(threshold)
        with torch.inference_mode():
            found = model(task, batch)
        (lengths, left), = early_exit.left[task]
        assert torch.equal(left, layers) and lengths.shape == (segments, 8)
        assert torch.equal(lengths.flatten(), batch.layout.mask.sum(dim=1))
        expected = as_outputs(answers(log_q, final, layers), exits.outputs)
        left_early = layers < 3
        torch.testing.assert_close(found[left_early], expected[left_early], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[~left_early], outputs[~left_early], atol=1e-4, rtol=1e-4)
        seen |= set(layers.tolist())
    assert seen == {0, 1, 2, 3}


def test_batches_that_examples_leave_begin_larger(deep_checkpoint):
    model, *_ = with_exits(deep_checkpoint, "sst")
    assert [EarlyExit(threshold).batch_tokens(model, task, 100)
            for threshold, task in ((0.9, "sst"), (1.0, "sst"), (0.9, "sts"))] == [150, 100, 100]
