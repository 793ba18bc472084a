"""C15: the attention weight says how important one token is to another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.stats import rankdata
from torch import Tensor

from headscope._support.formatting import count
from headscope._support.running import run_model
from headscope.anatomy.weights import output_weights
from headscope.effects.ablation import transform_outputs
from headscope.errors import AnatomyError, InputError
from headscope.reporting.figures import figure_of, strip
from headscope.sites import Site
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, Measured, ModelClaim, Verdict, in_part
from headscope.studies.subjects import Subject
from headscope.studies.tasks import inputs
from headscope.text.batches import Batch
from headscope.uncertainty.intervals import mean_spread
from headscope.watching.observation import Captured

__all__ = ["Edges", "single_rows"]

_GOOD, _BAD = 0.7, 0.3  # rank correlations
_LEAST_KEYS, _MOST_TOKENS = 5, 48
_CHUNK = 8  # keys that are cut in one batch
_COLUMNS = ["document", "layer", "head", "query", "keys", "rho", "rho_length", "rho_shuffled"]


@CLAIMS.register("C15")
class Edges(ModelClaim):
    """A query's weights, held against what cutting each of its edges does to the model's output."""

    kind: ClassVar[str] = "experiment"
    about: ClassVar[Both] = Both("weights are importance", "スコアは重要度を表す")
    says: ClassVar[Both] = Both(
        "The attention score says how important each token is to another.",
        "アテンションスコアは、各トークンが他のトークンに対してどれだけ重要であるかを計算する。",
    )
    where_ja: ClassVar[str] = "アテンションスコアの計算"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "For one query of one head, each of its edges is cut in turn: the key's weight is set to zero and the others "
        "made to sum to 1 again, and the model run to its end. Cutting is held against the weight, and against weight "
        "× length of what the key's value contributes (Kobayashi et al. 2020, arXiv:2004.10102), by Spearman's rank "
        "correlation over the query's keys; queries and heads are drawn by seed (the question is that of Jain and "
        "Wallace 2019, arXiv:1902.10186). As the other weights are made to sum to 1 again, a cut moves the head's "
        "output by w / (1 − w) · (z − v), further for a larger weight w whatever the value v: how much that alone "
        "correlates is told by cuts of the same weights, with z − v taken from another key.",
        "",
    )
    unit: ClassVar[Both] = Both("rank correlation of weight and effect of cutting", "重みと切断効果の順位相関")
    interval: ClassVar[Both] = Both("95%, over documents", "")
    rule: ClassVar[Both] = Both(
        "supported if it is above 0.7, with the interval; not supported if below 0.3; else depends", ""
    )
    drawn: ClassVar[Both] = Both("How many queries have which rank correlation; lines are the means.", "")
    limits: ClassVar[Both] = Both(
        "Where cuts with another key's direction correlate as well, the weight says how much of a value is taken, and "
        "nothing of which. The effect is the length of the change of the model's last output,"
        " over all positions that count; single edges, in short rows. Ranks among a query's own keys: it says nothing "
        "of one head against another.",
        "",
    )
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    brief: ClassVar[bool] = False

    def measure(self, subject: Subject) -> Measured:
        sites = [site for site in subject.anatomy.apart.sites if site.kind != "cross" and not site.gated]
        if not sites:
            raise AnatomyError("no layer hands its heads' outputs to the projection as they are, so no edge can be cut")
        rng = np.random.default_rng(subject.seed)
        weights = output_weights(subject.model, subject.anatomy.apart)
        rows = []
        for document, row in single_rows(subject, 8 if subject.quick else 24):
            seen = subject.look("pattern", "v", "z", batch=row)
            for _ in range(2 if subject.quick else 4):
                place = _Place.draw(seen, sites, rng)
                if place is None:
                    continue
                weight = place.weights.double().cpu().numpy()
                length = place.lengths(weights[place.site.layer][place.head])
                effects = place.cut(subject, row)
                shuffled = place.cut(subject, row, _derangement(len(weight), rng))
                rows.append(
                    {
                        "document": document, "layer": place.site.layer, "head": place.site.head_ids[place.head],
                        "query": place.query, "keys": len(effects), "rho": _spearman(weight, effects),
                        "rho_length": _spearman(weight * length, effects), "rho_shuffled": _spearman(weight, shuffled),
                    }
                )  # fmt: skip
        table = pd.DataFrame(rows, columns=_COLUMNS).dropna(ignore_index=True)
        if table.empty:
            raise InputError(f"no row has a query with {_LEAST_KEYS} keys to look at, whose weights differ")
        columns = ["rho", "rho_length", "rho_shuffled"]
        spread = mean_spread(table[columns].to_numpy(np.float64).T, table["document"].to_numpy())
        low, high = spread.interval()
        middle, by_length, shuffled = spread.centre.tolist()
        numbers = {
            "length": by_length, "shuffled": shuffled, "queries": float(len(table)),
            "keys": float(table["keys"].mean()),
        }  # fmt: skip
        over = count(table["document"].nunique(), "document")
        return Measured(middle, over, numbers, table, float(low[0]), float(high[0]))

    def decide(self, words: Mapping[str, float]) -> Verdict:
        if words["low"] > _GOOD:
            return HOLDS
        return FAILS if words["high"] < _BAD else in_part(Both("", ""))

    def say(self, words: Mapping[str, float]) -> Both:
        return Both(
            f"Over {words['queries']:g} queries of {words['keys']:.0f} keys on average, the rank correlation of a key's"
            f" weight with the effect of cutting it is {words['effect']:.2f}; with weight × length of what it carries "
            f"{words['length']:.2f}; of weights with cuts in another key's direction {words['shuffled']:.2f}.",
            "",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        series = {
            "rho": "weight",
            "rho_length": "weight × length",
            "rho_shuffled": "weight, with another key's direction",
        }
        label = "rank correlation with the effect of cutting, over a query's keys"
        return figure_of(strip(table, series, label=label, ticks=(-1, -0.5, 0, 0.5, 1)))


def single_rows(subject: Subject, most: int) -> list[tuple[int, Batch]]:
    """Single rows of the text without padding, cut to 48 tokens, spread over the sample; each with its document.

    Args:
        subject: whose text.
        most: how many rows.
    """
    found: list[tuple[int, Batch]] = []
    for batch in subject.sample:
        own = inputs(batch)
        mask = own.get("attention_mask")
        for place in range(len(next(iter(own.values())))):
            document = int(batch["document"][place]) if "document" in batch else len(found)
            length = _MOST_TOKENS if mask is None else min(_MOST_TOKENS, int(mask[place].sum()))
            if mask is not None and not bool(mask[place, :length].all()):
                continue  # padded on the left
            tokens = {name for name, value in own.items() if value.ndim == 2}
            row = {n: v[place : place + 1, :length] if n in tokens else v[place : place + 1] for n, v in own.items()}
            found.append((document, row))
    step = max(1, len(found) // most)
    return found[::step][:most]


@dataclass(frozen=True, eq=False)
class _Place:
    """One query of one head, and the keys that it looks at."""

    site: Site
    head: int
    query: int
    weights: Float[Tensor, " key"]
    values: Float[Tensor, "key value_dim"]
    z: Float[Tensor, " value_dim"]

    @classmethod
    def draw(cls, seen: Mapping[int, Captured], sites: Sequence[Site], rng: np.random.Generator) -> "_Place | None":
        """Somewhere; None where no query of the head that was drawn has enough keys."""
        site = sites[int(rng.integers(len(sites)))]
        head = int(rng.integers(site.n_heads))
        own = seen[site.layer]
        pattern, v = own.pattern[0, head], own.v[0]
        value_head = site.kv_of_query[head] if len(v) == site.n_kv_heads else head * len(v) // site.n_heads
        queries = torch.nonzero((pattern > 0).sum(-1) >= _LEAST_KEYS).flatten().tolist()
        if not queries:
            return None
        query = int(rng.choice(queries))
        keys = torch.nonzero((pattern[query] > 0) & (pattern[query] < 1)).flatten()
        return cls(site, head, query, pattern[query, keys], v[value_head][keys], own.z[0, head, query])

    def lengths(self, weight: Float[Tensor, "width value_dim"]) -> Float[np.ndarray, " key"]:
        """Of what each key's value contributes, by W_O of the head."""
        lengths: np.ndarray = (self.values.double().cpu() @ weight.T).norm(dim=1).numpy()
        return lengths

    def cut(self, subject: Subject, row: Batch, order: np.ndarray | None = None) -> Float[np.ndarray, " key"]:
        """Length of the change of the model's output with each edge cut.

        Args:
            subject: the model.
            row: what it reads.
            order: for each key, that whose value the cut is made with; its own without it.
        """
        assert self.site.output is not None
        columns = list(self.site.output.heads[self.head])
        weight = self.weights[:, None]
        values = self.values if order is None else self.values[torch.from_numpy(order)]
        moved = (self.z - weight * values) / (1 - weight)  # without the key, the others sharing its weight
        changes = []
        with subject.running():
            before = _last(run_model(subject.model, row))
            for some in moved.split(_CHUNK):

                def replace(entering: Tensor, some: Tensor = some) -> Tensor:
                    entering = entering.clone()
                    entering[:, self.query, columns] = some.to(entering.dtype)
                    return entering

                many = {name: value.expand(len(some), *value.shape[1:]) for name, value in row.items()}
                with transform_outputs(subject.model, subject.anatomy, {self.site.layer: replace}):
                    after = _last(run_model(subject.model, many))
                changes.append((after - before).flatten(1).norm(dim=1).numpy())
        return np.concatenate(changes)


def _last(output: object) -> Tensor:
    """The model's output as one tensor: logits, or the last hidden state."""
    for name in ("logits", "last_hidden_state"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return found.detach().float().cpu()
    if isinstance(output, Tensor):
        return output.detach().float().cpu()
    raise AnatomyError("the model's output is no tensor, and has neither logits nor last_hidden_state")


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """NaN where either does not vary."""
    ranks = rankdata(a), rankdata(b)
    if min(rank.std() for rank in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _derangement(size: int, rng: np.random.Generator) -> np.ndarray:
    """Every place sent to another one, by a turn of a random order."""
    order = rng.permutation(size)
    exchanged = np.empty(size, dtype=np.int64)
    exchanged[order] = np.roll(order, 1)
    return exchanged
