"""The hand-written route: every plain spelling of softmax(q·kᵀ)·v is recognised, and nothing else is."""

import copy
import inspect
import pickle
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn

from headscope.anatomy import Call, Place, discover
from headscope.anatomy.handwritten import HandwrittenRoute
from tests.families import HandWritten

WAYS = ["plain", "sdpa", "mask in sdpa", "queries scaled", "in place", "added mask", "module of its own"]


def _x(seed: int = 0, n_heads: int = 4) -> Tensor:
    return torch.randn(2, 5, 4 * n_heads, generator=torch.Generator().manual_seed(seed))


def _places(model: nn.Module) -> Sequence[Place]:
    with torch.enable_grad():
        return HandwrittenRoute().scout(model, [_x()], lambda: model(_x())).places or ()


def _listen(model: nn.Module, *inputs: Tensor) -> list[Call]:
    calls: list[Call] = []
    places = _places(model)
    with torch.no_grad(), HandwrittenRoute().listen(model, calls.append, places):
        for x in inputs:
            model(x)
    return calls


def _by_hand(model: HandWritten, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, pattern and z in float64, head by head."""
    x, dim = x.double(), model.dim
    weights = {name: (layer.weight.double(), layer.bias.double()) for name, layer in model.named_children()
               if isinstance(layer, nn.Linear)}  # fmt: skip
    q, k, v = ((x @ w.T + b).unflatten(-1, (-1, dim)).transpose(1, 2) for w, b in (weights[name] for name in "qkv"))
    pattern, z = [], []
    for head in range(model.n_heads):
        own = head // (model.n_heads // model.n_kv_heads)
        scores = q[:, head] @ k[:, own].mT * (0.25 if model.way == "mask in sdpa" else 0.5)
        if model.causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
        pattern.append(scores.softmax(-1))
        z.append(pattern[-1] @ v[:, own])
    return q, k, v, torch.stack(pattern, 1), torch.stack(z, 1)


def _build(way: str, **settings: object) -> HandWritten:
    torch.manual_seed(0)
    model = HandWritten(way, **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.eval()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_every_spelling_gives_the_same_tensors(way: str, n_kv_heads: int) -> None:
    model = _build(way, n_kv_heads=n_kv_heads)
    (call,) = _listen(model, _x())
    q, k, v, pattern, z = _by_hand(model, _x())
    repeats = 4 // n_kv_heads
    torch.testing.assert_close(call.v.double(), v.repeat_interleave(repeats, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(call.k.double(), k.repeat_interleave(repeats, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(call.z.double(), z, rtol=0, atol=1e-5)
    torch.testing.assert_close(call.pattern().double(), pattern, rtol=0, atol=1e-5)
    scaling = discover(model, {"x": _x()}).sites[0].scaling
    torch.testing.assert_close(
        (call.q @ call.k.mT * scaling + call.bias(scaling)).softmax(-1).double(), pattern, rtol=0, atol=1e-5
    )
    if way != "queries scaled":
        torch.testing.assert_close(call.q.double(), q, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("way", "scaling"), [*((way, 0.5) for way in WAYS[:2] + WAYS[4:]), ("mask in sdpa", 0.25),
                                              ("queries scaled", 1.0)])  # fmt: skip
def test_the_probe_reads_the_scaling(way: str, scaling: float) -> None:
    (site,) = discover(_build(way), {"x": _x()}).sites
    assert site.scaling == pytest.approx(scaling, rel=1e-6)
    assert site.route == "handwritten"
    assert site.kind == "causal"


@pytest.mark.parametrize("way", [way for way in WAYS if way != "mask in sdpa"])
def test_an_encoder_is_no_decoder(way: str) -> None:
    (site,) = discover(_build(way, causal=False), {"x": _x()}).sites
    assert site.kind == "self"


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_repeated_heads_are_counted_once(n_kv_heads: int) -> None:
    (site,) = discover(_build("plain", n_kv_heads=n_kv_heads), {"x": _x()}).sites
    assert (site.n_heads, site.n_kv_heads, site.n_value_heads) == (4, n_kv_heads, n_kv_heads)
    assert site.kv_of_query == tuple(head // (4 // n_kv_heads) for head in range(4))
    assert site.entangled == ()
    assert site.key[0].heads == tuple(tuple(range(4 * head, 4 * head + 4)) for head in range(n_kv_heads))


def test_heads_with_equal_weights_stay_two_heads() -> None:
    model = _build("plain")
    with torch.no_grad():
        for layer in (model.k, model.v):
            layer.weight[4:8], layer.bias[4:8] = layer.weight[:4], layer.bias[:4]
    (site,) = discover(model, {"x": _x()}).sites
    assert site.n_kv_heads == site.n_value_heads == 4


def test_a_module_that_multiplies_map_and_values_is_part_of_the_attention_around_it() -> None:
    model = nn.Sequential(_build("module of its own"), _build("plain"))
    anatomy = discover(model, {"input": _x()})
    assert [site.module_name for site in anatomy.sites] == ["0", "1"]


class _NoAttention(nn.Module):
    """Four-dimensional products and softmaxes that are no attention."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layer, self.way = nn.Linear(16, 16), way

    def forward(self, x: Tensor) -> Tensor:
        a = self.layer(x).unflatten(-1, (4, 4)).transpose(1, 2)
        scores = a @ a.transpose(-2, -1)
        if self.way == "no softmax":
            return scores @ a
        if self.way == "softmax over queries":
            return scores.softmax(dim=-2) @ a
        if self.way == "softmax of no product":
            return a.softmax(-1) @ a.transpose(-2, -1)
        return scores.softmax(-1)  # no values


@pytest.mark.parametrize("way", ["no softmax", "softmax over queries", "softmax of no product", "no values"])
def test_what_is_no_attention_is_not_told(way: str) -> None:
    assert _listen(_NoAttention(way), _x()) == []


def _dropping(model: HandWritten) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda pattern, v: nn.functional.dropout(pattern, 0.5, training=True) @ v


def test_the_map_is_what_the_softmax_gave_before_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _build("module of its own").train()
    monkeypatch.setattr(model.mix, "forward", _dropping(model))
    (call,) = _listen(model, _x())
    want = _by_hand(model, _x())[3]
    torch.testing.assert_close(call.pattern().double(), want, rtol=0, atol=1e-5)
    assert not torch.allclose(call.z, call.pattern() @ call.v)


def _is_plain(model: nn.Module) -> bool:
    return "forward" not in model.__dict__ and not model._forward_hooks and not model._forward_pre_hooks


def test_no_trace_is_on_a_module_while_it_is_heard_nor_afterwards() -> None:
    model = _build("plain")
    places = _places(model)
    with HandwrittenRoute().listen(model, lambda _: None, places):
        assert _is_plain(model)
        assert _is_plain(copy.deepcopy(model))
    with pytest.raises(RuntimeError), HandwrittenRoute().listen(model, lambda _: None, places):
        model(torch.randn(2, 5, 3))
    assert not torch.nn.modules.module._has_any_global_hook()
    assert torch.overrides._len_torch_function_stack() == 0


def test_a_forward_of_the_users_own_is_heard_and_stays() -> None:
    model = _build("plain")
    own = model.__dict__["forward"] = lambda x: HandWritten.forward(model, 2 * x)
    places = _places(model)
    with torch.no_grad():
        want = model(_x())
        calls: list[Call] = []
        with HandwrittenRoute().listen(model, calls.append, places):
            assert torch.equal(model(_x()), want)
    assert len(calls) == 1
    assert model.__dict__["forward"] is own


def test_a_copy_made_while_somebody_listens_is_not_heard() -> None:
    model, calls = _build("plain"), []
    with HandwrittenRoute().listen(model, calls.append, _places(model)):
        for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            made(_x())
        assert calls == []
        model(_x())
    assert len(calls) == 1


def test_what_stops_a_forward_from_outside_leaves_no_mode_behind() -> None:
    model = _build("module of its own")
    places = _places(model)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model.mix.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt), HandwrittenRoute().listen(model, lambda _: None, places):
        model(_x())
    handle.remove()
    assert torch.overrides._len_torch_function_stack() == 0
    assert not torch.nn.modules.module._has_any_global_hook()


