import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AlbertModel, Olmo2Config, Olmo2ForCausalLM

from headscope.anatomy import discover
from headscope.errors import ModelError, NumericalError, PlanError, SurgeryError
from headscope.heads import HeadId
from headscope.models.reference import MultiHeadAttention
from headscope.plans import Plan
from headscope.surgery import cut, prune
from headscope.surgery.edits.attributes import SetAttribute
from headscope.surgery.edits.padding import PickInput
from headscope.surgery.edits.slicing import SliceInput, SliceOutput
from tests import models
from tests.families import build_further

SMALL = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}


@pytest.fixture
def gpt2():
    return models.build("gpt2")


def hooks_of(model):
    return [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)]


def test_a_plan_for_another_model_is_refused(gpt2):
    other = discover(models.build("gpt2", seed=1))
    with pytest.raises(PlanError, match="made for another model"):
        prune(gpt2, Plan(["L0H1"], model=other.fingerprint))
    prune(gpt2, Plan(["L0H1"], model=discover(gpt2).fingerprint))


@pytest.mark.parametrize(
    ("heads", "why"),
    [(["L0H4"], "layer 0 has 4 heads"), (["L2H0"], "attention layers: 0, 1"), (["L0H1", (0, 1)], "given twice")],
)
def test_heads_that_do_not_exist_or_come_twice_are_refused(gpt2, heads, why):
    with pytest.raises(PlanError, match=why):
        prune(gpt2, heads)


def test_a_head_that_is_gone_cannot_go_again(gpt2):
    pruned = prune(gpt2, ["L0H1"])
    with pytest.raises(PlanError, match="L0H1 is gone already"):
        prune(pruned, ["L0H1"])
    again = prune(pruned, Plan(["L0H2"], model=discover(gpt2).fingerprint))
    assert again._headscope.removed == (HeadId(0, 1), HeadId(0, 2))


def test_an_empty_plan_gives_a_plain_copy(gpt2):
    copied = prune(gpt2, [])
    assert copied is not gpt2
    assert all(torch.equal(a, b) for a, b in zip(gpt2.parameters(), copied.parameters(), strict=True))


def test_a_wrong_cut_is_caught_in_the_end_and_leaves_no_trace(gpt2, monkeypatch):
    def find_others(*args):
        """Right in number, wrong in place: columns of the next head."""
        edits = found_for_real(*args)
        return tuple(
            replace(one, keep=((0, 16), (24, 32))) if isinstance(one, SliceInput | PickInput) else one for one in edits
        )

    found_for_real = cut.find_edits
    monkeypatch.setattr(cut, "find_edits", find_others)
    before = {key: value.clone() for key, value in gpt2.state_dict().items()}
    with pytest.raises(SurgeryError, match=r"differ by .* \(allowed 1e-05\).*route: registry, entangled: nothing"):
        prune(gpt2, ["L0H1"])
    assert all(torch.equal(before[key], value) for key, value in gpt2.state_dict().items())
    assert not hooks_of(gpt2)


def test_a_cut_that_saves_nothing_is_refused(gpt2, monkeypatch):
    monkeypatch.setattr(cut, "find_edits", lambda *_: (SetAttribute("transformer.h.0.attn", "num_heads", 4, 4),))
    with pytest.raises(SurgeryError, match="parameters"):
        prune(gpt2, ["L0H1"])


@pytest.mark.parametrize("stage", ["_copy", "_verify", "apply_edits"])
def test_a_failure_at_any_stage_leaves_the_model_as_it_was(gpt2, monkeypatch, stage):
    def fail(*_, **__):
        raise ZeroDivisionError(stage)

    gpt2.train()
    before = copy.deepcopy(gpt2.state_dict())
    monkeypatch.setattr(cut, stage, fail)
    with pytest.raises(ZeroDivisionError):
        prune(gpt2, ["L0H1", "L1H0"])
    assert all(torch.equal(before[key], value) for key, value in gpt2.state_dict().items())
    assert all(module.training for module in gpt2.modules())
    assert "_headscope" not in vars(gpt2)
    assert not hooks_of(gpt2)


