"""headscope: which attention heads does a transformer need?"""

from importlib.metadata import version as _version

from headscope.ablation import ablate
from headscope.analysis import Analysis, analyze
from headscope.anatomy import discover
from headscope.comparing import similarity
from headscope.corpus import text_batches
from headscope.errors import HeadscopeError
from headscope.heads import Anatomy, HeadId, Site
from headscope.loading import load_model
from headscope.observation import capture, observe
from headscope.planning.planner import plan
from headscope.plans import Plan
from headscope.preparation import Budget
from headscope.role_scoring import roles
from headscope.role_tables import RoleTable
from headscope.scores.ablation import Ablation
from headscope.scoring import importance
from headscope.surgery import load, prune, save
from headscope.tables import HeadTable, PairTable
from headscope.texts import read_texts

__all__ = [
    "Ablation",
    "Analysis",
    "Anatomy",
    "Budget",
    "HeadId",
    "HeadTable",
    "HeadscopeError",
    "PairTable",
    "Plan",
    "RoleTable",
    "Site",
    "ablate",
    "analyze",
    "capture",
    "discover",
    "importance",
    "load",
    "load_model",
    "observe",
    "plan",
    "prune",
    "read_texts",
    "roles",
    "save",
    "similarity",
    "text_batches",
]

__version__ = _version("headscope")
