"""Operations as attention is written in them: what only moves numbers, what acts on each alone, what contracts two."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = [
    "CASTS",
    "CONTRACTS",
    "JOINS",
    "MOVES",
    "Axes",
    "axes_of",
    "is_pointwise",
    "name_of",
    "operands",
    "tensors_in",
]

_SAME = {
    "__matmul__": "matmul", "__rmatmul__": "matmul", "__add__": "add", "__radd__": "add", "__iadd__": "add",
    "__sub__": "sub", "__isub__": "sub", "__rsub__": "sub", "rsub": "sub", "subtract": "sub", "__mul__": "mul",
    "__rmul__": "mul", "__imul__": "mul", "multiply": "mul", "__truediv__": "div", "__itruediv__": "div",
    "__rtruediv__": "div", "true_divide": "div", "divide": "div", "__neg__": "neg", "negative": "neg",
    "_softmax": "softmax", "_safe_softmax": "softmax",
}  # fmt: skip

CASTS = frozenset({
    "to", "float", "half", "bfloat16", "double", "type_as", "type", "contiguous", "clone", "detach", "alias", "cpu",
    "cuda", "get_data", "requires_grad", "_to_copy", "positive",
})  # fmt: skip
"""What leaves every number where it is."""

MOVES = frozenset({
    "view", "reshape", "transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis", "flatten", "unflatten",
    "squeeze", "unsqueeze", "expand", "expand_as", "__getitem__", "select", "slice", "narrow", "split", "chunk",
    "unbind", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk", "cat", "concat", "concatenate",
    "stack", "hstack", "vstack", "dstack", "t", "get_T", "get_mT", "get_H", "get_mH", "adjoint", "repeat", "tile",
    "repeat_interleave", "_unsafe_view", "_reshape_alias", "view_as", "reshape_as", "as_strided", "roll", "pad",
    "constant_pad_nd", "flip", "index_select", "gather", "take_along_dim", "unfold", "index", "broadcast_to",
    "broadcast_tensors", "diagonal", "masked_select", "__setitem__", "view of its base", "write into a view",
})  # fmt: skip
"""What puts numbers elsewhere, repeats or drops them."""

JOINS = frozenset({
    "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "broadcast_tensors", "__setitem__",
    "view of its base", "write into a view",
})  # fmt: skip
"""Of those, what takes numbers from several tensors."""

_POINTWISE = frozenset({
    "add", "sub", "mul", "div", "neg", "masked_fill", "where", "dropout", "feature_dropout", "alpha_dropout",
    "native_dropout", "clamp", "clip", "clamp_min", "clamp_max", "tanh", "sigmoid", "nan_to_num", "minimum", "maximum",
    "fmin", "fmax", "tril", "triu", "exp", "float_power", "fill", "copy", "addcmul", "addcdiv", "abs", "softplus",
    "masked_scatter", "lerp",
})  # fmt: skip

CONTRACTS = frozenset({
    "linear", "addmm", "mm", "matmul", "einsum", "bmm", "baddbmm", "conv1d", "conv2d", "conv3d", "convolution",
    "tensordot",
})  # fmt: skip
"""What sums products of two tensors over an axis."""


def name_of(function: Callable[..., Any], kwargs: dict[str, Any]) -> str:
    """One name for an operation, however it is spelled: `a @ b` is "matmul", `a.T` "get_T", in place or not the same.

    Written to `out=`, it has a name of its own: such calls come and go with the mode of gradients.
    """
    name = getattr(function, "__name__", str(function))
    if name == "__get__":
        name = "get_" + getattr(getattr(function, "__self__", None), "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    name = _SAME.get(name, name)
    return f"{name} to out" if isinstance(kwargs.get("out"), Tensor) else name


def is_pointwise(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation makes each number of its result from the numbers in the same place."""
    if name in ("max", "min"):  # of two tensors; of one, they search it
        return isinstance(args[1] if len(args) > 1 else kwargs.get("other"), Tensor)
    return name in _POINTWISE


