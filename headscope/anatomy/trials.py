"""Trials: the few small forward passes in which a model's attention is found, and what is said of it is put to proof.

One records every operation, one has gradients and tells which weights belong to which head; one runs as the model will
be watched later, without gradients; one is left alone, under another seed; and where rows of a site are not rows of the
batch, one has the batch upside down. All begin from the same state and leave none behind.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from headscope._support.drawing import nothing_drawn
from headscope._support.running import accepts, evaluating, in_python, last_logits, run_model
from headscope.anatomy.check import output_gap, rounding_of, tolerance
from headscope.anatomy.differentiable import differentiable
from headscope.anatomy.examples import corner, mapped
from headscope.anatomy.finite import check_weights
from headscope.anatomy.operations import floats_in, tensors_in
from headscope.anatomy.own_maps import Mixing, compare_maps, hands_out_maps, maps_heard
from headscope.anatomy.padding import find_padding
from headscope.anatomy.probe import Probe
from headscope.anatomy.proving import prove_descriptions
from headscope.anatomy.route import ROUTES, Call, Refusal, Scouted
from headscope.anatomy.sightings import Sighting
from headscope.anatomy.standing import Heard
from headscope.anatomy.unfit import running_alone
from headscope.errors import AnatomyError, ModelError
from headscope.sites import Padding

__all__ = ["Findings", "corner_of", "try_out"]

_SEED = 0
_NOISY = "whatever the seed"
_REBUILT = "it rebuilt itself for the example, which is undone: what is found holds for inputs of that kind alone"
_CACHED = (
    "with a cache, which it makes unless told use_cache=False, its outputs {}: the numbers here are those without one; "
    "use_cache in the batches says how it is run"
)
_SECOND = (
    "it takes positions first and rows second: a module around it that takes rows first, and turns them for it, has "
    "documents, intervals and effects by row"
)
_NOT_HEADS = "it attends over something else than positions: these stand where heads would"


@dataclass
class Findings:
    """What the trials found.

    Attributes:
        sightings: the attention calls, in execution order.
        refusals: what looks like attention and is not read.
        remarks: what else a user has to know, in words.
        ran: the modules whose forward ran.
        padding: how masks mark positions that do not count.
        masks: what of the example may be a mask, and its form.
    """

    sightings: list[Sighting]
    refusals: list[Refusal]
    remarks: list[str] = field(default_factory=list)
    ran: set[nn.Module] = field(default_factory=set)
    padding: list[Padding] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)


def try_out(model: nn.Module, example: Mapping[str, Any]) -> Findings:
    """Run a model a few times on a small example.

    Args:
        model: the model, as it runs when watched.
        example: arguments of its forward, on its device; a corner of it is taken.
    """
    given, example = example, corner_of(model, example)
    trials = _Trials(model, example)
    sightings, refusals = trials.probe()
    refusals += trials.drop_positions(sightings)
    findings = Findings(sightings, refusals)
    if not sightings:
        return findings
    if not all(sighting.finite for sighting in sightings):
        check_weights(model)
    with _noting(model, findings.ran):
        try:
            watched, others = trials.watch(sightings)
        except AnatomyError:  # a route could not follow
            trials.drop_odd(sightings)
            watched, others = trials.watch(sightings)
    if hands_out_maps(model, sightings):
        findings.remarks += compare_maps(sightings, lambda: trials.read_maps(sightings), watched)
    noise = trials.compare(watched)
    findings.remarks += noise or trials.compare_cached(given if "position_ids" in given else example)
    for sighting in others if not (noise and _NOISY in noise[0]) else ():
        sighting.refuse_all("it gives something else without gradients")
    prove_descriptions([one for one in sightings if one.route == "described"], trials.run)
    if trials.rebuilt:
        findings.remarks.append(_REBUILT)
    findings.remarks += dict.fromkeys(note for sighting in sightings for note in sighting.notes)
    masks = find_padding(example, trials.look, trials.look_at_maps, model)
    findings.remarks += trials.place_rows(sightings)
    if masks.marked is not None and not noise:
        trials.find_sorted(sightings, masks.marked)
    findings.padding, findings.masks = masks.padding, masks.forms
    findings.remarks += masks.remarks
    for sighting in sightings:
        sighting.standing = masks.standing.get((sighting.module, sighting.spelled, sighting.call))
    return findings


def corner_of(model: nn.Module, example: Mapping[str, Any], tokens: int = 16) -> dict[str, Any]:
    """Enough of an example to try a model with: see `headscope.anatomy.examples.corner`.

    Args:
        model: the model.
        example: arguments of its forward.
        tokens: how many positions of a text are enough.
    """
    trials = _Trials(model, example)
    with torch.no_grad():
        return dict(corner(example, trials.run_on, trials.run_alike, tokens))


@contextmanager
def _noting(model: nn.Module, ran: set[nn.Module]) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(lambda module, _: ran.add(module)) for module in in_python(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Trials:
    def __init__(self, model: nn.Module, example: Mapping[str, Any]) -> None:
        self._model, self._example = model, example
        self._scouted: dict[str, Scouted] = {}
        self.rebuilt = False

    def run_on(self, example: Mapping[str, Any]) -> Any:
        """The model's output on another example."""
        return self._run(example=example)

    def run_alike(self, example: Mapping[str, Any]) -> Any:
        """The same; not if the model rebuilds itself for it, as it does for no longer one."""
        output = self._run(example=example)
        if self.rebuilt:
            raise ModelError(f"{type(self._model).__name__} rebuilds itself for so short an example")
        return output

    def run(self) -> Any:
        """The model's output on the example."""
        return self._run()

    def _run(self, seed: int = _SEED, example: Mapping[str, Any] | None = None, times: int = 1, **extra: Any) -> Any:
        with nothing_drawn(self._model), evaluating(self._model) as is_rebuilt:
            inputs = self._example if example is None else example
            for _ in range(times):  # what one run leaves in the model, the next one finds
                torch.manual_seed(seed)
                output = run_model(self._model, inputs, **last_logits(self._model, inputs), **extra)
            self.rebuilt = is_rebuilt()
            return output

    def probe(self) -> tuple[list[Sighting], list[Refusal]]:
        """The pass that records, and the one with gradients.

        Raises:
            AnatomyError: the model runs, and not so.
            ModelError: it does not run on the example.
        """
        try:
            with running_alone(self._model):
                return self._probe()
        except ModelError as error:
            with torch.no_grad():
                self._run()  # if it fails too, it is the example or the model
            cause = error.__cause__
            raise AnatomyError(
                f"{type(self._model).__name__} runs, and not with gradients and headscope beside it, by which heads "
                f"are found ({type(cause).__name__}: {cause}); a kernel without gradients, as flex_attention on a CPU, "
                "can make way for another one while heads are found (sdpa), or be told of by headscope.describe"
            ) from error

    def _probe(self) -> tuple[list[Sighting], list[Refusal]]:
        probe = Probe(self._model)
        with differentiable(), ExitStack() as stack:
            for route in ROUTES.values():
                self._scouted[route.name] = route().scout(self._model, tensors_in(self._example), self._run)
            stack.enter_context(probe.watching())
            for route in ROUTES.values():
                receive, places = probe.receiver(route.name), self._scouted[route.name].places
                stack.enter_context(route().listen(self._model, receive, places, probe))
            self._run()
        return probe.sightings, [refusal for found in self._scouted.values() for refusal in found.refusals]

    @contextmanager
    def _hearing(self, receive: Any) -> Iterator[None]:
        with torch.no_grad(), ExitStack() as stack:
            for route in ROUTES.values():
                stack.enter_context(route().listen(self._model, receive, self._scouted[route.name].places))
            yield

    def drop_odd(self, sightings: Sequence[Sighting]) -> None:
        """Listen no more where a route cannot follow without gradients, so that the others are still heard."""
        scouted = dict(self._scouted)
        for name in scouted:
            for place in scouted[name].places or ():
                self._scouted = {route: Scouted(()) for route in scouted} | {name: Scouted([place])}
                try:
                    self.look(self._example)
                except AnatomyError as error:
                    kept = [one for one in scouted[name].places or () if one is not place]
                    scouted[name] = Scouted(kept, scouted[name].refusals)
                    for sighting in sightings:
                        if (sighting.module, sighting.spelled) == (place.module, place.key):
                            cause = error.__cause__  # on the example itself, another one would not help
                            sighting.refuse_all(f"it is computed in another way ({cause})" if cause else str(error))
        self._scouted = scouted

    def drop_positions(self, sightings: list[Sighting]) -> list[Refusal]:
        """Take out what has positions where others have heads, told by an input with one position less."""
        dropped = []
        numbers = {sighting.n_heads for sighting in sightings if sighting.may_be_positions and sighting.n_heads > 1}
        for number, without in itertools.product(numbers, (0, 1)):  # the last one, or the first: a picture may be there
            shorter = mapped(self._example, functools.partial(_one_less, size=number, start=without))
            try:
                heads = {one.place: one.q.shape[1] for one in self.look(shorter)}
            except (ModelError, AnatomyError):
                continue
            for one in [one for one in sightings if one.may_be_positions and one.n_heads == number]:
                if heads.get((one.module, one.spelled, one.call)) == number - 1:
                    sightings.remove(one)
                    dropped.append(one.module)
        return [Refusal(module, _NOT_HEADS) for module in dropped]

    def watch(self, sightings: Sequence[Sighting]) -> tuple[Any, list[Sighting]]:
        """The pass without gradients: each site must be heard again. Returns the output, and sites of another z."""
        others = []
        heard: dict[tuple[nn.Module, str, int], Tensor] = {}
        kept: dict[tuple[nn.Module, str, int], dict[str, tuple[Tensor, int]]] = {}

        def receive(call: Call) -> None:
            number = sum(place[:2] == (call.module, call.key) for place in heard)
            place = (call.module, call.key, number)
            heard[place] = call.z.clone()
            own = {"q": call.q, "k": call.k, "v": call.v, "z": call.z}
            # a tensor made under inference mode counts no versions; it is not one here
            kept[place] = {name: (tensor, tensor._version) for name, tensor in own.items()}

        with self._hearing(receive):
            output = self._run()
        for sighting in sightings:
            place = (sighting.module, sighting.spelled, sighting.call)
            z = heard.get(place)
            if z is None and "z" not in sighting.refused:
                sighting.refuse_all("it does not run so without gradients")
            elif z is None:
                continue
            elif not _alike(z, sighting.z):
                others.append(sighting)
            else:
                changed = [name for name, (tensor, version) in kept[place].items() if tensor._version != version]
                sighting.copied = tuple(changed)
        return output, others

    def read_maps(self, sightings: Sequence[Sighting]) -> tuple[Any, dict[int, Mixing]]:
        """The output with its own maps, and the maps of the sites as they are read meanwhile."""
        maps, receive = maps_heard(sightings)
        with self._hearing(receive):
            return self._run(output_attentions=True), maps

    def look(self, example: Mapping[str, Any]) -> list[Heard]:
        """What every site makes of another example."""
        heard: list[Heard] = []
        calls: Counter[tuple[nn.Module, str]] = Counter()

        def receive(call: Call) -> None:
            place = (call.module, call.key)
            heard.append(Heard((*place, calls[place]), call.q.clone(), call.k.clone(), call.z.clone()))
            calls[place] += 1

        with self._hearing(receive):
            self._run(example=example)
        return heard

    def look_at_maps(self, example: Mapping[str, Any]) -> list[Tensor]:
        """The map of every site on another example."""
        heard: list[Tensor] = []
        with self._hearing(lambda call: heard.append(call.pattern().clone())):
            self._run(example=example)
        return heard

    def compare(self, watched: Any) -> list[str]:
        """Two intact runs: is the output the same, watched or not, whatever the seed?"""
        with torch.no_grad():
            alone = self._run(seed=_SEED + 1, times=2)
            gap = output_gap(watched, alone)
            if gap <= rounding_of(watched):
                return []
            again = output_gap(watched, self._run(times=2))
        if again <= rounding_of(watched):
            return [f"it draws at random: its outputs {_apart(gap)} from run to run, unless seeded"]
        return [f"two runs on the same input {_apart(again)}, whatever the seed: its numbers are noisy"]

    def compare_cached(self, example: Mapping[str, Any]) -> list[str]:
        """Whether a model gives the same with a cache, which it makes unless told not to, as headscope tells it.

        Args:
            example: arguments of its forward; packed rows, which some tell by their positions, as they are.
        """
        if not accepts(self._model, "use_cache") or "use_cache" in example:
            return []
        try:
            with torch.no_grad():
                without, cached = (self._run(example=example, use_cache=use) for use in (False, True))
        except ModelError:
            return []
        gap = output_gap(*(floats_in(output)[:1] for output in (without, cached)))
        return [_CACHED.format(_apart(gap))] if gap > rounding_of(without) else []

    def place_rows(self, sightings: Sequence[Sighting]) -> list[str]:
        """How rows of sites stem from rows of the batch, where they are more; in words, where its rows come second."""
        given = [tensor for tensor in tensors_in(dict(self._example)) if tensor.ndim]
        rows = given[0].shape[0] if given else 1
        as_long = any(tensor.shape[:2] == (rows, rows) for tensor in given)  # then its first axis may be positions
        odd = [sighting for sighting in sightings if as_long or sighting.z.shape[0] != rows]
        if not odd:
            return []
        heard = {one.place: one.z for one in self.look(_turned(self._example, rows))}
        for sighting in odd:
            z = heard.get((sighting.module, sighting.spelled, sighting.call))
            order = _order_of_rows(sighting.z, z, rows)
            sighting.batch = sighting.batch if order and sighting.z.shape[0] == rows else order
        turned_over = {tuple(one.shape[1::-1]) for one in given if one.ndim > 1}
        second = all(not one.batch and (one.z.shape[0], one.z.shape[2]) in turned_over for one in odd)
        return [_SECOND] if second else []

    def find_sorted(self, sightings: Sequence[Sighting], marked: Mapping[str, Any]) -> None:
        """Sites whose rows stand in an order of the model's own, by length say: then it matters not how they came.

        Args:
            sightings: the sites.
            marked: the example with less of its first row than of the others.
        """
        rows = next((len(one) for one in tensors_in(dict(marked)) if one.ndim), 1)
        try:
            own, turned = self.look(marked), self.look(_turned(marked, rows))
        except (ModelError, AnatomyError):
            return
        same = {
            one.place
            for one, other in zip(own, turned, strict=False)
            if one.z.shape[0] == rows and _alike(other.z, one.z) and not _alike(other.z.flip(0), one.z)
        }
        for sighting in sightings:
            if (sighting.module, sighting.spelled, sighting.call) in same:
                sighting.batch = ""


