"""Benchmark: what watching and comparing cost, as ratios of arms that take turns in one process.

Seconds mean little on a machine that others use too; the ratio of two arms that were timed in turn means more.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.linalg import blas
from torch import Tensor, nn

from headscope._support.environment import machine
from headscope._support.running import evaluating, last_logits, run_model
from headscope.anatomy import discover
from headscope.likeness.measures.cka import cka
from headscope.sites import Site
from headscope.statistics.minibatch_hsic import MinibatchHsic
from headscope.statistics.summed_moments import SummedMoments
from headscope.studies.made_up import make_site
from headscope.studies.peers import Peer
from headscope.text.batches import Batch, n_rows
from headscope.watching.hooks import watch
from headscope.watching.observation import observe

__all__ = [
    "CASES",
    "Case",
    "bench_discovery",
    "bench_minibatch",
    "bench_pairs",
    "bench_watching",
    "plain_pass",
    "take_turns",
]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A model's shape: heads in layers, dimensions of a head, positions."""

    layers: int
    heads: int
    dim: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.layers * self.heads} × {self.dim}"


CASES = (Case(6, 12, 32, 4096), Case(12, 12, 64, 4096), Case(18, 4, 256, 2048))


def take_turns(arms: Mapping[str, Callable[[], Any]], rounds: int = 5) -> dict[str, float]:
    """Median seconds of each arm; the arms run one after another, round by round, after one round that is not counted.

    Args:
        arms: what is timed, by name.
        rounds: how often each is timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(taken)) for name, taken in seconds.items()}


def put_together(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The ratios of several pieces of work as one table, with what they were timed on in a column "machine".

    Args:
        frames: from the functions of this room that begin with bench_.
    """
    return pd.concat(frames, ignore_index=True).assign(machine=machine())


def bench_pairs(case: Case, rounds: int = 5, seed: int = 0) -> pd.DataFrame:
    """Exact unbiased CKA of every two heads against a bare product, and against pair by pair, all in float64.

    The bare product is XᵀX in one call, its time scaled by (N + 1) / 2N, the share of head blocks on and above the
    diagonal: the rate of the square, which no product of the triangle alone reaches. The other bare product is such a
    one, BLAS's syrk. Pair by pair is NumPy: for every two heads the product of their outputs, and the sums that the
    unbiased estimate takes.

    Args:
        case: the shape.
        rounds: of timing.
        seed: of the numbers.

    Returns:
        Columns work, case, arm, seconds, ratio (to the bare product), goal ("" for none).
    """
    layers = _outputs(case, seed)
    flat = torch.cat([layer.transpose(1, 2).flatten(0, 1).flatten(1) for layer in layers], dim=1)
    heads = [own.numpy() for own in flat.unflatten(1, (-1, case.dim)).unbind(1)]
    n_heads = len(heads)
    arms: dict[str, Callable[[], Any]] = {
        "headscope": lambda: cka(_all_moments(layers, case)),
        "bare product": lambda: flat.T @ flat,
        "bare product, triangle": lambda: blas.dsyrk(1.0, flat.numpy().T),
        "pair by pair": lambda: _pair_by_pair(heads),
    }
    gap = np.abs(arms["headscope"]() - arms["pair by pair"]()).max()
    assert gap < 1e-9, gap
    seconds = take_turns(arms, rounds)
    seconds["bare product"] *= (n_heads + 1) / (2 * n_heads)
    goals = {"headscope": "at most 1.11, and at most pair by pair"}
    return _rows("cka of every two heads", str(case), seconds, "bare product", goals)


def bench_minibatch(case: Case, rounds: int = 5, seed: int = 0) -> pd.DataFrame:
    """Minibatch CKA of every two heads: multiplications a second, against a large product of the same type.

    Args:
        case: the shape.
        rounds: of timing.
        seed: of the numbers.

    Returns:
        As `bench_pairs`; ratio is the share of the product's rate.
    """
    layers = _outputs(case, seed)
    size, n_heads = MinibatchHsic().size, case.layers * case.heads
    work = 2.0 * case.tokens * size * n_heads * (n_heads + case.dim)
    square = torch.randn(2000, 2000, dtype=torch.float64)

    def run() -> Floats:
        statistic = MinibatchHsic(scope="model")
        _feed(statistic, layers, case)
        (blocks,) = statistic.compute().values()
        cosine: Floats = blocks[0].cosine()
        return cosine

    seconds = take_turns({"headscope": run, "bare product": lambda: square @ square}, rounds)
    rate = {"headscope": work / seconds["headscope"], "bare product": 2 * 2000.0**3 / seconds["bare product"]}
    frame = _rows("cka_minibatch of every two heads", str(case), seconds, "bare product", {"headscope": "at least 0.6"})
    frame["ratio"] = [rate[arm] / rate["bare product"] for arm in frame["arm"]]
    return frame