def test_a_model_that_fails_midway_is_left_without_hooks():
    model = models.build("causal")
    anatomy = discover(model, {"input_ids": torch.ones(2, 4, dtype=torch.long)})
    model.blocks[1].feedforward[0].weight = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(ModelError, match=r"failed with RuntimeError: .*shapes"):
        prune(model, ["L0H1"], anatomy=anatomy, example={"input_ids": torch.ones(2, 4, dtype=torch.long)})
    assert not hooks_of(model)


def test_what_makes_heads_that_cannot_be_told_apart_stays_whole():
    torch.manual_seed(0)
    model = Olmo2ForCausalLM(Olmo2Config(**SMALL, num_hidden_layers=1)).eval()  # a norm over all heads of q, and of k
    assert {"q", "k"} <= set(discover(model).sites[0].entangled)
    pruned, masked = prune(model, ["L0H1"]), copy.deepcopy(model)
    masked.model.layers[0].self_attn.o_proj.weight.data[:, 8:16] = 0
    ids = torch.arange(12).view(2, 6)
    torch.testing.assert_close(pruned(ids).logits, masked(ids).logits, atol=1e-5, rtol=0)
    attention = pruned.model.layers[0].self_attn
    shapes = [tuple(getattr(attention, f"{part}_proj").weight.shape) for part in "qkvo"]
    assert shapes == [(32, 32), (32, 32), (24, 32), (32, 24)]
    again = prune(pruned, ["L0H2"])
    masked.model.layers[0].self_attn.o_proj.weight.data[:, 16:24] = 0
    torch.testing.assert_close(again(ids).logits, masked(ids).logits, atol=1e-5, rtol=0)
    assert discover(again).sites[0].head_ids == (0, 3)


def test_a_site_without_a_projection_is_refused(gpt2):
    anatomy = discover(gpt2)
    blind = replace(anatomy, sites=(replace(anatomy.sites[0], output=None), anatomy.sites[1]))
    with pytest.raises(SurgeryError, match=r"layer 0 .*no linear layer was found that reads"):
        prune(gpt2, ["L0H1"], anatomy=blind)
    mixed = replace(anatomy, sites=(replace(anatomy.sites[0], entangled=("o",)), anatomy.sites[1]))
    with pytest.raises(SurgeryError, match=r"told apart in o .*Nothing can be cut or switched off"):
        prune(gpt2, ["L0H1"], anatomy=mixed)


def test_every_layer_is_checked_before_one_is_touched(gpt2, monkeypatch):
    anatomy = discover(gpt2)
    mixed = replace(anatomy, sites=(anatomy.sites[0], replace(anatomy.sites[1], entangled=("o",))))
    monkeypatch.setattr(cut, "find_edits", lambda *_, **__: pytest.fail("the first layer was tried"))
    with pytest.raises(SurgeryError, match="layer 1"):
        prune(gpt2, ["L0H1", "L1H0"], anatomy=mixed)


def test_layers_that_share_a_module_lose_the_same_heads():
    torch.manual_seed(0)
    model = AlbertModel(AlbertConfig(**SMALL, num_hidden_layers=3, embedding_size=16)).eval()
    with pytest.raises(PlanError, match=r"layers 0, 1, 2 run the same weights .* add L1H2, L2H2 to the plan"):
        prune(model, ["L0H2"])
    pruned = prune(model, ["L0H2", "L1H2", "L2H2"])
    with torch.no_grad():
        ids = torch.arange(12).view(2, 6)
        masked = copy.deepcopy(model)
        masked.encoder.albert_layer_groups[0].albert_layers[0].attention.dense.weight[:, 16:24] = 0
        torch.testing.assert_close(pruned(ids)[0], masked(ids)[0], atol=1e-5, rtol=0)
    assert [site.head_ids for site in discover(pruned).sites] == [(0, 1, 3)] * 3


class Tied(nn.Module):
    """Two attentions in modules of their own that hold the same weights."""

    def __init__(self):
        super().__init__()
        self.first, self.second = _Biased(), _Biased()
        for name in "qkvo":
            getattr(self.second, name).weight = getattr(self.first, name).weight

    def forward(self, x):
        return self.second(self.first(x, 0.0), 0.0)


