"""How far long work has come: what functions that take minutes tell whoever asks."""

from collections.abc import Callable, Iterable, Sized

__all__ = ["Progress", "called", "n_steps", "part_of"]

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, steps done since the last call, steps of the stage in all; 0 where nobody knows)."""


def n_steps(batches: Iterable[object]) -> int:
    """How many batches there are; 0 where only running them would tell."""
    return len(batches) if isinstance(batches, Sized) else 0


def part_of(progress: Progress | None, stage: str = "", parts: int = 1) -> Progress | None:
    """For work that is one of several parts of a stage: its steps count towards all of them.

    Args:
        progress: who is told; None for nobody.
        stage: what the whole is called; "" for the name of the part.
        parts: how many there are, of equal length.
    """
    if progress is None:
        return None
    told = progress
    return lambda own, done, total: told(stage or own, done, parts * total)


def called(stage: str, progress: Progress | None) -> Progress | None:
    """The same progress under another name for what is done.

    Args:
        stage: the name.
        progress: who is told, if anyone.
    """
    return None if progress is None else lambda _, done, total: progress(stage, done, total)
