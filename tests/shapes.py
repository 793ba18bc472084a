"""The shapes in headscope's signatures are held to their word while tests run.

To be imported before headscope is.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception
from jaxtyping import AbstractArray, install_import_hook

__all__ = ["check"]

_ROOT = Path(__file__).parents[1]
_SETTINGS = BeartypeConf(is_pep484_tower=True)  # an int will do for a float, as for mypy


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function check its arguments and result, if its signature names a shape.

    Plain types are mypy's task: checked here too, no test could pass wrong ones on purpose to see them refused.
    """
    if not any(map(_names_a_shape, function.__annotations__.values())):
        return function
    try:
        return beartype(conf=_SETTINGS)(function)
    except BeartypeDecorHintPep673Exception:
        return function  # it names Self, which beartype resolves only where it decorates a whole class


def _names_a_shape(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_names_a_shape, get_args(hint)))


def _modules_with_shapes() -> list[str]:
    """Modules of headscope that have shapes to check.

    jaxtyping wraps every function that it is handed, shapes or not, and binds its arguments at every call: in modules
    that watch each operation of a model that took more than half of the time of the tests.
    """
    files = [path for path in (_ROOT / "headscope").rglob("*.py") if "jaxtyping" in path.read_text(encoding="utf-8")]
    names = [path.relative_to(_ROOT).with_suffix("").as_posix().replace("/", ".") for path in sorted(files)]
    return [name.removesuffix(".__init__") for name in names]


install_import_hook(_modules_with_shapes(), "tests.shapes.check")
