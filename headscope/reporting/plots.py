"""A figure of whatever a verb of headscope returned: which figure fits which table, and the file it is saved to."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headscope._support.folders import whole_file
from headscope.errors import InputError, StorageError
from headscope.head_roles.tables import RoleTable
from headscope.heads import HeadId, Heads
from headscope.likeness.geometry import Clusters, HeadMap
from headscope.planning.removal import Removal
from headscope.plans import Plan
from headscope.reporting import figures
from headscope.reporting.figures.style import NEW_FIGURE, figure_of, styling
from headscope.reporting.reportable import Contrasted, Reportable
from headscope.surplus.layers import Redundancy
from headscope.tables import HeadTable, PairTable, find_head

__all__ = ["plot"]

Drawn = HeadTable | Removal | PairTable | RoleTable | Redundancy | Clusters | HeadMap | Contrasted | Reportable

_KINDS: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
_DPI = 200  # of a PNG, and of the pictures inside the others
_LYING = 1.5  # times as many layers as heads: the map lies down


def plot(table: Drawn, ax: Axes | None = None, path: str | Path | None = None, *, chosen: Plan | Heads = ()) -> Axes:
    """Draw what `similarity`, `importance`, `roles`, `redundancy`, `compare`, `cluster` or `map_heads` returned,
    or an analysis.

    A score becomes a map of layers by heads; similarities every layer's block, or the whole matrix where heads of
    different layers were compared; roles a map with a colour and a word for each; redundancy the curve of what the best
    k heads give back, or the effective numbers of heads where there is no curve; two models the change of each head by
    the first score, with the heads framed whose change is told from zero (`contrast.changes` has the other scores, to
    be drawn one by one); an analysis the main figure of its page, what removing more and more heads costs together,
    beside random sets of heads, and its `removal` the same without these; clusters the matrix in their order under
    their tree. What has no number is grey or a dash. What likeness, replaceability and redundancy stand beside (chance,
    random tokens, an untrained copy) is there as lines, of means: on the bar of colours, or among the curves.

    Args:
        table: what to draw.
        ax: matplotlib's axes to draw on, in a figure of any layout; a bar of colours takes its room from them, and
            nothing else of the figure changes. Without them a new figure is made, which notebooks and
            `matplotlib.pyplot.show()` show as any other.
        path: a file to save the whole figure to, a PNG, SVG or PDF by its ending, written whole or not at all; what
            stood there is replaced. A figure made here is then only saved and not shown.
        chosen: on the map of a score, the heads that go, to be framed: a plan, or heads in any spelling. Where more go
            than stay, those that stay are framed instead.

    Returns:
        The axes that were drawn on: those given, or those of the new figure. Blocks of layers are axes inside them.

    Raises:
        InputError: something that cannot be drawn, chosen heads for another table than one of scores, or an ending
            that is none of these.
        UnknownNameError: a chosen head that is not in the table, or is no head.
        StorageError: the folder of `path` is not there, a folder is in the way, or the disk refused.
    """
    draw = _drawer(table, Plan.of(chosen).heads)
    if ax is not None and not isinstance(ax, Axes):
        raise InputError(f"ax takes axes, as of plt.subplots() or figure.add_subplot(); got {type(ax).__name__}")
    if path is None:
        if ax is not None:
            return draw(ax)
        with _in_pyplot():
            return draw(None)
    path, kind = _checked(path)
    drawn = draw(ax)
    with whole_file(path) as new, styling():
        figure_of(drawn).savefig(new, format=kind, dpi=_DPI, metadata=_KINDS[kind])
    return drawn


def _drawer(table: Any, chosen: tuple[HeadId, ...]) -> Callable[[Axes | None], Axes]:
    """How a table is drawn."""
    if chosen and not isinstance(table, HeadTable):
        raise InputError(f"chosen heads are framed on the map of a score; leave them out for a {type(table).__name__}")
    match table:
        case HeadTable() | PairTable() | RoleTable() if not table.heads or getattr(table, "other", None) == ():
            raise InputError("this table holds no head, so there is nothing to draw")
        case Removal():
            return lambda ax: figures.joint_cost(table, ax=ax)
        case Reportable():
            return lambda ax: figures.joint_cost(table.removal, random=table.verdict.random, ax=ax)
        case HeadTable():
            places = [find_head(table.heads, head) for head in chosen]
            framed, words = figures.to_mark(table.heads, [table.heads[place] for place in places], "Framed")
            return lambda ax: _map(table, ax, framed, words)
        case PairTable():
            return lambda ax: _pairs(table, ax)
        case RoleTable():
            return lambda ax: figures.role_map(table, layers_across=_lies(table), ax=ax)
        case Redundancy():
            known = table.curve["share"].notna().any()
            return lambda ax: (figures.redundancy_curve if known else figures.effective_dots)(table, ax=ax)
        case Clusters():
            return lambda ax: figures.cluster_matrix(_as_pairs(table), table, label=table.measure, ax=ax)
        case HeadMap():
            return lambda ax: figures.head_scatter(table, ax=ax)
        case Contrasted():
            return _changes(table)
    raise InputError(
        f"{type(table).__name__} cannot be drawn; plot takes what similarity, importance, roles, redundancy, compare, "
        "cluster and map_heads return, an analysis, or one of its tables. All figures of an analysis are written by "
        "run.report(folder)"
    )


def _map(table: HeadTable, ax: Axes | None, framed: Sequence[HeadId], words: str) -> Axes:
    label = ", ".join(filter(None, (table.name, table.unit)))
    return figures.head_map(table, chosen=framed, words=words, label=label, layers_across=_lies(table), ax=ax)


def _lies(table: HeadTable | RoleTable) -> bool:
    layers, heads = ({getattr(head, axis) for head in table.heads} for axis in ("layer", "head"))
    return len(layers) > max(_LYING * len(heads), 4)


def _pairs(table: PairTable, ax: Axes | None) -> Axes:
    rows, columns = (np.array([head.layer for head in heads]) for heads in (table.heads, table.column_heads))
    across = np.isfinite(table.matrix[rows[:, None] != columns]).any() or not {*rows} & {*columns}
    draw = figures.whole_matrix if across else figures.layer_blocks
    sides = "" if table.other is None or across else "\nrows: the first model, columns: the second"
    return draw(table, label=f"{table.name} of {table.of}{sides}", ax=ax)


def _as_pairs(clusters: Clusters) -> PairTable:
    """The similarities that the angles of clusters are of."""
    alike, none = np.cos(clusters.distances), np.full_like(clusters.distances, np.nan)
    return PairTable(clusters.measure, "", clusters.heads, alike, none, none)


def _changes(contrast: Contrasted) -> Callable[[Axes | None], Axes]:
    changes = contrast.changes
    if not changes:
        raise InputError("the two have no score in common, so there is no change to draw")
    score, table = next(iter(changes.items()))
    told = contrast.changed
    rows = told.loc[told["score"] == score, ["layer", "head"]].itertuples(index=False, name=None)
    places = {(head.layer, head.head): head for head in table.heads}
    framed = [places[row] for row in rows]
    return lambda ax: _map(table, ax, framed, "Framed: told from no change" if framed else "")


@contextmanager
def _in_pyplot() -> Iterator[None]:
    """While open, new figures are pyplot's, which shows them; they are closed again if drawing fails."""
    from matplotlib import pyplot as plt

    made: list[Figure] = []

    def new(**settings: Any) -> Figure:
        made.append(plt.figure(**settings))
        return made[-1]

    token = NEW_FIGURE.set(new)
    try:
        yield
    except BaseException:
        for figure in made:
            plt.close(figure)
        raise
    finally:
        NEW_FIGURE.reset(token)


def _checked(path: str | Path) -> tuple[Path, str]:
    """Where a figure goes, and what kind of file it is by its ending; refused before anything is drawn."""
    path = Path(path).expanduser().absolute()
    kind = path.suffix.lower().removeprefix(".")
    if path.is_dir():
        raise StorageError(f"{path} is a folder; name a file in it, as {path / 'figure.png'}")
    if kind not in _KINDS:
        raise InputError(f"{path.name!r} ends in none of .png, .svg and .pdf, by which a figure is saved")
    if not path.parent.is_dir():
        raise StorageError(f"there is no folder {path.parent} to save {path.name} into; make it first")
    return path, kind
