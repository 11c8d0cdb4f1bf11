"""The library: splitting, rules, execution, routers and penalties, on a small random Bert."""

import pytest
import torch
from parity import tiny_batch
from pruning_models import out, same, small_bert

from bert import Bert, UserError
from experts import (
    PENALTIES,
    RULES,
    ExpertFeedForward,
    Recorder,
    Router,
    Selection,
    Sparsity,
    balanced_clusters,
    ffn_inputs,
    ffn_share,
    fit_routers,
    router_width,
    select_experts,
    split,
    to_relu,
)
from experts import layers as layers_module
from experts.layers import masked, skipping, skipping_pays
from experts.rules import NORMS, cumulative_rule, expert_norms, max_rule
from experts.sparsity import distance, hoyer, zero_fraction
from laser import apply, parse
from lora import attach
from pruning import multiply_adds, remove_heads, remove_layers, remove_neurons


@pytest.fixture
def bert():
    return small_bert()


@pytest.fixture
def sparse(bert):
    to_relu(bert)
    split(bert, 8)
    return bert


def ffn_and_rows(bert):
    return bert.layers[0].ffn, torch.randn(50, 32, generator=torch.Generator().manual_seed(3))


# ------------------------------------------------------------------------------------- splitting


def test_splitting_leaves_the_outputs_equal(bert):
    before = out(bert)
    split(bert, 8)
    assert all(isinstance(layer.ffn, ExpertFeedForward) for layer in bert.layers)
    same(out(bert), before)


def test_the_experts_and_the_bias_add_up_to_the_network(sparse):
    ffn, rows = ffn_and_rows(sparse)
    parts = [skipping(ffn, rows, torch.arange(8).eq(i).expand(50, 8)) - ffn.fc_out.bias
             for i in range(8)]
    same(sum(parts) + ffn.fc_out.bias, ffn(rows, None))
    same(expert_norms(ffn, rows), torch.stack([part.norm(dim=1) for part in parts], dim=1))


