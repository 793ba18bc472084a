"""The registry's route: the call that the model makes anyway, heard and left as it was."""

import threading

import pytest
import torch
from torch import Tensor, nn
from transformers import AlignTextConfig, AlignTextModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

import headscope as hs
from headscope.anatomy import Call, Place
from headscope.anatomy.registry import RegistryRoute
from headscope.watching.observation import capture
from tests.families import build_further
from tests.models import build, make_batches


def _inputs(name: str, seed: int = 0) -> dict[str, Tensor]:
    return {key: value for key, value in make_batches(name, 1, seed=seed)[0].items() if key != "document"}


def _run(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs)[0]


def test_every_call_is_heard_once_with_its_tensors() -> None:
    model, inputs, calls = build("llama"), _inputs("llama"), []
    with RegistryRoute().listen(model, calls.append):
        _run(model, inputs)
    assert [call.module for call in calls] == [layer.self_attn for layer in model.model.layers]
    for call in calls:
        assert call.q.shape == (3, 8, 12, 8)
        assert call.k.shape == call.v.shape == (3, 2, 12, 8)
        assert call.z.shape == (3, 8, 12, 8)
        assert call.scaling == pytest.approx(8**-0.5)


def test_only_the_modules_asked_for_are_heard_and_only_of_that_model() -> None:
    model, other, inputs, calls = build("llama"), build("llama", seed=1), _inputs("llama"), []
    with RegistryRoute().listen(model, calls.append, [Place(model.model.layers[1].self_attn)]):
        _run(model, inputs)
        _run(other, inputs)
    assert [call.module for call in calls] == [model.model.layers[1].self_attn]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_map_is_told_whatever_the_kernel(implementation: str) -> None:
    model, inputs, calls = build("gpt2"), _inputs("gpt2"), []
    model.set_attn_implementation(implementation)
    with RegistryRoute().listen(model, calls.append):
        _run(model, inputs)
    for call in calls:
        pattern = call.pattern()
        torch.testing.assert_close(pattern @ call.v, call.z, rtol=0, atol=1e-5)
        again = (call.q @ call.k.mT * call.scaling + call.bias(call.scaling)).softmax(-1)
        rows = inputs["attention_mask"].bool()
        torch.testing.assert_close(again.transpose(1, 2)[rows], pattern.transpose(1, 2)[rows], rtol=0, atol=1e-5)


