"""How many heads does a task want? The same small transformer trained with few and with many."""

from headscope.studies.headcount.drawing import draw
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.settings import ARMS, Settings
from headscope.studies.headcount.sweeping import sweep

__all__ = ["ARMS", "Settings", "Sweep", "draw", "sweep"]
