"""Compression without retraining: what is stored, its exact size, what comes back."""

import json

import pytest
import torch
import torch.nn.functional as F

import evaluate as evaluate_script
import train_multitask
from bert import Bert, UserError
from bert.files import read_tensors
from compression import autoencoder, binding
from compression.__main__ import main
from compression.autoencoder import fit_direction, with_norms
from compression.binding import FILE
from compression.codecs import (
    bytes_of,
    decode_product,
    fit_bits,
    fit_centered,
    fit_kronecker,
    fit_weighted,
)
from compression.stored import CODECS, Compressed, groups
from laser.reduce import low_rank
from multitask import runs


@pytest.fixture(autouse=True)
def few_epochs(monkeypatch):
    monkeypatch.setattr(autoencoder, "EPOCHS", 3)
    monkeypatch.setattr(autoencoder, "STEPS", 0)


def matrix(n, m, seed=0):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed))


def relative_error(codec, weight, stored):
    return float(torch.linalg.norm(codec.decode(stored, weight.shape) - weight)
                 / torch.linalg.norm(weight))


@pytest.mark.parametrize("method", CODECS)
@pytest.mark.parametrize("shape", [(60, 24), (24, 60), (31, 37)])
def test_a_codec_keeps_to_its_byte_budget_and_gives_back_the_shape(method, shape):
    codec, weight = CODECS[method], matrix(*shape)
    for ratio in (1.5, 3):
        byte_budget = weight.nbytes / ratio
        stored = codec.fit(weight, byte_budget)
        assert bytes_of(stored) <= byte_budget
        decoded = codec.decode(stored, weight.shape)
        assert decoded.shape == shape and decoded.isfinite().all()
        assert torch.equal(decoded, codec.decode(stored, weight.shape))


@pytest.mark.parametrize("method", CODECS)
def test_a_budget_that_is_too_small_is_a_sentence(method):
    with pytest.raises(UserError, match="lower --ratios"):
        CODECS[method].fit(matrix(31, 37), 100)


def test_svd_is_the_closest_of_its_rank_and_centred_keeps_the_mean_row():
    weight = matrix(40, 20) + 3
    stored = CODECS["svd"].fit(weight, 4 * 5 * 60)
    torch.testing.assert_close(decode_product(stored, weight.shape), low_rank(weight, 5))
    centered = fit_centered(weight, 4 * (5 * 60 + 20))
    mean = weight.mean(dim=0)
    torch.testing.assert_close(decode_product(centered, weight.shape),
                               mean + low_rank(weight - mean, 5))


def test_weighted_svd_approximates_important_rows_more_closely():
    weight, importance = matrix(40, 20), torch.ones(40)
    importance[:10] = 100
    error = [(decode_product(fit(weight, 1200, importance), weight.shape) - weight)[:10].norm()
             for fit in (CODECS["svd"].fit, fit_weighted)]
    assert error[1] < 0.7 * error[0]


def test_a_kronecker_sum_is_found_again():
    a, b = matrix(2, 4 * 6).view(2, 4, 6), matrix(2, 5 * 4, seed=1).view(2, 5, 4)
    weight = sum(torch.kron(x, y) for x, y in zip(a, b))
    codec = CODECS["kronecker"]
    stored = fit_kronecker(weight, 4 * 2 * (4 * 6 + 5 * 4))
    assert len(stored["a"]) == 2
    assert stored["a"].shape[1:] == (4, 6) and relative_error(codec, weight, stored) < 1e-5


def test_pruning_keeps_the_largest_entries_as_they_are():
    weight = matrix(20, 30)
    decoded = CODECS["prune"].decode(CODECS["prune"].fit(weight, 4 * 100 + 75), weight.shape)
    kept = decoded != 0
    assert int(kept.sum()) == 100 and torch.equal(decoded[kept], weight[kept])
    assert weight[~kept].abs().max() <= weight[kept].abs().min()


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bits_are_off_by_at_most_half_a_step(bits):
    weight = matrix(16, 25)
    stored = fit_bits(weight, bits * 50 + 16 * 8)
    decoded = CODECS["bits"].decode(stored, weight.shape)
    assert stored["codes"].shape == (bits, 50)
    step = (weight.amax(dim=1) - weight.amin(dim=1)) / (2 ** bits - 1)
    assert ((decoded - weight).abs() <= step[:, None] / 2 + 1e-5).all()


