"""Discovery leaves the model, and torch, as they were."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import BigBirdConfig, BigBirdModel

from headscope.anatomy import discover
from headscope.errors import AnatomyError, ModelError
from headscope.scoring.rating import importance
from tests.families import FURTHER, build_any, probe_input
from tests.models import FACTORIES


def _state(model: nn.Module) -> dict[str, object]:
    """Everything that a look at a model must leave alone."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "training": [module.training for module in model.modules()],
        "hooks": [len(getattr(module, name)) for module in model.modules() for name in hooks],
        "attributes": [set(module.__dict__) for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "implementation": getattr(getattr(model, "config", None), "_attn_implementation", None),
    }


def _assert_same_state(before: dict[str, object], after: dict[str, object]) -> None:
    weights, others = before.pop("weights"), after.pop("weights")
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    assert before == after


@pytest.mark.parametrize("name", [*FACTORIES, *FURTHER])
def test_the_model_is_as_it_was(name: str) -> None:
    model = build_any(name).train()
    next(iter(model.children())).eval()
    before = _state(model)
    discover(model, probe_input(name))
    _assert_same_state(before, _state(model))


@pytest.mark.parametrize("name", ["llama", "nanogpt"])
def test_the_model_is_as_it_was_after_a_failure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_any(name).train()
    before = _state(model)
    last = list(model.modules())[-1]
    with monkeypatch.context() as patch:
        patch.setattr(type(last), "forward", lambda *_: 1 / 0)
        with pytest.raises(ModelError, match="ZeroDivisionError"):
            discover(model, probe_input(name))
    _assert_same_state(before, _state(model))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_in_any_gradient_mode_and_leaves_the_random_state_alone(around: Callable[[], object]) -> None:
    model = build_any("llama")
    want = discover(model)
    random_state = torch.get_rng_state()
    with around():
        example = {"input_ids": torch.arange(14).reshape(2, 7)}
        assert discover(model) == want
        assert discover(model, example).fingerprint == want.fingerprint
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_model_that_rebuilds_itself_for_short_text_is_as_it_was_and_is_told_of() -> None:
    torch.manual_seed(0)
    model = BigBirdModel(BigBirdConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, block_size=4,
        num_random_blocks=1, max_position_embeddings=256,
    )).eval()  # fmt: skip
    batch = {"input_ids": torch.randint(1, 90, (2, 96))}
    attention = model.encoder.layer[0].attention.self
    with torch.no_grad():
        before = model(**batch).last_hidden_state
    with pytest.raises(AnatomyError, match=r"something looks like it: encoder\.layer\.0\.attention\.self"):
        discover(model, batch)  # not a short piece of it, for which it would be another model
    (told,) = [remark for remark in discover(model).remarks if "rebuilt itself for the example" in remark]
    assert "holds for inputs of that kind alone" in told
    assert model.encoder.layer[0].attention.self is attention
    assert model.attention_type == "block_sparse"
    with torch.no_grad():
        assert torch.equal(model(**batch).last_hidden_state, before)


def test_weights_that_are_computed_as_they_are_read_keep_what_they_hold() -> None:
    model = build_any("llama").train()
    projection = model.model.layers[0].self_attn.o_proj
    nn.utils.parametrizations.spectral_norm(projection)
    before = _state(model)
    discover(model)
    importance(model, [{"input_ids": torch.randint(1, 50, (2, 6))}] * 2, score="norm")
    _assert_same_state(before, _state(model))
