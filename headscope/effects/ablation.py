"""Ablation: heads switched off while a context is open, at the input of the output projection."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from headscope._support.around import around
from headscope._support.running import unwrapped
from headscope.anatomy import anatomy_of
from headscope.anatomy.entering import at_output
from headscope.anatomy.fast_path import plainly
from headscope.anatomy.features import on_features
from headscope.errors import AnatomyError, InputError, UnknownNameError
from headscope.heads import Heads
from headscope.sites import Anatomy, Site, Slices
from headscope.statistics import STATISTICS
from headscope.text.feeding import Batches
from headscope.watching.hooks import counted
from headscope.watching.observation import observe

__all__ = ["MODES", "Fills", "ablate", "fill_values", "silence", "transform_outputs"]

MODES = ("zero", "mean")

Fills = Mapping[int, Float[Tensor, "head value_dim"]]


@contextmanager
def ablate(
    model: nn.Module,
    heads: Heads,
    mode: str = "zero",
    batches: Batches | None = None,
    *,
    anatomy: Anatomy | None = None,
    example: Any = None,
) -> Iterator[None]:
    """Switch heads off while the context is open.

    What a head hands to the output projection is replaced at every position, so that exactly its own contribution
    changes (slices of the projection's *output* are no heads).

    Args:
        model: the model that will be run inside the context; its weights are not touched.
        heads: which: "L3H7", (3, 7) or HeadId, one by one; {3: [7, 8]}; or a mask (layer, head) with 0 for those that
            are switched off. Layer -1 is the last.
        mode: "zero": by nothing; "mean": by its mean over the positions of `batches` that count.
        batches: calibration text for "mean".
        anatomy: skips the probe.
        example: for the probe, if the model cannot say what it takes.

    Raises:
        UnknownNameError: a head or mode that does not exist.
        AnatomyError: a head whose output cannot be told apart; or an anatomy that is not the model's.
        InputError: "mean" without batches.
    """
    given, anatomy = anatomy is not None, anatomy_of(model, example, anatomy)
    positions = anatomy.find(heads)
    fills = fill_values(model, mode, batches, anatomy)
    with silence(model, anatomy, positions, fills), ExitStack() as stack:
        if given:
            stack.enter_context(counted(model, [anatomy.site(layer) for layer in positions]))
        yield


def fill_values(model: nn.Module, mode: str, batches: Batches | None, anatomy: Anatomy) -> Fills | None:
    """What each head is replaced by, (head, value_dim) a layer; None for nothing at all."""
    if mode not in MODES:
        raise UnknownNameError(f"there is no ablation mode {mode!r}; there are: {', '.join(MODES)}")
    if mode == "zero":
        return None
    if batches is None:
        raise InputError("ablation by the mean needs batches= to take the mean over")
    means = STATISTICS["means"]()
    observe(model, batches, [means], anatomy=anatomy.apart)
    fills: Fills = means.compute()
    return fills


@contextmanager
def silence(
    model: nn.Module, anatomy: Anatomy, positions: Mapping[int, Iterable[int]], fills: Fills | None = None
) -> Iterator[None]:
    """`ablate` for heads already found: positions on the head axis, by layer."""

    def replacement(site: Site) -> Callable[[Tensor], Tensor]:
        assert site.output is not None
        gone = list(positions[site.layer])
        columns = [column for head in gone for column in site.output.heads[head]]
        value = None if fills is None else fills[site.layer][gone].flatten()

        def replace(entering: Tensor) -> Tensor:
            entering = entering.clone()
            entering[..., columns] = 0 if value is None else value.to(entering.device, entering.dtype)
            return entering

        return replace

    sites = [anatomy.site(layer) for layer in positions]
    with transform_outputs(model, anatomy, {site.layer: replacement(_cuttable(site)) for site in sites}):
        yield


def _cuttable(site: Site) -> Site:
    if not site.apart:
        raise AnatomyError(
            f"heads of layer {site.layer} ({site.module_name}) cannot be switched off one by one: "
            + site.refused.get("contribution", "something mixes them before the output projection, or there is none")
        )
    return site


@contextmanager
def transform_outputs(
    model: nn.Module, anatomy: Anatomy, transforms: Mapping[int, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """While open, what enters the output projection of each layer named is passed through its function.

    Args:
        model: the model that will be run.
        anatomy: its anatomy, whole: sites that share a projection are told apart by their turn.
        transforms: by layer, from the projection's input (…, in features) to its replacement.
    """
    model = unwrapped(model)
    turns: dict[Slices, dict[int, list[Callable[[Tensor], Tensor]]]] = {}
    sites = {site.output: site for site in anatomy.sites if site.output is not None}
    for site in anatomy.sites:
        if site.output is not None:
            own = turns.setdefault(site.output, {}).setdefault(site.output_call, [])
            own += [transforms[site.layer]] if site.layer in transforms else []
    acting: dict[Slices, _Turn] = {}
    with ExitStack() as stack:
        stack.enter_context(plainly(model))
        for output, functions in turns.items():
            if any(functions.values()):
                turn = acting[output] = _Turn(functions, output.module, sites[output].output_runs)
                stack.enter_context(around(model, before=turn.restart, leave=turn.end, first=True))
                # first of all there: who watches sees what enters, whichever context was opened first
                stack.enter_context(at_output(model, sites[output], turn.apply, first=True))
        yield
    idle = [output.module for output, turn in acting.items() if turn.ran and not turn.acted]
    if idle:
        raise AnatomyError(
            f"{type(model).__name__} ran, and {', '.join(idle)} did not, so nothing was switched off there; was the "
            "anatomy made for another model, or with another input?"
        )


@dataclass
class _Turn:
    """One output projection's functions, by the call of it within a forward pass."""

    functions: Mapping[int, list[Callable[[Tensor], Tensor]]]
    name: str
    most: int
    ran: bool = False
    acted: bool = False
    _next: int = field(default=0)
    _whole: bool = field(default=False)

    def restart(self, *_: object) -> None:
        self._next, self.ran, self._whole = 0, True, True

    def end(self) -> None:
        self._whole = False

    def apply(self, entering: Tensor, axes: tuple[int, ...]) -> Tensor | None:
        if self._whole and self.most and self._next >= self.most:
            raise AnatomyError(
                f"{self.name} runs more often in one forward pass here than the {self.most} times that it did in the "
                "probe, so which of its calls reads which heads is not known; call discover with an example like this"
            )
        functions = self.functions.get(self._next % (max(self.functions) + 1), [])
        self._next += 1
        out, self.acted = entering, self.acted or bool(functions)
        for function in functions:
            out = on_features(function, out, axes)
        return out if functions else None