def test_kernels_that_want_values_as_wide_as_keys_get_the_identity_in_strips() -> None:
    def narrow(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: object) -> object:
        if v.shape[-1] != k.shape[-1]:
            raise RuntimeError("value must be as wide as key")
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, mask, **kwargs)

    model, calls = build("bert"), []
    inputs = {"input_ids": _inputs("bert")["input_ids"]}  # 12 tokens, heads of 8: the last strip is half empty
    with RegistryRoute().listen(model, lambda call: calls.append(call.pattern())):
        _run(model, inputs)
    AttentionInterface.register("narrow", narrow)
    try:
        model.set_attn_implementation("narrow")
        with RegistryRoute().listen(model, lambda call: calls.append(call.pattern())):
            _run(model, inputs)
    finally:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop("narrow")
    for want, got in zip(calls[:2], calls[2:], strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_position_bias_is_part_of_the_bias() -> None:
    model, calls = build_further("t5"), []
    inputs = {"input_ids": torch.randint(3, 60, (2, 9)), "decoder_input_ids": torch.randint(3, 60, (2, 5))}
    with RegistryRoute().listen(model, calls.append):
        _run(model, inputs)
    assert len(calls) == 6
    assert any(call.bias(1.0).abs().max() > 0.1 for call in calls)
    for call in calls:
        assert call.scaling == 1.0
        again = (call.q @ call.k.mT + call.bias(1.0)).softmax(-1)
        torch.testing.assert_close(again, call.pattern(), rtol=0, atol=1e-5)


def test_the_registry_is_as_it_was_once_the_last_listener_is_gone() -> None:
    before = AttentionInterface.__dict__["get_interface"]
    model, inputs = build("bert"), _inputs("bert")
    outer, inner = RegistryRoute().listen(model, lambda _: None), RegistryRoute().listen(model, lambda _: None)
    outer.__enter__()
    inner.__enter__()
    assert AttentionInterface.__dict__["get_interface"] is not before
    outer.__exit__(None, None, None)
    assert AttentionInterface.__dict__["get_interface"] is not before
    inner.__exit__(None, None, None)
    assert AttentionInterface.__dict__["get_interface"] is before
    with pytest.raises(ZeroDivisionError), RegistryRoute().listen(model, lambda _: 1 / 0):
        _run(model, inputs)
    assert AttentionInterface.__dict__["get_interface"] is before


def test_another_thread_is_not_heard() -> None:
    model, inputs, calls = build("bert"), _inputs("bert"), []
    with RegistryRoute().listen(model, calls.append):
        thread = threading.Thread(target=_run, args=(model, inputs))
        thread.start()
        thread.join()
    assert calls == []


def test_a_route_tells_nothing_of_what_another_has_claimed() -> None:
    """Attention inside an attention function (sdpa, eager's softmax) belongs to the dispatched call."""
    from headscope.anatomy.handwritten import HandwrittenRoute

    model, inputs = build("bert"), _inputs("bert")
    for implementation in ("eager", "sdpa"):
        heard: list[Call] = []
        model.set_attn_implementation(implementation)
        with torch.enable_grad():
            found = HandwrittenRoute().scout(model, list(inputs.values()), lambda: model(**inputs))
        assert (found.places, found.refusals) == ([], [])
        with RegistryRoute().listen(model, heard.append):
            _run(model, inputs)
        assert len(heard) == 2


def test_a_function_that_reads_the_mask_alone_has_no_causal_bias() -> None:
    """Its attention says nothing of causality, which sdpa takes for causal; a function that is written out does not."""
    config = AlignTextConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
    )  # fmt: skip
    model = AlignTextModel(config).eval()
    ids = torch.randint(3, 90, (2, 7))
    with capture(model, ("q", "k", "pattern", "bias"), example={"input_ids": ids}) as seen:
        model(input_ids=ids)
    own = seen[0]
    torch.testing.assert_close((8**-0.5 * own.q @ own.k.mT + own.bias).softmax(-1), own.pattern)


class OverDepth(nn.Module):
    """Attends over what the layers before made, each position by itself: positions stand where heads would."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(8))

    def forward(self, made: list[Tensor]) -> Tensor:
        attend = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", None)
        depth = torch.stack(made, -2)
        query = self.query.expand(*depth.shape[:2], 1, 8)
        return attend(self, query, depth, depth, None, is_causal=False)[0].transpose(1, 2).squeeze(-2)


class WithDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.depth = OverDepth()
        self.heads = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        mixed = self.depth([x, first, self.second(first)])
        return self.third(mixed + self.heads(mixed, mixed, mixed)[0])


def test_attention_over_depth_has_no_heads() -> None:
    torch.manual_seed(0)
    anatomy = hs.discover(WithDepth(), torch.randn(2, 5, 8))
    assert [site.module_name for site in anatomy.sites] == ["heads"]
    assert anatomy.remarks == (
        "not read: depth (OverDepth) looks like attention, but it attends over something else than positions: these "
        "stand where heads would",
    )


class PooledByHead(nn.Module):
    """One convolution for the values of all heads, which are rows to it: each head lies at places of its own there."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.pool = nn.Conv1d(4, 4, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        v = self.pool(v.flatten(0, 1).mT).mT.unflatten(0, (-1, 2))
        return self.o(((q @ k.mT) / 2).softmax(-1).matmul(v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("positions", [2, 5])
def test_heads_that_are_rows_to_a_layer_are_heads(positions: int) -> None:
    torch.manual_seed(0)
    (site,) = hs.discover(PooledByHead(), torch.randn(3, positions, 8)).sites
    assert (site.n_heads, site.apart) == (2, True)


class InParts(nn.Module):
    """Attends for some queries at a time, and reads all of that at once."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.o(
            torch.cat([(some @ k.mT).softmax(-1) @ v for some in q.split(3, 2)], 2).transpose(1, 2).flatten(2)
        )


def test_parts_of_a_sequence_are_told_as_such() -> None:
    torch.manual_seed(0)
    told = "no contribution, written: o reads several attentions in the same columns: their sum, or parts of a sequence"
    assert any(told in remark for remark in hs.discover(InParts(), torch.randn(2, 6, 8)).remarks)
