"""Cuts: single edges of an attention map taken out, and what that does to the model's output and to its metric."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope._support.running import run_model
from headscope.anatomy.masks import with_kept
from headscope.effects.ablation import transform_outputs
from headscope.errors import AnatomyError
from headscope.sites import Site, heads_read
from headscope.studies.subjects import Subject
from headscope.studies.tasks import inputs
from headscope.text.batches import Batch
from headscope.watching.observation import Captured

__all__ = ["Cuts", "Place", "exchanged", "single_rows"]

LEAST_KEYS = 5  # of a query, whose ranks are told
_MOST_TOKENS = 48
_CHUNK = 8  # edges that are cut in one batch


@dataclass(frozen=True, eq=False)
class Cuts:
    """What each of several cuts does, one at a time.

    Attributes:
        length: of the change of the model's output, in its unit; 0 or more.
        target: change of what the model is judged by, in the metric's unit; above 0 where the cut harms.
    """

    length: Float[np.ndarray, " cut"]
    target: Float[np.ndarray, " cut"]


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
class Place:
    """One query of one head, and the keys that it looks at.

    Attributes:
        site, head, query: where: the head by its place in the site.
        row: what the model reads.
        weights: of the map, each above 0 and below 1.
        values: of the same keys.
        z: what the head makes of them all.
    """

    site: Site
    head: int
    query: int
    row: Batch
    weights: Float[Tensor, " key"]
    values: Float[Tensor, "key value_dim"]
    z: Float[Tensor, " value_dim"]

    @classmethod
    def draw(
        cls,
        seen: Mapping[int, Captured],
        sites: Sequence[Site],
        row: Batch,
        rng: np.random.Generator,
        taken: Collection["Place"] = (),
    ) -> "Place | None":
        """Somewhere else than the places that are taken; None where no further query of the head has enough keys."""
        site = sites[int(rng.integers(len(sites)))]
        head = int(rng.integers(site.n_heads))
        own = seen[site.layer]
        pattern, v = own.pattern[0, head], own.v[0]
        value_head = heads_read(len(v), site.kv_of_query)[head]
        queries = torch.nonzero((pattern > 0).sum(-1) >= LEAST_KEYS).flatten().tolist()
        if not queries:
            return None
        query, others = int(rng.choice(queries)), {one.query for one in taken if (one.site, one.head) == (site, head)}
        if query in others:  # drawn again among the rest, so that any is as likely as another
            if not (rest := [one for one in queries if one not in others]):
                return None
            query = int(rng.choice(rest))
        keys = torch.nonzero((pattern[query] > 0) & (pattern[query] < 1)).flatten()
        return cls(site, head, query, row, pattern[query, keys], v[value_head][keys], own.z[0, head, query])

    def lengths(self, weight: Float[Tensor, "width value_dim"]) -> Float[np.ndarray, " key"]:
        """Of what each key's value contributes, by W_O of the head."""
        lengths: np.ndarray = (self.values.double().cpu() @ weight.T).norm(dim=1).numpy()
        return lengths

    def cut(self, subject: Subject, orders: Sequence[Int[np.ndarray, " key"]]) -> list[Cuts]:
        """What cutting each edge does: the key's weight becomes 0, and the others sum to 1 again.

        Args:
            subject: the model.
            orders: for each key, that whose value the cut is made with; every edge is cut once for each of them.
        """
        # without the key, the others sharing its weight
        weight = self.weights.repeat(len(orders))[:, None]
        values = self.values[torch.from_numpy(np.concatenate(orders))]
        moved = (self.z - weight * values) / (1 - weight)
        metric, row = subject.judged_by, with_kept(subject.model, subject.anatomy, self.row)
        # all at once, or one by one where a metric is measured so
        size = _CHUNK // len(list(metric.parts([_repeated(row, _CHUNK)])))
        many = _repeated(row, size)
        lengths, targets = [], []
        with subject.running():
            given = metric.inputs(subject.model, many)
            # as many rows as in every other run: rounding differs with their number, and would count as a change
            intact = run_model(subject.model, given)
            output, value = _last(intact), metric.measure(intact, many, intact)
            for some in moved.split(size):
                filled = torch.cat([some, self.z.expand(size - len(some), -1)])
                with transform_outputs(subject.model, subject.anatomy, {self.site.layer: self._replacing(filled)}):
                    after = run_model(subject.model, given)
                change = (_last(after) - output).flatten(1).norm(dim=1)
                harm = metric.measure(after, many, intact) - value
                lengths.append(change[: len(some)].numpy())
                targets.append(harm[: len(some)].detach().double().cpu().numpy())
        parts = (np.split(np.concatenate(some), len(orders)) for some in (lengths, targets))
        return [Cuts(*one) for one in zip(*parts, strict=True)]

    def _replacing(self, moved: Float[Tensor, "row value_dim"]) -> Any:
        """What puts another output of the head in place of its own at the query, another one in each row."""
        assert self.site.output is not None
        columns = list(self.site.output.heads[self.head])

        def replace(entering: Tensor) -> Tensor:
            entering = entering.clone()
            entering[:, self.query, columns] = moved.to(entering.dtype)
            return entering

        return replace


def exchanged(size: int, rng: np.random.Generator) -> Int[np.ndarray, " key"]:
    """Every place sent to another one, by a turn of a random order."""
    order = rng.permutation(size)
    sent = np.empty(size, dtype=np.int64)
    sent[order] = np.roll(order, 1)
    return sent


def _repeated(row: Batch, times: int) -> dict[str, Any]:
    return {name: value.expand(times, *value.shape[1:]) for name, value in row.items()}


def _last(output: object) -> Tensor:
    """The model's output as one tensor: logits, or the last hidden state."""
    for name in ("logits", "last_hidden_state"):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found.detach().float().cpu()
    if isinstance(output, Tensor):
        return output.detach().float().cpu()
    raise AnatomyError("the model's output is no tensor, and has neither logits nor last_hidden_state")
