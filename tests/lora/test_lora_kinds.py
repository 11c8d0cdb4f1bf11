"""A kind of adapter is one row of lora.KINDS; and every option of peft's LoRA gives peft's outputs
or is refused (those tests need transformers and peft, benchmarks/requirements.txt)."""

import copy
import json
import warnings

import pytest
import torch
from lora_models import IDS, MASK, SMALL, close, perturb, states
from torch import nn

import evaluate
import lora
import train_multitask
from bert import Bert, BertConfig, UserError
from lora.__main__ import main as merge_main
from multitask import runs
from multitask.schedule import default_lr
from multitask.settings import Settings

TARGETS = ("query", "attention_output", "fc_in")


class Scaled(nn.Module):
    """y·(1 + v), as in (IA)³ (Liu et al. 2022), which has no rank."""

    def __init__(self, weight, rank, alpha, dropout=0.0):
        super().__init__()
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.v = nn.Parameter(weight.new_zeros(len(weight)))

    def forward(self, rows, out):
        return out * (1 + self.v)

    def merge_into(self, base):
        base.weight *= 1 + self.v[:, None]
        base.bias *= 1 + self.v


class DoRA(lora.LoRA):
    """m·(W₀ + ΔW)/‖W₀ + ΔW‖, norms of rows (Liu et al. 2024)"""

    def __init__(self, weight, rank, alpha, dropout=0.0):
        super().__init__(weight, rank, alpha, dropout)
        self.register_buffer("base", weight.detach().clone(), persistent=False)
        self.magnitude = nn.Parameter(weight.detach().norm(dim=1))

    def factor(self):
        return self.magnitude / (self.base + self.delta()).norm(dim=1)       # [out]

    def forward(self, rows, out):
        plain = rows @ self.base.T
        return out - plain + super().forward(rows, plain) * self.factor()

    def merge_into(self, base):
        base.weight.copy_((self.base + self.delta()) * self.factor()[:, None])


ROWS = {
    "scaled": lora.Kind(Scaled, "SCALED", {"v": "scaled_v"}, lr_factor=7, decays=False),
    "dora": lora.Kind(DoRA, "LORA", {"A": "lora_A.weight", "B": "lora_B.weight",
                                     "magnitude": "lora_magnitude_vector"}, {"use_dora": True}),
}


@pytest.fixture(params=ROWS)
def kind(request, monkeypatch):
    monkeypatch.setitem(lora.KINDS, request.param, ROWS[request.param])
    return request.param


@pytest.fixture
def bert():
    torch.manual_seed(0)
    return Bert(BertConfig(**SMALL)).eval()


def test_a_kind_that_is_added_as_a_row_saves_opens_and_merges(bert, kind, tmp_path):
    before = states(bert)
    lora.attach(bert, TARGETS, 4, ("a",), alpha=8, layernorms=True, kind=kind)
    close(states(bert), before)
    expected = states(perturb(bert, "a"))
    assert (expected - before).abs().max() > 0.1
    lora.save(bert, "a", tmp_path / "a")
    lora.detach(bert)
    lora.load(bert, tmp_path / "a")
    assert torch.equal(states(bert), expected)
    assert {m.kind for m in lora.adapters.matrices(bert, "a").values()} == {kind}
    lora.merge(bert, "a")
    close(states(bert), expected)
    lora.unmerge(bert)
    assert torch.equal(states(bert, None), before)


def test_a_kind_that_is_added_as_a_row_trains_in_a_run(checkpoint, data, kind, script, tmp_path):
    flags = ("--data", data, "--lora", "2", "--lora-kind", kind, "--adapters", "shared", "--steps",
             "2", "--log-every", "1")
    code, out, err = script(train_multitask.main, "--bert", checkpoint, *flags, "--out",
                            tmp_path / "run")
    assert code == 0, err
    model, _, settings, record = runs.open_run(tmp_path / "run")
    row, plain = ROWS[kind], default_lr(model, Settings())
    assert record["resolved"]["lr"] == default_lr(model, settings) == row.lr_factor * plain
    state = torch.load(tmp_path / "run/last/state.pt", weights_only=True)
    groups = [g for g in state["optimizer"]["param_groups"] if g["max_lr"] == row.lr_factor * plain]
    assert groups and any(g["weight_decay"] > 0 for g in groups) == row.decays
    scores = json.loads((tmp_path / "run/metrics.json").read_text())
    code, out, _ = script(evaluate.main, tmp_path / "run", "--json")
    assert code == 0 and json.loads(out) == scores
    assert script(train_multitask.main, "--from", tmp_path / "run", *flags, "--out",
                  tmp_path / "more")[0] == 0
    assert script(merge_main, "merge", tmp_path / "run", "--out", tmp_path / "merged")[0] == 0
    merged = runs.open_run(tmp_path / "merged")[0]
    close(states(merged.bert, ids=IDS % 20), states(model.bert, "shared", IDS % 20))


def test_adapters_learn_at_20_times_the_encoders_rate_and_xs_at_40():
    assert {name: row.lr_factor for name, row in lora.KINDS.items()} == {"lora": 20, "xs": 40,
                                                                         "xs-out": 40}


def test_a_row_that_does_not_store_all_that_trains_is_refused(bert, monkeypatch):
    monkeypatch.setitem(lora.KINDS, "dora", ROWS["dora"]._replace(tensors={"A": "a", "B": "b"}))
    with pytest.raises(UserError, match="train A, B, magnitude, and the row .* stores A, B; name"):
        lora.attach(bert, TARGETS, 4, kind="dora")
    assert lora.adapter_names(bert) == []


