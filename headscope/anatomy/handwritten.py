"""Route: attention that a module computes itself, as softmax(q·kᵀ)·v in any spelling, or by a fused function.

It is recognised once, in the graph of one forward pass (`recognise`). From then on only the few operations that matter
are picked out of the forward of the module that runs them, by name and by how often that name has come.
"""

import functools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from einops import EinopsError
from torch import Tensor, nn

from headscope.anatomy.check import gap_of, tolerance
from headscope.anatomy.left import of_heads_left
from headscope.anatomy.operations import tensors_in
from headscope.anatomy.picking import Picking, reading
from headscope.anatomy.recognition import recognise
from headscope.anatomy.recording import Graph, recording
from headscope.anatomy.registry import RegistryRoute
from headscope.anatomy.route import (
    ROUTES,
    Call,
    Place,
    Receive,
    Route,
    Scores,
    Scouted,
    Watch,
    claiming,
)  # fmt: skip
from headscope.anatomy.spelling import RESULT, Part, Pick, Spelling
from headscope.anatomy.unseen import find_unseen
from headscope.errors import AnatomyError

__all__ = ["HandwrittenRoute"]


@ROUTES.register("handwritten")
class HandwrittenRoute(Route):
    """Attention that a module computes itself."""

    name: ClassVar[str] = "handwritten"

    def scout(self, model: nn.Module, given: Sequence[Tensor], run: Callable[[], object]) -> Scouted:
        def record() -> Graph:
            with recording(model, given) as graph, RegistryRoute().listen(model, graph.attended):
                run()
            return graph

        graph = record()
        found, refusals = recognise(graph)
        places = []
        for one in found:
            if one.call == 0:  # the forward is the same in each call of a module
                places.append(Place(one.module, json.loads(json.dumps(one.spelling.to_json()))))
        rows = next((int(tensor.shape[0]) for tensor in given if tensor.ndim), 1)
        return Scouted(places, refusals + find_unseen(model, graph, rows, record))

    @contextmanager
    def listen(
        self,
        model: nn.Module,
        receive: Receive,
        places: Collection[Place] | None = None,
        watch: Watch | None = None,
    ) -> Iterator[None]:
        own: dict[nn.Module, dict[str, Spelling]] = {}
        for place in places or ():
            if place.spelling is not None:
                own.setdefault(place.module, {})[place.key] = Spelling.from_json(place.spelling)
        with ExitStack() as stack:
            for module, spellings in own.items():
                reader = functools.partial(_Reader, module, spellings, receive, watch)
                stack.enter_context(reading(module, reader))
            yield


