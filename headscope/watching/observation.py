"""Watching a model run: `capture` to look at tensors, `observe` to run statistics over text in one pass."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from headscope._support.objects import OWN_BATCHES
from headscope._support.progress import Progress, n_steps
from headscope._support.running import evaluating, handed, last_logits, run_model
from headscope.anatomy import anatomy_of
from headscope.anatomy.masks import masks_of, with_kept
from headscope.errors import AnatomyError, InputError, UnknownNameError
from headscope.sites import Anatomy, Site
from headscope.statistics import Statistic
from headscope.statistics.arrivals import OTHER
from headscope.tables import settle_tokens
from headscope.text.batches import Batch, document_ids
from headscope.text.feeding import Batches, feed
from headscope.watching.delivering import Delivery
from headscope.watching.hooks import TENSORS, SiteTensors, watch

__all__ = ["Captured", "Observed", "Seen", "capture", "check_any", "observe"]


class Captured:
    """The tensors of one site, by attribute: `.q`, `.pattern` …; one that was not asked for says so."""

    def __init__(self, site: Site, tensors: SiteTensors) -> None:
        self.site = site
        self.tensors = tensors

    def __getattr__(self, name: str) -> Tensor:
        if name not in TENSORS:
            raise AttributeError(f"there is no tensor named {name!r}; there are: {', '.join(TENSORS)}")
        try:
            return self.tensors[name]
        except KeyError:
            raise AttributeError(
                f"{name!r} was not captured at layer {self.site.layer}; captured: {', '.join(self.tensors)}; "
                "ask for it with want="
            ) from None


class Seen(Mapping[int, Captured]):
    """What the last forward pass showed, by layer number."""

    def __init__(self) -> None:
        self._sites: dict[int, Captured] = {}

    def __getitem__(self, layer: int) -> Captured:
        try:
            return self._sites[layer]
        except KeyError:
            have = ", ".join(map(str, self._sites)) or "none: the model has not run inside the context"
            raise UnknownNameError(f"layer {layer} was not captured; captured: {have}") from None

    def __iter__(self) -> Iterator[int]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


@contextmanager
def capture(
    model: nn.Module,
    want: Collection[str] = ("q", "k", "v", "pattern", "z", "contribution"),
    layers: Collection[int] | None = None,
    *,
    example: Any = None,
    anatomy: Anatomy | None = None,
    gradients: bool = False,
) -> Iterator[Seen]:
    """Look at per-head tensors of a model's own forward passes.

    Nothing about the model is switched: it runs the attention kernel it would have run, and is bit-identical
    afterwards, also when its forward raised. Works under `no_grad`, `inference_mode` and during `generate` (where the
    last forward is the last token's). In evaluation mode with gradients q, k, v and z lie on the model's own graph, and
    so does the map where the model makes one (eager attention): `torch.autograd.grad(out.logits.sum(),
    seen[3].pattern)`.

    Args:
        model: the model that will be run inside the context.
        want: which tensors, by name:
            q (batch, head, query, head_dim); k (batch, key head, key, head_dim); v (batch, value head, key, value_dim);
            pattern (batch, head, query, key): after mask and bias, before dropout, rows sum to 1 (less with a sink);
            bias, broadcastable to the pattern: what is added to scaling·q·kᵀ before the softmax (a model that caps its
            scores, as Gemma 2 does, does more than add);
            z (batch, head, query, value_dim) = pattern·v, before any gate; gated_z: after it;
            contribution (batch, head, query, width): what the head adds to the output projection's output; their sum
            and the projection's bias are that output; written (batch, head, query, value_dim): the same in coordinates
            of the head's own, R·gated_z with Q·R = W_O: lengths and angles within a head are those of contributions.
        layers: site numbers; all by default.
        example: for the probe, if the model cannot say what it takes.
        anatomy: skips the probe.
        gradients: whether gradients go through the captured map also where the model's kernel has none (sdpa): its
            outputs stay the same bits, its gradients are the same up to rounding.

    Yields:
        A mapping from site number to its tensors, e.g. `seen[3].q`, filled by each forward pass anew.

    Raises:
        UnknownNameError: a tensor or layer that does not exist.
        AnatomyError: no attention was found, or none was heard though the model ran; or contributions were asked of a
            site whose heads are entangled there.
    """
    anatomy = anatomy_of(model, example, anatomy)
    seen, ran = Seen(), False
    sites = anatomy.sites if layers is None else tuple(anatomy.site(layer) for layer in layers)

    def receive(site: Site, tensors: SiteTensors) -> None:
        seen._sites[site.layer] = Captured(site, tensors)

    def begin() -> None:
        nonlocal ran
        ran = True
        seen._sites.clear()

    with watch(model, sites, want, receive, on_forward=begin, through=gradients):
        yield seen
    if ran and sites and not seen:
        raise AnatomyError(
            f"{type(model).__name__} ran, and none of its attention layers was heard: {_layers(sites)}; was the "
            "anatomy made for another model, or with another input?"
        )


@dataclass(frozen=True)
class Observed:
    """What a pass went over: documents (or rows) with a position that counts, these positions, batches.

    Attributes:
        n_tokens: positions of the site that runs first; other sites of an encoder-decoder see others.
        tokens: positions of each tensor, by the layer's number and the tensor's name.
        unmatched: layers whose positions no mask fits, though there is padding; with how many they have.
    """

    n_documents: int
    n_tokens: int
    n_batches: int
    tokens: Mapping[tuple[int, str], int] = field(default_factory=dict)
    unmatched: Mapping[int, int] = field(default_factory=dict)

    def facts(self, of: str) -> dict[str, Any]:
        """What a table says of numbers about a tensor: documents, tokens; layer_tokens where layers differ in them."""
        return settle_tokens(self.raw_facts(of))

    def raw_facts(self, of: str) -> dict[str, Any]:
        """The same with layer_tokens in any case, so that facts of several passes can be joined."""
        own = {str(layer): n for (layer, name), n in self.tokens.items() if name == of and layer < OTHER}
        odd = [str(layer) for layer in self.unmatched if layer < OTHER]
        told = {"caution": _UNMATCHED.format(", ".join(odd))} if odd else {}
        return {"documents": self.n_documents, "tokens": self.n_tokens, "layer_tokens": own, **told}


_UNMATCHED = (
    "layers {}: it was not proven which positions are padding (pictures, prompts before the text, a length filled up); "
    "those count that a mask of as many positions keeps, and all where there is none; "
    '"kept" in the batches, (row, position), says which do'
)


def observe(
    model: nn.Module,
    batches: Batches,
    statistics: Sequence[Statistic],
    *,
    anatomy: Anatomy | None = None,
    other: tuple[nn.Module, Anatomy] | None = None,
    skip_first: int = 0,
    progress: Progress | None = None,
) -> Observed:
    """Run a model over batches once and feed every statistic; memory does not grow with the text.

    Padding does not count, nor do the first `skip_first` positions of each row. Nothing is assumed of the order in
    which sites run.

    Args:
        model: run in evaluation mode, without gradients; left as it was.
        batches: dicts of tensors as the model takes them, with an optional "document" (batch,).
        statistics: fed in place.
        anatomy: skips the probe.
        other: a second model that is run on the same batches, and its anatomy; its layers are counted from
            `headscope.statistics.arrivals.OTHER` on.
        skip_first: of the positions of each row that count, how many at its start do not (attention sinks).
        progress: told of each batch.

    Returns:
        How many documents, positions and batches were seen; the sums are in the statistics.

    Raises:
        InputError: no batch, no statistic, or no position that counts.
        NumericalError: NaN or infinity in a tensor at a position that counts; the message names the layer.
    """
    if not statistics:
        raise InputError("observe takes at least one statistic")
    if not isinstance(skip_first, int) or skip_first < 0:
        raise InputError(f"skip_first is a whole number of positions, from 0; it was {skip_first!r}")
    want = frozenset().union(*(statistic.needs for statistic in statistics))
    told = feed(model, batches, again=False)
    one_by_one, total = iter(told), n_steps(told)
    first = next(one_by_one, None)
    if first is None:
        raise InputError("there is no batch to observe")
    anatomy = anatomy_of(model, first, anatomy)
    check_any(anatomy)
    watched = [(model, anatomy.sites)]
    if other is not None:
        watched.append((other[0], tuple(replace(site, layer=OTHER + site.layer) for site in other[1].sites)))
    delivery, n_batches = Delivery(statistics, skip_first), 0
    for given, documents in document_ids(chain([first], one_by_one)):
        batch = with_kept(model, anatomy, given)
        delivery.start(batch, documents, n_batches, None if "kept" in given else masks_of(model, anatomy, given))
        for statistic in statistics:
            statistic.begin_batch(handed(model, batch))
        for network, sites in watched:
            _run_watched(network, sites, batch, want, delivery)
        for statistic in statistics:
            statistic.end_batch()
        delivery.finish()
        n_batches += 1
        if progress is not None:
            progress("watching", 1, total)
    return _observed(delivery, anatomy, n_batches, skip_first)


def check_any(anatomy: Anatomy) -> None:
    """Refuse an anatomy of which no layer is left for what is asked.

    Raises:
        InputError: none is.
    """
    if not anatomy.sites:
        raise InputError(
            f"none of the attention layers of {anatomy.model_class} can be taken for this: {'; '.join(anatomy.remarks)}"
        )


def _observed(delivery: Delivery, anatomy: Anatomy, n_batches: int, skip_first: int) -> Observed:
    idle = [site for site in anatomy.sites if not any(layer == site.layer for layer, _ in delivery.tokens)]
    if idle:
        raise InputError(
            f"{_layers(idle)} of {anatomy.model_class} did not run on these batches, though the anatomy has them",
            python="bring batches with what they read (pictures, say), or leave them out: pass anatomy= with the other "
            "sites",
            shell=f"what they read (pictures, say) comes in batches: {OWN_BATCHES}",
        )
    if delivery.n_tokens == 0:
        raise InputError(
            f"no position counts in {n_batches} batches past the first {skip_first} of a row; bring longer text"
        )
    return Observed(len(delivery.documents), delivery.n_tokens, n_batches, delivery.tokens, delivery.unmatched)


def _layers(sites: Sequence[Site]) -> str:
    return f"layer{'s' * (len(sites) > 1)} {', '.join(f'{site.layer} ({site.module_name})' for site in sites)}"


def _run_watched(
    model: nn.Module, sites: tuple[Site, ...], batch: Batch, want: Collection[str], delivery: Delivery
) -> None:
    with evaluating(model), torch.no_grad(), watch(model, sites, want, delivery.take):
        run_model(model, batch, **last_logits(model, batch))
