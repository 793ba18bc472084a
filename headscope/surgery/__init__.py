"""Surgery: heads taken out of a copy of a model, proven exact, saved and loaded whole. It chooses nothing."""

from headscope.surgery.cut import prune
from headscope.surgery.exporting import export
from headscope.surgery.storage import holds_cut, load, loads_alone, save

__all__ = ["export", "holds_cut", "load", "loads_alone", "prune", "save"]
