"""Is it still the same function? What a model did with some heads switched off, and how far another is from that."""

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from headscope._support.drawing import nothing_drawn
from headscope._support.running import evaluating, run_model
from headscope.anatomy.operations import tensors_in
from headscope.anatomy.registry import RegistryRoute
from headscope.anatomy.route import Call
from headscope.errors import ModelError, NumericalError, SurgeryError
from headscope.surgery.forwards import copied
from headscope.text.batches import Batch

__all__ = [
    "Seen",
    "cast",
    "difference",
    "distance",
    "drawing_alike",
    "in_precision",
    "inputs_in",
    "is_map",
    "magnitude",
    "output_of",
    "recording",
]

Masking = AbstractContextManager[None]


@dataclass(frozen=True, eq=False)
class Seen:
    """One call of a module: what went in and what came out, as copies.

    Attributes:
        args, kwargs, output: of the module.
        handed: of an attention module, what its attention function was given beside q, k and v, by name.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    handed: Mapping[str, Tensor] = field(default_factory=dict)

    def check_finite(self, place: str) -> None:
        """Refuse to judge anything by numbers that are none.

        Raises:
            NumericalError: the output has no finite entry.
        """
        floats = [tensor for tensor in tensors_in(self.output) if tensor.is_floating_point() and tensor.numel()]
        if floats and not any(bool(tensor.isfinite().any()) for tensor in floats):
            raise NumericalError(
                f"{place} returns nothing but NaN or infinity, so no cut can be proven exact; "
                "look for NaN in the weights of this layer and of those before it"
            )


def _copied(value: Any) -> Any:
    """A copy, without the graph that a model may make by itself."""
    return copy.deepcopy(value, {id(tensor): tensor.detach().clone() for tensor in tensors_in(value)})


@contextmanager
def recording(model: nn.Module, names: Collection[str]) -> Iterator[dict[str, Seen]]:
    """While open, keep the first call of each module named, as it was in the first forward pass that reached it."""
    seen: dict[str, Seen] = {}
    handed: dict[nn.Module, Mapping[str, Tensor]] = {}
    entered: dict[str, list[tuple[Any, Any]]] = {name: [] for name in names}

    def before(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # copies: a model may go on in place with what it passed or returned
        entered[name].append(_copied((args, kwargs)) if name not in seen else (None, None))

    def after(name: str, output: Any) -> None:
        args, kwargs = entered[name].pop()
        if name not in seen:
            seen[name] = Seen(args, kwargs, _copied(output))

    handles = []
    for name in entered:
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(lambda _, a, k, n=name: before(n, a, k), with_kwargs=True))
        handles.append(module.register_forward_hook(lambda _, __, output, n=name: after(n, output)))

    def hear(call: Call) -> None:
        handed.setdefault(call.module, call.given)

    try:
        with RegistryRoute().listen(model, hear):
            yield seen
        for name in seen:
            own = handed.get(model.get_submodule(name), {})
            seen[name] = replace(seen[name], handed={key: _copied(tensor) for key, tensor in own.items()})
    finally:
        for handle in handles:
            handle.remove()


def output_of(model: nn.Module, batch: Batch) -> Any:
    """The model's output in evaluation mode, without gradients; one that draws at random draws the same each time."""
    with torch.no_grad(), evaluating(model), drawing_alike(model):
        return run_model(model, batch)


@contextmanager
def drawing_alike(model: nn.Module) -> Iterator[None]:
    """While open, what is drawn at random is the same each time, and nothing is drawn from the user's generators."""
    with nothing_drawn(model):
        torch.manual_seed(0)
        yield


def difference(
    expected: Any,
    actual: Any,
    batch: Batch | None = None,
    *,
    heads: Collection[int] = (),
    fewer: Collection[tuple[int, int]] = (),
    relative: bool = False,
    least: float = 1.0,
) -> float:
    """Largest absolute difference between two outputs of the same structure, at positions that the batch does not pad.

    Tensors must have the same shape in both; attention maps, of fewer heads, are passed over. NaN and infinity must
    stand at the same places.

    Args:
        expected, actual: the outputs.
        batch: what they were made of.
        heads: where heads that are gone leave something empty: of how many heads there are some left. Maps, and other
            tensors (row, head, position, dim) beside the output, are passed over then.
        fewer: (how many heads there were, how many there are). Tensors (row, head, position, dim) beside the output of
            which there are as many fewer are passed over.
        relative: whether each tensor's difference is told against its largest number, if that is above `least`.
        least: see there.

    Returns:
        At least 0, in the outputs' unit, or none if it is relative; infinity where they cannot be compared.
    """
    pairs = list(zip(tensors_in(expected), tensors_in(actual), strict=False))
    if not pairs or len(list(tensors_in(expected))) != len(list(tensors_in(actual))):
        return math.inf
    gaps = []
    for place, (a, b) in enumerate(pairs):
        if a.shape != b.shape and not (place > 0 and (is_map(a) or _has_fewer(a, b, fewer))):
            return math.inf
        by_head = place > 0 and heads and (is_map(a) or (a.ndim == 4 and a.shape[1] in heads))
        if a.shape == b.shape and not by_head:
            gaps.append(_gap(a, b, _kept(a, batch)) / (max(least, magnitude(a)) if relative else 1.0))
    return max(gaps)