def test_layers_that_hold_the_same_weights_lose_the_same_heads():
    torch.manual_seed(0)
    model, x = Tied().eval(), torch.randn(2, 5, 16)
    with pytest.raises(SurgeryError, match=r"layers 0, 1 run the same weights .* add L1H1 to the plan"):
        prune(model, ["L0H1"], example={"x": x})
    pruned = prune(model, ["L0H1", "L1H1"], example={"x": x})
    assert pruned.first.q.weight is pruned.second.q.weight
    with torch.no_grad():
        model.first.o.weight[:, 8:] = 0
        torch.testing.assert_close(pruned(x), model(x), atol=1e-5, rtol=0)


class Unhooked(nn.Module):
    """Calls its layers past their hooks: none of them is seen as it runs, so none can be tried alone."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(_Around() for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer.forward(x)
        return x


class _Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.o = _Biased(), nn.Linear(16, 16)
        self.inner.o = nn.Identity()

    def forward(self, x):
        return self.o(self.inner(x, 0.0))


@pytest.mark.parametrize("heads", [["L0H1", "L2H0"], ["L0H0", "L1H0", "L1H1", "L2H1"]])
def test_layers_that_cannot_be_tried_alone_are_tried_one_by_one(heads):
    torch.manual_seed(0)
    model, x = Unhooked().eval(), torch.randn(2, 5, 16)
    pruned = prune(model, heads, example={"x": x})
    with torch.no_grad():
        for layer, head in ((int(one[1]), int(one[3])) for one in heads):
            model.layers[layer].o.weight[:, head * 8 : head * 8 + 8] = 0
        torch.testing.assert_close(pruned(x), model(x), atol=1e-5, rtol=0)
    assert pruned._headscope.ways == {}


def test_nan_is_named_by_its_layer(gpt2):
    anatomy = discover(gpt2)
    with torch.no_grad():
        gpt2.transformer.h[1].attn.c_attn.weight.fill_(torch.nan)
    with pytest.raises(NumericalError, match=r"layer 1 \(transformer.h.1.attn\) returns nothing but NaN"):
        prune(gpt2, ["L0H1", "L1H1"], anatomy=anatomy)


def test_attention_that_is_the_whole_model_can_be_cut():
    torch.manual_seed(0)
    model = MultiHeadAttention(16, 4, head_dim=6, value_dim=5)
    x = torch.randn(2, 7, 16)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        masked.output.weight[:, 5:10] = 0
    pruned = prune(model, ["L0H1"], example={"x": x})
    torch.testing.assert_close(pruned(x), masked(x))
    assert pruned.query.out_features == 18
    assert pruned.output.in_features == 15
    empty = prune(pruned, ["L0H0", "L0H2", "L0H3"], example={"x": x})
    torch.testing.assert_close(empty(x), model.output.bias.expand(2, 7, 16))


@pytest.mark.parametrize("error", [0.0, 1e-3])
def test_where_float32_is_too_coarse_float64_decides(gpt2, monkeypatch, error):
    asked = []
    distance = cut.distance

    def noisy(a, b, batch, dtype, **settings):
        asked.append(dtype)
        return distance(a, b, batch, dtype, **settings) + (1e-4 if dtype == torch.float32 else error)

    monkeypatch.setattr(cut, "distance", noisy)
    batches = models.make_batches("gpt2")
    if error:
        with pytest.raises(SurgeryError, match=r"differ by 1.00e-03"):
            prune(gpt2, ["L0H1"], batches=batches)
    else:
        pruned = prune(gpt2, ["L0H1"], batches=batches)
        assert {parameter.dtype for parameter in pruned.parameters()} == {torch.float32}
        assert asked == [torch.float32, *[torch.float64] * 3], "once is enough to know"


def test_the_first_rows_of_the_batches_are_what_it_is_proven_on(gpt2, monkeypatch):
    looked_at = []
    distance = cut.distance
    monkeypatch.setattr(
        cut,
        "distance",
        lambda a, b, batch, *rest, **more: looked_at.append(batch) or distance(a, b, batch, *rest, **more),
    )
    batches = models.make_batches("gpt2", n_batches=5, rows=6)
    prune(gpt2, ["L0H1"], batches=iter(batches))
    seen = [batch["input_ids"].tolist() for batch in looked_at]
    assert seen == [*(b["input_ids"][:2].tolist() for b in batches[:2]), batches[0]["input_ids"][:1].tolist()]


def test_a_cut_after_which_the_model_does_not_run_is_the_cuts_fault(gpt2, monkeypatch):
    too_few = (SliceOutput("transformer.h.0.mlp.c_fc", ((0, 3),), 128),)
    monkeypatch.setattr(cut, "find_edits", lambda *_: too_few)
    with pytest.raises(SurgeryError, match=r"does not run any more"):
        prune(gpt2, ["L0H1"])


def test_as_many_rows_as_heads_do_not_mislead():
    """An argument's first axis is of heads, and the example has as many rows."""
    torch.manual_seed(0)
    model = ByRows().eval()
    x = torch.randn(2, 5, 16)
    pruned = prune(model, ["L0H1"], example={"x": x})
    masked = copy.deepcopy(model)
    masked.attention.o.weight.data[:, 8:] = 0
    for rows in (1, 2, 3):
        x = torch.randn(rows, 5, 16)
        torch.testing.assert_close(pruned(x), masked(x), atol=1e-5, rtol=0)


