"""The tests of headscope, and the checker that holds the shapes in its signatures to their word while they run."""

from collections.abc import Callable
from typing import Any, get_args

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception
from jaxtyping import AbstractArray

__all__ = ["check"]

_SETTINGS = BeartypeConf(is_pep484_tower=True)  # an int will do for a float, as for mypy


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function check its arguments and result, if its signature names a shape.

    pytest hands every function of headscope over by `--jaxtyping-packages`. Plain types are mypy's task: checked here
    too, no test could pass wrong ones on purpose to see them refused.
    """
    if not any(map(_names_a_shape, function.__annotations__.values())):
        return function
    try:
        return beartype(conf=_SETTINGS)(function)
    except BeartypeDecorHintPep673Exception:
        return function  # it names Self, which beartype resolves only where it decorates a whole class


def _names_a_shape(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_names_a_shape, get_args(hint)))
