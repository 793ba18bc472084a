"""Coverage: how often the nominal 95% intervals hold the value of endless text, on made-up documents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from headscope._support.progress import Progress
from headscope.errors import UnknownNameError
from headscope.likeness.measures import MEASURES
from headscope.likeness.measures.cka_biased import cka_biased
from headscope.likeness.pairing import Computed, pair_table
from headscope.scoring.scores import SCORES
from headscope.statistics.moments import Moments, contribution_energy
from headscope.statistics.prediction import explained_share, fit_stand_ins, judge_stand_ins
from headscope.statistics.summed_moments import SummedMoments
from headscope.studies.made_up import make_site
from headscope.surplus.curve import curve_spreads, fit_best, residuals
from headscope.surplus.effective import effective_heads, effective_spread
from headscope.uncertainty.blocks import Blocks
from headscope.uncertainty.intervals import Spread, jackknife
from headscope.uncertainty.resampling import share_above

__all__ = ["NAMES", "World", "coverage"]

Floats = npt.NDArray[np.float64]

PAIRS = ("cka", "cka_biased", "procrustes", "cosine", "predict")
SHARES = ("replaceability", "constant", "restored")
ABOVE = ("share of heads", "share at the line")  # by the middle head; of means that all lie on the line, none above
NAMES = (*PAIRS, *SHARES, "norm", "effective heads", "redundancy curve", *ABOVE)
_HEADS, _DIM, _WIDTH = 4, 4, 8
_SITE = make_site(0, _HEADS, _DIM)
_ENDLESS = 10**12
_LEAST = 8  # tokens of the shortest document


@dataclass(frozen=True, eq=False)
class World:
    """A layer whose heads' outputs are Gaussian, with documents whose tokens are alike.

    z = mean + root · (sqrt(within) u + sqrt(1 - within) e), u drawn for each document and e for each token: the
    covariance of z over endless text is root rootᵀ whatever `within`, the share of it that a document's tokens have in
    common.

    Attributes:
        root: (D, D).
        mean: (D,).
        weights: W_O of each head.
        within: in [0, 1).
    """

    root: Floats
    mean: Floats
    weights: Sequence[Tensor]
    within: float

    @classmethod
    def draw(cls, seed: int, within: float) -> "World":
        """Heads that share a part, with directions of different size."""
        rng = np.random.default_rng(seed)
        n_dims = _HEADS * _DIM
        root = rng.standard_normal((n_dims, n_dims)) * np.exp(rng.normal(0, 0.5, n_dims)) / np.sqrt(n_dims)
        root += np.eye(n_dims) * 0.5
        weights = [torch.from_numpy(rng.standard_normal((_WIDTH, _DIM))) for _ in range(_HEADS)]
        return cls(root, rng.normal(0, 0.7, n_dims), weights, within)

    def documents(self, lengths: Sequence[int], rng: np.random.Generator) -> Iterator[Floats]:
        """(token, D) of each document."""
        for length in lengths:
            own = rng.standard_normal((1, len(self.root)))
            noise = rng.standard_normal((length, len(self.root)))
            yield self.mean + (np.sqrt(self.within) * own + np.sqrt(1 - self.within) * noise) @ self.root.T

    @property
    def endless(self) -> Moments:
        """The moments of endless text, but for the fourth powers, which are left out."""
        n_rows = _HEADS * (_DIM + 1) + 1
        square = torch.zeros(n_rows, n_rows, dtype=torch.float64)
        square[: _HEADS * _DIM, : _HEADS * _DIM] = _ENDLESS * torch.from_numpy(self.root @ self.root.T)
        square[-1, -1] = _ENDLESS
        return Moments.of_square((_DIM,) * _HEADS, torch.from_numpy(self.mean), square)

    def truth(self, name: str) -> Floats:
        """The value of endless text, from the covariance alone."""
        endless, weights = self.endless, list(self.weights)
        if name in ("cka", "cka_biased"):  # the same without end
            return cka_biased(endless)
        if name == "predict":
            return explained_share(endless, endless)
        if name in MEASURES:
            return MEASURES[name]().compare({"moments": endless, "output_weights": weights})
        if name == "effective heads":
            return np.array([effective_heads(endless)])
        if name == "redundancy curve":
            missed = residuals(fit_best(endless, weights), endless)[1:]
            return 1 - missed[1:] / missed[0]
        if name == "norm":
            return np.asarray(np.sqrt(contribution_energy(endless, weights) / _ENDLESS))
        if name in ABOVE:
            return np.array([0.5 if name == "share of heads" else 0.0])
        return judge_stand_ins(fit_stand_ins(endless), endless, weights).shares()[SHARES.index(name)]


def coverage(
    tokens_per_dimension: Sequence[int] = (5, 20, 50),
    n_documents: Sequence[int] = (10, 20, 50, 100),
    repetitions: int = 400,
    *,
    names: Sequence[str] = NAMES,
    within: float = 0.2,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Share of nominal 95% intervals that hold the value of endless text.

    Args:
        tokens_per_dimension: tokens of the whole text over dimensions of the layer (16: 4 heads of 4).
        n_documents: how many documents the text has; cases whose documents would be under 8 tokens are left out.
        repetitions: texts drawn for each case.
        names: of the numbers whose intervals are counted; texts are the same whichever they are.
        within: see `World`.
        seed: of every draw.
        progress: told of each text; see `headscope.Progress`.

    Returns:
        A row for each number, kind of lengths and case: name, lengths ("equal", or "unequal": log-normal), documents,
        tokens_per_dimension, intervals (pairs of different heads, or heads, times repetitions), coverage, error (its
        standard error, texts being independent and the intervals of one text not).

    Raises:
        UnknownNameError: there is no such number; the message lists those there are.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise UnknownNameError(f"nothing here is called {unknown[0]!r}; what is counted: {', '.join(NAMES)}")
    world = World.draw(seed, within)
    rows = []
    cases = [
        (unequal, per_dimension, count)
        for unequal in (False, True)
        for per_dimension in tokens_per_dimension
        for count in n_documents
        if per_dimension * _HEADS * _DIM >= _LEAST * count
    ]
    for unequal, per_dimension, count in cases:
        rng = np.random.default_rng([seed, unequal, per_dimension, count])
        held = []
        for _ in range(repetitions):
            blocks = _draw(world, count, per_dimension * _HEADS * _DIM, unequal, rng)
            held.append({name: _holds(world, name, blocks, count) for name in names})
            if progress is not None:
                progress("texts", 1, len(cases) * repetitions)
        for name in names:
            each = np.array([one[name].mean() for one in held])
            rows.append(
                {
                    "name": name, "lengths": "unequal" if unequal else "equal", "documents": count,
                    "tokens_per_dimension": per_dimension, "intervals": sum(one[name].size for one in held),
                    "coverage": each.mean(), "error": each.std(ddof=1) / np.sqrt(repetitions),
                }
            )  # fmt: skip
    frame = pd.DataFrame(rows)
    return frame.sort_values(["name", "lengths", "tokens_per_dimension", "documents"], ignore_index=True)


def _draw(world: World, count: int, n_tokens: int, unequal: bool, rng: np.random.Generator) -> list[Moments]:
    """Moments of each block of one text."""
    share = np.exp(rng.normal(0, 0.8, count)) if unequal else np.ones(count)
    lengths = _LEAST + np.floor((n_tokens - _LEAST * count) * share / share.sum()).astype(int)
    return _sum(list(world.documents(lengths, rng)))


def _holds(world: World, name: str, blocks: Sequence[Moments], count: int) -> npt.NDArray[np.bool_]:
    """Whether each interval of one number holds the truth."""
    truth = world.truth(name)
    if name in PAIRS:
        weights, measure = {0: world.weights}, MEASURES[name]()
        computed: dict[str, Computed] = {need: {(0,): blocks} for need in measure.needs - {"output_weights"}}
        table = pair_table(measure, measure.sources[0], computed, (_SITE.heads, None), weights, {"documents": count})
        # those of a head with itself are known; a measure that is not symmetric has two numbers a pair
        apart = ~np.tri(_HEADS, dtype=bool) if measure.symmetric else ~np.eye(_HEADS, dtype=bool)
        low, high, truth = table.low[apart], table.high[apart], truth[apart]
    elif name == "effective heads":
        low, high = (np.atleast_1d(end) for end in effective_spread(blocks).interval())
    elif name == "redundancy curve":
        low, high = (end[1:] for end in curve_spreads(blocks, list(world.weights))[0].interval())  # 0 for no head
    elif name == "share at the line":
        low, high = share_above(_off_the_line(world, blocks), 0.0)[1:]
    else:
        score = SCORES["norm" if name == "norm" else "replaceability"]()
        rating = score.rate({"moments": {0: blocks}, "swapped_moments": {}, "output_weights": {0: world.weights}})
        low, high = rating.beside[name].interval() if name in rating.beside else (rating.low, rating.high)
        if name == "share of heads":
            assert rating.spread is not None
            middle = float(np.median(world.truth("replaceability")))
            low, high = share_above(rating.spread, middle)[1:]
    return np.asarray((low <= truth) & (truth <= high))


def _off_the_line(world: World, blocks: Sequence[Moments]) -> Spread:
    """How far the mean of each dimension of each head's output is from its true one."""
    return jackknife(lambda left: Moments.total(left).mean.numpy() - world.mean, blocks, [block.n for block in blocks])


def _sum(documents: Sequence[Floats]) -> list[Moments]:
    """Moments of each block, documents dealt and summed as `headscope.observe` does."""
    statistic, dealt = SummedMoments(), Blocks()
    for number, rows in enumerate(documents):
        z = torch.from_numpy(rows).unflatten(1, (_HEADS, _DIM)).transpose(0, 1)[None]
        kept = torch.ones(1, len(rows), dtype=torch.bool)
        block = dealt.place(torch.tensor([number]), torch.tensor([len(rows)]))
        statistic.update(_SITE, {"gated_z": z}, kept, block)
        statistic.end_batch()
    return statistic.compute()[0,]
