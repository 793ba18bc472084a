"""Which edits make one unit right: slices follow from the anatomy, what else has to change is found by trial.

A unit is the smallest module that holds an attention call and the linear layers around it. Each trial changes a copy of
the unit alone and runs it on what it was given in one forward pass with the heads switched off; its output must be the
one recorded there.
"""

import copy
import functools
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from headscope._support.holding import uncompiled
from headscope.anatomy.operations import tensors_in
from headscope.errors import SurgeryError
from headscope.sites import Site
from headscope.surgery.belongings import Belongings, belongings
from headscope.surgery.change import SiteChange, Stale, site_within
from headscope.surgery.edits.attributes import SetAttribute, SetConfig
from headscope.surgery.edits.base import Edit, apply_edits
from headscope.surgery.edits.grouping import MapGroups
from headscope.surgery.edits.pytorch import NarrowAttention, PackByHand
from headscope.surgery.edits.repairing import RepairSizes
from headscope.surgery.forwards import copied
from headscope.surgery.shaking import EXACT, LEAST, Masking, Shaken
from headscope.surgery.structure import KV_GROUPS, by_function, heads_shown, is_framed, padded, sliced, structure
from headscope.surgery.verification import Seen, difference, drawing_alike

__all__ = ["find_edits", "runs_alone"]

_MOST_TRIALS = 48
_MOST_REPAIRS = 12  # more, with sizes put right as the forward runs
_MAKERS = ("v", "k", "q")
_FEW = 3  # sets of numbers that are tried in each way of cutting, before any others

WAYS = SMALLER, PADDED, ALIKE = "smaller", "padded", "alike"
"""What is tried: all; only ways in which all sizes between layers stay; of these only such in which all that a unit
returns is as it was, of heads that are gone too.
"""

Edits = tuple[Edit, ...]


@dataclass(frozen=True)
class _Failure:
    """What went wrong in one trial: a gap, or what the forward raised; whether only what it returns by head differs."""

    gap: float
    error: str = ""
    beside: bool = False


def find_edits(
    model: nn.Module,
    unit: str,
    changes: Sequence[SiteChange],
    seen: Mapping[str, Seen],
    tolerance: float,
    masking: Masking,
    way: str = SMALLER,
) -> Edits:
    """The edits that cut one unit, tried on a copy of it: on what the model gives it, then on other numbers.

    Args:
        model: the model; it is only read.
        unit: dotted name of the unit.
        changes: what goes from each of its attention modules.
        seen: a call of the unit, and of each attention module that loses heads, with the heads switched off.
        tolerance: largest difference allowed between outputs.
        masking: switches the heads off in a copy of the unit.
        way: one of `WAYS`.

    Raises:
        SurgeryError: no edits were found under which the unit does what it did with the heads switched off, or the
            example does not tell.
    """
    module = model.get_submodule(unit)
    known, packing = _narrowed(model, changes)
    # its second result is a map of the heads left, and rightly another one
    first_alone = len(known) == len(changes) == 1 and unit == known[0].module
    trial = _Trial(unit, module, seen[unit], changes, masking, first_alone, tolerance)
    rest = [change for change in changes if change.site.module_name not in {edit.module for edit in known}]
    fewer = None if way == ALIKE else {pair for one in rest for pair in one.counts}
    failures = []
    refusals: list[SurgeryError] = []
    for make in (_following, _by_function, _padded) if way == SMALLER or not rest else (_by_function, _padded):
        try:
            ways = list(make(model, unit, rest, seen)) if rest else [()]
        except SurgeryError as error:
            refusals.append(error)
            continue
        nearly: Edits = ()
        for further in ways:
            edits = (*known, *further)
            try:
                failure = trial.of([edit.within(unit) for edit in edits], fewer, guessed=make is _following)
            except SurgeryError as error:  # an edit that cannot be made
                refusals.append(error)
                continue
            if failure is None:
                return (*edits, *packing)
            failures.append(failure)
            nearly = nearly or (edits if failure.beside else ())
        if nearly:  # if something reads that, the model as a whole will show it
            return (*nearly, *packing)
    if any(failure.error == _BLIND for failure in failures):
        raise SurgeryError(f"layer {', '.join(str(change.site.layer) for change in changes)}: {_BLIND}")
    if refusals and not failures:
        raise refusals[0]
    raise SurgeryError(_explain(unit, module, changes, failures, tolerance))