def _turned(example: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """An example with its rows upside down."""
    turned: dict[str, Any] = mapped(example, lambda one: one.flip(0) if one.ndim and one.shape[0] == rows else one)
    return turned


def _apart(gap: float) -> str:
    return f"differ by {gap:.1e} of their size" if gap < float("inf") else "have other shapes"


def _one_less(value: Tensor, size: int, start: int) -> Tensor:
    """A tensor with one place less on every axis of a size, but that of rows."""
    for axis in range(1, value.ndim):
        value = value.narrow(axis, start, size - 1) if value.shape[axis] == size else value
    return value


def _order_of_rows(z: Tensor, turned: Tensor | None, rows: int) -> str:
    """What `Site.batch` is: "b w", "w b", or "" where it cannot be told."""
    if turned is None or turned.shape != z.shape or rows < 2 or z.shape[0] % rows:
        return ""
    orders = {"b w": (rows, -1), "w b": (-1, rows)}
    for order, shape in orders.items():
        axis = 0 if order == "b w" else 1
        if _alike(turned.unflatten(0, shape).flip(axis).flatten(0, 1), z):
            return order
    return ""


def _alike(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    size = max(float(b.nan_to_num(0, 0, 0).abs().max()), 1e-12) if b.numel() else 1.0
    return bool(((a - b).nan_to_num(0, 0, 0).abs() <= tolerance(b.dtype) * size).all())