def _has_fewer(a: Tensor, b: Tensor, fewer: Collection[tuple[int, int]]) -> bool:
    alike = a.ndim == b.ndim == 4 and (a.shape[0], *a.shape[2:]) == (b.shape[0], *b.shape[2:])
    return alike and (a.shape[1], b.shape[1]) in fewer


def is_map(tensor: Tensor) -> bool:
    """Whether a tensor may be an attention map, or what some pool of it: numbers that sum to no more than 1."""
    if not tensor.is_floating_point() or tensor.ndim < 3 or not tensor.numel():
        return False
    most = float(tensor.sum(-1).max())
    return bool(tensor.min() >= 0) and 0 < most <= 1 + 1e-3


def _gap(expected: Tensor, actual: Tensor, kept: Tensor | None) -> float:
    if expected.ndim == 0:
        expected, actual = expected[None], actual[None]
    rows = zip(expected, actual, strict=True)  # one at a time: logits over a large vocabulary are large twice over
    return max((_row_gap(a, b, None if kept is None else kept[row]) for row, (a, b) in enumerate(rows)), default=0.0)


def _row_gap(expected: Tensor, actual: Tensor, kept: Tensor | None) -> float:
    a, b = (tensor.detach().cpu().double() for tensor in (expected, actual))
    if kept is not None:
        a, b = a[kept], b[kept]
    gap = (a - b).abs_()
    gap[(a == b) | (a.isnan() & b.isnan())] = 0  # infinities of one sign too
    return 0.0 if gap.numel() == 0 else float(gap.nan_to_num_(math.inf, math.inf).max())


def _kept(tensor: Tensor, batch: Batch | None) -> Tensor | None:
    mask = None if batch is None else batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and tensor.shape[:2] == mask.shape:
        return mask.bool().cpu()
    return None


def magnitude(output: Any) -> float:
    """Largest finite absolute value in an output; 0 for an empty one."""
    sizes = (tensor.detach().abs()[tensor.isfinite()] for tensor in tensors_in(output) if tensor.is_floating_point())
    return max((float(size.max()) for size in sizes if size.numel()), default=0.0)


def in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model itself, or a copy where its weights are coarser than `dtype`."""
    coarse = any(p.is_floating_point() and p.element_size() < dtype.itemsize for p in model.parameters())
    return cast(copied(model), dtype) if coarse else model


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model, its real numbers in another precision; complex ones, which `to` would make real, as they are."""
    return model._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def inputs_in(batch: Batch, dtype: torch.dtype) -> dict[str, Any]:
    """A batch as a model `in_precision` reads it: its floats in `dtype` or finer."""
    return {n: own.to(torch.promote_types(own.dtype, dtype)) if _is_float(own) else own for n, own in batch.items()}


def distance(
    model: nn.Module,
    other: nn.Module,
    batch: Batch,
    dtype: torch.dtype,
    masking: Callable[[nn.Module], Masking],
    *,
    heads: Collection[int] = (),
    relative: bool = False,
) -> float:
    """`difference` between the outputs of a masked model and of another one, both computed in `dtype` or finer."""
    batch = inputs_in(batch, dtype)
    with masking(finer := in_precision(model, dtype)):
        expected = output_of(finer, batch)
    del finer  # a copy, maybe: the next one needs its room
    try:
        made = output_of(in_precision(other, dtype), batch)
    except ModelError as error:
        raise SurgeryError(
            f"the cut {type(other).__name__} does not run any more ({error.__cause__}): something beside its layers "
            "holds numbers for each head, such as a position bias that layers share; the model was left as it was"
        ) from error
    return difference(expected, made, batch, heads=heads, relative=relative)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