def _narrowed(model: nn.Module, changes: Sequence[SiteChange]) -> tuple[Edits, Edits]:
    """The edits that cut PyTorch's own attention, which are known, and those of encoders around it."""
    narrow: list[Edit] = []
    packing: list[Edit] = []
    for change in changes:
        name = change.site.module_name
        if isinstance(model.get_submodule(name), nn.MultiheadAttention):
            narrow.append(NarrowAttention(name, change.kept, change.site.n_heads))
            parents = ["", *(name[:place] for place, letter in enumerate(name) if letter == ".")]
            packing += [
                PackByHand(one) for one in parents if isinstance(model.get_submodule(one), nn.TransformerEncoder)
            ]
    return tuple(narrow), tuple(dict.fromkeys(packing))


def _padded(model: nn.Module, unit: str, changes: Sequence[SiteChange], _: Any) -> Iterator[Edits]:
    """Ways in which all that stands between the layers keeps its size: the last of them makes no layer smaller but the
    output projection, whatever else reads q, k and v.
    """
    del unit
    refusals: list[SurgeryError] = []
    spared = [some for many in range(len(_MAKERS) + 1) for some in itertools.combinations(_MAKERS, many)]
    for some in spared:
        try:
            yield tuple(padded(model, [replace(change, spared=(*change.spared, *some)) for change in changes]))
        except SurgeryError as error:  # a layer that cannot be sliced
            refusals.append(error)
    if len(refusals) == len(spared):
        raise refusals[0]


def _by_function(model: nn.Module, unit: str, changes: Sequence[SiteChange], _: Any) -> Iterator[Edits]:
    """The way of modules that hand weights to PyTorch's function, which then attends with fewer heads."""
    del unit
    edits = tuple(edit for change in changes for edit in by_function(change))
    if edits:
        yield (*sliced(model, changes, ()), *edits)


def _following(model: nn.Module, unit: str, changes: Sequence[SiteChange], seen: Mapping[str, Seen]) -> Iterator[Edits]:
    """Ways in which all that stands between the layers follows them in size, the cheapest first."""
    by_hand_whole = any(change.whole and change.site.route != "registry" and not change.empties for change in changes)
    if by_hand_whole or any(is_framed(model, change) for change in changes):
        return
    module, left = model.get_submodule(unit), [change for change in changes if not change.empties]
    ways = list(dict.fromkeys(_beside(model, unit, changes, seen)))
    choices = [_numbers(module, unit, left, fixed) for fixed in ways]
    pairs = list(zip(ways, choices, strict=True))
    few = [(*fixed, *extra) for fixed, own in pairs for extra in own[:_FEW]]
    configs = [(fixed, _configured(model, left, fixed)) for fixed in ways]
    more = [(*fixed, *extra) for fixed, own in pairs for extra in own[_FEW:]]
    yield from [*few, *((*fixed, *config) for fixed, config in configs if config), *more][:_MOST_TRIALS]
    repairs = tuple(RepairSizes(change.site.module_name, change.stale_sizes()) for change in left)
    if repairs:
        yield from [(*fixed, *extra, *repairs) for fixed, own in pairs for extra in own][:_MOST_REPAIRS]


def _beside(model: nn.Module, unit: str, changes: Sequence[SiteChange], seen: Mapping[str, Seen]) -> Iterator[Edits]:
    """What is cut, each way with the structure that it asks for.

    With what belongs to single heads beside, and without: a table that other layers read too has to stay whole. And
    with biases by head taken where they come in, and without: they may come from a table that was cut itself.
    """
    found = [_belonging(model, unit, change, seen) for change in changes if not change.empties]
    owning = [one for one in found if one.parameters or one.rows or one.lists]
    taking = tuple(edit for one in found for edit in one.taking if one.change.site.route != "registry")
    refusal: SurgeryError | None = None
    guessing = [one.guessing() for one in found] if any(one.guessed for one in found) else []
    for owned in (*([owning] if owning else []), *([guessing] if guessing else []), []):
        try:
            fixed = (*sliced(model, changes, owned), *(edit for one in owned for edit in one.edits()))
        except SurgeryError as error:
            refusal = error
            continue
        for given in (False, True):
            told = tuple(structure(model, changes, seen, given=given))
            yield from ((*fixed, *told, *taken) for taken in (taking, ()))
    if refusal is not None and not owning:
        raise refusal
    if all(change.empties and change.site.route != "registry" for change in changes):
        # what is more than a projection behind its heads goes on as it was, with none of them
        owned = [_belonging(model, unit, change, seen) for change in changes]
        yield (*sliced(model, changes, owned), *(edit for one in owned for edit in one.edits()))


