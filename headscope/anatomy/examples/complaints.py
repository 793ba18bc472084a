"""What a model says when it does not run on a draft: the message, what was None where it failed, how far it came."""

import inspect
import linecache
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["Complaint", "complaint_of"]

_T = TypeVar("_T")


_PIECES = re.compile(r"features\D{0,12}(\d+)|(\d+) feature|not match [^(]{0,60}\((\d+)\)")


@dataclass(frozen=True)
class Complaint:
    """What is known of a failure.

    Attributes:
        message: the error, its kind first.
        missing: arguments of the forward that it names, or that are None where it failed; most telling first.
        pieces: pieces of pictures or sounds that found no place in the text, as counts to believe in this order.
        finished: calls of modules that were through by then: how far the model came.
        passed: what a part of the model may be given and was not where it failed, though the forward does not name it.
    """

    message: str
    missing: tuple[str, ...] = ()
    pieces: tuple[int, ...] = ()
    finished: int = 0
    passed: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The message on one line."""
        text = " ".join(self.message.split())
        return text if len(text) <= 160 else f"{text[:157]}..."


def complaint_of(error: BaseException, known: Collection[str], finished: int) -> Complaint:
    """Read a failure.

    Args:
        error: what the model raised; its traceback is read, and not kept.
        known: arguments that the forward takes.
        finished: how far it came.
    """
    message = f"{type(error).__name__}: {error}"
    missing, passed = [name for name in re.findall(r"\w+", str(error)) if name in known], []
    if "None" in message:
        for frame, statement in _steps(error.__traceback__):
            names = re.findall(r"[A-Za-z_]\w*", statement)
            none = [name for name in names if frame.f_locals.get(name, "") is None]
            missing += [name for name in none if name in known]
            passed += [name for name in none if name not in known and _may_be_passed(name, frame)]
    pieces = [*_counted(error.__traceback__), *(int(next(filter(None, told))) for told in _PIECES.findall(message))]
    if not ("token" in message and ("match" in message or "placeholder" in message)):
        pieces = []
    return Complaint(message, _once(missing), _once(pieces), finished, _once(passed))


def _once(values: Iterable[_T]) -> tuple[_T, ...]:
    return tuple(dict.fromkeys(values))


def _may_be_passed(name: str, frame: FrameType) -> bool:
    """Whether a name is an argument that the forward of a module does without by its own account."""
    module = frame.f_locals.get("self")
    if not isinstance(module, nn.Module) or frame.f_code.co_name != "forward":
        return False
    one = inspect.signature(module.forward).parameters.get(name)
    return one is not None and one.default is None


def _steps(trace: TracebackType | None) -> Iterator[tuple[FrameType, str]]:
    """Frames from the one that failed outwards, each with the source of what it was at."""
    steps = []
    while trace is not None:
        code, at = trace.tb_frame.f_code, trace.tb_lasti // 2
        place = next((one for number, one in enumerate(code.co_positions()) if number == at), (None,) * 4)
        first = place[0] or trace.tb_lineno
        lines = [linecache.getline(code.co_filename, line) for line in range(first, (place[1] or first) + 1)]
        if len(lines) == 1 and place[2] is not None and place[3] is not None:
            lines = [lines[0].encode()[place[2] : place[3]].decode(errors="ignore")]
        steps.append((trace.tb_frame, "".join(lines)))
        trace = trace.tb_next
    yield from reversed(steps)


def _counted(trace: TracebackType | None) -> list[int]:
    """How many pieces were to be put in the place of tokens, counted where they were held against these."""
    found: list[int] = []
    while trace is not None:
        held: dict[str, Any] = trace.tb_frame.f_locals
        text = held.get("inputs_embeds")
        if isinstance(text, Tensor) and text.ndim:
            made = [one for name, one in held.items() if isinstance(one, Tensor) and re.search("feature|embed", name)]
            made = [one for one in made if one is not text and one.is_floating_point() and one.numel()]
            found = [one.numel() // text.shape[-1] for one in made if one.shape[-1] == text.shape[-1]] or found
        trace = trace.tb_next
    return found