class ByRows(nn.Module):
    """Attention of two heads that is given a bias by head, in the shape in which others have one by row."""

    def __init__(self):
        super().__init__()
        self.attention = _Biased()
        self.bias = nn.Parameter(torch.randn(2, 5, 5))

    def forward(self, x):
        return self.attention(x, self.bias)


class _Biased(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x, bias):
        q, k, v = (part(x).unflatten(-1, (-1, 8)).transpose(1, 2) for part in (self.q, self.k, self.v))
        z = (q @ k.mT / 8**0.5 + bias).softmax(-1) @ v
        return self.o(z.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("heads", "keys"),
    [
        (["L1H0", "L1H1"], 16),
        (["L2H0", "L2H1"], 16),
        (["L1H0", "L1H1", "L2H0", "L2H1"], 8),
        (["L1H1", "L2H0"], 16),
        ([f"L2H{head}" for head in range(4)], 16),
    ],
)
def test_key_heads_that_another_layer_reads_stay_as_long_as_it_does(heads, keys):
    model = build_further("gemma4").double()
    assert [site.kind for site in discover(model).sites] == ["causal"] * 3
    masked, ids = copy.deepcopy(model), torch.arange(3, 15).view(2, 6)
    with torch.no_grad():
        for layer, head in ((int(one[1]), int(one[3])) for one in heads):
            masked.layers[layer].self_attn.o_proj.weight[:, head * 8 : head * 8 + 8] = 0
    pruned = prune(model, heads)
    for caching in (True, False):
        torch.testing.assert_close(
            pruned(ids, use_cache=caching)[0], masked(ids, use_cache=caching)[0], atol=1e-5, rtol=0
        )
    made_by = pruned.layers[1].self_attn
    assert made_by.k_proj.weight.shape == made_by.v_proj.weight.shape == (keys, 32)
    assert pruned._headscope.ways == {}, "its attention gets faster too"


def test_key_heads_that_a_cut_layer_reads_by_their_places_stay():
    model, ids = build_further("gemma4").double(), torch.arange(3, 15).view(2, 6)
    first = prune(model, ["L1H2", "L2H0", "L2H1"])
    assert [site.n_kv_heads for site in discover(first).sites][1:] == [2, 1]
    second = prune(first, ["L1H3"])
    with torch.no_grad():
        for layer, head in [(1, 2), (1, 3), (2, 0), (2, 1)]:
            model.layers[layer].self_attn.o_proj.weight[:, head * 8 : head * 8 + 8] = 0
    torch.testing.assert_close(second(ids)[0], model(ids)[0], atol=1e-5, rtol=0)
