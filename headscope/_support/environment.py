"""What numbers were made with and on: versions, date, processor or GPU, as facts of a result."""

import platform
from datetime import UTC, datetime
from importlib.metadata import version

import torch

from headscope._support.formatting import count

__all__ = ["machine", "today", "versions"]


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on, by name."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def today() -> str:
    """The date in UTC, as 2026-01-31."""
    return datetime.now(UTC).date().isoformat()


def machine(device: str = "cpu") -> str:
    """What seconds were taken on, in words, with the versions of what ran.

    Args:
        device: where it was run.
    """
    place = f"{count(torch.get_num_threads(), 'thread')} of {platform.machine()}"
    if torch.device(device).type == "cuda":
        place = torch.cuda.get_device_name(device)
    return f"torch {torch.__version__}, transformers {version('transformers')}, {place}, {today()}"


_PACKAGES = ("headscope", "torch", "transformers")