def test_the_signature_stays_readable_while_it_listens() -> None:
    model = _build("plain")
    with HandwrittenRoute().listen(model, lambda _: None, _places(model)):
        assert list(inspect.signature(model.forward).parameters) == ["x"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_listeners_may_close_in_any_order(order: tuple[int, int]) -> None:
    model, heard = _build("plain"), ([], [])
    places = _places(model)
    stacks = [ExitStack(), ExitStack()]
    for stack, calls in zip(stacks, heard, strict=True):
        stack.enter_context(HandwrittenRoute().listen(model, calls.append, places))
    model(_x())
    stacks[order[0]].close()
    model(_x())
    stacks[order[1]].close()
    model(_x())
    assert (len(heard[order[0]]), len(heard[order[1]])) == (1, 2)
    assert not torch.nn.modules.module._has_any_global_hook()


def test_another_thread_is_not_heard() -> None:
    model, calls = _build("plain"), []
    with HandwrittenRoute().listen(model, calls.append, _places(model)):
        thread = threading.Thread(target=model, args=(_x(),))
        thread.start()
        thread.join()
    assert calls == []


def test_threads_hear_their_own_calls_only() -> None:
    model, wrong = _build("plain"), []
    barrier, places = threading.Barrier(2, timeout=30), _places(model)

    def work(seed: int) -> None:
        try:
            want = _by_hand(model, _x(seed))[4]
            for _ in range(10):
                barrier.wait()
                calls: list[Call] = []
                with torch.no_grad(), HandwrittenRoute().listen(model, calls.append, places):
                    model(_x(seed))
                (call,) = calls
                torch.testing.assert_close(call.z.double(), want, rtol=0, atol=1e-5)
        except BaseException as error:
            wrong.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong
    assert not torch.nn.modules.module._has_any_global_hook()
