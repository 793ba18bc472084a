"""Proving descriptions: one feature of one head's query or key moves that head's columns of z, all and no others.

It is changed where it is made, at all positions; z is looked at and put back, so that all sites are tried in the same
few passes. Values that are one constant per feature must come out of any attention as they went in.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from headscope.anatomy.check import gap_of, tolerance
from headscope.anatomy.described import Heard, at_described
from headscope.anatomy.descriptions import Description
from headscope.anatomy.sightings import Sighting
from headscope.errors import AnatomyError

__all__ = ["prove_descriptions"]

_NO_VALUES = "what its value module makes does not come out of the attention as it went in"


def prove_descriptions(sightings: Sequence[Sighting], run: Callable[[], object]) -> None:
    """Hold described sites whose map is not made of their q and k against what moves what.

    Args:
        sightings: of the route "described"; what cannot be had, or told apart, is noted on them.
        run: runs the model, from the same state each time.

    Raises:
        AnatomyError: a description that does not fit; the message says what moves, and what should.
    """
    sites: dict[nn.Module, _Site] = {}
    for sighting in sightings:
        if {"q", "bias"} & sighting.refused.keys():
            one = Description.from_json(json.loads(sighting.spelled)["description"])
            sites.setdefault(sighting.module, _Site(sighting.module, one)).sightings.append(sighting)
    if not sites:
        return
    with torch.no_grad():
        _pass(sites, run, None)
        for name in ("query", "key"):
            most = max(site.heads_of(name) for site in sites.values())
            for head in (None, *range(most)):
                _pass(sites, run, _Trial(name, head))
        _pass(sites, run, _Trial("key", None, last=True))
        _pass(sites, run, _Trial("value", None))
    for site in sites.values():
        site.judge()


@dataclass(frozen=True, slots=True)
class _Trial:
    """What is changed: one feature of a head, all of a tensor (head None), or what it has at the last position."""

    name: str
    head: int | None
    last: bool = False


def _pass(sites: Mapping[nn.Module, "_Site"], run: Callable[[], object], trial: _Trial | None) -> None:
    with ExitStack() as stack:
        for site in sites.values():
            site.begin(trial)
            stack.enter_context(at_described(site.module, site.one, site.arrive, site.change))
        run()


@dataclass
class _Site:
    """One module whose description is put to proof; all its calls are put back, the first is looked at."""

    module: nn.Module
    one: Description
    sightings: list[Sighting] = field(default_factory=list)
    _trial: _Trial | None = None
    _calls: int = 0
    _clean: list[Tensor] = field(default_factory=list)
    _moved: dict[_Trial, Tensor] = field(default_factory=dict)
    _constant: Tensor | None = None
    _mixed: Tensor | None = None

    def heads_of(self, name: str) -> int:
        return self.one.heads if name == "query" else self.one.n_kv_heads

    def begin(self, trial: _Trial | None) -> None:
        self._trial, self._calls = trial, 0

    def change(self, names: Sequence[str], tensor: Tensor) -> Tensor | None:
        trial = self._trial
        if trial is None or self._calls or trial.name not in names:
            return None
        if trial.head is not None and trial.head >= self.heads_of(trial.name):
            return None
        # where each number of the tensor stands, told by reading a count
        places = Heard(self.one, {}).read(trial.name, torch.arange(tensor.numel()).view(tensor.shape))
        generator = torch.Generator().manual_seed(0)
        if trial.name == "value":
            self._constant = torch.randn(places.shape[1], 1, places.shape[3], generator=generator)
            other = self._constant.expand(places.shape)
        else:
            other = torch.randn(places.shape, generator=generator) * (3 * float(tensor.float().std()) + 1e-3)
        if trial.last:
            places, other = places[:, :, -1:], other[:, :, -1:]
        if trial.head is not None:
            places, other = places[:, trial.head, :, :1], other[:, trial.head, :, :1]
        changed = tensor.detach().flatten().clone()
        changed[places.flatten().to(tensor.device)] = other.flatten().to(tensor.device, tensor.dtype)
        return changed.view(tensor.shape)

    def arrive(self, heard: Heard) -> Tensor | None:
        self._calls += 1
        if self._trial is None:
            self._clean.append(heard.raw["output"].detach().clone())
            return None
        if self._calls == 1:
            z, clean = heard.read("output"), heard.read("output", self._clean[0])
            if self._trial.name == "value":
                self._mixed = z.cpu()
            moves = (z != clean) & ~(z.isnan() & clean.isnan())
            self._moved[self._trial] = moves.any(0).cpu()
        return self._clean[self._calls - 1]

    def columns(self, trial: _Trial) -> Bool[Tensor, "head value_dim"]:
        """Which columns of z moved, at any position."""
        return self._moved[trial].any(1)

    def judge(self) -> None:
        """Note on the sightings what is proven, or refuse the description."""
        mixed = [name for name in ("query", "key") if not self._tells_heads_apart(name)]
        no_map = next((s.refused["pattern"] for s in self.sightings if "pattern" in s.refused), None)
        if mixed and no_map is not None:
            raise AnatomyError(
                f"the description of {self._where} does not hold: each {mixed[0]} head moves all of what "
                f"{self.one.output} reads, so that nothing shows {self.one.heads} heads (is there one, or a norm over "
                f"all of them?), and {no_map}"
            )
        proven = self._passes_values()
        ahead = self._moved[_Trial("key", None, last=True)][:, :-1].any()
        for sighting in self.sightings:
            sighting.entangled = list(dict.fromkeys([*sighting.entangled, *(name[0] for name in mixed)]))
            if sighting.kind == "self" and not ahead:
                sighting.kind = "causal"
            if not proven and "pattern" in sighting.refused:
                sighting.refused["v"] = _NO_VALUES

    def _passes_values(self) -> bool:
        if self._constant is None or self._mixed is None:
            return False
        each = self.one.heads // self.one.n_kv_heads
        want = self._constant.repeat_interleave(each, dim=0).expand(self._mixed.shape)
        return gap_of(self._mixed, want) <= tolerance(self._mixed.dtype)

    def _tells_heads_apart(self, name: str) -> bool:
        """Whether each head moves its own columns; False where each moves all of them.

        Raises:
            AnatomyError: they move something else.
        """
        live = self.columns(_Trial(name, None))
        if not bool(live.any()):
            raise AnatomyError(
                f"the description of {self._where} does not hold: what {getattr(self.one, name)} makes, told to be its "
                f"{name}, moves nothing of what {self.one.output} reads"
            )
        each = self.one.heads // self.heads_of(name)
        own, moved = [], []
        for head in range(self.heads_of(name)):
            mine = torch.zeros_like(live)
            mine[head * each : (head + 1) * each] = True
            own.append(mine & live)
            moved.append(self.columns(_Trial(name, head)))
        pairs = list(zip(own, moved, strict=True))
        if all(torch.equal(want, got) for want, got in pairs):
            return True
        if self.heads_of(name) > 1 and all(torch.equal(got, live) for got in moved):
            return False
        head = next(place for place, (want, got) in enumerate(pairs) if not torch.equal(want, got))
        raise AnatomyError(self._unlike(name, head, *pairs[head]))

    @property
    def _where(self) -> str:
        return f"{self.one.module or 'the model'} ({type(self.module).__name__})"

    def _unlike(self, name: str, head: int, want: Tensor, got: Tensor) -> str:
        count, width = int(got.sum()), got.numel()
        moves = f"moves columns {_runs(got)}" if count else "moves none"
        odd = count != int(want.sum()) and head == 0 and bool(got.flatten()[:count].all())
        looks = f", as if {name} had {width // count} heads" if count and width % count == 0 and odd else ""
        return (
            f"the description of {self._where} does not hold: the first feature of {name} head {head} {moves} of what "
            f"{self.one.output} reads, and with heads={self.one.heads}, kv_heads={self.one.n_kv_heads} it should move "
            f"{_runs(want)}{looks}; mend heads, kv_heads or layouts, or name other modules"
        )


def _runs(columns: Tensor) -> str:
    """Columns as runs, "0–15, 32–47"."""
    indices = columns.flatten().nonzero().flatten().tolist()
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    some = [f"{a}" if a == b else f"{a}–{b}" for a, b in runs[:4]]
    return ", ".join(some) + (" …" if len(runs) > 4 else "")
