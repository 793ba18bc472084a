"""Untrained copies: every weight is drawn anew, as the model itself draws it, and what cannot be drawn is named."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

import headscope as hs
from headscope.anatomy.untrained import drawn_by, untrained_copy
from headscope.errors import InputError, ModelError, UnknownNameError
from tests import models

SMALL = {
    "t5": {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 40},
    "vit": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16},
    "mixtral": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16},
}


def build(family: str) -> nn.Module:
    """A model of the tests, or a small one of the library's."""
    if family in models.FACTORIES:
        return models.build(family)
    return AutoModel.from_config(AutoConfig.for_model(family, **SMALL[family])).eval()


@pytest.mark.parametrize("family", [*models.FACTORIES, *SMALL])
def test_every_weight_is_drawn_anew_and_the_model_stays(family: str) -> None:
    model = build(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    state = torch.random.get_rng_state()
    copy = untrained_copy(model, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(bool((own == 7).all()) for own in model.parameters())
    assert not any(bool((own == 7).any() or own.isnan().any()) for own in copy.parameters())
    again, other = untrained_copy(model, seed=3), untrained_copy(model, seed=4)
    for name, own in copy.named_parameters():
        assert torch.equal(own, again.get_parameter(name))
    assert any(not torch.equal(own, other.get_parameter(name)) for name, own in copy.named_parameters())
    assert [name for name, _ in copy.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_weights_are_spread_as_the_library_spreads_them() -> None:
    model = models.build("bert")
    config = model.config
    config.initializer_range = 0.35
    linear = untrained_copy(model).get_parameter("encoder.layer.0.intermediate.dense.weight")
    assert float(linear.detach().std()) == pytest.approx(0.35, rel=0.15)
    norm = untrained_copy(model).get_parameter("encoder.layer.0.output.LayerNorm.weight")
    assert torch.equal(norm, torch.ones_like(norm))


def test_loaded_weights_are_no_exception(tmp_path) -> None:
    model = models.build("gpt2")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    copy = untrained_copy(loaded)
    same = [name for name, own in copy.named_parameters() if torch.equal(own, loaded.get_parameter(name))]
    assert all("ln" in name or name.endswith("bias") for name in same), "norms and biases start the same"
    assert len(same) < len(list(copy.parameters()))


def test_a_model_that_is_cut_has_one_too() -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    smaller = hs.prune(model, ["L0H1"], batches=batches)
    copy = untrained_copy(smaller)
    assert [own.shape for own in copy.parameters()] == [own.shape for own in smaller.parameters()]
    assert hs.similarity(smaller, batches, null="untrained").nulls["untrained"].shape == (7, 7)


class _Own(nn.Module):
    """As people write them: layers that know how to be drawn, and a rule of the model's own over them."""

    def __init__(self, bare: bool = False, rule: bool = False) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
        if bare:
            self.place = nn.Parameter(torch.randn(4, 8))
        if rule:
            self._init_weights = self._rule

    @staticmethod
    def _rule(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.25)

    def forward(self, x):
        return self.inner(x)


def test_a_rule_of_the_model_s_own_has_the_last_word() -> None:
    copy = untrained_copy(_Own(rule=True))
    assert torch.equal(copy.inner[0].weight, torch.full((8, 8), 0.25))
    assert untrained_copy(_Own()).inner[0].weight.std() > 0.05


class _Around(nn.Module):
    """A library's model inside one of the user's own, as sentence encoders and classifiers have them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"encoder": inner})
        self.head = nn.Linear(8, 2)


def test_a_model_inside_another_is_drawn_as_it_draws_itself() -> None:
    inner = models.build("bert")
    inner.config.initializer_range = 0.35
    copy = untrained_copy(_Around(inner))
    linear = copy.get_parameter("body.encoder.encoder.layer.0.intermediate.dense.weight")
    assert float(linear.detach().std()) == pytest.approx(0.35, rel=0.15)
    assert float(copy.head.weight.detach().abs().max()) <= 8**-0.5
    ruled = untrained_copy(nn.Sequential(_Own(rule=True)))
    assert torch.equal(ruled[0].inner[0].weight, torch.full((8, 8), 0.25))


def test_what_draws_them_is_told() -> None:
    inner = models.build("bert")
    assert drawn_by(inner) == "BertModel.initialize_weights"
    assert drawn_by(_Around(inner)) == (
        "BertModel.initialize_weights, reset_parameters of each module; what constructors draw or scale beside it is "
        "not repeated"
    )
    assert drawn_by(_Own(rule=True)).startswith("reset_parameters of each module, _Own._init_weights; ")
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    for made in (
        hs.similarity(model, batches, null="untrained"), hs.importance(model, batches, "norm", null="untrained"),
        hs.redundancy(model, batches, null="untrained"),
    ):  # fmt: skip
        assert made.facts["untrained"] == drawn_by(model)
        assert made.facts["seed"] == 0


def test_what_cannot_be_drawn_is_named() -> None:
    with pytest.raises(ModelError, match=r"the parameter place lies in _Own \(the model itself\)"):
        untrained_copy(_Own(bare=True))
    bent = nn.Linear(4, 4)
    nn.utils.parametrize.register_parametrization(bent, "weight", nn.Softplus())  # nothing takes it apart again
    with pytest.raises(ModelError, match=r"parametrizations\.weight\.original lies in .*; remove the parametrization"):
        untrained_copy(bent)
    whole = _Own()
    whole.inner[0].weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"inner\.0\.weight is of int8"):
        untrained_copy(whole)
    with torch.device("meta"):
        nowhere = _Own()
    with pytest.raises(ModelError, match="on no device yet"):
        untrained_copy(nowhere)


@pytest.mark.parametrize(
    "made_of",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.orthogonal,
        nn.utils.parametrizations.spectral_norm,
    ],
)
def test_weights_that_are_made_of_others_are_drawn_through_them(made_of: Any) -> None:
    torch.manual_seed(0)
    model = made_of(nn.Linear(4, 4)).eval()  # in training a spectral norm moves with every look
    weight = model.weight.detach().clone()
    copy = untrained_copy(model)
    assert torch.isfinite(copy.weight).all()
    assert not torch.isclose(copy.weight, weight).any()
    assert torch.equal(model.weight, weight)
    assert copy.bias.abs().max() <= 0.5
    if made_of is nn.utils.parametrizations.spectral_norm:
        assert float(torch.linalg.matrix_norm(copy.weight.detach(), 2)) == pytest.approx(1, rel=0.2)


def test_weights_outside_of_parameters_are_no_untrained_ones() -> None:
    model, batches = models.build("nanogpt"), models.make_batches("nanogpt")
    anatomy = hs.discover(model, batches[0])
    projection = model.h[0].attn.c_proj
    held = projection.weight.detach().clone()
    del projection.weight
    projection.register_buffer("weight", held)
    assert projection.bias is not None  # which is drawn anew, and does not stand for the weight
    with pytest.raises(ModelError, match=r"h\.0\.attn\.c_proj keeps its weight outside of parameters"):
        untrained_copy(model, anatomy=anatomy)
    assert "h.0.attn.c_proj.weight, h.1.attn.bias stay as in the model" in drawn_by(model)
    for ask in (hs.importance, hs.similarity):
        with pytest.raises(ModelError, match="outside of parameters"):
            ask(model, batches, "norm" if ask is hs.importance else "cka", null="untrained", anatomy=anatomy)
    packed = type("Packed", (nn.Linear,), {"get_extra_state": lambda own: ("packed", own.bias)})(3, 3)
    with pytest.raises(ModelError, match="holds packed weights"):
        untrained_copy(packed)


class _Odd(nn.Module):
    """With initialisations that ask for more or less than others do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def _init_weights(self) -> None:
        nn.init.constant_(self.inner.weight, 0.5)

    def initialize_weights(self, std: float) -> None:
        nn.init.normal_(self.inner.weight, std=std)


class _Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def reset_parameters(self) -> None:
        raise RuntimeError("not now")


def test_initialisations_are_called_with_what_they_ask_for() -> None:
    assert torch.equal(untrained_copy(_Odd()).inner.weight, torch.full((4, 4), 0.5))
    assert drawn_by(_Odd()).startswith("reset_parameters of each module, _Odd._init_weights; ")
    with pytest.raises(ModelError, match=r"reset_parameters of _Failing failed \(RuntimeError: not now\)"):
        untrained_copy(_Failing())
    stuck = nn.Linear(4, 4)
    stuck.own = torch.ones(2, requires_grad=True) * 2  # as the older weight norm leaves it
    with pytest.raises(ModelError, match="cannot be copied"):
        untrained_copy(stuck)


def test_tables_stand_beside_it() -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2", n_batches=4, rows=6, length=24)
    copy = untrained_copy(model, 5)
    pairs = hs.similarity(model, batches, seed=5, null="untrained")
    assert list(pairs.nulls) == ["chance", "untrained"]
    assert (pairs.nulls["untrained"] == hs.similarity(copy, batches).matrix)[pairs.matrix == pairs.matrix].all()
    table = hs.importance(model, batches, "replaceability", seed=5, null="untrained")
    assert (table.columns["untrained"] == hs.importance(copy, batches, "replaceability").score).all()
    found, own = hs.redundancy(model, batches, seed=5, null="untrained"), hs.redundancy(copy, batches)
    assert found.curve["untrained"].tolist() == own.curve["share"].tolist()
    assert found.effective["untrained"].tolist() == own.effective["effective"].tolist()


def test_the_page_of_an_analysis_shows_it(tmp_path: Path) -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2", n_batches=4, rows=6, length=24)
    budget = hs.Budget(ablation_tokens=200, passes=0, null="untrained")
    page = hs.analyze(model, batches=batches, budget=budget).report(tmp_path / "report").read_text("utf-8")
    assert "in an untrained copy" in page
    for name in ("candidates", "similar_pairs"):
        frame = pd.read_csv(tmp_path / f"report/tables/{name}.csv")
        assert frame[["chance", "untrained"]].notna().any().all()
    layers = pd.read_csv(tmp_path / "report/tables/layers.csv")
    assert {f"{name}_{null}" for name in ("replaceability", "cka") for null in ("chance", "untrained")} < set(layers)


def test_what_makes_no_sense_is_refused() -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    with pytest.raises(UnknownNameError, match="'untrained'"):
        hs.similarity(model, batches, null="shuffled")
    with pytest.raises(UnknownNameError, match="'untrained'"):
        hs.importance(model, batches, "norm", null="shuffled")
    with pytest.raises(InputError, match="ablation is judged by a metric"):
        hs.importance(model, batches, null="untrained")
    with pytest.raises(InputError, match="two models"):
        hs.similarity(model, batches, other=model, null="untrained")
    with pytest.raises(UnknownNameError, match="'untrained'"):
        hs.Budget(null="random")