def test_an_autoencoder_keeps_row_norms_and_learns(monkeypatch):
    codec, weight = CODECS["autoencoder"], matrix(200, 3) @ matrix(3, 32, seed=1)
    errors = {}
    for epochs in (1, 60):
        monkeypatch.setattr(autoencoder, "EPOCHS", epochs)
        stored = codec.fit(weight, weight.nbytes / 3)
        torch.testing.assert_close(codec.decode(stored, weight.shape).norm(dim=1),
                                   weight.norm(dim=1))
        errors[epochs] = relative_error(codec, weight, stored)
    assert errors[60] < 0.8 * errors[1]


@pytest.mark.parametrize("n, m, ratio", [(768, 768, 10), (9216, 768, 25), (1536, 384, 5)])
def test_an_autoencoder_is_as_wide_as_its_budget_allows(n, m, ratio):
    x = autoencoder.width(n, m, n * m / ratio)
    numbers = [n * x + sum(p.numel() for p in autoencoder.decoder(m, x).parameters()) + n
               for x in (x, x + 1)]
    assert numbers[0] <= n * m / ratio < numbers[1]


def test_norms_come_back_whatever_the_direction():
    rows = with_norms(matrix(5, 7), torch.arange(1.0, 6))
    torch.testing.assert_close(rows.norm(dim=1), torch.arange(1.0, 6))


def test_svd_has_the_lower_error_and_the_direction_loss_the_higher_cosine(monkeypatch):
    monkeypatch.setattr(autoencoder, "EPOCHS", 25)
    scale = torch.linspace(0.2, 4, 300)[:, None]             # long rows rule the squared error
    weight = (matrix(300, 16) @ matrix(16, 16, seed=1) + 0.5) * scale
    byte_budget, shape = weight.nbytes / 2.5, weight.shape
    stored = [fit(weight, byte_budget) for fit in (fit_centered, fit_direction)]
    assert bytes_of(stored[0]) == bytes_of(stored[1])
    svd, direction = (decode_product(s, shape) for s in stored)
    assert (svd - weight).square().mean() < (direction - weight).square().mean()
    cosines = [F.cosine_similarity(w, weight).mean() for w in (svd, direction)]
    assert cosines[1] > cosines[0]


def test_one_decoder_for_all_layers_leaves_more_for_the_codes(checkpoint):
    bert = Bert.from_pretrained(checkpoint)
    alone, shared = (Compressed.fit(bert, ["fc_in"], method, 3)
                     for method in ("autoencoder", "shared"))
    byte_budget = sum(layer.ffn.fc_in.weight.nbytes for layer in bert.layers) / 3
    assert alone.bytes <= byte_budget and shared.bytes <= byte_budget
    widths = [alone.stored["fc_in.0.codes"].size(1), shared.stored["fc_in.32.codes"].size(1)]
    assert widths[1] > widths[0]
    assert {p: w.shape for p, w in shared.decode().items()} == shared.shapes


@pytest.mark.parametrize("matrices, method, ratio", [
    ("fc_in,fc_out", "shared", 2), ("query", "bits", 5), ("fc_out", "prune", 4),
    ("embeddings", "direction", 2), ("key,attention_output", "weighted", 3)])
