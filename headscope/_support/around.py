"""Around: what is called before and after single modules run; no trace of it is on them, so copies are plain.

PyTorch's hooks on one module are part of it, and are copied, pickled and shared with it. These stand beside all modules
and act on those that are meant, on the thread that asked.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

__all__ = ["around"]

Before = Callable[[tuple[Any, ...]], tuple[Any, ...] | None]
After = Callable[[tuple[Any, ...], dict[str, Any], Any], Any]


_NOTES: tuple[dict[int, bool], ...] = tuple(
    getattr(torch.nn.modules.module, f"_global_forward_hooks_{kind}", {}) for kind in ("always_called", "with_kwargs")
)


@dataclass(eq=False)
class _Entry:
    thread: int
    before: Before | None
    after: After | None
    leave: Callable[[], None] | None
    early: bool


class _Everywhere:
    """One hook before and one after all modules, there while something is asked for, in whatever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[nn.Module, tuple[_Entry, ...]] = {}
        self._handles: tuple[RemovableHandle, ...] = ()

    def add(self, module: nn.Module, entry: _Entry, first: bool) -> None:
        with self._lock:
            own = self._entries.get(module, ())
            # never changed in place: a forward pass may be going through it
            own = (entry, *own) if first else (*own, entry)
            self._entries = {**self._entries, module: tuple(sorted(own, key=lambda one: not one.early))}
            if not self._handles:
                self._handles = (
                    register_module_forward_pre_hook(self._before),  # type: ignore[arg-type]
                    register_module_forward_hook(self._after, with_kwargs=True, always_call=True),
                )

    def remove(self, module: nn.Module, entry: _Entry) -> None:
        with self._lock:
            left = tuple(other for other in self._entries[module] if other is not entry)
            others = {one: own for one, own in self._entries.items() if one is not module}
            self._entries = {**others, module: left} if left else others
            if not self._entries:
                for handle in self._handles:
                    handle.remove()
                    for notes in _NOTES:  # PyTorch (2.13) forgets the hook, and not what it has noted of it
                        notes.pop(handle.id, None)
                self._handles = ()

    def _own(self, module: nn.Module) -> list[_Entry]:
        entries = self._entries.get(module)
        return [] if entries is None else [one for one in entries if one.thread == threading.get_ident()]

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        changed = None
        for entry in self._own(module):
            if entry.before is not None:
                changed = entry.before(args if changed is None else changed) or changed
        return changed

    def _after(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
        """After a forward (kwargs and output), or when it raised (whatever there is)."""
        own, changed = self._own(module), None
        for entry in reversed(own):
            if entry.leave is not None:
                entry.leave()
        if len(rest) == 2:
            kwargs, out = rest
            for entry in own:
                if entry.after is not None:
                    told = entry.after(args, kwargs, out if changed is None else changed)
                    changed = changed if told is None else told
        return changed


_EVERYWHERE = _Everywhere()


@contextmanager
def around(
    module: nn.Module,
    before: Before | None = None,
    after: After | None = None,
    leave: Callable[[], None] | None = None,
    *,
    first: bool = False,
    early: bool = False,
) -> Iterator[None]:
    """While open, call these each time that the module runs on this thread.

    Args:
        module: the module.
        before: given its arguments by position; returns others, or None.
        after: given its arguments and its output; returns another output, or None.
        leave: called when it has run, also when it raised.
        first: ahead of all others that were asked for.
        early: ahead even of those that are to be first later on.
    """
    entry = _Entry(threading.get_ident(), before, after, leave, early)
    _EVERYWHERE.add(module, entry, first)
    try:
        yield
    finally:
        _EVERYWHERE.remove(module, entry)
