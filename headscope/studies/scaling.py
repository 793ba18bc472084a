"""Cost scaling: time, memory and operations of attention against length and against the number of heads."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import log2, nan
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from headscope._support.environment import machine
from headscope._support.progress import Progress
from headscope._support.running import device_of, evaluating, last_logits, run_model
from headscope.errors import InputError
from headscope.models.reference import Block, MultiHeadAttention
from headscope.studies.costs import count_flops, peak, peak_bytes
from headscope.studies.headcount.settings import head_dim_of
from headscope.studies.subjects import LONG, Subject
from headscope.text.batches import Batch

__all__ = [
    "COSTS",
    "KERNELS",
    "MODES",
    "PARTS",
    "Fused",
    "Layout",
    "Scaling",
    "analytic_flops",
    "scale_costs",
    "scale_model",
]

COSTS = (
    "part",
    "against",
    "arm",
    "mode",
    "kernel",
    "length",
    "n_heads",
    "head_dim",
    "round",
    "bytes",
    "flops",
    "analytic",
)
MODES = ("inference", "training")
KERNELS = ("eager", "sdpa")
_SHORTEST, _QUICKEST = 8, 256  # tokens that a whole model is timed on, and the longest of a quick look
_MOST_REPEATS, _ENOUGH = 5, 0.05  # repeats of one timing, and seconds after which there are no more

PARTS = ("attention", "block")  # a layer of attention alone, and with norms and the layer after it


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What is timed.

    Attributes:
        width: of the residual stream.
        lengths: tokens, at `heads` heads.
        heads: heads at which lengths are compared.
        counts: numbers of heads, at `length` tokens.
        length: tokens at which numbers of heads are compared.
        head_dim: dimensions of a head in the arm where they are fixed; width / heads without it.
        rounds: how often each is timed, at least 2; each round gives one exponent.
        device: where.
        seed: of weights and tokens.
    """

    width: int = 512
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    heads: int = 8
    counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    length: int = 512
    head_dim: int | None = None
    rounds: int = 10
    device: str = "cpu"
    seed: int = 0

    @property
    def facts(self) -> dict[str, Any]:
        """What tables say of it: the settings, and the machine that is timed."""
        return {"settings": vars(self), "machine": machine(self.device)}

    def __post_init__(self) -> None:
        if self.rounds < 2 or len(self.lengths) < 2 or len(self.counts) < 2:
            raise InputError("a fit takes at least 2 rounds, 2 lengths and 2 numbers of heads")
        for n_heads in (self.heads, *self.counts):
            head_dim_of("width", n_heads, self.width, 1)

    @classmethod
    def quick(cls) -> "Scaling":
        """A narrower layer, shorter and fewer rounds: a minute."""
        return cls(width=128, lengths=(64, 128, 256, 512), counts=(1, 4, 16), length=256, rounds=5)

    @classmethod
    def large(cls, device: str = "cuda") -> "Scaling":
        """Sizes that keep a GPU busy: up to 16,384 tokens; 80 GB."""
        return cls(lengths=(256, 512, 1024, 2048, 4096, 8192, 16384), length=4096, device=device)

    @property
    def fixed_dim(self) -> int:
        """Dimensions of a head in the arm where they are fixed."""
        return self.width // self.heads if self.head_dim is None else self.head_dim


@dataclass(frozen=True)
class Layout:
    """One layer on one input.

    Attributes:
        part, against, arm: see `scale_costs`.
        mode, kernel: how it is run.
        length, n_heads, head_dim: its size.
    """

    part: str
    against: str
    arm: str
    mode: str
    kernel: str
    length: int
    n_heads: int
    head_dim: int


