"""headscope: which attention heads does a transformer need?

The rooms, in the order of the flow; each uses those before it:

    errors        every refusal
    _support      what every room leans on: registries, whole folders, progress, numbers as words, running a model
    heads, sites, tables, plans      the words that pass between rooms: heads and sites, tables of them, plans
    text          files and texts → documents → batches; random tokens; splits
    uncertainty   blocks of documents, intervals by the jackknife, sign flips, false discoveries
    statistics    sums that stream over text and merge; linear prediction from moments
    anatomy       where a model's heads are, read off by a probe; ways to overhear its attention calls
    watching      hooks in, hooks out: look at tensors, or run statistics over text
    effects       metrics, and what ablation and gates do to them
    scoring       what each head is worth
    likeness      how alike heads are: pairs, clusters, maps
    surplus       how many of a layer's heads would suffice
    head_roles    what each head looks at
    planning      which heads may go, from tables and from what they cost together
    surgery       from a plan to a smaller model, proven; saved and read back
    models        a model by name; the paper's reference; the demo's models
    verdict       the tables of one analysis, and what holds of them on documents that chose nothing
    reporting     from tables to a page and its figures
    studies       the paper's claims, numbers of heads, costs, coverage
    analysis, contrast        the two stories: one model, two models
    cli           the command line

Nothing of these, nor torch, is loaded before a name is used. New measures, scores and the like are registered through
the names in the last group below; rooms may be rebuilt, these names stay.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__: str

# Every name stands twice, for checkers and editors here and to be loaded below; tests/test_public.py compares the two.
if TYPE_CHECKING:
    # the whole story
    from headscope.analysis import Analysis as Analysis, analyze as analyze
    from headscope.verdict.preparation import Budget as Budget
    from headscope.contrast import Contrast as Contrast, compare as compare
    from headscope._support.progress import Progress as Progress

    # models and text
    from headscope.models.loading import load_model as load_model
    from headscope.text.corpus import text_batches as text_batches
    from headscope.text.texts import read_texts as read_texts

    # where the heads are
    from headscope.anatomy import Description as Description, describe as describe, discover as discover
    from headscope.heads import HeadId as HeadId
    from headscope.sites import Anatomy as Anatomy, Site as Site

    # look
    from headscope.watching.observation import capture as capture, observe as observe
    from headscope.effects.ablation import ablate as ablate

    # how alike heads are, and how many a layer is worth
    from headscope.likeness.comparing import similarity as similarity
    from headscope.likeness.geometry import (
        Clusters as Clusters,
        HeadMap as HeadMap,
        cluster as cluster,
        map_heads as map_heads,
    )
    from headscope.surplus.layers import Redundancy as Redundancy, redundancy as redundancy
    from headscope.tables import HeadTable as HeadTable, PairTable as PairTable

    # what heads are worth, and what they look at
    from headscope.scoring.rating import importance as importance
    from headscope.scoring.scores.ablation import Ablation as Ablation
    from headscope.head_roles.finding import roles as roles
    from headscope.head_roles.tables import RoleTable as RoleTable

    # draw
    from headscope.reporting.plots import plot as plot

    # cut
    from headscope.planning.planner import plan as plan
    from headscope.plans import Plan as Plan
    from headscope.surgery import export as export, load as load, prune as prune, save as save

    # when something is refused
    from headscope import errors as errors
    from headscope.errors import HeadscopeError as HeadscopeError

    # to extend: registries, what to derive from, and what the pure parts are made of
    from headscope._support.cards import Card as Card
    from headscope._support.registry import Registry as Registry
    from headscope.likeness.measures import MEASURES as MEASURES, Measure as Measure
    from headscope.scoring.scores import SCORES as SCORES, Rating as Rating, Score as Score
    from headscope.statistics import STATISTICS as STATISTICS, Statistic as Statistic
    from headscope.anatomy.route import ROUTES as ROUTES, Call as Call, Route as Route
    from headscope.planning import PLANNERS as PLANNERS, Planner as Planner
    from headscope.reporting.sections import SECTIONS as SECTIONS, Section as Section
    from headscope.studies.tasks import TASKS as TASKS, Learner as Learner, Task as Task
    from headscope.studies.bilingual import Both as Both
    from headscope.studies.claims import (
        CLAIMS as CLAIMS,
        CostClaim as CostClaim,
        Measured as Measured,
        ModelClaim as ModelClaim,
        SweepClaim as SweepClaim,
        Verdict as Verdict,
        in_part as in_part,
        undecided as undecided,
    )
    from headscope.studies.subjects import Subject as Subject
    from headscope.effects.metrics import Metric as Metric
    from headscope.statistics.moments import Moments as Moments
    from headscope.uncertainty.intervals import (
        Spread as Spread,
        jackknife as jackknife,
        join_spreads as join_spreads,
        mean_spread as mean_spread,
    )
    from headscope.text.batches import Batch as Batch

_PLACES = {
    # the whole story
    "analysis": "Analysis analyze",
    "verdict.preparation": "Budget",
    "contrast": "Contrast compare",
    "_support.progress": "Progress",
    # models and text
    "models.loading": "load_model",
    "text.corpus": "text_batches",
    "text.texts": "read_texts",
    # where the heads are
    "anatomy": "Description describe discover",
    "heads": "HeadId",
    "sites": "Anatomy Site",
    # look
    "watching.observation": "capture observe",
    "effects.ablation": "ablate",
    # how alike heads are, and how many a layer is worth
    "likeness.comparing": "similarity",
    "likeness.geometry": "Clusters HeadMap cluster map_heads",
    "surplus.layers": "Redundancy redundancy",
    "tables": "HeadTable PairTable",
    # what heads are worth, and what they look at
    "scoring.rating": "importance",
    "scoring.scores.ablation": "Ablation",
    "head_roles.finding": "roles",
    "head_roles.tables": "RoleTable",
    # draw
    "reporting.plots": "plot",
    # cut
    "planning.planner": "plan",
    "plans": "Plan",
    "surgery": "export load prune save",
    # when something is refused
    "errors": "HeadscopeError",
    # to extend: registries, what to derive from, and what the pure parts are made of
    "_support.cards": "Card",
    "_support.registry": "Registry",
    "likeness.measures": "MEASURES Measure",
    "scoring.scores": "SCORES Rating Score",
    "statistics": "STATISTICS Statistic",
    "anatomy.route": "ROUTES Call Route",
    "planning": "PLANNERS Planner",
    "reporting.sections": "SECTIONS Section",
    "studies.tasks": "TASKS Learner Task",
    "studies.bilingual": "Both",
    "studies.claims": "CLAIMS CostClaim Measured ModelClaim SweepClaim Verdict in_part undecided",
    "studies.subjects": "Subject",
    "effects.metrics": "Metric",
    "statistics.moments": "Moments",
    "uncertainty.intervals": "Spread jackknife join_spreads mean_spread",
    "text.batches": "Batch",
}
_PLACE_OF = {name: f"headscope.{place}" for place, names in _PLACES.items() for name in names.split()}

if not TYPE_CHECKING:  # checkers see the names above and no others
    __all__ = sorted(_PLACE_OF)

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return import_module("importlib.metadata").version("headscope")
        if name in _PLACE_OF:
            found = globals()[name] = getattr(import_module(_PLACE_OF[name]), name)
            return found
        if not name.startswith("__") and find_spec(f"headscope.{name}") is not None:
            return import_module(f"headscope.{name}")  # a room, as hs.errors
        import difflib  # only where something is wrong

        near = difflib.get_close_matches(name, _PLACE_OF, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module 'headscope' has no attribute {name!r}{hint}", name=name)

    def __dir__() -> list[str]:
        return sorted({*__all__, "__version__"})
