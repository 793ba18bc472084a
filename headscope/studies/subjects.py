"""Subjects of claims: a trained model and its text, and what several claims need of both, measured once."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import log2
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headscope._support.formatting import count
from headscope._support.running import LABELS, evaluating, run_model
from headscope.anatomy import discover
from headscope.anatomy.untrained import untrained_copy
from headscope.anatomy.weights import output_weights
from headscope.effects.metrics import Metric, UserMetric
from headscope.effects.resolving import resolve_metric
from headscope.effects.sweep import Effects, head_effects
from headscope.errors import AnatomyError, HeadscopeError, InputError, ModelError
from headscope.likeness.nulls import random_tokens, unmoved_layers
from headscope.scoring.rating import head_table
from headscope.scoring.scores import SCORES, Rating
from headscope.scoring.scores.replaceability import rate_replaceability
from headscope.sites import Anatomy
from headscope.statistics.grouped import by_layer
from headscope.statistics.moments import Moments
from headscope.statistics.pair_sums import PairSums
from headscope.statistics.pattern_divergence import PatternDivergence
from headscope.statistics.summed_moments import SummedMoments
from headscope.statistics.swapped_moments import Swapped, SwappedMoments
from headscope.studies.layers import kind_of
from headscope.studies.reach import Reach, declared_window, reaches
from headscope.studies.tasks import inputs
from headscope.studies.tasks.language import Language
from headscope.studies.training import one_thread, train
from headscope.tables import HeadTable
from headscope.text.batches import Batch, digest, encoded_lengths, row_lengths, token_names
from headscope.text.splits import sample_batches
from headscope.verdict.gathering import Evidence
from headscope.verdict.preparation import affordable_tokens, stated_positions
from headscope.watching.observation import Captured, capture, observe

__all__ = ["DRAWS", "LONG", "Subject", "reference_subjects"]

_HEADS, _HEAD_DIM, _RATE = 8, 8, 0.01  # of the reference that claims are asked of; the rate as a full sweep chose it
DRAWS = 3  # of untrained copies: as many as show how far they are apart
_FEW = 4  # rows that are looked at tensor by tensor
LONG = 2048  # tokens of the longest text that a model is given
# what may be repeated to make a text longer: positions say, repeated, would tell of several texts in a row
_REPEATED = {"input_ids", "attention_mask", "token_type_ids", "decoder_input_ids", "decoder_attention_mask", *LABELS}
_MAP_TOKENS = 16_384  # of the rows that maps are made for


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that claims are asked of.

    Attributes:
        name: what it is called.
        model: the model.
        batches: its text.
        metric: what heads are judged by; see `headscope.importance`.
        seed: of every draw.
        quick: look at less.
        evidence: of an analysis of the same model on the same text, where it was made already.
        known: its anatomy, likewise.
        draws: how many untrained copies of it stand beside what is measured.
        about: what it is, in a few words; its class without it.
        text: what its text is, in a few words, to follow "documents".
    """

    name: str
    model: nn.Module
    batches: Sequence[Batch]
    metric: str | Metric | Callable[..., Tensor] = "auto"
    seed: int = 0
    quick: bool = False
    evidence: Evidence | None = None
    known: Anatomy | None = None
    draws: int = DRAWS
    about: str = ""
    text: str = ""

    @cached_property
    def anatomy(self) -> Anatomy:
        """Where its heads are."""
        return self.known or discover(self.model, self.batches[0])

    @cached_property
    def judged_by(self) -> Metric:
        """What heads are judged by."""
        return resolve_metric(self.metric, self.model, self.anatomy, self.batches[0])

    @cached_property
    def sample(self) -> Sequence[Batch]:
        """Rows for what costs a forward pass for each head."""
        most = affordable_tokens(self.model, self.anatomy)
        if self.judged_by.is_distance:  # which takes no logits, often the most of a pass
            most *= 2
        return sample_batches(self.batches, most // 2 if self.quick else most, self.seed)

    @cached_property
    def few(self) -> Batch:
        """A few rows of equal standing, to be looked at tensor by tensor."""
        first = self.batches[0]
        rows = len(next(iter(inputs(first).values())))
        return {
            name: value[:_FEW] if isinstance(value, Tensor) and value.ndim and len(value) == rows else value
            for name, value in inputs(first).items()
        }

    @property
    def most_tokens(self) -> int | None:
        """The longest row that the model says it takes, a power of two, 2,048 at the most; None where it says nothing.

        RoBERTa and its kin reserve two of the positions that they state: a power of two that they state is too long.
        """
        stated = stated_positions(self.model)
        return None if stated is None else int(2 ** int(log2(min(stated, LONG))))

    def stretched(self, length: int) -> Batch:
        """One row of its text, without padding, repeated and cut to a length.

        Labels go along where a decoder reads them, and only there: a loss asks for logits at every position.

        Args:
            length: tokens.

        Raises:
            InputError: every row is padding alone.
        """
        decodes = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        given = {name: value for name, value in self.few.items() if decodes or name not in LABELS}
        n_rows = min(len(value) for value in given.values())
        rows = [{name: value[row : row + 1] for name, value in given.items()} for row in range(n_rows)]
        unpadded = [{name: _unpadded(row, name) for name in row} for row in rows]
        kept = max(unpadded, key=lambda row: min(value.shape[1] for value in row.values()))
        if not min(value.shape[1] for value in kept.values()):
            raise InputError("the rows are padding alone: their masks keep no position")
        return {name: value.repeat(1, -(-length // value.shape[1]))[:, :length] for name, value in kept.items()}

    @cached_property
    def reach(self) -> Mapping[int, Reach]:
        """Which pairs of tokens each layer's mask leaves, by layer, in the longest text that it can be asked on.

        That is `stretched` to what the model says it takes. Where it says nothing or fails there, or its input is no
        row of tokens, it is the few rows as they are.
        """
        anatomy = self.anatomy.having("bias", "pattern")
        found = reaches(self.model, anatomy, self.few)
        repeatable = {*self.few} <= _REPEATED and all(value.ndim == 2 for value in self.few.values())
        if self.most_tokens is None or not repeatable:
            return found
        try:
            further = reaches(self.model, anatomy, self.stretched(self.most_tokens))
        except HeadscopeError:  # it takes less than it says; how long the rows were is told with what they show
            return found
        return {n: max(own, further.get(n, own), key=lambda one: one.tokens) for n, own in found.items()}

    @property
    def unseen_window(self) -> int:
        """Tokens of the longest window that the model declares, if masks were seen on no longer row; 0 otherwise.

        See `declared_window`.
        """
        declared = declared_window(self.model)
        return declared if declared >= max((own.tokens for own in self.reach.values()), default=0) else 0

    def kind(self, layer: int) -> str:
        """The kind of a layer as claims call it: by its mask where that can be had, else by its site."""
        return self.reach[layer].kind if layer in self.reach else kind_of(self.anatomy.site(layer))

    @property
    def idle_window(self) -> tuple[int, int]:
        """Tokens of the longest window, seen or declared, than which no row is longer, and of the longest such row.

        Rows are those of the window's side, where an encoder and a decoder read different ones; (0, 0) without one.
        """
        rows = {site.layer: self._longest_row(site.kind) for site in self.anatomy.sites}
        seen = [(own.farthest, rows[layer]) for layer, own in self.reach.items() if own.kind == "windowed"]
        found = [*seen, (self.unseen_window, max(rows.values()))]
        return max(((window, longest) for window, longest in found if window >= longest), default=(0, 0))

    def _longest_row(self, kind: str) -> int:
        """Tokens of the longest row on the side of such sites; of what is no text, positions of the few rows."""
        if not token_names(self.few):
            return max((own.tokens for own in self.reach.values()), default=0)
        decodes = kind in ("causal", "cross")
        return max(int((row_lengths(one) if decodes else encoded_lengths(one)).max()) for one in self.batches)

    @cached_property
    def effects(self) -> Effects:
        """Exact ablation of every head, row by row."""
        return head_effects(self.model, self.sample, self.judged_by, self.anatomy)

    @cached_property
    def intact(self) -> float:
        """The metric of the intact model on the sample; 0 for a distance."""
        return float(self.effects.intact.mean()) if self.evidence is None else self.evidence.intact

    @cached_property
    def worth(self) -> HeadTable:
        """Exact ablation of every head."""
        if self.evidence is not None:
            return self.evidence.scores["ablation"]
        facts = {"documents": self.effects.n_documents, "tokens": self.effects.n_tokens}
        return head_table(SCORES["ablation"](), self.judged_by.unit, {"effects": self.effects}, self.anatomy, facts)

    @cached_property
    def replaced(self) -> Rating:
        """How much of what varies in each head the rest of its layer gives, with what stands beside it."""
        if self.evidence is not None and "replaceability" in self.evidence.left_out:
            raise AnatomyError(self.evidence.left_out["replaceability"])
        return rate_replaceability(self.moments, self.swapped, output_weights(self.model, self.anatomy.apart))

    @cached_property
    def maps(self) -> Mapping[int, Sequence[PairSums]]:
        """Jensen-Shannon divergences of the maps of each layer's heads, by block of documents, over a sample."""
        return self._maps_on(self.map_sample)

    @cached_property
    def random_maps(self) -> Mapping[int, Sequence[PairSums]]:
        """The same on random tokens; only layers whose maps tokens can change, and none of a model that takes none."""
        try:
            drawn = random_tokens(self.model, self.anatomy, self.map_sample, self.seed)
        except InputError:
            return {}
        unmoved = unmoved_layers(self.model, self.anatomy, self.map_sample, drawn)
        return {layer: blocks for layer, blocks in self._maps_on(drawn).items() if layer not in unmoved}

    def _maps_on(self, batches: Sequence[Batch]) -> Mapping[int, Sequence[PairSums]]:
        alike = PatternDivergence()
        observe(self.model, batches, [alike], anatomy=self.anatomy.having("pattern"))
        return by_layer(alike.compute())

    @cached_property
    def map_sample(self) -> Sequence[Batch]:
        """Rows for what maps are made for."""
        return sample_batches(self.batches, _MAP_TOKENS // 4 if self.quick else _MAP_TOKENS, self.seed)

    @property
    def untrained(self) -> tuple["Subject", ...]:
        """The same model before training, drawn several times, on the same text; none where nobody can draw it."""
        return self._untrained[0]

    @property
    def why_not_untrained(self) -> str:
        """Why nobody can draw it; "" where somebody can, or where it was not asked for yet."""
        return self._untrained[1] if "_untrained" in vars(self) else ""

    @cached_property
    def _untrained(self) -> tuple[tuple["Subject", ...], str]:
        try:
            made = [untrained_copy(self.model, self.seed + 1 + number, self.anatomy) for number in range(self.draws)]
        except ModelError as error:
            return (), str(error)
        return tuple(replace(self, model=model, evidence=None, known=self.anatomy, draws=0) for model in made), ""

    @cached_property
    def moments(self) -> Mapping[int, Sequence[Moments]]:
        """Second moments of z of each layer, by block of documents."""
        return self._summed[0] if self.evidence is None else self.evidence.moments

    @cached_property
    def swapped(self) -> Mapping[int, Sequence[Swapped]]:
        """The same of heads beside those of other documents, in two halves."""
        return self._summed[1] if self.evidence is None else self.evidence.swapped

    @cached_property
    def _summed(self) -> tuple[Mapping[int, Sequence[Moments]], Mapping[int, Sequence[Swapped]]]:
        layered, swapped = SummedMoments(), SwappedMoments()
        observe(self.model, self.batches, [layered, swapped], anatomy=self.anatomy.apart)
        return by_layer(layered.compute()), swapped.compute()

    @cached_property
    def n_documents(self) -> int:
        """Documents in its text."""
        named = [np.unique(batch["document"]) for batch in self.batches if "document" in batch]
        if len(named) < len(self.batches):
            return sum(len(next(iter(inputs(batch).values()))) for batch in self.batches)
        return len(np.unique(np.concatenate(named)))

    @property
    def text_unit(self) -> str:
        """What a document of its text is: "documents", "passages" or "rows"."""
        if any("document" not in batch for batch in self.batches):
            return "rows"
        return str(getattr(self.batches, "facts", {}).get("unit", "documents"))

    @property
    def over(self) -> str:
        """How much text it has, as "40 documents"."""
        return count(self.n_documents, self.text_unit.removesuffix("s"))

    @property
    def facts(self) -> dict[str, Any]:
        """What it is, as JSON values."""
        return {
            "model": self.name, "model_class": self.anatomy.model_class,
            "about": self.about or self.anatomy.model_class, "fingerprint": self.anatomy.fingerprint,
            "documents": self.n_documents, "text_unit": self.text_unit, "text": self.text,
            "text_sha256": digest(self.batches), "metric": self.judged_by.name, "unit": self.judged_by.unit,
            "seed": self.seed,
        }  # fmt: skip

    @contextmanager
    def running(self) -> Iterator[None]:
        """In evaluation mode, without gradients."""
        with evaluating(self.model), torch.no_grad():
            yield

    def look(
        self, *want: str, batch: Batch | None = None, layers: Collection[int] | None = None
    ) -> dict[int, Captured]:
        """Tensors of layers on a few rows.

        Args:
            want: see `headscope.capture`.
            batch: in place of the few rows.
            layers: their numbers; all by default.
        """
        with self.running(), capture(self.model, want, layers, anatomy=self.anatomy) as seen:
            run_model(self.model, self.few if batch is None else batch)
            return dict(seen)


def _unpadded(row: Batch, name: str) -> Tensor:
    """What a row holds under a name, (row, position), without what the mask of its side leaves out."""
    value: Tensor = row[name]
    mask = row.get("decoder_attention_mask" if name.startswith("decoder_") else "attention_mask")
    return value[:, mask[0].bool()] if mask is not None and mask.shape == value.shape else value


def reference_subjects(seeds: int = 5, quick: bool = False) -> Iterator[Subject]:
    """The reference transformer, trained on text: two causal layers of 8 heads of 8 dimensions, once for each seed.

    Args:
        seeds: how many.
        quick: a third of the steps.
    """
    task = Language()
    batches = task.held_out()

    def loss(output: Any, batch: Batch) -> Tensor:
        return task.loss(output, batch)

    steps = task.steps // 3 if quick else task.steps
    about = (
        f"{task.n_layers} causal layers, {task.width} wide, of {_HEADS} heads of {_HEAD_DIM} dimensions, trained for "
        f"{steps} steps at a learning rate of {_RATE:g} to tell the next byte of Python's documentation"
    )
    text = "of it, held out"
    judged_by = UserMetric(loss, "loss", task.unit)
    for seed in range(seeds):
        with one_thread():
            learner = train(task, _HEADS, _HEAD_DIM, _RATE, seed, steps).learner
        yield Subject("reference", learner, batches, judged_by, seed, quick, about=about, text=text)