def _belonging(model: nn.Module, unit: str, change: SiteChange, seen: Mapping[str, Seen]) -> Belongings:
    home = change.home if change.home in seen else unit
    return belongings(model.get_submodule(home), home, change, seen[home])


def _numbers(unit: nn.Module, name: str, left: Sequence[SiteChange], fixed: Sequence[Edit]) -> list[Edits]:
    """What to set beside slicing: numbers of heads, then widths.

    Numbers of heads come before no change at all: where both work the module should not say that it has heads which it
    lost. Widths come last and few at a time: one that equals heads × dimensions by chance must not be touched.
    """
    settled = {(edit.module, edit.name) for edit in fixed if isinstance(edit, SetAttribute)}
    settled |= {(edit.module, KV_GROUPS) for edit in fixed if isinstance(edit, MapGroups)}
    stale = [one for change in left for one in change.stale(unit, name) if (one.module, one.name) not in settled]
    return [
        tuple(one.edit() for one in choice)
        for choice in itertools.islice(_choices(list(dict.fromkeys(stale))), _MOST_TRIALS)
    ]


def _configured(model: nn.Module, left: Sequence[SiteChange], fixed: Sequence[Edit]) -> Edits:
    """Numbers of heads set in configs too, by modules that read them as they run."""
    mapped = {edit.module for edit in fixed if isinstance(edit, MapGroups)}
    edits: list[Edit] = []
    for change in left:
        name = change.site.module_name
        module = model.get_submodule(name)
        own = change.stale_config(module)
        if own and name not in mapped and change.site.route == "registry":
            edits.append(MapGroups(name, None))  # a config of its own has to follow the model's
        edits += [SetConfig(one.module, one.name, one.value, one.was) for one in own]
        if own:
            edits += [one.edit() for one in change.stale(module, name) if one.counts_heads and one.name != KV_GROUPS]
    return tuple(edits)


def _choices(stale: list[Stale]) -> Iterator[tuple[Stale, ...]]:
    """Sets of attributes to change together; those of one name stand or fall together."""
    counts = tuple(one for one in stale if one.counts_heads)
    widths: dict[str, list[Stale]] = {}
    for one in stale:
        if not one.counts_heads:
            widths.setdefault(one.name, []).append(one)
    yield counts
    if counts:
        yield ()
    for many in range(1, len(widths) + 1):
        for names in itertools.combinations(widths, many):
            yield (*counts, *(one for name in names for one in widths[name]))
    if counts:
        yield from (tuple(same) for same in widths.values())
    kinds = dict.fromkeys(one.name for one in counts)
    if len(kinds) > 1:
        yield from (tuple(one for one in counts if one.name == kind) for kind in kinds)


_BLIND = (
    "what positions attend to changes nothing on this example, so no cut can be proven on it: there is a single key, "
    "all positions are alike, or what follows hides it. Bring another example= (or batches=), of different tokens"
)


