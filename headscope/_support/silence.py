"""Log lines and progress bars of transformers, kept back while headscope works with it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

__all__ = ["quietly"]


@contextmanager
def quietly() -> Iterator[None]:
    """No log lines below errors and no progress bars of transformers while open; downloads still show in a terminal."""
    log: Any = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    downloads = not are_progress_bars_disabled()
    log.set_verbosity_error()
    log.disable_progress_bar()  # the hub's too
    _show_downloads(downloads and sys.stderr.isatty())
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
        _show_downloads(downloads)


def _show_downloads(shown: bool) -> None:
    (enable_progress_bars if shown else disable_progress_bars)()