def test_clusters_are_balanced_deterministic_and_hold_similar_rows():
    centers = torch.eye(4, 16).repeat_interleave(6, dim=0)   # 4 groups of 6, then shuffled
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    rows = (centers + 0.05 * torch.randn(24, 16))[order] * torch.rand(24, 1).add(0.5)
    members = balanced_clusters(rows, 4)
    assert members.shape == (4, 6) and sorted(members.flatten().tolist()) == list(range(24))
    assert torch.equal(members, balanced_clusters(rows, 4))
    assert all(len(set((order[group] // 6).tolist())) == 1 for group in members)
    uneven = torch.cat([torch.ones(20, 8), torch.randn(4, 8)])
    assert balanced_clusters(uneven, 4).shape == (4, 6)


def test_a_split_is_noted_with_its_settings(bert):
    other = small_bert()
    split(bert, 2)
    split(other, 4, width=48, seed=3)                        # no wider than the layer
    assert bert.edits[-1] == {"method": "experts", "kind": "split", "experts": 2,
                              "width": router_width(bert.config, 2), "seed": 0}
    assert other.edits[-1]["width"] == 48 == other.layers[2].ffn.router.down.out_features
    ffn = bert.layers[0].ffn
    assert (ffn.selection, ffn.rows, ffn.runs) == (None, 0, 0)
    order = balanced_clusters(small_bert().layers[0].ffn.fc_in.weight, 2, seed=0).flatten()
    assert torch.equal(ffn.fc_in.bias, small_bert().layers[0].ffn.fc_in.bias[order])


@pytest.mark.parametrize("edit, word", [
    (lambda bert: split(bert, 7), "7, which does not divide the 48 neurons of layer 0; its divisors"
                                  " are 2, 3, 4, 6, 8, 12, 16, 24, 48$"),
    (lambda bert: split(bert, 1), "must be 2 or more"),
    (lambda bert: split(bert, 2, width=49), "wider than the layer"),
    (lambda bert: (remove_neurons(bert, {1: [0, 1, 2, 3]}), split(bert, 8)), "the 44 neurons of "
                                                                            "layer 1"),
    (lambda bert: (split(bert, 8), split(bert, 8)), "has experts already"),
    (lambda bert: (apply(bert, parse("0:fc_in:0.2"), factored=True), split(bert, 8)), "Factored"),
    (lambda bert: (attach(bert, ("fc_in",), 2), split(bert, 8)), "merge adapters first"),
    (lambda bert: (split(bert, 8), remove_neurons(bert, {0: [0]})), "an? ExpertFeedForward"),
    (lambda bert: (split(bert, 8), remove_layers(bert, [0])), "after experts"),
])
def test_what_cannot_be_split_or_cut_is_refused_in_a_sentence(bert, edit, word):
    with pytest.raises(UserError, match=word):
        edit(bert)


def test_experts_work_where_neurons_or_heads_were_removed(bert):
    remove_neurons(bert, {1: list(range(8))})
    remove_heads(bert, {0: [1, 2]})
    before = out(bert)
    split(bert, 8)
    assert [layer.ffn.size for layer in bert.layers] == [6, 5, 6]
    same(out(bert), before)
    select_experts(bert, Selection("top-k", 7, execution="skip"))
    skipped = out(bert)
    select_experts(bert, Selection("top-k", 7, execution="masked"))
    same(out(bert), skipped)


# ------------------------------------------------------------------------------------------ rules


@pytest.mark.parametrize("execution", ["skip", "masked", "auto"])
@pytest.mark.parametrize("rule, tau", [("max", 1.0), ("cumulative", 1.0), ("top-k", 8)])
def test_all_experts_run_at_the_largest_tau(sparse, rule, tau, execution):
    before = out(sparse)
    select_experts(sparse, Selection(rule, tau, execution=execution))
    same(out(sparse), before)
    assert ffn_share(sparse) == 1.0
    ffn, rows = ffn_and_rows(sparse)
    ffn.selection = None
    everything = RULES[rule](torch.zeros(50, 8), tau)
    assert everything.all()
    for run in (skipping, masked):
        same(run(ffn, rows, everything), ffn(rows, None))


def test_the_max_rule_compares_with_the_largest_norm():
    norms = torch.tensor([[1.0, 0.5, 0.1, 0.0]])
    for tau, count in ((0, 1), (0.5, 2), (0.9, 3), (0.999, 3), (1, 4)):
        assert int(max_rule(norms, tau).sum()) == count, tau


def test_the_cumulative_rule_takes_the_smallest_prefix():
    norms = 4 * torch.tensor([[0.1, 0.6, 0.0, 0.3]])
    for tau, chosen in ((0, [1]), (0.5, [1]), (0.7, [1, 3]), (0.95, [0, 1, 3]), (1, [0, 1, 2, 3])):
        assert cumulative_rule(norms, tau)[0].nonzero().flatten().tolist() == chosen, tau


@pytest.mark.parametrize("rule", ["max", "cumulative"])
def test_a_token_whose_norms_are_all_zero_runs_one_expert(rule):
    assert RULES[rule](torch.zeros(3, 8), 0.9).sum(dim=1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("rule", ["max", "cumulative"])
def test_more_tau_runs_more_experts(sparse, rule):
    ffn, rows = ffn_and_rows(sparse)
    norms = expert_norms(ffn, rows)
    counts = [int(RULES[rule](norms, tau).sum()) for tau in (0, 0.3, 0.6, 0.9, 0.99, 1)]
    assert counts == sorted(counts) and counts[0] == 50 and counts[-1] == 400


@pytest.mark.parametrize("rule, tau, word", [
    ("max", 1.1, "from 0"), ("max", -0.1, "from 0"), ("cumulative", float("nan"), "from 0"),
    ("top-k", 0, "number of experts"), ("top-k", 2.5, "number of experts"),
    ("mox", 0.5, "did you mean max")])
def test_a_rule_or_tau_that_cannot_be_is_a_sentence(rule, tau, word):
    with pytest.raises(UserError, match=word):
        Selection(rule, tau)


def test_the_smallest_tau_can_be_and_the_largest_runs_all():
    for rule, fewest, below, largest in (("max", 0, 0.9, 1), ("cumulative", 0, 0.9, 1),
                                         ("top-k", 1, 7, 8)):
        runs = [Selection(rule, tau).runs_all(8) for tau in (fewest, below, largest)]
        assert runs == [False, False, True]
    assert Selection().runs_all(8)


def test_more_experts_than_there_are_is_a_sentence(sparse, bert):
    with pytest.raises(UserError, match="each layer has 8 experts"):
        select_experts(sparse, Selection("top-k", 9))
    with pytest.raises(UserError, match="no experts"):
        select_experts(small_bert(), Selection())


# -------------------------------------------------------------------------------- execution, cost


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_skipping_and_masking_give_the_same_numbers(sparse, share):
    ffn, rows = ffn_and_rows(sparse)
    mask = torch.rand(50, 8, generator=torch.Generator().manual_seed(0)) < share
    same(skipping(ffn, rows, mask), masked(ffn, rows, mask))


def test_skipping_pays_with_many_tokens_and_few_large_experts():
    assert skipping_pays(128, 0.399, 32) and not skipping_pays(128, 0.401, 32)
    assert skipping_pays(9999, 0.599, 96) and not skipping_pays(9999, 0.601, 96)
    assert not skipping_pays(127, 0.1, 96)


@pytest.mark.parametrize("execution, pays, used", [
    ("skip", False, "skipping"), ("masked", True, "masked"), ("auto", True, "skipping"),
    ("auto", False, "masked")])
def test_execution_is_what_was_said_and_auto_what_is_faster(sparse, monkeypatch, execution, pays,
                                                            used):
    calls, asked = [], []
    for name in ("skipping", "masked"):
        monkeypatch.setattr(layers_module, name, lambda ffn, hidden, mask, name=name:
                            calls.append(name))
    monkeypatch.setattr(layers_module, "skipping_pays", lambda *a: (asked.append(a), pays)[1])
    ffn, rows = ffn_and_rows(sparse)
    ffn.selection = Selection("top-k", 2, execution=execution)
    ffn(rows, None)
    assert calls == [used] and asked == ([(50, 0.25, 6)] if execution == "auto" else [])
    assert (ffn.rows, ffn.runs) == (50, 100)


def test_experts_without_output_may_be_skipped_exactly(sparse):
    """ReLU makes some norms zero: with true norms those experts are dropped at no error."""
    ffn, rows = ffn_and_rows(sparse)
    ffn.fc_in.bias.data -= 2.0
    dense = ffn(rows, None)
    mask = max_rule(expert_norms(ffn, rows), 0.999999)
    assert not mask.all()
    same(skipping(ffn, rows, mask), dense)


@pytest.mark.parametrize("norms", NORMS)
def test_multiply_adds_count_what_ran_and_the_routers(sparse, norms):
    lengths = tiny_batch()["attention_mask"].sum(dim=1)
    dense, width = multiply_adds(sparse, lengths), sparse.layers[0].ffn.router.down.out_features
    select_experts(sparse, Selection("top-k", 2, norms))
    assert ffn_share(sparse) == 1.0                          # nothing ran yet
    out(sparse)
    tokens, router, matrices = int(lengths.sum()), width * (32 + 8), 2 * 32 * 48
    assert ffn_share(sparse) == pytest.approx(2 / 8 + router / matrices)
    saved = 3 * tokens * (matrices * 6 / 8 - router)
    assert multiply_adds(sparse, lengths) == pytest.approx(dense - saved)


def test_a_router_costs_about_a_fortieth_of_its_layer():
    from bert import BertConfig

    for hidden, experts in ((384, 16), (384, 64), (768, 16), (768, 128)):
        config = BertConfig(hidden_size=hidden, intermediate_size=4 * hidden)
        width = router_width(config, experts)
        assert 0.02 <= width * (hidden + experts) / (8 * hidden * hidden) <= 0.03


def test_a_router_is_the_widest_multiple_of_8_that_costs_a_fortieth():
    from bert import BertConfig

    for hidden, experts, width in ((384, 16, 72), (768, 16, 144), (32, 8, 8)):
        config = BertConfig(hidden_size=hidden, intermediate_size=4 * hidden,
                            num_attention_heads=4)
        assert router_width(config, experts) == width


def test_a_router_is_not_negative_and_has_no_bias():
    router = Router(32, 8, 4)
    assert {name for name, _ in router.named_parameters()} == {"down.weight", "up.weight"}
    assert (router(torch.randn(20, 32)) >= 0).all()


def test_fitted_routers_predict_norms_better_than_their_mean(sparse):
    batch = tiny_batch()
    with torch.no_grad():
        for ffn in (layer.ffn for layer in sparse.layers):   # wider: the sample is tiny
            ffn.router = Router(32, 64, 8)
    before = {name: t.clone() for name, t in sparse.named_parameters() if "router" not in name}
    inputs = ffn_inputs(sparse, [batch], lambda item: sparse(**item))
    assert [rows.shape for rows in inputs] == 3 * [(int(batch["attention_mask"].sum()), 32)]
    assert len(ffn_inputs(sparse, [batch, batch], lambda item: sparse(**item), rows=6)[0]) == 6
    errors = fit_routers(sparse, inputs, epochs=100, batch_size=32, lr=1e-2)
    assert max(errors) < 0.5
    after = dict(sparse.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_every_batch_gives_its_part_of_the_kept_tokens(sparse):
    batches = [tiny_batch()] * 2
    run = lambda item: sparse(**item)  # noqa: E731
    three, five = (ffn_inputs(sparse, batches, run, rows=rows)[0] for rows in (6, 5))
    assert len(five) == 5 and torch.equal(five[:3], three[:3]) and three.dtype == torch.float16


def test_a_routers_error_is_a_share_of_the_norms_variance(sparse):
    inputs = ffn_inputs(sparse, [tiny_batch()], lambda item: sparse(**item))
    errors = fit_routers(sparse, inputs, epochs=1, lr=0.0)
    for ffn, hidden, error in zip((layer.ffn for layer in sparse.layers), inputs, errors):
        norms = expert_norms(ffn, hidden.float())
        squares = (ffn.router(hidden.float()) - norms).square().mean()
        assert error == pytest.approx((squares / norms.var(dim=0).mean()).item(), rel=1e-4)
        assert not any(p.requires_grad for p in ffn.router.parameters())


# --------------------------------------------------------------------------------------- sparsity


def test_relu_makes_zeros_and_keeps_the_encoder_an_ordinary_one(bert, tmp_path):
    to_relu(bert)
    assert 0.2 < zero_fraction(bert, lambda: bert(**tiny_batch())) < 0.8
    bert.save_pretrained(tmp_path)
    same(out(Bert.from_pretrained(tmp_path)), out(bert))
    with pytest.raises(UserError, match="already"):
        to_relu(bert)


def test_zeros_are_counted_exactly(bert):
    to_relu(bert)
    for layer in bert.layers:
        layer.ffn.fc_in.bias.data.fill_(-1e4)
    assert zero_fraction(bert, lambda: bert(**tiny_batch())) == 1.0
    for layer in bert.layers:
        layer.ffn.fc_in.bias.data.fill_(1e4)
    assert zero_fraction(bert, lambda: bert(**tiny_batch())) == 0.0
    assert zero_fraction(bert, lambda: None) == 0.0


def test_distance_is_a_share_of_the_teachers_variance():
    goals = [torch.randn(9, 4), 3 + torch.randn(9, 4), torch.ones(9, 4)]
    zero = distance([goal.mean(dim=0).expand(9, 4) for goal in goals[:2]], goals[:2])
    torch.testing.assert_close(zero, torch.tensor(1.0))
    halves = distance([(goal + goal.mean(dim=0)) / 2 for goal in goals[:2]], goals[:2])
    torch.testing.assert_close(halves, torch.tensor(0.25))
    torch.testing.assert_close(distance([goals[2] + 1e-3], [goals[2]]), torch.tensor(1.0),
                               atol=1e-3, rtol=0)            # of at least 1e-6


def test_the_hoyer_ratio_does_not_depend_on_size():
    rows = torch.tensor([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
    assert float(hoyer(rows)) == pytest.approx(1.5) == pytest.approx(float(hoyer(1e-3 * rows)))
    assert float(hoyer(torch.zeros(2, 3))) == 0


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_penalty_falls_as_its_values_become_sparse(penalty):
    dense, few = torch.full((4, 64), 1.0), torch.full((4, 64), -10.0)    # GELU(−10) counts as zero
    few[:, 0] = 1.0
    assert PENALTIES[penalty](few) < PENALTIES[penalty](dense)


def test_penalties_are_the_papers_sums_at_its_width():
    ones = torch.ones(2, 3072)
    assert float(PENALTIES["relu-l1"](ones)) == 3072
    assert float(PENALTIES["relu-hoyer"](ones)) == pytest.approx(3072)
    assert float(PENALTIES["gelu-l1"](-10 * ones)) == 0


def test_the_penalty_is_of_real_tokens_and_of_every_width_alike(bert):
    to_relu(bert)
    recorder, batch = Recorder(bert), tiny_batch()
    bert(**batch)
    tokens = int(batch["attention_mask"].sum())
    assert [len(rows) for rows in recorder.preactivations] == 3 * [tokens]
    activations = [rows.relu() for rows in recorder.preactivations]
    expected = sum(rows.sum(dim=1).mean() for rows in activations) / 3 * 3072 / 48
    same(Sparsity("relu-l1", 0.5).term(recorder, 0.0), 0.5 * expected)
    recorder.clear()
    with torch.no_grad():
        bert(**batch)
    assert not recorder.preactivations and not recorder.outputs          # evaluation keeps nothing


def test_a_schedule_raises_the_weight(bert):
    recorder = Recorder(bert)
    bert(**tiny_batch())
    whole = Sparsity("relu-l1", 1.0).term(recorder, 0.0)
    for schedule, done, factor in (("linear", 0.25, 0.25), ("warm-up", 0.25, 0.5),
                                   ("warm-up", 0.75, 1.0), ("linear", 0, 0)):
        same(Sparsity("relu-l1", 1.0, schedule).term(recorder, done), factor * whole)


def test_a_weight_is_whole_at_once_at_the_end_or_half_way():
    whole = [Sparsity("relu-l1", 1.0, name).full_from for name in ("none", "linear", "warm-up")]
    assert whole == [0.0, 1.0, 0.5]


@pytest.mark.parametrize("text, word", [
    ("relu-l1", "write penalty:weight"), ("relu-l1:0", "write penalty:weight"),
    ("relu-l1:inf", "write penalty:weight"), ("relu-l1:1:linear:none", "no schedule"),
    ("relu-l1:-1", "write penalty:weight"),
    ("relu-l2:1", "did you mean relu-l1"), ("relu-l1:1:lineal", "did you mean linear")])
def test_a_penalty_that_is_not_understood_is_a_sentence(text, word):
    with pytest.raises(UserError, match=word):
        Sparsity.parse(text)
