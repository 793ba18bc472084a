"""Surgery: heads taken out of a copy of a model, proven exact, saved and loaded whole. It chooses nothing."""

from headscope.surgery.cut import prune
from headscope.surgery.storage import load, save

__all__ = ["load", "prune", "save"]
