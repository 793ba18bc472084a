"""A task that a reader knows, of texts alone: is a passage nearer to one of its own document than to a stranger?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from headscope._support.running import evaluating, run_model
from headscope.effects.ablation import silence
from headscope.effects.metrics import Drift
from headscope.studies.subjects import Subject
from headscope.studies.tasks import inputs
from headscope.text.batches import Batch
from headscope.text.corpus import Corpus
from headscope.uncertainty.intervals import Spread, mean_spread

__all__ = ["mistaken", "pairs_of_passages", "same_document_effects"]

Floats = npt.NDArray[np.float64]

_ROWS, _EACH = 96, 3  # passages at the most, and of one document
_FEWEST = 8  # works with a document that has two
_SIZE = 16  # rows that run together


def same_document_effects(subject: Subject) -> tuple[float, Spread] | None:
    """How often the intact model takes a stranger for the nearer passage, and how much more often without each head.

    For every passage, the share of (a passage of the same document, one of another) of which the stranger's embedding
    has the larger cosine: 0 = never, 1/2 = by chance. It is 1 − the area under the curve of that passage's ranking.

    Args:
        subject: an encoder judged by drift, whose embeddings are compared.

    Returns:
        The intact share; and (head,) what is added to it without each head that can be told apart, with the spread over
        documents. None where the metric is not drift, or where fewer than eight works have a document of two passages.
    """
    metric = subject.judged_by
    rows = pairs_of_passages(subject.batches, subject.seed, _ROWS // 3 if subject.quick else _ROWS)
    if not isinstance(metric, Drift) or not rows:
        return None
    documents = np.concatenate([batch["document"].numpy() for batch in rows])
    intact = mistaken(_embeddings(subject, metric, rows), documents)
    without = []
    for head in subject.anatomy.apart.heads:
        with silence(subject.model, subject.anatomy, subject.anatomy.find([head])):
            without.append(mistaken(_embeddings(subject, metric, rows), documents) - intact)
    return float(intact.mean()), mean_spread(np.stack(without), documents)


def pairs_of_passages(batches: Sequence[Batch], seed: int, most: int) -> list[Batch]:
    """Rows of documents that have two at least, up to three of each, those of one shape together.

    One document at the most is taken of each work: sections of one essay share its subject, and a stranger from there
    would be none.

    Args:
        batches: the text.
        seed: of the draw.
        most: rows.

    Returns:
        Batches; none where fewer than eight works have a document of two rows.
    """
    found: dict[int, list[Batch]] = {}
    for batch in batches:
        for place, document in enumerate(batch.get("document", torch.empty(0)).tolist()):
            row = {name: value[place : place + 1] for name, value in batch.items()}
            found.setdefault(int(document), []).append(row)
    several = {document: rows for document, rows in found.items() if len(rows) > 1}
    rng = np.random.default_rng(seed)
    order = rng.permutation(sorted(several)).tolist()
    one_of_each = {batches.works[one] if isinstance(batches, Corpus) else one: one for one in order}
    if len(one_of_each) < _FEWEST:
        return []
    taken: list[Batch] = []
    for document in one_of_each.values():
        own = several[document]
        some = [own[place] for place in sorted(rng.permutation(len(own))[:_EACH])]
        if len(taken) + len(some) > most:
            break
        taken += some
    return _together(taken)


def _together(rows: Sequence[Batch]) -> list[Batch]:
    """Rows of one shape as batches."""
    shapes: dict[tuple[Any, ...], list[Batch]] = {}
    for row in rows:
        shapes.setdefault(tuple((name, *value.shape[1:]) for name, value in row.items()), []).append(row)
    parts = [own[start : start + _SIZE] for own in shapes.values() for start in range(0, len(own), _SIZE)]
    return [{name: torch.cat([row[name] for row in part]) for name in part[0]} for part in parts]


def mistaken(embeddings: Floats, documents: npt.NDArray[np.int64]) -> Floats:
    """(row,) share of (same, other) pairs of passages of which the other's embedding is nearer; ties count half.

    Args:
        embeddings: (row, width), of length 1.
        documents: (row,) of each; every document has two rows at least.

    >>> apart = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> mistaken(apart, np.array([0, 0, 1, 1]))
    array([0. , 0.5, 0. , 0.5])
    """
    cosines, same = embeddings @ embeddings.T, documents[:, None] == documents
    found = np.empty(len(documents))
    for row, (near, own) in enumerate(zip(cosines, same, strict=True)):
        others, alike = near[~own], near[own & (np.arange(len(own)) != row)]
        found[row] = ((others[:, None] > alike) + 0.5 * (others[:, None] == alike)).mean()
    return found


def _embeddings(subject: Subject, metric: Drift, rows: Sequence[Batch]) -> Floats:
    with evaluating(subject.model), torch.no_grad():
        made = [metric.embed(run_model(subject.model, metric.inputs(subject.model, inputs(row))), row) for row in rows]
    return torch.cat(made).double().cpu().numpy()
