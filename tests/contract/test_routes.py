"""What every route promises, tried on every model here that it serves; a new route file is tested as it appears.

A route that serves none of them fails `test_it_serves_a_model_here`: add one that it serves to MODELS.
"""

import copy
import functools
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from headscope.anatomy import ROUTES, Call, Description, Place, Route, describe, discover
from headscope.sites import Anatomy
from headscope.watching.observation import capture
from tests.families import HandWritten, build_any
from tests.models import FACTORIES, build


def _tokens(seed: int, **more: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(3, 60, (2, 7), generator=generator)} | more


def _numbers(seed: int) -> dict[str, Tensor]:
    return {"x": torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(seed))}


def _hand_written(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    return HandWritten(**settings).eval()  # type: ignore[arg-type]


def _described() -> nn.Module:
    model = _hand_written()
    describe(model, Description(module="", heads=4, query="q", key="k", value="v", output="o"))
    return model


Make = Callable[[], nn.Module]
Inputs = Callable[[int], dict[str, Tensor]]
MODELS: dict[str, tuple[Make, Inputs]] = {
    **{name: (functools.partial(build, name), _tokens) for name in FACTORIES},
    "fused nanogpt": (functools.partial(build_any, "fused nanogpt"), _tokens),
    "t5": (
        functools.partial(build_any, "t5"),
        lambda seed: _tokens(seed, decoder_input_ids=torch.arange(3, 13).reshape(2, 5)),
    ),
    "hand-written": (lambda: _hand_written(), _numbers),
    "hand-written, grouped": (lambda: _hand_written(way="in place", n_kv_heads=2), _numbers),
    "described": (_described, _numbers),
}


@functools.cache
def _anatomy(model: str) -> Anatomy:
    make, inputs = MODELS[model]
    return discover(make(), inputs(0))


def _served(route: str) -> list[str]:
    return [name for name in MODELS if any(site.route == route for site in _anatomy(name).sites)]


def _run(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        out = model(**inputs)
    return out if isinstance(out, Tensor) else out[0]


class _Case:
    """A model that the route serves, its input, and the modules whose calls are the route's."""

    def __init__(self, route: str, name: str) -> None:
        make, inputs = MODELS[name]
        self.model, self.inputs = make(), inputs(0)
        self.other_inputs = inputs(1)
        self.route: Route = ROUTES[route]()
        self.sites = [site for site in _anatomy(name).sites if site.route == route]
        self.modules = [self.model.get_submodule(site.module_name) for site in self.sites]
        self.places = [Place(module, site.spelling) for module, site in zip(self.modules, self.sites, strict=True)]

    def listen(self, receive: Callable[[Call], None], places: list[Place] | None = None):
        return self.route.listen(self.model, receive, self.places if places is None else places)


@pytest.fixture(params=list(ROUTES))
def route(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cases(route: str) -> list[_Case]:
    return [_Case(route, name) for name in _served(route)]


def test_it_serves_a_model_here(route: str) -> None:
    assert _served(route), f"no model in MODELS is served by the route {route!r}; add one that is"
    assert ROUTES[route].name == route


def test_every_model_here_is_served() -> None:
    assert all(_anatomy(name).sites for name in MODELS)


def test_each_call_is_told_once_in_order_and_agrees_with_itself(cases: list[_Case]) -> None:
    for case in cases:
        calls: list[Call] = []
        with case.listen(calls.append):
            _run(case.model, case.inputs)
        assert [call.module for call in calls] == case.modules
        for call, site in zip(calls, case.sites, strict=True):
            batch, heads, queries, dim = call.q.shape
            assert (heads, dim) == (site.n_heads, site.head_dim)
            keys = call.k.shape[2]
            assert call.k.shape == (batch, call.k.shape[1], keys, dim)
            assert call.k.shape[1] in (site.n_heads, site.n_kv_heads)
            assert call.v.shape == (batch, call.v.shape[1], keys, site.value_dim)
            assert call.z.shape == (batch, heads, queries, site.value_dim)
            pattern, repeats = call.pattern(), heads // call.k.shape[1]
            assert pattern.shape == (batch, heads, queries, keys)
            torch.testing.assert_close(pattern.sum(-1), torch.ones(batch, heads, queries), rtol=0, atol=1e-5)
            v, k = (part.repeat_interleave(heads // part.shape[1], 1) for part in (call.v, call.k))
            torch.testing.assert_close(pattern @ v, call.z, rtol=0, atol=1e-5)
            again = (call.q @ k.mT * site.scaling + call.bias(site.scaling)).softmax(-1)
            torch.testing.assert_close(again, pattern, rtol=0, atol=1e-5)
            assert repeats >= 1
            if call.scaling == call.scaling:  # not NaN: the route knows it by itself
                assert call.scaling == pytest.approx(site.scaling)


def test_asking_for_maps_and_biases_changes_no_bit(cases: list[_Case]) -> None:
    for case in cases:
        want = _run(case.model, case.inputs)

        def ask(call: Call) -> None:
            call.pattern()
            call.bias(1.0)

        with case.listen(ask):
            assert torch.equal(_run(case.model, case.inputs), want)
        assert torch.equal(_run(case.model, case.inputs), want)


def test_only_the_modules_named_and_only_this_model_are_heard(cases: list[_Case]) -> None:
    for case in cases:
        calls: list[Call] = []
        twin = copy.deepcopy(case.model)
        with case.listen(calls.append, [case.places[-1]]):
            _run(twin, case.inputs)
            assert calls == []
            _run(case.model, case.inputs)
        assert [call.module for call in calls] == [module for module in case.modules if module is case.modules[-1]]


def test_what_is_scouted_is_heard(cases: list[_Case]) -> None:
    for case in cases:
        calls: list[Call] = []
        run = functools.partial(case.model, **case.inputs)
        with torch.enable_grad():
            found = case.route.scout(case.model, list(case.inputs.values()), run)
        with case.route.listen(case.model, calls.append, found.places):
            _run(case.model, case.inputs)
        assert [call.module for call in calls] == case.modules
        assert [call.key for call in calls] == [place.key for place in case.places]


def _traces(model: nn.Module) -> list[object]:
    state: list[object] = [set(module.__dict__) for module in model.modules()]
    for module in model.modules():
        state += [len(module._forward_hooks), len(module._forward_pre_hooks), module.training]
    return state


def test_no_trace_is_left_also_when_the_forward_or_the_listener_raised(cases: list[_Case]) -> None:
    for case in cases:
        before = _traces(case.model)
        with pytest.raises(ZeroDivisionError), case.listen(lambda _: 1 / 0):
            _run(case.model, case.inputs)
        assert _traces(case.model) == before
        calls: list[Call] = []
        with case.listen(calls.append):
            _run(case.model, case.inputs)
        _run(case.model, case.inputs)
        assert len(calls) == len(case.sites)


def test_other_threads_are_not_heard(cases: list[_Case]) -> None:
    for case in cases:
        calls: list[Call] = []
        with case.listen(calls.append):
            thread = threading.Thread(target=_run, args=(case.model, case.other_inputs))
            thread.start()
            thread.join()
            assert calls == []
            _run(case.model, case.inputs)
        assert len(calls) == len(case.sites)


def test_listeners_nest(cases: list[_Case]) -> None:
    for case in cases:
        outer: list[Call] = []
        inner: list[Call] = []
        with case.listen(outer.append):
            with case.listen(inner.append):
                _run(case.model, case.inputs)
            _run(case.model, case.inputs)
        assert (len(outer), len(inner)) == (2 * len(case.sites), len(case.sites))


def test_captures_go_through_it(route: str) -> None:
    for name in _served(route):
        make, inputs = MODELS[name]
        model, given, anatomy = make(), inputs(0), _anatomy(name)
        want = _run(model, given)
        with torch.no_grad(), capture(model, anatomy=anatomy) as seen:
            out = model(**given)
        assert torch.equal(out if isinstance(out, Tensor) else out[0], want)
        assert list(seen) == [site.layer for site in anatomy.sites]
