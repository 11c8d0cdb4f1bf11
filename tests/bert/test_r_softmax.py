"""r-softmax: how many zeros there are, which gradient it has, how it begins, where it works."""

import json
import math
import warnings

import pytest
import torch
from parity import SMALL, tiny_batch

import evaluate
import laser.__main__
import lora.__main__
import pruning.__main__
import train_multitask
from bert import Bert, BertConfig, DenseLayout, Layout, UserError
from bert.r_softmax import configure, functions, label_distribution, measured_zeros, r_softmax
from multitask import runs


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("zeros", [0.05, 0.1, 0.29, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_exactly_the_fraction_of_valid_entries_is_zero(zeros, masked):
    for n in (1, 2, 7, 20, 100):
        scores = draw(50, n, seed=n)
        valid = torch.rand(50, n, generator=torch.Generator().manual_seed(n)) < 0.6
        valid[:, n // 2] = True
        found = r_softmax(scores, zeros, valid if masked else None)
        valid = valid if masked else torch.ones_like(valid)
        count = valid.sum(dim=1)
        expected = torch.tensor([min(math.floor(zeros * int(c) + 1e-9), int(c) - 1) for c in count])
        assert torch.equal(((found == 0) & valid).sum(dim=1), expected)
        assert not found[~valid].any()
        torch.testing.assert_close(found.sum(dim=1), torch.ones(50))
        smallest_kept = found.masked_fill(found == 0, 2).argmin(dim=1, keepdim=True)
        gone = scores.masked_fill(~valid | (found > 0), -math.inf).amax(dim=1)
        assert (gone < scores.gather(1, smallest_kept).squeeze(1)).all()     # the smallest ones


def test_without_zeros_it_is_the_softmax_bit_for_bit():
    scores = draw(20, 30)
    assert torch.equal(r_softmax(scores, 0.0), scores.softmax(dim=-1))
    torch.testing.assert_close(r_softmax(scores[:, :9], 0.1), scores[:, :9].softmax(-1))  # k = 0


def test_an_entry_of_minus_infinity_does_not_count():
    scores = torch.tensor([[5.0, 4, 3, -math.inf], [1, -math.inf, -1e4, -math.inf]])
    for found in (r_softmax(scores, 0.7), r_softmax(scores, 0.7, scores > -math.inf)):
        assert found.isfinite().all() and not found[:, 3].any()
        assert [[int(p > 0) for p in row[:3]] for row in found] == [[1, 0, 0], [1, 0, 0]]
    assert not r_softmax(torch.full((2, 3), -math.inf), 0.5).any()
    assert not r_softmax(draw(2, 3), 0.5, torch.zeros(2, 3, dtype=torch.bool)).any()
    assert not r_softmax(draw(2, 3), 0.0, torch.zeros(2, 3, dtype=torch.bool)).any()


def test_equal_scores_at_the_threshold_survive_together():
    scores = torch.tensor([[0.0, 1, 1, 2], [1, 1, 1, 1], [0, 0, 1, 1]])
    found = r_softmax(scores, 0.5)
    assert (found == 0).tolist() == [[True, False, False, False], [False] * 4,
                                     [True, True, False, False]]
    assert found[0, 1] == found[0, 2] and torch.equal(found[1], torch.full((4,), 0.25))


def test_each_row_may_have_a_number_of_its_own():
    scores, zeros = draw(3, 10), torch.tensor([[0.0], [0.3], [0.9]])
    found = r_softmax(scores, zeros)
    assert (found == 0).sum(dim=1).tolist() == [0, 3, 9]
    torch.testing.assert_close(found[0], scores[0].softmax(dim=0))
    torch.testing.assert_close(found[1], r_softmax(scores[1], 0.3))


def test_as_many_labels_are_above_zero_as_there_are():
    labels = torch.arange(1, 101)[:, None]
    found = label_distribution(draw(100, 100), labels)
    assert torch.equal((found > 0).sum(dim=1, keepdim=True), labels)


@pytest.mark.parametrize("ramp", [1.0, 0.4])
def test_the_gradient_is_that_of_the_whole_function(ramp):
    scores = draw(4, 9, dtype=torch.float64).requires_grad_()
    valid = torch.ones(4, 9, dtype=torch.bool)
    valid[1, 3:6] = False
    assert torch.autograd.gradcheck(lambda x: r_softmax(x, 0.4, valid, ramp), scores)


def test_the_detached_gradient_is_that_at_a_constant_t():
    scores = draw(1, 8, dtype=torch.float64).requires_grad_()
    t = float(scores.detach().max() - scores.detach().sort().values[0, 2])      # 3 zeros of 8

    def at_constant_t(x):
        weighted = torch.relu(x - x.amax() + t) * x.exp()
        return weighted / weighted.sum()

    weights = draw(1, 8, seed=1, dtype=torch.float64)
    grads = [torch.autograd.grad((f(scores) * weights).sum(), scores)[0] for f in (
        at_constant_t, lambda x: r_softmax(x, 0.4, detached=True), lambda x: r_softmax(x, 0.4))]
    torch.testing.assert_close(grads[0], grads[1])
    assert not torch.allclose(grads[1], grads[2])
    torch.testing.assert_close(r_softmax(scores, 0.4, detached=True), r_softmax(scores, 0.4))


def test_zeros_are_exact_with_the_detached_gradient_too():
    scores = draw(500, 20)
    assert ((r_softmax(scores, 0.5, detached=True) == 0).sum(dim=1) == 10).all()


def test_the_ramp_begins_at_the_softmax_and_no_step_of_it_jumps():
    scores, zeros = draw(500, 20), 0.1
    start = scores.softmax(dim=-1)
    torch.testing.assert_close(r_softmax(scores, zeros, ramp=0.0), start, atol=1e-6, rtol=0)
    torch.testing.assert_close(r_softmax(scores, zeros, ramp=1e-7), start, atol=1e-6, rtol=0)
    steps = [r_softmax(scores, zeros, ramp=s / 40) for s in range(41)]
    moved = torch.tensor([float((b - a).abs().sum(-1).mean()) for a, b in zip(steps, steps[1:])])
    assert moved.max() < 1.3 * moved.min()                   # in total as far as the direct swap
    swap = float((r_softmax(scores, zeros) - start).abs().sum(-1).mean())
    assert moved.max() < swap / 20
    shares = [float((p == 0).float().mean()) for p in steps]
    assert shares[0] == 0 and shares == sorted(shares) and shares[-1] == pytest.approx(0.1)


# ---- in the encoder

def r_softmax_bert(zeros, **fields):
    torch.manual_seed(0)
    bert = Bert(BertConfig(**SMALL | {"max_position_embeddings": 60} | fields), "r-softmax").eval()
    configure(bert, zeros=zeros)
    return bert


LENGTHS = [20, 60, 3, 41, 58, 19, 1]


def ragged():
    mask = (torch.arange(60) < torch.tensor(LENGTHS)[:, None]).long()
    return torch.randint(1, 60, mask.shape, generator=torch.Generator().manual_seed(2)), mask


def test_without_zeros_the_encoder_is_the_eager_one():
    bert, (ids, mask) = r_softmax_bert(0.0), ragged()
    found = bert(ids, mask)[0]
    bert.use_attention("eager")
    torch.testing.assert_close(found, bert(ids, mask)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("way", ["packed", "buckets", "dense", "cls", "dense cls"])
def test_each_sequence_gets_what_it_gets_alone(way):
    bert, (ids, mask) = r_softmax_bert(0.3), ragged()
    alone = [bert(ids[n:n + 1, :length])[0][0] for n, length in enumerate(LENGTHS)]
    layout = (DenseLayout if "dense" in way else Layout)(mask)
    if way == "packed":
        layout.length_buckets = []
    hidden, _ = bert.embed(ids, layout)
    configure(bert, counting=True)
    found = bert.encode(hidden, layout, output_rows=layout.cls_rows() if "cls" in way else None)
    if "cls" in way:
        torch.testing.assert_close(found, torch.stack([a[0] for a in alone]), atol=1e-5, rtol=0)
    else:
        grid = layout.pad(found)
        for n, length in enumerate(LENGTHS):
            torch.testing.assert_close(grid[n, :length], alone[n], atol=1e-5, rtol=0)
    found.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in bert.parameters() if p.grad is not None)


def test_the_measured_share_is_over_real_tokens():
    bert, (ids, mask) = r_softmax_bert(0.3), ragged()
    assert measured_zeros(bert) is None
    configure(bert, counting=True)
    layout = Layout(mask)
    layout.length_buckets = []                               # one grid, with most padding
    bert.encode(bert.embed(ids, layout)[0], layout)
    k = [min(math.floor(0.3 * n), n - 1) for n in LENGTHS]
    expected = sum(n * zero for n, zero in zip(LENGTHS, k)) / sum(n * n for n in LENGTHS)
    assert float(measured_zeros(bert)) == pytest.approx(expected)


def test_the_ramp_acts_in_training_only():
    bert = r_softmax_bert(0.3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    configure(bert, ramp=0.0)
    evaluated = bert(**tiny_batch())[0]
    trained = bert.train()(**tiny_batch())[0]
    bert.use_attention("eager")
    torch.testing.assert_close(trained, bert(**tiny_batch())[0], atol=1e-5, rtol=0)
    assert not torch.allclose(evaluated, trained, atol=1e-4)


def test_pruned_and_masked_heads():
    full = r_softmax_bert(0.3)
    full.layers[0].attention.set_masked_heads(full.config, [1])
    assert full(**tiny_batch())[0].isfinite().all()
    assert r_softmax_bert(0.3, pruned_heads={1: [0, 1, 2, 3], 2: [1]})(
        **tiny_batch())[0].isfinite().all()


def test_it_can_be_exported():
    bert, batch = r_softmax_bert(0.3, num_hidden_layers=1), tiny_batch()
    program = torch.export.export(bert, (batch["input_ids"], batch["attention_mask"]),
                                  {"dense": True})
    torch.testing.assert_close(
        program.module()(batch["input_ids"], batch["attention_mask"], dense=True)[0],
        bert(batch["input_ids"], batch["attention_mask"])[0], atol=1e-5, rtol=0)


# ---- in runs

def train(folder, *flags):
    train_multitask.main([*map(str, flags), "--out", str(folder), "--steps", "4",
                          "--batch-size", "8", "--log-every", "1"])
    return folder


KINDS = {"plain": (), "lora": ("--lora", 2), "separate": ("--encoders", "separate"),
         "pruned": ("--keep-heads", "0.7"), "two texts": ("--pairs", "separate")}


@pytest.fixture(scope="module", params=KINDS)
def sparse_run(request, checkpoint, data, tmp_path_factory):
    return train(tmp_path_factory.mktemp("r") / request.param, "--bert", checkpoint, "--data",
                 data, "--attention", "r-softmax", "--zeros", 0.3, "--tasks", "sst,para",
                 *KINDS[request.param])


def test_a_run_keeps_its_zeros_and_logs_what_it_had(sparse_run, script):
    model, _, settings, record = runs.open_run(sparse_run)
    assert settings.zeros == 0.3 == record["settings"]["zeros"]
    for bert in model.encoders.values():
        assert all(f.zeros == 0.3 and f.ramp == 1.0 for f in functions(bert))
    lines = [json.loads(line) for line in (sparse_run / "log.jsonl").read_text().splitlines()]
    shares = [line["zeros"]["sst"] for line in lines if "zeros" in line]
    assert shares[0] == 0 and 0.2 < shares[-1] < 0.35        # ⌊.3 n⌋, and where exp(x) is 0
    code, out, _ = script(evaluate.main, sparse_run, "--json")
    assert not code and json.loads(out) == runs.read_scores(sparse_run)


TOOLS = {
    "sweep": (laser.__main__.main, "sweep", "--layers", 1, "--matrices", "fc_in", "--keep", 0.5),
    "importance": (pruning.__main__.main, "importance", "--examples", 8),
    "mask": (pruning.__main__.main, "prune", "--heads", 4, "--mask", "--order", "random"),
    "prune": (pruning.__main__.main, "prune", "--heads", 4, "--order", "random"),
    "merge": (lora.__main__.main, "merge", "--task", "sst"),
}
REFUSED = {("lora", "prune"), ("separate", "sweep"), ("separate", "mask"),
           ("separate", "prune"), *((kind, "merge") for kind in KINDS if kind != "lora")}


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_keep_the_zeros(sparse_run, tool, tmp_path, script):
    main, command, *flags = TOOLS[tool]
    code, _, err = script(main, command, sparse_run, *flags, "--out", tmp_path / "new")
    if (sparse_run.name, tool) in REFUSED:
        assert code == 2 and err.splitlines()[-1].startswith("error: "), err
        return
    assert not code, err
    if (tmp_path / "new" / "run.json").is_file():
        model, *_ = runs.open_run(tmp_path / "new")
        assert all(f.zeros == 0.3 for f in functions(model.bert))


def test_a_run_made_from_it_says_so_if_it_attends_otherwise(checkpoint, data, tmp_path):
    first = train(tmp_path / "one", "--bert", checkpoint, "--data", data, "--tasks", "sst",
                  "--attention", "r-softmax")
    flags = ["--from", first, "--data", data, "--tasks", "sst"]
    with pytest.warns(UserWarning, match="attends by r-softmax and this run by sdpa"):
        train_multitask.main([*map(str, flags), "--out", str(tmp_path / "two")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_multitask.main([*map(str, flags), "--out", str(tmp_path / "three"), "--attention",
                              "r-softmax", "--zeros", "0.2", "--zeros-gradient", "detached"])
    model, *_ = runs.open_run(tmp_path / "three")
    assert all(f.zeros == 0.2 and f.detached for f in functions(model.bert))


def test_a_stopped_run_goes_on_where_its_ramp_was(checkpoint, data, tmp_path, monkeypatch):
    from common.cli import StopSignal, UserStop

    flags = ("--bert", checkpoint, "--data", data, "--tasks", "sst", "--attention", "r-softmax",
             "--zeros", 0.3)
    whole = train(tmp_path / "whole", *flags)
    monkeypatch.setattr(StopSignal, "asked", True)
    with pytest.raises(UserStop):
        train(tmp_path / "cut", *flags)
    monkeypatch.undo()
    train_multitask.main(["--resume", str(tmp_path / "cut")])
    one, two = ((folder / "heads.safetensors").read_bytes() for folder in (whole,
                                                                          tmp_path / "cut"))
    assert one == two


@pytest.mark.parametrize("flags, sentence", [
    (["--zeros", "0.2"], "--zeros has no effect here: it needs --attention r-softmax"),
    (["--attention", "r-softmax", "--zeros", "1.5"], "--zeros is 1.5; it must be 0 or more"),
    (["--attention", "r-softmax", "--zeros-ramp", "2"], "--zeros-ramp is 2.0; it is a fraction"),
])
def test_settings_without_effect_or_sense_are_sentences(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        train_multitask.main(flags)