def tensors_in(value: Any) -> list[Tensor]:
    """Tensors in nested arguments, or in an output, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors_in(part)]
    if isinstance(value, Mapping):
        return [tensor for part in value.values() for tensor in tensors_in(part)]
    if hasattr(value, "__dataclass_fields__"):
        return tensors_in([getattr(value, name) for name in value.__dataclass_fields__])
    return []


def floats_in(value: Any) -> list[Tensor]:
    """Of these, the floating-point ones, without their graph."""
    return [tensor.detach() for tensor in tensors_in(value) if tensor.is_floating_point()]


@dataclass(frozen=True, eq=False)
class Axes:
    """A contraction, each axis of both operands and of the result by a letter; None for an axis that is broadcast.

    Attributes:
        left, right: the operands.
        of_left, of_right, of_result: a letter for each axis.
    """

    left: Tensor
    right: Tensor
    of_left: tuple[str | None, ...]
    of_right: tuple[str | None, ...]
    of_result: tuple[str | None, ...]

    @property
    def contracted(self) -> tuple[str, ...]:
        return tuple(c for c in self.of_left if c is not None and c in self.of_right and c not in self.of_result)

    def size(self, letter: str) -> int:
        """How long the axis of a letter is."""
        sides = ((self.left, self.of_left), (self.right, self.of_right))
        return next(int(tensor.shape[own.index(letter)]) for tensor, own in sides if letter in own)

    def free(self, own: tuple[str | None, ...], other: tuple[str | None, ...]) -> tuple[str, ...]:
        """Letters that one operand has and the other has not."""
        return tuple(c for c in own if c is not None and c not in other)


def operands(name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The two factors of a contraction, from whatever arguments they were given by; [] where there are not two."""
    given = list(args)
    if name in ("matmul", "bmm", "mm", "tensordot"):
        found = [given[0] if given else kwargs.get("input", kwargs.get("self"))]
        found.append(given[1] if len(given) > 1 else kwargs.get("other", kwargs.get("mat2", kwargs.get("tensor2"))))
        if getattr(function, "__name__", "") == "__rmatmul__":
            found.reverse()
    elif name in ("baddbmm", "addmm"):
        rest = given[1:] if len(given) > 1 else []
        first = rest[0] if rest else kwargs.get("batch1", kwargs.get("mat1"))
        found = [first, rest[1] if len(rest) > 1 else kwargs.get("batch2", kwargs.get("mat2"))]
    elif name == "linear" or name.startswith("conv"):
        found = [given[0] if given else kwargs.get("input"), given[1] if len(given) > 1 else kwargs.get("weight")]
    elif name == "einsum" and given and isinstance(given[0], str):
        found = list(given[1]) if len(given) == 2 and isinstance(given[1], (list, tuple)) else given[1:]
    else:
        return []
    return found if len(found) == 2 and all(isinstance(one, Tensor) for one in found) else []


def axes_of(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor
) -> Axes | None:
    """The axes of a contraction of two floating-point tensors; None for anything else."""
    pair = operands(name, function, args, kwargs)
    if not pair or not pair[0].is_floating_point():
        return None
    left, right = pair
    if name == "linear":
        if right.ndim != 2:
            return None
        rows = tuple(f"x{axis}" for axis in range(left.ndim - 1))
        return _checked(Axes(left, right, (*rows, "c"), ("n", "c"), (*rows, "n")))
    if name == "einsum":
        return _checked(_einsum(args[0], left, right))
    if name not in ("matmul", "bmm", "mm", "baddbmm", "addmm") or left.ndim < 2 or right.ndim < 2:
        return None
    many = max(left.ndim, right.ndim) - 2

    def batch(tensor: Tensor) -> tuple[str | None, ...]:
        skipped = many - (tensor.ndim - 2)
        return tuple(
            f"b{axis + skipped}" if tensor.shape[axis] > 1 or result.shape[axis + skipped] == 1 else None
            for axis in range(tensor.ndim - 2)
        )

    out = (*(f"b{axis}" for axis in range(many)), "m", "n")
    return _checked(Axes(left, right, (*batch(left), "m", "c"), (*batch(right), "c", "n"), out))


def _checked(axes: Axes | None) -> Axes | None:
    return axes if axes is not None and axes.contracted else None


def _einsum(equation: str, left: Tensor, right: Tensor) -> Axes | None:
    equation = equation.replace(" ", "")
    entering, _, leaving = equation.partition("->")
    if entering.count(",") != 1:
        return None
    parts = entering.split(",")
    if "->" not in equation:  # as NumPy has it: letters that stand once, in order
        letters = entering.replace(",", "").replace(".", "")
        leaving = ("..." if "..." in entering else "") + "".join(sorted(c for c in letters if letters.count(c) == 1))
    widest = max(tensor.ndim - len(part.replace("...", "")) for part, tensor in zip(parts, (left, right), strict=True))

    def spelled(part: str, many: int) -> tuple[str, ...]:
        before, dots, after = part.partition("...")
        inner = tuple(f"e{axis}" for axis in range(widest - many, widest)) if dots else ()
        return (*before, *inner, *after)

    own = [spelled(part, t.ndim - len(part.replace("...", ""))) for part, t in zip(parts, (left, right), strict=True)]
    return Axes(left, right, own[0], own[1], spelled(leaving, widest))
