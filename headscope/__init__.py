"""headscope: which attention heads does a transformer need?"""

from importlib.metadata import version as _version

from headscope.analysis import Analysis, analyze
from headscope.anatomy import discover
from headscope.contrast import Contrast, compare
from headscope.effects.ablation import ablate
from headscope.errors import HeadscopeError
from headscope.evidence.preparation import Budget
from headscope.head_roles.scoring import roles
from headscope.head_roles.tables import RoleTable
from headscope.heads import Anatomy, HeadId, Site
from headscope.likeness.comparing import similarity
from headscope.likeness.geometry import Clusters, HeadMap, cluster, map_heads
from headscope.models.loading import load_model
from headscope.planning.planner import plan
from headscope.plans import Plan
from headscope.scoring.rating import importance
from headscope.scoring.scores.ablation import Ablation
from headscope.surgery import load, prune, save
from headscope.surplus.layers import Redundancy, redundancy
from headscope.tables import HeadTable, PairTable
from headscope.text.corpus import text_batches
from headscope.text.texts import read_texts
from headscope.watching.observation import capture, observe

__all__ = [
    "Ablation",
    "Analysis",
    "Anatomy",
    "Budget",
    "Clusters",
    "Contrast",
    "HeadId",
    "HeadMap",
    "HeadTable",
    "HeadscopeError",
    "PairTable",
    "Plan",
    "Redundancy",
    "RoleTable",
    "Site",
    "ablate",
    "analyze",
    "capture",
    "cluster",
    "compare",
    "discover",
    "importance",
    "load",
    "load_model",
    "map_heads",
    "observe",
    "plan",
    "prune",
    "read_texts",
    "redundancy",
    "roles",
    "save",
    "similarity",
    "text_batches",
]

__version__ = _version("headscope")
