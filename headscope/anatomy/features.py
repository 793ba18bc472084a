"""Features: the axes of what enters and leaves a linear layer that it works on; all others are rows."""

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["feature_axis", "features_last", "on_features"]


def feature_axis(module: nn.Module, tensor: Tensor) -> int:
    """The axis of a layer's input or output that holds features."""
    return 1 if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) else tensor.ndim - 1


def features_last(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    """A tensor with these axes last, as one."""
    if axes == (tensor.ndim - 1,):
        return tensor
    rest = [axis for axis in range(tensor.ndim) if axis not in axes]
    return tensor.permute(*rest, *axes).flatten(len(rest))


def on_features(function: Callable[[Tensor], Tensor], tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    """A function of (…, features) done to a tensor whose features lie on these axes."""
    if axes == (tensor.ndim - 1,):
        return function(tensor)
    rest = [axis for axis in range(tensor.ndim) if axis not in axes]
    order = [*rest, *axes]
    changed = function(features_last(tensor, axes)).unflatten(-1, [tensor.shape[axis] for axis in axes])
    return changed.permute([order.index(axis) for axis in range(tensor.ndim)])