def bench_watching(
    model: nn.Module, batches: Sequence[Batch], name: str, rounds: int = 5, peers: Mapping[str, Peer] | None = None
) -> pd.DataFrame:
    """One pass over some text, watched in several ways, against the same pass unwatched.

    Second moments are timed twice: with the sums made from nothing, as over the whole of a short text, and with sums
    that are there from text before.

    Args:
        model: the model, with the attention kernel that it comes with.
        batches: the text.
        name: what the model is called.
        rounds: of timing.
        peers: other tools that watch, by name; see `headscope.studies.peers`.

    Returns:
        As `bench_pairs`; ratio is to the unwatched pass.
    """
    anatomy = discover(model, batches[0])

    def watched(*want: str) -> Callable[[], None]:
        def run() -> None:
            with watch(model, anatomy.sites, want, _drop):
                plain_pass(model, batches)

        return run

    def moments() -> None:
        statistic = SummedMoments()
        observe(model, batches, [statistic], anatomy=anatomy.apart)
        statistic.compute()  # what waits is summed then at the latest

    going_on = SummedMoments()  # its sums are made in the round that is not counted

    def more_moments() -> None:
        observe(model, batches, [going_on], anatomy=anatomy.apart)

    def with_peer(peer: Peer) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                for batch in batches:
                    peer({k: v for k, v in batch.items() if k != "document"} | last_logits(model, batch))

        return run

    arms = {
        "unwatched": lambda: plain_pass(model, batches),
        "q, k, v, z": watched("q", "k", "v", "z"),
        "maps": watched("pattern"),
        "second moments": moments,
        "second moments, more text": more_moments,
    }
    if hasattr(model, "set_attn_implementation"):
        arms["output_attentions"] = lambda: _with_maps(model, batches)
    arms |= {label: with_peer(peer) for label, peer in (peers or {}).items()}
    goals = {"q, k, v, z": "at most 1.10", "maps": "at most 1.6"}
    goals |= dict.fromkeys(("second moments", "second moments, more text"), "at most 1.30")
    return _rows("watching one pass", name, take_turns(arms, rounds), "unwatched", goals)


def bench_discovery(model: nn.Module, batch: Batch, name: str, rounds: int = 5) -> pd.DataFrame:
    """Finding the heads, the check included, against one unwatched pass over a batch.

    Args:
        model: the model.
        batch: what is passed over, and what the heads are found on; of a model that says what it takes, they are found
            on a made-up text too.
        name: what the model is called.
        rounds: of timing.

    Returns:
        As `bench_pairs`; ratio is to the unwatched pass.
    """
    rows = n_rows(batch)
    arms: dict[str, Callable[[], Any]] = {
        "unwatched": lambda: plain_pass(model, [batch]),
        "discover, on the batch": lambda: discover(model, batch),
    }
    if "input_ids" in batch and hasattr(model, "main_input_name"):
        arms["discover, on a made-up text"] = lambda: discover(model)
    case = f"{name}, {rows} × {batch['input_ids'].shape[1]}" if "input_ids" in batch else f"{name}, {rows} rows"
    goals = {arm: "at most 6" for arm in arms if arm != "unwatched"}
    return _rows("finding the heads", case, take_turns(arms, rounds), "unwatched", goals)


def plain_pass(model: nn.Module, batches: Sequence[Batch], **extra: Any) -> None:
    """Run a model over some text and look at nothing; of a language model's logits only the last are made.

    Args:
        model: the model, run in evaluation mode.
        batches: the text.
        extra: further arguments of its forward.
    """
    with evaluating(model), torch.no_grad():
        for batch in batches:
            run_model(model, batch, **last_logits(model, batch), **extra)


def _drop(site: Site, tensors: dict[str, Tensor]) -> None:
    """Look at nothing: what is timed is making the tensors."""


def _with_maps(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Attention maps as transformers gives them: eager attention, and the maps of all layers held at once."""
    config: Any = model.config
    before = config._attn_implementation
    model.set_attn_implementation("eager")  # type: ignore[operator]
    try:
        plain_pass(model, batches, output_attentions=True)
    finally:
        model.set_attn_implementation(before)  # type: ignore[operator]


def _outputs(case: Case, seed: int) -> list[Tensor]:
    """z of each layer, (1, head, position, dim) float64: heads that share something, so that CKA is not all zero."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(1, 1, case.tokens, case.dim, generator=generator, dtype=torch.float64)
    shape = (1, case.tokens, case.heads, case.dim)  # laid out as models do: position before head
    own = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(case.layers)]
    return [(z + common.transpose(1, 2)).transpose(1, 2) for z in own]


def _feed(statistic: Any, layers: Sequence[Tensor], case: Case, size: int = 1024) -> None:
    """Run a statistic as `observe` does, batches of `size` positions of one block of documents."""
    block = torch.zeros(1, dtype=torch.long)
    for start in range(0, case.tokens, size):
        for layer, z in enumerate(layers):
            part = z[:, :, start : start + size]
            kept = torch.ones(1, part.shape[2], dtype=torch.bool)
            statistic.update(make_site(layer, case.heads, case.dim), {"gated_z": part}, kept, block)
        statistic.end_batch()


def _all_moments(layers: Sequence[Tensor], case: Case) -> Any:
    statistic = SummedMoments(scope="model", blocks=1)
    _feed(statistic, layers, case)
    ((moments,),) = statistic.compute().values()
    return moments


def _pair_by_pair(heads: Sequence[Floats]) -> Floats:
    """Unbiased linear CKA as one writes it for two heads at a time, each head's own part made once."""
    n = len(heads[0])
    centred = [head - head.mean(0) for head in heads]
    squares = [np.einsum("nd,nd->n", x, x) for x in centred]

    def hsic(a: int, b: int) -> float:
        product = centred[a].T @ centred[b]
        crossed = n / (n - 2) * squares[a] @ squares[b]
        alone = squares[a].sum() * squares[b].sum() / ((n - 1) * (n - 2))
        return float(np.vdot(product, product) - crossed + alone)

    own = [hsic(a, a) for a in range(len(heads))]
    table = np.eye(len(heads))
    for a in range(len(heads)):
        for b in range(a + 1, len(heads)):
            table[a, b] = table[b, a] = hsic(a, b) / np.sqrt(own[a] * own[b])
    return table


def _rows(work: str, case: str, seconds: Mapping[str, float], base: str, goals: Mapping[str, str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "work": work,
            "case": case,
            "arm": list(seconds),
            "seconds": list(seconds.values()),
            "ratio": [taken / seconds[base] for taken in seconds.values()],
            "goal": [goals.get(arm, "") for arm in seconds],
        }
    )