class _Reader(Picking):
    """Tells `receive` of a module's attention as the operations that make it go by.

    Args:
        module: whose forward runs.
        spellings: of the attention in it, by key.
        receive: is told.
        watch: a probe's: told of linear layers too; scores are kept as they were for it.
    """

    def __init__(
        self, module: nn.Module, spellings: Mapping[str, Spelling], receive: Receive, watch: Watch | None
    ) -> None:
        parts = [part for spelling in spellings.values() for part in spelling.parts]
        picks = {pick.call for part in parts for pick in part.picks.values()}
        weightings = [one for own in spellings.values() for one in own.weightings] if watch is not None else []
        most = {name: total for spelling in spellings.values() for name, total in spelling.totals.items()}
        super().__init__(picks | {one.pick.call for one in weightings}, most)
        self._module, self._receive, self._watch = module, receive, watch
        self._weightings = {one.pick.call: one for one in weightings}
        self._ran: dict[tuple[str, int], _Ran] = {}
        self._waiting = dict(spellings)

    def picked(self, call: tuple[str, int], function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entering = tensors_in((args, kwargs))
        out = function(*args, **kwargs)
        weighting = self._weightings.get(call)
        if weighting is not None and self._watch is not None:
            with claiming():
                return self._watch.weighted(self._module, weighting, entering[weighting.pick.place], out)
        kept = out
        if self._watch is not None and isinstance(out, Tensor):
            out = out.clone()  # models scale and mask their scores in place
        self._ran[call] = _Ran(function, args, kwargs, entering, kept)
        for key in [key for key, one in self._waiting.items() if _is_complete(one, self._ran)]:
            # what is done with it is no operation of the model; in a function of autograd's there are no gradients
            with claiming(), torch.set_grad_enabled(torch.is_grad_enabled() or self._watch is not None):
                told = self._told(key, self._waiting.pop(key))
                z = self._receive(told) if told.q.shape[1] else None  # where no head is left there is nothing to tell
                # only the operation that ran last can still be given another result
                out = told.made[0][2](z) if z is not None and len(told.made) == 1 and told.made[0][0] is kept else out
        return out

    def _told(self, key: str, spelling: Spelling) -> Call:
        try:
            calls = [_PartCall(part, self._ran) for part in spelling.parts]
            if self._watch is None:
                for call in calls:
                    call.check()
                    call.whole = not self._module.training
            return of_heads_left(_joined(self._module, key, calls, probing=self._watch is not None))
        except (RuntimeError, IndexError, EinopsError) as error:
            raise AnatomyError(
                f"{type(self._module).__name__} computes its attention in another way here than in the probe "
                f"({type(error).__name__}: {error}); call discover again with an example like this input"
            ) from error


@dataclass(frozen=True, eq=False)
class _Ran:
    """An operation that was picked."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    entering: list[Tensor]
    out: Tensor

    def take(self, pick: Pick) -> Tensor:
        return self.out if pick.place == RESULT else self.entering[pick.place]


def _is_complete(spelling: Spelling, ran: dict[tuple[str, int], _Ran]) -> bool:
    return all(pick.call in ran for part in spelling.parts for pick in part.picks.values())


class _PartCall:
    """One part of a call: its tensors in headscope's order."""

    def __init__(self, part: Part, ran: dict[tuple[str, int], _Ran]) -> None:
        self.part = part
        self.whole = False  # whether all of the map must meet the values: nothing is dropped
        self.changed = False  # whether what meets the values is something else than the map
        self._ran = ran
        self.z = self._read("z")
        self.q, self.k, self.v = (self._for_each_row(self._read(name)) for name in ("q", "k", "v"))

    def raw(self, name: str) -> Tensor:
        pick = self.part.picks[name]
        return self._ran[pick.call].take(pick)

    def back(self, z: Tensor) -> Tensor:
        """z in headscope's order, as the model has it."""
        return self.part.layouts["z"].write(z, self.raw("z"))

    def _for_each_row(self, tensor: Tensor) -> Tensor:
        """Learned queries (keys, values) stand there once for all rows."""
        return tensor.expand(self.z.shape[0], *tensor.shape[1:]) if tensor.shape[0] == 1 else tensor

    def _read(self, name: str) -> Tensor:
        return self.part.layouts[name].read(self.raw(name))

    @property
    def given(self) -> dict[str, Any]:
        """The arguments of a fused call, by name."""
        ran = self._ran[self.part.picks["z"].call]
        return dict(zip(_ARGUMENTS, ran.args, strict=False)) | ran.kwargs

    @property
    def scaling(self) -> float:
        if not self.part.fused:
            return float("nan")
        scale = self.given.get("scale")
        return self.q.shape[-1] ** -0.5 if scale is None else float(scale)

    def own_map(self) -> Tensor | None:
        """The map itself, where the model has it as headscope has."""
        if self.part.fused or self.part.late:
            return None
        raw, read = self.raw("pattern"), self._read("pattern")
        return raw if raw.shape == read.shape and raw.stride() == read.stride() else None

    def pattern(self) -> Tensor:
        if self.part.fused:
            return self._fused_pattern()
        if self.changed:
            raise AnatomyError("its map is changed before it meets the values, and is not what mixes them")
        pattern = self._read("pattern")
        if self.whole and bool(((self._read("met")[:, :, -1] == 0) & (pattern[:, :, -1] > 1e-4)).any()):
            raise AnatomyError(
                "weights of the map are dropped before they meet the values, which was not so in the probe; call "
                "discover with an example like this input"
            )
        return pattern / pattern.sum(-1, keepdim=True) if self.part.late else pattern

    def _fused_pattern(self) -> Tensor:
        """The map, as what the function makes of the identity in place of the values."""
        given, v = self.given, self.raw("v")
        length = v.shape[-2]
        identity = torch.eye(length, dtype=v.dtype, device=v.device).expand(*v.shape[:-2], length, length)
        with claiming():
            out = self._ran[self.part.picks["z"].call].function(**(given | {"value": identity, "dropout_p": 0.0}))
        return self.part.layouts["pattern"].read(out)

    def bias(self, scaling: float) -> Tensor:
        if not self.part.fused:
            # -inf stays -inf
            logits = self.part.layouts["pattern"].read(self.raw("logits"))
            return logits - scaling * (self.q @ _repeated(self.k, self.q.shape[1]).mT)
        mask, causal = self.given.get("attn_mask"), self.given.get("is_causal")
        zero = self.q.new_zeros(1, 1, self.q.shape[-2], self.k.shape[-2])
        if causal:
            return zero.masked_fill(torch.ones_like(zero, dtype=torch.bool).triu(1), -torch.inf)
        if mask is None:
            return zero
        added = (
            torch.zeros_like(mask, dtype=self.q.dtype).masked_fill(~mask, -torch.inf)
            if mask.dtype == torch.bool
            else mask
        )
        raw = self.raw("q")
        return self.part.layouts["pattern"].read(added.expand(*raw.shape[:-1], self.k.shape[-2]))

    def scores(self) -> Scores | None:
        """A written softmax for the probe; None for a fused one, and where more goes in than one product."""
        if self.part.fused:
            return None
        pick = self.part.picks["product"]
        ran, layout = self._ran[pick.call], self.part.layouts.get("product")
        factor = float(ran.kwargs.get("alpha", 1)) if pick.operation in ("baddbmm", "addmm") else 1.0
        added = None
        if pick.operation in ("baddbmm", "addmm"):
            added = ran.args[0] if ran.args else ran.kwargs["input"]
        bare = None
        if layout is not None and (added is None or bool(added.isfinite().all())):
            less = 0 if added is None else ran.kwargs.get("beta", 1) * added
            bare = layout.read((ran.out - less).detach()) / factor
        return Scores(self.raw("logits"), ran.out, factor, bare)

    def check(self) -> None:
        """Hold one row of each map against what met the values: cheap, and red if an operation was mistaken."""
        if self.part.fused or not self.z.numel():
            return
        pattern, met = self.pattern(), self._read("met")
        if pattern.shape != (*self.q.shape[:3], self.k.shape[2]) or pattern.shape != met.shape:
            raise RuntimeError(f"a map of {tuple(pattern.shape)} for queries of {tuple(self.q.shape)}")
        with torch.no_grad():
            own, used = (one[:, :, -1].float() for one in (pattern, met))
            used = used / used.sum(-1, keepdim=True) if self.part.late else used
            stays = (used != 0) & (own > 0)  # dropout makes zeros, and what is left larger
            factor = used[stays] / own[stays]
        if factor.numel() and not float(factor.max() - factor.min()) <= 0.1 * float(factor.abs().max()):
            z = met[:, :, -1:] / (met[:, :, -1:].sum(-1, keepdim=True) if self.part.late else 1)
            if gap_of(z @ _repeated(self.v, z.shape[1]), self.z[:, :, -1:]) > tolerance(self.z.dtype):
                raise RuntimeError("what meets the values is not the map")
            self.changed = True  # by the model, on the way: scaled by head, mixed with another


_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def _repeated(tensor: Tensor, heads: int) -> Tensor:
    return tensor if tensor.shape[1] == heads else tensor.repeat_interleave(heads // tensor.shape[1], dim=1)


def _joined_scores(parts: list[Scores | None]) -> Scores | None:
    own = [part for part in parts if part is not None]
    if len(own) < len(parts):
        return None
    bare = [part.bare for part in own if part.bare is not None]
    return replace(own[0], bare=torch.cat(bare, dim=1) if len(bare) == len(own) else None)


def _joined(module: nn.Module, key: str, parts: list[_PartCall], *, probing: bool) -> Call:
    """The call of a site from the calls of its parts, side by side along the head axis."""

    def along_heads(tensors: list[Tensor]) -> Tensor:
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)

    def bias(scaling: float) -> Tensor:
        own = [part.bias(scaling) for part in parts]
        return (
            own[0]
            if len(own) == 1
            else torch.cat([b.expand(p.q.shape[0], p.q.shape[1], -1, -1) for b, p in zip(own, parts, strict=True)], 1)
        )

    return Call(
        module=module,
        q=along_heads([part.q for part in parts]),
        k=along_heads([part.k for part in parts]),
        v=along_heads([part.v for part in parts]),
        z=along_heads([part.z for part in parts]),
        made=[(part.raw("z"), part.part.layouts["z"].read, part.back) for part in parts],
        pattern=lambda: along_heads([part.pattern() for part in parts]),
        bias=bias,
        scaling=parts[0].scaling,
        scores=_joined_scores([part.scores() for part in parts]) if probing else None,
        map=parts[0].own_map() if len(parts) == 1 else None,
        key=key,
        refused=dict.fromkeys(("q", "k", "bias"), _SUMMED) if any(part.part.summed for part in parts) else {},
    )


_SUMMED = "its scores are the sum of several products of queries and keys"
