"""Preparation: the model, the text and the budget of an analysis, checked before anything runs."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log2
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from headscope._support.objects import OWN_BATCHES
from headscope._support.running import main_inputs, spelled_inputs, withheld
from headscope.anatomy.untrained import check_null
from headscope.effects.metrics import MaskedLoss, Metric
from headscope.effects.resolving import resolve_metric
from headscope.errors import InputError
from headscope.models.loading import Loaded, load_model, telling_name
from headscope.planning.rises import Rise
from headscope.sites import Anatomy
from headscope.text.batches import Batch, digest
from headscope.text.corpus import text_batches
from headscope.text.feeding import Batches, feed
from headscope.text.sides import sides_of

__all__ = ["Budget", "Source", "affordable_tokens", "prepare", "stated_positions"]

_SWEEP_WORK = 2e12  # heads x parameters x tokens of the plain ablation loop: about a minute on two cores
_LEAST_SETS = 5


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much text an analysis looks at, what is drawn, and what else is asked.

    Attributes:
        length: tokens of a window, specials included; shortened to what the model takes.
        windows: windows of text, spread over the documents; None for all.
        size: windows of a batch.
        held_out: share of the documents that only the verdict is measured on.
        ablation_tokens: positions that the ablation sweep runs on; None for as many as take about a minute on two
            cores, between 1,024 and 2,048. The verdict is measured on up to twice as many.
        passes: forward passes that random sets of heads, which the chosen ones are set against, may take; five sets
            are measured at the least, whatever they take.
        max_loss_rise: what the chosen heads may cost together, in the metric's unit, or relative to the intact model
            as a string; for a distance, which is zero there, "1%" is 0.01.
        seed: of every draw.
        claims: put the paper's claims to the model too; they take longer than all the rest.
        null: "untrained": likeness and replaceability of an untrained copy of the model stand beside its own; another
            pass over the text.
    """

    length: int = 128
    windows: int | None = 256
    size: int = 8
    held_out: float = 0.3
    ablation_tokens: int | None = None
    passes: int = 240
    max_loss_rise: float | str = "1%"
    seed: int = 0
    claims: bool = False
    null: str = ""

    def __post_init__(self) -> None:
        check_null(self.null)
        if not isinstance(self.held_out, Real) or not 0 < self.held_out < 1:
            raise InputError(
                f"held_out is the share of documents kept for the verdict, between 0 and 1, not {self.held_out!r}"
            )
        if not isinstance(self.passes, Integral) or self.passes < 0:
            raise InputError(f"passes is a number of forward passes, at least 0, not {self.passes!r}")
        tokens = self.ablation_tokens
        if tokens is not None and (not isinstance(tokens, Integral) or tokens < 1):
            raise InputError(f"ablation_tokens is a whole number of at least 1, not {tokens!r}")
        rise = Rise.read(self.max_loss_rise)
        given = self.max_loss_rise if isinstance(self.max_loss_rise, str) else str(rise)
        object.__setattr__(self, "max_loss_rise", given if rise.relative else rise.amount)
        object.__setattr__(self, "seed", int(self.seed))

    def random_sets(self, n_batches: int) -> int:
        """How many random sets are measured, where each takes so many forward passes."""
        return max(_LEAST_SETS, self.passes // max(n_batches, 1))


@dataclass(frozen=True, eq=False)
class Source:
    """What is analysed.

    Attributes:
        model: the model.
        name: what it is called.
        batches: the text, or the user's own batches.
        facts: what is known of the model's origin and of the text.
        mask_token_id: the tokenizer's, for a masked-language model; None where it has none.
    """

    model: nn.Module
    name: str
    batches: Sequence[Batch]
    facts: dict[str, Any]
    mask_token_id: int | None = None

    def resolve(self, metric: str | Metric | Callable[..., Tensor], anatomy: Anatomy) -> Metric:
        """The metric that was asked for, told what masks a token; see `headscope.effects.resolving.resolve_metric`."""
        resolved = resolve_metric(metric, self.model, anatomy, self.batches[0])
        if isinstance(resolved, MaskedLoss) and resolved.mask_token_id is None:
            return replace(resolved, mask_token_id=self.mask_token_id)
        return resolved


def prepare(
    model: str | Path | nn.Module | Loaded,
    tokenizer: Any,
    texts: Any,
    batches: Batches | None,
    budget: Budget,
    name: str = "",
) -> Source:
    loaded = None
    if not isinstance(model, nn.Module):
        loaded = model if isinstance(model, Loaded) else load_model(model)
        network, name = loaded.model, name or loaded.name
        tokenizer = loaded.tokenizer if tokenizer is None else tokenizer
        batches = loaded.batches if batches is None and texts is None else batches
    else:
        network, name = model, name or _name(model)
    if _is_texts(batches) and texts is None:
        texts, batches = batches, None
    if batches is not None:
        if texts is not None:
            raise InputError("give texts or batches, not both")
        kept = feed(network, batches)
        if len(kept) == 0:
            raise InputError("there is no batch to analyse")
        own: dict[str, Any] = {
            "text": "batches of the user's own",
            "text_sha256": digest(kept),
            "text_unit": _unit(kept),
            **({"withheld": ", ".join(aside)} if (aside := withheld(network, kept[0])) else {}),
        }
        return Source(network, name, kept, _origin(name, loaded) | own)
    if tokenizer is None:
        raise _nothing_to_read(network, name)
    origin, mask = _origin(name, loaded), getattr(tokenizer, "mask_token_id", None)
    text, facts = _from_text(network, tokenizer, texts, budget)
    return Source(network, name, text, origin | facts, mask)


def _nothing_to_read(model: nn.Module, name: str) -> InputError:
    """What a model without a tokenizer needs: of one that reads pictures or sound alone, no tokenizer."""
    reads, like = main_inputs(model), f"dicts like {spelled_inputs(model)}"
    if getattr(model, "main_input_name", None) is not None and "input_ids" not in reads:
        what = f"{name} reads {', '.join(reads)}, and text alone does not make that"
        return InputError(what, python=f"pass batches= of {like}", shell=f"{OWN_BATCHES}, {like}")
    return InputError(
        f"{name} comes without a tokenizer",
        python=f"pass tokenizer= (and texts=), or batches= of {like}",
        shell=f"save one in the model's folder, or {OWN_BATCHES}, {like}, or (model, tokenizer)",
    )


def _from_text(model: nn.Module, tokenizer: Any, texts: Any, budget: Budget) -> tuple[Sequence[Batch], dict[str, Any]]:
    """Windows of text as the model takes them, and what is known of them."""
    length = min(budget.length, _longest(model))
    corpus = text_batches(
        tokenizer, texts, length=length, size=budget.size, windows=budget.windows, seed=budget.seed, model=model
    )
    known = corpus.facts
    facts = {
        "text": known["source"],
        "text_sha256": known["sha256"],
        "text_unit": known["unit"],
        "documents": known["n_documents"],
        "tokens": known["n_tokens"],
        "window_length": length,
        "windows": known["windows"],
        **sides_of(corpus),
    }
    return corpus, facts


def _origin(name: str, loaded: Loaded | None) -> dict[str, Any]:
    told = {} if loaded is None else {"source": loaded.source, "loaded_by": loaded.options}
    return {"model": name, **{fact: value for fact, value in told.items() if value}}


def _is_texts(batches: Any) -> bool:
    return isinstance(batches, (list, tuple)) and bool(batches) and all(isinstance(one, str) for one in batches)


def _unit(batches: Sequence[Batch]) -> str:
    return "documents" if "document" in batches[0] else "rows"


def _name(model: nn.Module) -> str:
    path = getattr(getattr(model, "config", None), "_name_or_path", "")
    return telling_name(path) or type(model).__name__


def stated_positions(model: nn.Module) -> int | None:
    """Positions that the model's configuration states; None where it states none."""
    config = getattr(model, "config", None)
    stated = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return stated if isinstance(stated, int) and stated > 0 else None


def _longest(model: nn.Module) -> int:
    """Positions that the model takes; RoBERTa and its kin reserve two of the positions that they state."""
    stated = stated_positions(model) or 0
    return stated - 2 if stated > 2 else sys.maxsize


def affordable_tokens(model: nn.Module, anatomy: Anatomy) -> int:
    """Positions for the ablation sweep that take about a minute on two cores, a power of two."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    size = sum(p.numel() for p in model.parameters() if id(p) not in embeddings)
    affordable = _SWEEP_WORK / max(1, anatomy.n_heads * size)
    return int(2 ** min(11, max(10, int(log2(max(affordable, 1))))))