@dataclass(frozen=True)
class _Trial:
    """What edits of one unit have to pass."""

    name: str
    unit: nn.Module
    call: Seen
    changes: Sequence[SiteChange]
    masking: Masking
    first_alone: bool
    tolerance: float

    @functools.cached_property
    def _shaken(self) -> Shaken:
        own = [replace(one, site=site_within(one.site, self.name)) for one in self.changes]
        return Shaken(self.unit, self.call, self.masking, own)

    def of(self, edits: Sequence[Edit], fewer: Collection[tuple[int, int]] | None, *, guessed: bool) -> _Failure | None:
        """Why some edits do not cut the unit; what it returns by head may be of fewer heads, if it is told how many.

        Where its sizes are guessed, it has to be seen that each position attends as it did.

        Raises:
            SurgeryError: an edit that cannot be made.
        """
        # against the output's size: float32 rounds it by as much, and the whole model is compared strictly in the end
        failure = self._try(self.unit, edits, self.call, fewer, self.tolerance, 1.0)
        if failure is None or failure.beside:
            failure = _untrained(self.unit, edits, self.call) or failure
        if failure is not None and not failure.beside:
            return failure
        if self._shaken.call is None:
            return failure
        again = self._try(self._shaken.unit, edits, self._shaken.call, fewer, EXACT, LEAST)
        if again is None and not self._shaken.enters_alike(edits):
            again = _Failure(math.inf, "what enters its output projection is not what it was")
        if again is None and guessed and self._shaken.is_blind and not self._shaken.scores_agree(edits):
            again = _Failure(math.inf, _BLIND)
        return failure if again is None or (failure is not None and again.beside) else again

    def _try(
        self, unit: nn.Module, edits: Sequence[Edit], call: Seen, fewer: Collection[tuple[int, int]] | None,
        tolerance: float, least: float,
    ) -> _Failure | None:  # fmt: skip
        try:
            output = _run(unit, edits, call)
        except SurgeryError:  # an edit that cannot be made
            raise
        except Exception as error:
            return _Failure(float("inf"), f"{type(error).__name__}: {error}")
        expected = call.output[0] if self.first_alone else call.output
        if isinstance(expected, Tensor) and isinstance(output, tuple):
            output = output[0]  # where a map of the heads left comes with it
        shown = () if fewer is None else heads_shown(edits)
        apart = functools.partial(difference, expected, output, heads=shown, relative=True, least=least)
        gap = apart()
        return _Failure(gap, beside=apart(fewer=fewer or ()) <= tolerance) if gap > tolerance else None


def _untrained(unit: nn.Module, edits: Sequence[Edit], call: Seen) -> _Failure | None:
    """Why a unit has no gradients any more, though it had some: parts of it may run again for these, by themselves."""
    if not any(edit.while_it_runs for edit in edits) or _complaint(unit, (), call):
        return None
    complaint = _complaint(unit, edits, call)
    return _Failure(float("inf"), f"it cannot be trained ({complaint})") if complaint else None


def _complaint(unit: nn.Module, edits: Sequence[Edit], call: Seen) -> str:
    """What a unit says as it is trained a step."""
    try:
        made = [one for one in tensors_in(_run(unit, edits, call, training=True)) if one.requires_grad]
        torch.autograd.backward([one.sum() for one in made])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def runs_alone(unit: nn.Module, call: Seen) -> bool:
    """Whether a unit runs on what it was given, outside of its model."""
    try:
        _run(unit, (), call)
    except Exception:
        return False
    return True


def _run(unit: nn.Module, edits: Sequence[Edit], call: Seen, *, training: bool = False) -> Any:
    trial = copied(unit)
    trial.train(training)  # not in one line: some modules' own train() forgets to return the module
    apply_edits(edits, trial)
    for parameter in trial.parameters():
        parameter.requires_grad_(training and parameter.is_floating_point())
    with torch.set_grad_enabled(training), uncompiled(), drawing_alike(trial):
        return trial(*copy.deepcopy(call.args), **copy.deepcopy(call.kwargs))


def _explain(
    unit: str, module: nn.Module, changes: Sequence[SiteChange], failures: Sequence[_Failure], tolerance: float
) -> str:
    best = min(failures, key=lambda failure: failure.gap)
    why = best.error or (f"it is {best.gap:.2e} away" if best.gap < float("inf") else "shapes differ")
    places = "; ".join(_place(change.site) for change in changes)
    return (
        f"cutting {', '.join(_heads(changes))} was given up: {type(module).__name__} ({unit or 'the whole model'}) "
        f"does not return what it returned with these heads switched off, up to {tolerance:.0e}; in the best of the "
        f"ways tried ({len(failures)}) {why}. The model was left as it was; {places}. {_advice(changes)}"
    )


def _place(site: Site) -> str:
    return f"layer {site.layer}: route {site.route}, entangled {', '.join(site.entangled) or 'nothing'}"


def _heads(changes: Sequence[SiteChange]) -> list[str]:
    return [str(change.site.heads[position]) for change in changes for position in change.gone]


def _advice(changes: Sequence[SiteChange]) -> str:
    if any(change.empties for change in changes):
        return "Possible: leave at least one head in the layer"
    if any(change.grouped and not change.even for change in changes):
        return "Possible: as many query heads from each group that shares a key head, or whole groups"
    return "Possible: headscope.ablate switches the heads off and leaves the weights whole"