def test_a_compressed_run_is_stored_small_and_opens_alike(run, script, tmp_path, matrices, method,
                                                          ratio):
    code, out, err = script(main, run, "--matrices", matrices, "--methods", method,
                            "--ratios", ratio, "--save", tmp_path / "new")
    assert code == 0, err
    saved = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert json.loads(script(evaluate_script.main, tmp_path / "new", "--json")[1]) == saved
    bert, before = (runs.open_run(folder)[0].bert for folder in (tmp_path / "new", run))
    stored = read_tensors(tmp_path / "new" / FILE)
    assert list(bert.state_dict()) == list(before.state_dict())
    names = [name for name, value in bert.state_dict().items()
             if not torch.equal(value, before.state_dict()[name])]
    chosen = sum(before.state_dict()[name].nbytes for name in names)
    assert bytes_of(stored) <= chosen / ratio
    files = [sum(f.stat().st_size for f in (folder / "model").glob("*.safetensors"))
             for folder in (run, tmp_path / "new")]
    assert files[0] - files[1] > 0.8 * (chosen - bytes_of(stored)) - 2000
    assert bert.edits == [] and len(names) == (1 if matrices == "embeddings" else
                                               2 * len(matrices.split(",")))


def test_a_compressed_run_can_be_trained_on(run, script, data, tmp_path):
    script(main, run, "--methods", "svd", "--ratios", "3", "--save", tmp_path / "new")
    code, _, err = script(train_multitask.main, "--from", tmp_path / "new", "--data", data,
                          "--steps", "1", "--out", tmp_path / "more")
    assert code == 0, err
    assert json.loads(script(evaluate_script.main, tmp_path / "more", "--json")[1])


def test_the_table_goes_on_where_it_was_stopped(run, script, tmp_path, monkeypatch):
    arguments = (run, "--out", tmp_path, "--ratios", "2", "--methods", "svd,weighted")
    code, out, err = script(main, *arguments)
    assert code == 0, err
    assert "as it is" in out and "weighted" in out
    monkeypatch.setattr(Compressed, "fit", None)             # nothing is fitted again
    assert script(main, *arguments)[1] == out
    assert (tmp_path / "compress-fc_in-fc_out.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_is_scored_by_its_masked_lm_loss(script, data, tmp_path):
    code, out, err = script(main, "tiny", "--data", data, "--limit", "4", "--ratios",
                            "2", "--methods", "centered", "--matrices", "embeddings",
                            "--out", tmp_path)
    assert code == 0 and "masked_lm_loss" in out, err


@pytest.mark.parametrize("arguments, says", [
    (["--matrices", "fc"], "no matrix 'fc'"), (["--methods", "zip"], "no method 'zip'"),
    (["--ratios", "1"], "above 1"), (["--ratios", "two"], "above 1"),
    (["--save", "x"], "one of --methods"),
    (["--ratios", "1000", "--methods", "svd"], "not even one rank"),
])
def test_a_wrong_command_is_a_sentence(run, script, tmp_path, arguments, says):
    code, _, err = script(main, run, "--out", tmp_path, *arguments)
    assert code == 2 and says in err and "Traceback" not in err


def test_a_checkpoint_without_a_head_is_a_sentence(checkpoint, script, data, tmp_path):
    code, _, err = script(main, checkpoint, "--data", data, "--out", tmp_path)
    assert code == 2 and "nothing to score it by" in err


def test_another_stored_form_is_noticed_and_one_that_does_not_fit_is_a_sentence(
        run, script, tmp_path):
    script(main, run, "--methods", "bits", "--ratios", "5", "--save", tmp_path / "new")
    (tmp_path / "new" / FILE).write_bytes((run / "heads.safetensors").read_bytes())
    code, _, err = script(evaluate_script.main, tmp_path / "new")
    assert code == 2 and "or a file was replaced" in err
    edit = json.loads((tmp_path / "new" / "run.json").read_text())["edits"][-1]
    with pytest.raises(UserError, match="does not fit run.json"):
        binding.restore(Bert.from_pretrained("tiny"), edit, tmp_path / "new")


def test_layers_of_equal_width_share_a_decoder_and_others_have_their_own():
    shapes = {(0, "fc_out"): (8, 6), (1, "fc_out"): (8, 4), (2, "fc_out"): (8, 6),
              (0, "fc_in"): (6, 8), (1, "fc_in"): (4, 8)}
    assert groups(shapes, "shared") == {
        "fc_out.6": [(0, "fc_out"), (2, "fc_out")], "fc_out.4": [(1, "fc_out")],
        "fc_in.8": [(0, "fc_in"), (1, "fc_in")]}