def scale_costs(scaling: Scaling | None = None, progress: Progress | None = None) -> pd.DataFrame:
    """Time, memory and operations of a layer of attention, and of a whole block.

    Args:
        scaling: what is timed.
        progress: told of each timing.

    Returns:
        A row for each layout and round: part ("attention", "block"), against ("length", "heads"), arm ("width": heads
        share the width; "head_dim": each has the same dimensions), mode ("inference", "training": forward and
        backward), kernel ("eager": every map is written out; "sdpa": torch's fused one), length, n_heads, head_dim,
        round, seconds, bytes (most that is alive at once beyond weights and input: on the CPU tensors, see
        `headscope.studies.costs.peak_bytes`; on a GPU what its allocator counts), flops (counted by torch) and analytic
        (see `analytic_flops`).
    """
    scaling = Scaling() if scaling is None else scaling
    layouts = list(_layouts(scaling))
    runs = [_runner(layout, scaling) for layout in layouts]
    fixed = [_fixed(layout, run, scaling) for layout, run in zip(layouts, runs, strict=True)]
    rows = []
    for number in range(scaling.rounds):  # in turns, so that a slow minute falls on all alike
        for layout, run, own in zip(layouts, runs, fixed, strict=True):
            rows.append({**vars(layout), "round": number, "seconds": _time(run, scaling.device), **own})
            if progress is not None:
                progress("timings", 1, scaling.rounds * len(layouts))
    return pd.DataFrame(rows)


