"""Roles: watch where each head looks, off the sink, and judge it against heads that look anywhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from headscope._support.progress import Progress, part_of
from headscope.anatomy import anatomy_of
from headscope.anatomy.masks import as_read
from headscope.errors import InputError, ModelError
from headscope.head_roles.tables import MIXED, ROLES, RoleExample, RoleTable, Spelled
from headscope.likeness.nulls import random_tokens, unmoved_layers
from headscope.sites import Anatomy
from headscope.statistics.role_examples import BestQueries
from headscope.statistics.role_masses import RoleMasses, RoleSums
from headscope.statistics.role_targets import NO_TOKEN
from headscope.text.batches import Batch, n_rows, token_names
from headscope.text.feeding import Batches, feed
from headscope.text.repetition import kept_of, repeated_sequences
from headscope.text.sides import sides_of
from headscope.text.tokens import Decoder, delimiter_ids, spell
from headscope.uncertainty.intervals import jackknife, why_no_interval
from headscope.watching.observation import observe

__all__ = ["BROAD", "HALF_WAY", "LEANS", "SUNK", "judge", "role_table", "roles"]

Floats = npt.NDArray[np.float64]

SUNK = 0.9  # share of all attention on the sink from which a head is a sink head, whatever it does with the rest
LEANS = 0.5  # and from which it is one if it does nothing clear with the rest
HALF_WAY = 0.5  # how far from chance to 1 a role's score must lie
BROAD = 0.8  # share of the largest entropy from which a head without another role is broad


def roles(
    model: nn.Module,
    batches: Batches,
    tokenizer: Decoder | None = None,
    *,
    anatomy: Anatomy | None = None,
    skip_first: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> RoleTable:
    """What each head looks at, sink aside: the previous token, the same token elsewhere, delimiters and so on.

    Scores are shares of attention, no unit, in [0, 1], taken *off the sink*: of the mass that a head does not leave on
    the first position of a row (and, in models that have one, on a learned sink).

    - previous, next, same: on the position before, after, and on the query's own.
    - duplicate: on other positions that hold the query's token (earlier ones, in a causal layer).
    - induction: on the position after the last earlier occurrence of the query's token, measured on 40 sequences of
      random tokens said twice, in a pass of its own; the tokens are drawn from those of the text.
    - delimiter: on special tokens, punctuation and line breaks.
    - sink: the share of all attention that goes to the sink.
    - broad: entropy of the attention off the sink, as a share of the largest that it could have.

    Each is Σ mass on the target / Σ mass off the sink, over the queries that have such a target; so a query with next
    to nothing off the sink weighs next to nothing. Beside it stands its *chance*: the score of a head with the same
    sink that spreads the rest evenly over the keys that it sees.

    The verdict, first that fits: "sink" from 0.9 of all attention, since what is left is next to nothing; the role that
    lies furthest on the way from chance to 1, (score - chance) / (1 - chance), if it is at least half way and its
    interval (its score, where there is none) lies above chance; "sink" from 0.5; "broad" from 0.8; "mixed".

    Args:
        model: run in evaluation mode, left as it was.
        batches: dicts of tensors as the model takes them, with an optional "document" (batch,).
        tokenizer: to know delimiters and to show examples as text; without it, delimiter is NaN and tokens are numbers.
        anatomy: skips the probe.
        skip_first: queries at the start of each row of the text that do not count.
        seed: of the random sequences.
        progress: told of each batch; see `headscope.Progress`.

    Returns:
        A RoleTable with a row per head. NaN: a role that cannot be, such as "next" in a causal layer, those of
        positions and tokens in a cross layer, or those of tokens in a model that takes none.

    Raises:
        InputError: there is no batch, or no position that counts.

    Source: Voita et al. 2019, arXiv:1905.09418, section 5; Clark et al. 2019, arXiv:1906.04341, section 3; induction
        (prefix matching on repeated random tokens): Olsson et al. 2022, arXiv:2209.11895. The rule is our own.
    """
    kept = feed(model, batches)
    if len(kept) == 0:
        raise InputError("there is no batch to find roles on")
    anatomy = anatomy_of(model, kept[0], anatomy).having("pattern")
    read = as_read(model, anatomy, kept)
    seen = _tokens_of(read)
    delimiters = set() if tokenizer is None else delimiter_ids(tokenizer, seen)
    of_two = any(site.kind == "cross" for site in anatomy.sites)
    tokenless = _tokenless(model, anatomy, kept[0])
    text = RoleMasses(delimiters=sorted(delimiters), of_two=of_two, tokenless=tokenless)
    observed = observe(model, kept, [text], anatomy=anatomy, skip_first=skip_first, progress=progress)
    repeats = RoleMasses(["induction"], of_two=of_two)
    facts = {
        **observed.facts("pattern"),
        **sides_of(kept),
        "skip_first": skip_first,
        "seed": seed,
        "rule": {"sink": SUNK, "half_way": HALF_WAY, "leans_on_sink": LEANS, "broad": BROAD},
    }
    try:
        sequences = repeated_sequences(read, sorted(seen - delimiters), seed, anatomy.padding)
        observe(model, sequences, [repeats], anatomy=anatomy, progress=part_of(progress, "repeated sequences"))
        facts["repeated_sequences"] = sum(map(n_rows, sequences))
    except (InputError, ModelError) as error:
        taken = "" if isinstance(error, InputError) else "the model does not take sequences of random tokens: "
        facts["why_no_induction"] = f"{taken}{error}"
        repeats = RoleMasses(["induction"], of_two=of_two)  # some may have run
    if why := why_no_interval(observed.n_documents):
        facts["why_no_interval"] = why
    return role_table(text, repeats, anatomy, tokenizer, facts)


def _tokenless(model: nn.Module, anatomy: Anatomy, batch: Batch) -> frozenset[int]:
    """Layers that see no token, of a model that takes more than text: as many patches as tokens are no tokens."""
    if not any(isinstance(value, Tensor) and value.is_floating_point() for value in batch.values()):
        return frozenset()
    try:
        return unmoved_layers(model, anatomy, [batch], random_tokens(model, anatomy, [batch], seed=0))
    except (InputError, ModelError):  # no tokens at all, or no others
        return frozenset()


def _tokens_of(batches: Sequence[Batch]) -> set[int]:
    """Every token of a text, padding left out."""
    return {
        token
        for batch in batches
        for kind, name in token_names(batch).items()
        for token in batch[name].cpu()[kept_of(batch, kind)].unique().tolist()
    }


def role_table(
    text: RoleMasses,
    repeats: RoleMasses,
    anatomy: Anatomy,
    tokenizer: Decoder | None,
    facts: Mapping[str, Any],
) -> RoleTable:
    """Judge heads by what was watched on text, and on repeated sequences.

    Args:
        text: fed with the text.
        repeats: fed with repeated sequences, for "induction".
        anatomy: whose heads.
        tokenizer: to spell the examples.
        facts: what it was measured on.
    """
    watched = [(statistic, statistic.compute()) for statistic in (text, repeats)]
    n_heads = anatomy.n_heads
    numbers = {kind: {role: np.full(n_heads, np.nan) for role in ROLES} for kind in ("score", "low", "high", "chance")}
    best: dict[str, list[tuple[BestQueries, int, int] | None]] = {role: [None] * n_heads for role in ROLES}
    start = 0
    for site in anatomy.sites:
        places = slice(start, start + site.n_heads)
        for role in ROLES:
            statistic, sums = watched[role == "induction"]
            if site.layer in sums:
                index = statistic.roles.index(role)
                for kind, values in _numbers(sums[site.layer], index).items():
                    numbers[kind][role][places] = values
                best[role][places] = [(sums[site.layer].best, index, head) for head in range(site.n_heads)]
        start += site.n_heads
    verdicts = judge(*(numbers[kind] for kind in ("score", "low", "chance")))
    examples = tuple(
        None if role == MIXED else _example(role, best[role][place], tokenizer) for place, role in enumerate(verdicts)
    )
    made_of = anatomy.facts
    return RoleTable(
        heads=anatomy.heads,
        role=verdicts,
        scores=numbers["score"],
        low=numbers["low"],
        high=numbers["high"],
        chance=numbers["chance"],
        examples=examples,
        facts={**facts, **made_of},
    )


def _numbers(sums: RoleSums, role: int) -> dict[str, Floats]:
    """Score, its interval and its chance of every head of a layer, (head,) each."""
    blocks = [block.numpy() for block in sums.sums[:, role]]

    def score(left: Sequence[Floats]) -> Floats:
        total = np.sum(left, axis=0)
        return _ratio(total[:, 0], total[:, 1])

    total = np.sum(blocks, axis=0)
    low, high = jackknife(score, blocks, sums.n_queries.tolist()).interval()
    return {"score": score(blocks), "low": low, "high": high, "chance": _ratio(total[:, 2], total[:, 1])}


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def judge(scores: Mapping[str, Floats], low: Mapping[str, Floats], chance: Mapping[str, Floats]) -> tuple[str, ...]:
    """The verdict on each head; see `roles` for the rule.

    Args:
        scores, low, chance: for each of `ROLES`, (head,); NaN where a role cannot be, or has no interval.

    Returns:
        (head,) one of `ROLES`, or "mixed".

    >>> numbers = {role: np.array([0.1]) for role in ROLES}
    >>> judge({**numbers, "previous": np.array([0.7])}, {**numbers, "previous": np.array([0.6])}, numbers)
    ('previous',)
    """
    targets = [role for role in ROLES if role not in ("sink", "broad")]
    ways = np.stack([_way(scores[role], low[role], chance[role]) for role in targets])
    verdicts = []
    for sink, broad, way in zip(scores["sink"], scores["broad"], ways.T, strict=True):
        if way.max() >= HALF_WAY and not sink >= SUNK:
            verdicts.append(targets[int(way.argmax())])
        elif sink >= LEANS:
            verdicts.append("sink")
        else:
            verdicts.append("broad" if broad >= BROAD else MIXED)
    return tuple(verdicts)


def _way(score: Floats, low: Floats, chance: Floats) -> Floats:
    """How far from chance to 1 a score lies; -inf where it, or its interval, is not above chance."""
    above = (np.where(np.isnan(low), score, low) > chance) & (chance < 1)
    return np.divide(score - chance, 1 - chance, out=np.full_like(score, -np.inf), where=above)


def _example(role: str, found: tuple[BestQueries, int, int] | None, tokenizer: Decoder | None) -> RoleExample | None:
    """The best query of a role, in words."""
    if found is None:
        return None
    best, index, head = found
    position = int(best.position[index, head])
    if position < 0:
        return None
    keys = tuple(
        _spelled(best.near[index, head, rank], int(key), tokenizer, float(best.weights[index, head, rank]))
        for rank, key in enumerate(best.keys[index, head])
        if key >= 0
    )
    return RoleExample(role, _spelled(best.around[index, head], position, tokenizer), keys)


def _spelled(ids: Tensor, position: int, tokenizer: Decoder | None, weight: float = float("nan")) -> Spelled:
    """The token in the middle of a window, and those around it."""
    middle = len(ids) // 2
    if ids[middle] == NO_TOKEN:
        return Spelled(position, (), f"#{position}", (), weight)
    there = ids != NO_TOKEN
    pieces = list(spell(tokenizer, ids[there].tolist()))
    start = int(there[:middle].sum())
    stop = start + 1
    while start and not pieces[start]:  # one of several tokens that make one character: all of them are meant
        start -= 1
    while stop < len(pieces) and not pieces[stop]:
        stop += 1
    shown = [_readable(piece) for piece in pieces]
    return Spelled(position, tuple(shown[:start]), shown[start] or "·", tuple(shown[stop:]), weight)


def _readable(piece: str) -> str:
    """Line breaks that show, and no halves of characters that the window cut through."""
    return piece.replace("\n", "↵").replace("\r", "").replace("\t", " ").replace("\N{REPLACEMENT CHARACTER}", "")
