"""Route: attention that the user described, heard at the modules that make q, k and v and at the one that reads z.

Between these nothing is seen. So the map is what a module named for it puts out, or softmax(scaling·q·kᵀ), causal or
not, and either counts only if map · v is what is read; `headscope.anatomy.proving` puts the rest to proof.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import EinopsError, rearrange
from jaxtyping import Shaped
from torch import Tensor, nn

from headscope._support.around import around
from headscope.anatomy.check import gap_of, tolerance
from headscope.anatomy.descriptions import MAKERS, Description, described_in
from headscope.anatomy.layout import Layout
from headscope.anatomy.operations import tensors_in
from headscope.anatomy.route import ROUTES, Call, Place, Receive, Refusal, Route, Scouted, Watch, claiming
from headscope.errors import AnatomyError

__all__ = ["DescribedRoute", "Heard", "at_described"]

Change = Callable[[Sequence[str], Tensor], Tensor | None]
Arrive = Callable[["Heard"], Tensor | None]
_ORDERS = {"pattern": "b h t k"}
_MASKS = ("none", "causal")


@ROUTES.register("described")
class DescribedRoute(Route):
    """Attention that the user described."""

    name: ClassVar[str] = "described"

    def scout(self, model: nn.Module, given: Sequence[Tensor], run: Callable[[], object]) -> Scouted:
        described = described_in(model)
        if not described:
            return Scouted(places=())
        heard: dict[nn.Module, str | None] = {}
        ran: dict[nn.Module, set[str]] = {module: set() for module, _ in described}

        def first(module: nn.Module, one: Heard) -> None:
            if module not in heard:
                heard[module] = one.told_mask()

        with torch.no_grad(), ExitStack() as stack:
            for module, one in described:

                def note(names: Sequence[str], _: Tensor, module: nn.Module = module) -> None:
                    ran[module].update(names)

                def arrive(call: Heard, module: nn.Module = module) -> None:
                    first(module, call)

                stack.enter_context(at_described(module, one, arrive, note))
            run()
        places = [Place(module, _spelled(one, heard[module])) for module, one in described if module in heard]
        silent = [(module, one) for module, one in described if module not in heard]
        for module, one in silent:
            if ran[module]:
                raise AnatomyError(_why_silent(one, ran[module]))
        return Scouted(places, [Refusal(module, "nothing of it ran on the example") for module, _ in silent])

    @contextmanager
    def listen(
        self,
        model: nn.Module,
        receive: Receive,
        places: Collection[Place] | None = None,
        watch: Watch | None = None,
    ) -> Iterator[None]:
        with ExitStack() as stack:
            for place in places or ():
                assert place.spelling is not None
                hear = _Listener(place, receive, probing=watch is not None)
                own = Description.from_json(place.spelling["description"])
                stack.enter_context(at_described(place.module, own, hear))
            yield


def _spelled(one: Description, mask: str | None) -> dict[str, Any]:
    return {"description": one.to_json(), "mask": mask, "output": None}


def _why_silent(one: Description, ran: set[str]) -> str:
    lacking = [f"{getattr(one, name)}, told to make its {name}, did not run" for name in MAKERS if name not in ran]
    what = lacking[0] if lacking else f"{one.output}, told to be its output, read nothing after q, k and v were made"
    return f"the description of {one.module or 'the model'} does not hold: {what}; name other modules"


@dataclass(frozen=True, eq=False)
class _Listener:
    place: Place
    receive: Receive
    probing: bool

    def __call__(self, heard: "Heard") -> Tensor | None:
        if self.probing and not heard.raw["output"].requires_grad:
            # what made it has no gradient: the graph of what comes after begins here
            heard.raw["output"] = heard.raw["output"].detach().requires_grad_().clone()
        assert self.place.spelling is not None
        call = heard.call(self.place, self.place.spelling["mask"])
        z = self.receive(call)
        return call.made[0][2](z) if z is not None else heard.raw["output"]


@contextmanager
def at_described(module: nn.Module, one: Description, arrive: Arrive, change: Change | None = None) -> Iterator[None]:
    """While open, listen to one described attention.

    Args:
        module: that holds it.
        one: its description.
        arrive: told of each call once z is there; what it returns is read in place of z.
        change: told of what a module made, by which of query, key and value it is; returns other numbers, or None.
    """
    raw: dict[str, Tensor] = {}

    def made(names: Sequence[str], out: Any) -> Any:
        tensor = next(iter(tensors_in((out,))), None)
        if tensor is None:
            return None
        with claiming():
            other = change(names, tensor) if change is not None and names[0] in MAKERS else None
        raw.update(dict.fromkeys(names, tensor if other is None else other))
        return other

    def arrived(args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or any(name not in raw for name in MAKERS):
            return None
        own = Heard(one, {**raw, "output": args[0]})
        raw.clear()
        with claiming():
            other = arrive(own)
        return None if other is None else (other, *args[1:])

    with ExitStack() as stack:
        for path, names in (*one.made.items(), *([(one.pattern, ["pattern"])] if one.pattern is not None else [])):
            after = _after(made, names)
            stack.enter_context(around(module.get_submodule(path), after=after))
        # ahead of who switches heads off there: z is what attention made
        stack.enter_context(around(module.get_submodule(one.output), before=arrived, early=True))
        yield


def _after(
    made: Callable[[Sequence[str], Any], Any], names: Sequence[str]
) -> Callable[[tuple[Any, ...], dict[str, Any], Any], Any]:
    return lambda _, __, out: made(names, out)


@dataclass(frozen=True, eq=False)
class Heard:
    """One call of a described attention: what its modules put out, and what entered its output projection."""

    one: Description
    raw: dict[str, Tensor]

    def read(self, name: str, tensor: Tensor | None = None) -> Shaped[Tensor, "batch head position dim"]:
        """A tensor in headscope's order.

        Args:
            name: "query", "key", "value", "output" or "pattern".
            tensor: another one that lies as it does.
        """
        tensor = self.raw[name] if tensor is None else tensor
        try:
            out = self._read(name, tensor)
        except (EinopsError, RuntimeError) as error:
            raise self._odd(name, tensor, str(error).splitlines()[0]) from error
        if out.ndim != 4:
            raise self._odd(name, tensor, "four axes must come of it")
        return out

    def _read(self, name: str, tensor: Tensor) -> Tensor:
        beside, order = self._beside(name), self._order(name)
        if beside and re.search(r"\bn\b", order):
            way = order if "->" in order else f"{order} -> n b h t d"
            apart: Tensor = rearrange(tensor, way, n=len(beside), h=self._heads(name))
            return apart[beside.index(name)]
        return self._layout(name).read(self._part(name, tensor, beside) if beside else tensor)

    def _heads(self, name: str) -> int:
        return self.one.n_kv_heads if name in ("key", "value") else self.one.heads

    def _odd(self, name: str, tensor: Tensor, why: str) -> AnatomyError:
        path, one = getattr(self.one, name), self.one
        what = f"{tuple(tensor.shape)} {'enters' if name == 'output' else 'comes out of'} {path}"
        return AnatomyError(
            f"the description of {one.module or 'the model'} does not fit: {what}: no {self._heads(name)} heads "
            f"laid out as {self._order(name)!r} ({why}); mend heads, kv_heads or layouts"
        )

    def _order(self, name: str) -> str:
        return self.one.layouts.get(name, _ORDERS.get(name, "b t (h d)"))

    def _layout(self, name: str) -> Layout:
        order, here = self._order(name), "b h t k" if name == "pattern" else "b h t d"
        return Layout(order if "->" in order else f"{order} -> {here}", {"h": self._heads(name)})

    def _beside(self, name: str) -> list[str]:
        """What one module makes beside this tensor, itself included; nothing where it is alone."""
        names = self.one.made.get(getattr(self.one, name), []) if name in MAKERS else []
        return names if len(names) > 1 else []

    def _part(self, name: str, tensor: Tensor, beside: list[str]) -> Tensor:
        """Of what one module makes side by side, the part that is this one."""
        heads_of = [self._heads(one) for one in beside]
        width, place = tensor.shape[-1], beside.index(name)
        if width % sum(heads_of):
            raise self._odd(name, tensor, f"{width} features are not {' + '.join(map(str, heads_of))} heads")
        each = width // sum(heads_of)
        return tensor.narrow(-1, each * sum(heads_of[:place]), each * heads_of[place])

    @property
    def scaling(self) -> float:
        return self.read("query").shape[-1] ** -0.5 if self.one.scaling is None else self.one.scaling

    def told_mask(self) -> str | None:
        """Which mask makes softmax(scaling·q·kᵀ) the map: "none" or "causal"; None where neither does."""
        z = self.read("output")
        self._check_sizes(z)
        if "pattern" in self.raw:
            want, made = self.read("pattern"), [(mask, self._softmax(mask)) for mask in _MASKS]
        else:
            want, made = z, [(mask, self._mixed(self._softmax(mask))) for mask in _MASKS]
        gaps = {mask: gap_of(one, want) for mask, one in made}
        best = min(gaps, key=lambda mask: gaps[mask])
        return best if gaps[best] <= tolerance(z.dtype) else None

    def _check_sizes(self, z: Tensor) -> None:
        q, k, v = (self.read(name) for name in MAKERS)
        for name, tensor, other, of in (("key", k, q, "query"), ("output", z, v, "value")):
            if tensor.shape[-1] != other.shape[-1]:
                why = f"{tensor.shape[-1]} numbers a head, and {other.shape[-1]} in its {of}"
                raise self._odd(name, self.raw[name], why)

    def _softmax(self, mask: str) -> Tensor:
        scores = self.scaling * (self.read("query") @ self._for_each(self.read("key")).mT)
        return (scores + self._masking(mask, scores)).softmax(-1)

    def _for_each(self, tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(self.one.heads // self.one.n_kv_heads, dim=1)

    def _mixed(self, pattern: Tensor) -> Tensor:
        v = self._for_each(self.read("value"))
        return pattern.to(v.dtype) @ v if pattern.shape[-1] == v.shape[2] else v.new_zeros(0)

    def _masking(self, mask: str, like: Tensor) -> Tensor:
        hidden = torch.ones(like.shape[-2:], dtype=torch.bool, device=like.device).triu(1)
        zero = like.new_zeros(1, 1, *like.shape[-2:])
        return zero.masked_fill(hidden, -torch.inf) if mask == "causal" else zero

    def pattern(self, mask: str | None) -> Tensor:
        """The map, (batch, head, query, key).

        Raises:
            AnatomyError: there is none that map · v = z holds of.
        """
        if "pattern" not in self.raw and mask is None:
            raise AnatomyError(
                "its map is not softmax(scaling·q·kᵀ) of what its modules make, causal or not (something comes "
                "between, as rotary embedding, a norm or a mask of its own); name a module that makes it as `pattern`"
            )
        own = self.read("pattern") if "pattern" in self.raw else self._softmax(mask or "none")
        z = self.read("output")
        if not (gap := gap_of(self._mixed(own), z)) <= tolerance(z.dtype):
            why = (
                "something stands between the two"
                if "pattern" in self.raw
                else "this input has a mask; name a module that makes the map as `pattern`"
            )
            raise AnatomyError(f"map · v is {gap:.1e} of its size away from what {self.one.output} reads: {why}")
        return own

    def bias(self, mask: str | None) -> Tensor:
        """What is added to scaling·q·kᵀ."""
        if mask is None:
            raise AnatomyError("its map is not softmax(scaling·q·kᵀ) of what its modules make, causal or not")
        return self._masking(mask, self.read("query") @ self._for_each(self.read("key")).mT)

    def call(self, place: Place, mask: str | None) -> Call:
        """What a route tells of it."""
        raw = self.raw["output"]
        layout = self._layout("output")
        return Call(
            module=place.module,
            q=self.read("query"),
            k=self.read("key"),
            v=self.read("value"),
            z=self.read("output"),
            made=[(raw, lambda one: self.read("output", one), lambda z: layout.write(z, raw))],
            pattern=lambda: self.pattern(mask),
            bias=lambda _: self.bias(mask),
            scaling=self.scaling if mask is not None else float("nan"),
            key=place.key,
        )