def scale_model(subject: Subject) -> pd.DataFrame:
    """Time, memory and operations of a whole model, in inference, against length.

    Its own text is repeated and cut to length. A model of transformers is run with each kernel that it takes, any
    other as it is ("eager").

    Args:
        subject: the model and its text.

    Returns:
        Columns as of `scale_costs`, part "model" and nothing analytic; pair, the operations of one query with one key
        in all heads of all layers: 2 · (head_dim + value_dim) a head, for q · k and for the weight · v; masks, those of
        the bytes that are masks of truth values (NaN on a GPU); and last, whether the language head made logits of the
        last position alone, as it does when text is generated.

    Raises:
        InputError: its input is no row of tokens.
    """
    model = subject.model
    if any(value.ndim != 2 for value in subject.few.values()):
        raise InputError("the model's input is no row of tokens, so that its length cannot be varied")
    longest = _longest(subject)
    lengths = sorted(longest // 2**times for times in range(6) if longest // 2**times >= _SHORTEST)
    if len(lengths) < 2:
        raise InputError(f"the model takes {longest} tokens at most: too few to see how costs grow")
    rounds, device = (3 if subject.quick else 8), str(device_of(model))
    texts = {length: subject.stretched(length) for length in lengths}
    readout = _readout(model, texts[lengths[0]])
    runs = {length: partial(run_model, model, text, **readout) for length, text in texts.items()}
    site, rows = subject.anatomy.sites[0], []
    pair = sum(2 * own.n_heads * (own.head_dim + own.value_dim) for own in subject.anatomy.sites)
    with evaluating(model), torch.no_grad():
        kernels = _kernels(model, runs[lengths[0]])
        held = {}
        for kernel in kernels:
            with _using(model, kernel):
                for length, run in runs.items():
                    held[kernel, length] = {**_held(run, device), "flops": count_flops(run), "analytic": nan}
        for number in range(rounds):
            for kernel in kernels:
                with _using(model, kernel):
                    seconds = {length: _time(run, device) for length, run in runs.items()}
                rows += [
                    {
                        "part": "model", "against": "length", "arm": "width", "mode": "inference", "kernel": kernel,
                        "length": length, "n_heads": site.n_heads, "head_dim": site.head_dim, "round": number,
                        "seconds": taken, **held[kernel, length], "pair": pair, "last": float(bool(readout)),
                    }
                    for length, taken in seconds.items()
                ]  # fmt: skip
    return pd.DataFrame(rows)


def analytic_flops(layout: Layout, width: int) -> int:
    """Operations of a layout's matrix products as one counts them by hand, a multiply-add being two.

    T tokens, h heads of d dimensions, width w: the four projections take 8·T·w·h·d, scores and weighted means 4·T²·h·d,
    a block's two further layers 16·T·w²; training does each product's two gradients too, three times as much in all,
    but for the gradient of the input, which nobody asks for; a fused kernel makes the scores again on the way back.
    """
    tokens, inner = layout.length, layout.n_heads * layout.head_dim
    projections, maps = 8 * tokens * width * inner, 4 * tokens**2 * inner
    behind = 16 * tokens * width**2 if layout.part == "block" else 0
    if layout.mode == "inference":
        return projections + maps + behind
    again = maps // 2 if layout.kernel == "sdpa" else 0
    unasked = 0 if layout.part == "block" else 6 * tokens * width * inner  # of attention alone the input is no weight's
    return 3 * (projections + maps + behind) + again - unasked


def _layouts(scaling: Scaling) -> Iterator[Layout]:
    sizes = [("length", "width", length, scaling.heads, scaling.width // scaling.heads) for length in scaling.lengths]
    sizes += [
        ("heads", arm, scaling.length, n_heads, head_dim_of(arm, n_heads, scaling.width, scaling.fixed_dim))
        for arm in ("width", "head_dim")
        for n_heads in scaling.counts
    ]
    return (
        Layout(part, against, arm, mode, kernel, length, n_heads, head_dim)
        for against, arm, length, n_heads, head_dim in sizes
        for part in PARTS
        for mode in MODES
        for kernel in KERNELS
    )


def _runner(layout: Layout, scaling: Scaling) -> Callable[[], None]:
    """One forward pass, or one forward and backward pass."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(scaling.seed)
        x = torch.randn(1, layout.length, scaling.width).to(scaling.device)
        block = Block(scaling.width, layout.n_heads, layout.head_dim, causal=False)
    if layout.kernel == "sdpa":
        block.attention = Fused.of(block.attention)
    layer = (block if layout.part == "block" else block.attention).to(scaling.device)

    def infer() -> None:
        with torch.no_grad():
            layer(x)

    def train() -> None:
        layer(x).sum().backward()
        layer.zero_grad(set_to_none=True)

    return infer if layout.mode == "inference" else train


class Fused(MultiHeadAttention):
    """The same attention by torch's fused kernel: no map is ever written out."""

    @classmethod
    def of(cls, attention: MultiHeadAttention) -> MultiHeadAttention:
        """With the same weights."""
        width = attention.query.in_features
        fused = cls(width, attention.query.out_features // attention.head_dim, attention.head_dim)
        fused.load_state_dict(attention.state_dict())
        return fused

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        z = scaled_dot_product_attention(*self.project(x), attn_mask=mask)
        return self.output(z.transpose(1, 2).flatten(2))


def _fixed(layout: Layout, run: Callable[[], None], scaling: Scaling) -> dict[str, int]:
    """What is the same in every round."""
    held = peak_bytes(run) if scaling.device == "cpu" else _allocated(run)
    return {"bytes": held, "flops": count_flops(run), "analytic": analytic_flops(layout, scaling.width)}


def _held(run: Callable[[], Any], device: str) -> dict[str, float]:
    """Most bytes alive at once, and what of them are masks, where that can be told."""
    return vars(peak(run)) if device == "cpu" else {"bytes": _allocated(run), "masks": nan}


def _allocated(run: Callable[[], None]) -> int:
    """What the GPU's allocator counts beyond what stood before."""
    run()  # libraries take their workspaces on first use
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _time(run: Callable[[], Any], device: str) -> float:
    """Seconds of one run: the least of five, or of fewer where those take more than 50 ms in all."""
    least, spent = float("inf"), 0.0
    for _ in range(_MOST_REPEATS):
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        least, spent = min(least, seconds), spent + seconds
        if spent > _ENOUGH:
            break
    return least


def _kernels(model: nn.Module, run: Callable[[], Any]) -> list[str]:
    """Those that a model runs with; of one that is not of transformers, its own alone."""
    if not isinstance(model, PreTrainedModel):
        return ["eager"]
    found = []
    for kernel in KERNELS:
        try:
            with _using(model, kernel):
                run()
        except (ValueError, ImportError, NotImplementedError):
            continue  # transformers refuses kernels that an architecture was not written for
        found.append(kernel)
    return found


@contextmanager
def _using(model: nn.Module, kernel: str) -> Iterator[None]:
    """With another kernel; as it is where it is no model of transformers."""
    if not isinstance(model, PreTrainedModel):
        yield
        return
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(kernel)
        yield
    finally:
        model.set_attn_implementation(before)


def _readout(model: nn.Module, text: Batch) -> dict[str, Any]:
    """What keeps a language model from reading out every position, whose cost is the vocabulary's."""
    return last_logits(model, text) if isinstance(model, PreTrainedModel) else {}


def _longest(subject: Subject) -> int:
    """How many tokens a model is given at the most, a power of two.

    What it says it takes; of one that says nothing, if it is no model of transformers, what its text has.
    """
    own = LONG if isinstance(subject.model, PreTrainedModel) else max(v.shape[1] for v in subject.few.values())
    return int(2 ** int(log2(min(subject.most_tokens or own, _QUICKEST if subject.quick else LONG))))