# every option of peft's LoRA

@pytest.fixture(scope="module")
def base(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    transformers.BertModel(transformers.BertConfig(**SMALL)).save_pretrained(folder)
    return folder


def of_peft(base, folder, classes=False, convert=False, before=None, after=None, **options):
    """Save an adapter with these options of LoraConfig, as after training → peft's hidden states on
    transformers. before(model, config) and after(model) act around its initialization."""
    import peft
    import transformers

    torch.manual_seed(1)
    opens = transformers.BertForSequenceClassification if classes else transformers.BertModel
    model = opens.from_pretrained(base)
    usual = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "output.dense"],
             "task_type": "SEQ_CLS" if classes else None}
    config = peft.LoraConfig(**usual | options)
    if before is not None:
        before(model, config)
    model = peft.get_peft_model(model, config)
    if after is not None:
        after(model)
    more = {}
    if convert:                                              # needs the adapter of the beginning
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(folder / "init")
        model.peft_config["default"].init_lora_weights = options["init_lora_weights"]
        more = {"path_initial_model_for_weight_conversion": str(folder / "init")}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    hidden = model.eval()(input_ids=IDS, attention_mask=MASK, output_hidden_states=True)
    model.save_pretrained(folder, **more)
    return hidden.hidden_states[-1].detach()


def gradients(model, config):
    from peft.tuners.lora.loraga import preprocess_loraga

    preprocess_loraga(model, config, lambda: model(IDS, MASK)[0].pow(2).sum().backward())


def variances(model):
    import peft

    peft.initialize_lora_eva_weights(model, [{"input_ids": IDS, "attention_mask": MASK}] * 4)


def eva():
    from peft.tuners.lora.config import EvaConfig
    return EvaConfig(rho=2.0)


def loraga():
    from peft.tuners.lora.config import LoraGAConfig
    return LoraGAConfig()


PATTERNS = {"rank_pattern": {"layer.1.attention.self.query": 2, "output.dense": 3},
            "alpha_pattern": {"query": 5}}
FULL_NAMES = {"rank_pattern": {"bert.encoder.layer.1.attention.self.query": 2},
              "alpha_pattern": {"bert.encoder.layer.1.attention.self.query": 6,
                                "^bert.encoder.layer.0.*dense": 3}}


@pytest.mark.parametrize("options", [
    {}, {"use_rslora": True}, PATTERNS, PATTERNS | {"use_rslora": True},
    {"modules_to_save": ["LayerNorm"]}, FULL_NAMES | {"classes": True},
    *({"init_lora_weights": init} for init in (False, "gaussian", "orthogonal", "mica")),
    {"init_lora_weights": "eva", "eva_config": eva, "after": variances},
    {"init_lora_weights": "pissa", "convert": True},
    {"init_lora_weights": "olora", "convert": True},
    {"init_lora_weights": "lora_ga", "lora_ga_config": loraga, "before": gradients,
     "convert": True},
], ids=str)
def test_an_option_of_peft_gives_the_outputs_of_peft(base, tmp_path, options):
    options = {name: value() if value in (eva, loraga) else value
               for name, value in options.items()}
    expected = of_peft(base, tmp_path, **options)
    plain = Bert.from_pretrained(base).eval()
    bert = copy.deepcopy(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if options.get("classes") else "error")   # the classifier
        lora.load(bert, tmp_path, "a")
    real = MASK.bool()
    close(states(bert)[real], expected[real])
    assert (states(plain)[real] - expected[real]).abs().max() > 0.1


def test_all_linear_of_peft_gives_the_hidden_states_of_peft(base, tmp_path):
    expected = of_peft(base, tmp_path, target_modules="all-linear")
    bert = Bert.from_pretrained(base).eval()
    with pytest.warns(UserWarning, match="left out .*pooler.dense.lora_A"):
        lora.load(bert, tmp_path, "a")
    close(states(bert)[MASK.bool()], expected[MASK.bool()])


@pytest.mark.parametrize("options", [
    *({"init_lora_weights": init} for init in ("pissa", "pissa_niter_4", "olora")),
    {"init_lora_weights": "lora_ga", "lora_ga_config": loraga, "before": gradients},
    {"use_dora": True}, {"bias": "all"}, {"lora_bias": True}, {"modules_to_save": ["intermediate"]},
    {"modules_to_save": ["word_embeddings"]}, {"target_modules": ["query", "word_embeddings"]},
    {"trainable_token_indices": {"word_embeddings": [1, 2]}}, {"target_modules": ["pooler.dense"]},
    {"target_parameters": ["intermediate.dense.weight"]}, {"layer_replication": [[0, 2], [1, 3]]},
], ids=str)
def test_an_unsupported_option_of_peft_is_refused(base, tmp_path, options):
    options = {name: value() if value is loraga else value for name, value in options.items()}
    of_peft(base, tmp_path, **options)
    bert = Bert.from_pretrained(base)
    before = list(bert.state_dict())
    with pytest.raises(UserError, match="init_lora_weights|asks for|no adapter here acts on"):
        lora.load(bert, tmp_path, "a")
    assert list(bert.state_dict()) == before


def test_a_row_for_dora_opens_what_peft_trained(base, tmp_path, monkeypatch):
    """DoRA is not built in; its row in ROWS is all that it needs."""
    monkeypatch.setitem(lora.KINDS, "dora", ROWS["dora"])
    expected = of_peft(base, tmp_path, use_dora=True)
    bert = Bert.from_pretrained(base).eval()
    lora.load(bert, tmp_path, "a")
    close(states(bert)[MASK.bool()], expected[MASK.bool()])
