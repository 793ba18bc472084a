"""From a draft on which a model failed, and its complaint, to drafts that may do better: what was asked for first."""

import math
import re
from collections.abc import Iterator, Mapping
from inspect import Parameter

from headscope.anatomy.examples.arguments import may_be_added, may_be_dropped, may_be_passed
from headscope.anatomy.examples.complaints import Complaint
from headscope.anatomy.examples.drafts import TOKENS, Draft, Maker, kind_of
from headscope.anatomy.examples.facts import Facts
from headscope.anatomy.examples.values import ROWS

__all__ = ["repaired", "silent", "with_a_few"]

_MOST_PIECES, _MOST_STRETCH, _LONGEST = 4000, 16, 1024
# how errors spell that an axis has another length than wanted
_GOT_AND_WANTED = (
    re.compile(r"cannot be multiplied \(\d+x(?P<got>\d+) and (?P<want>\d+)x"),
    re.compile(r"to have (?P<want>\d+) channels, but got (?P<got>\d+)"),
    re.compile(r"normalized_shape=\[(?P<want>\d+)\].*?size\s*\[[\d, ]*?(?P<got>\d+)\]"),
    re.compile(r"\((?P<got>\d+)\*\d+\) doesn't match model \((?P<want>\d+)\*\d+"),
    re.compile(r"\(\d+\*(?P<got>\d+)\) doesn't match model \(\d+\*(?P<want>\d+)"),
    re.compile(r"tensor a \((?P<got>\d+)\) must match the size of tensor b \((?P<want>\d+)\)"),
    re.compile(r"tensor a \((?P<want>\d+)\) must match the size of tensor b \((?P<got>\d+)\)"),
    re.compile(r"[Ee]xpected size:? (?P<want>\d+),? but got:? (?:size )?(?P<got>\d+)"),
    re.compile(r"[Ee]xpected size:? (?P<got>\d+),? but got:? (?:size )?(?P<want>\d+)"),
    re.compile(r"shape of the mask \[\d+, (?P<got>\d+)\D.*indexed tensor \[\d+, (?P<want>\d+)"),
    re.compile(r"of batch2 tensor to be: \[\d+, (?P<got>\d+)\] but got: \[\d+, (?P<want>\d+)\]"),
    re.compile(r"should contain (?P<got>\d+) elements not (?P<want>\d+)"),
    re.compile(r"[Ee]xpected? \D{0,40}(?P<want>\d+)\D{1,60}?(?:got|found|has|is) \D{0,40}?(?P<got>\d+)"),
)
_MULTIPLE = re.compile(r"(?:multiples? of|divisible by)(?:[^(]{0,60}\((\d+)\)|\D{0,40}(\d+))")
_TILES = re.compile(r"split_sizes=\[(\d+)")
_PLACES = re.compile(r"value tensor of shape \[(\d+), \d+\] cannot be broadcast")
# rows against rows, as of two towers that are compared: no input changes their widths
_COMPARED = re.compile(r"cannot be multiplied \((\d+)x\d+ and \d+x\1\)")
_UNPACKED = re.compile(r"values to unpack \(expected (?P<want>\d)(?:, got (?P<got>\d))?\)")
_AXES = re.compile(r"\b(\d)-?[dD]\b|\b(\d) dimensions|\b(\d)-dimensional")


def repaired(
    draft: Draft, complaint: Complaint, maker: Maker, takes: Mapping[str, Parameter], facts: Facts
) -> Iterator[tuple[int, Draft]]:
    """Drafts to try next, each with how far-fetched it is: 0 for what was asked for, 2 for what is merely different.

    Args:
        draft: what was tried.
        complaint: what the model said.
        maker: makes examples; it knows the shapes of the arguments.
        takes: what the forward takes.
        facts: of the configs.
    """
    if _COMPARED.search(complaint.message):
        return
    missing = [name for name in complaint.missing if name not in draft.names and may_be_added(name, takes)]
    others = _others(draft, complaint, maker)
    ranks = (
        (
            _with_pieces(draft, complaint, facts),
            (draft.having(name) for name in missing),
            (other for is_asked_for, other in others if is_asked_for),
            _resized(draft, complaint, maker),
        ),
        (
            (draft.having(name) for name in complaint.passed if may_be_passed(name, takes)),
            (draft.without(name) for name in draft.names if may_be_dropped(name, takes)),
            with_a_few(draft, facts),
            _stretched(draft, complaint, maker),
            _rounded(draft, complaint, maker),
        ),
        (
            # no other shape makes up for what is missing
            (other for is_asked_for, other in others if not is_asked_for and not missing),
            (draft.having(name) for name in takes if _may_be_told(name, draft, takes)),
        ),
    )
    for rank, groups in enumerate(ranks):
        yield from ((rank, further) for group in groups for further in group)


def _may_be_told(name: str, draft: Draft, takes: Mapping[str, Parameter]) -> bool:
    """Whether an argument is one more number by row or position, such as the language."""
    return name.endswith("_ids") and name not in draft.names and name not in TOKENS and may_be_added(name, takes)


def _with_pieces(draft: Draft, complaint: Complaint, facts: Facts) -> Iterator[Draft]:
    """Places in the text for as many pieces as the model counted."""
    if "input_ids" not in draft.names:
        return
    low, told = complaint.message.lower(), [*complaint.pieces, *map(int, _PLACES.findall(complaint.message))]
    for kind in [kind for kind in ("audio", "video", "image") if kind in low] or ("image", "audio"):
        if facts.placeholder(kind) is None and not _PLACES.search(complaint.message):
            continue
        for count in told:
            if count % ROWS == 0 and 0 < count // ROWS <= _MOST_PIECES and draft.pieces.get(kind) != count // ROWS:
                yield draft.standing(kind, count // ROWS)


def with_a_few(draft: Draft, facts: Facts) -> Iterator[Draft]:
    """Places in the text for what has none, though its token is told: the model may say how many it wants.

    Args:
        draft: what was tried.
        facts: of the configs.
    """
    yield from (draft.standing(kind, 2) for kind in silent(draft, facts))


def silent(draft: Draft, facts: Facts) -> list[str]:
    """Kinds of what is given that has no places in the text, though the token for them is told.

    Args:
        draft: what is given.
        facts: of the configs.
    """
    if "input_ids" not in draft.names or draft.choices.get("input_ids"):
        return []
    kinds = dict.fromkeys(filter(None, map(kind_of, draft.names)))
    return [kind for kind in kinds if kind not in draft.pieces and facts.placeholder(kind) is not None]


def _axes(draft: Draft, maker: Maker) -> list[tuple[str, int, int]]:
    """Axes whose length may be another: of each argument all but the rows."""
    found = []
    for name in draft.names:
        shape, sizes = maker.sizes(draft, name)
        if shape.is_of_numbers:
            fixed = ("row", "position", "answer") if name in TOKENS else ("row",)
            found += [(name, place, size) for place, size in enumerate(sizes) if shape.axes[place] not in fixed]
    return found


def _mismatches(complaint: Complaint) -> list[tuple[int, int]]:
    if _UNPACKED.search(complaint.message):
        return []
    pairs = [match for pattern in _GOT_AND_WANTED for match in pattern.finditer(complaint.message)]
    return list(dict.fromkeys((int(one["got"]), int(one["want"])) for one in pairs if one["got"] != one["want"]))


def _resized(draft: Draft, complaint: Complaint, maker: Maker) -> Iterator[Draft]:
    """Axes that are as long as what does not fit, as long as what it should be: all of them, then one by one."""
    axes = _axes(draft, maker)
    for tiles in _TILES.findall(complaint.message):
        for name in draft.names:
            for choice, shape in enumerate(maker.shapes(draft, name)):
                if shape.axes[:3] == ("row", "frame", "channel"):
                    yield draft.choosing(name, choice).sized({(name, 1): int(tiles)})
    for got, want in _mismatches(complaint):
        places = [(name, place) for name, place, size in axes if size == got]
        for name in dict.fromkeys(name for name, _ in places):
            if maker.sizes(draft, name)[0].axes[-1] == "across":  # of patches it is wanted, rather than of a picture
                others = (draft.choosing(name, choice) for choice in range(len(maker.shapes(draft, name))))
                yield from (other for other in others if maker.sizes(other, name)[1][-1] == want)
        if places and want:
            yield draft.sized(dict.fromkeys(places, want))
            if len(places) > 1:
                yield from (draft.sized({place: want}) for place in places)


def _stretched(draft: Draft, complaint: Complaint, maker: Maker) -> Iterator[Draft]:
    """Where what does not fit is made of an axis, or of two: these stretched until it does."""
    axes = _axes(draft, maker)
    for got, want in _mismatches(complaint):
        for spare in (0, 1):  # a token that is no patch
            if got <= spare or want <= spare:
                continue
            ratio = (want - spare) / (got - spare)
            if not 1 / _MOST_STRETCH <= ratio <= _MOST_STRETCH:
                continue
            # axes of several arguments that are as long, as of pictures that are laid side by side
            for size in dict.fromkeys(size for _, _, size in axes):
                alike = [(name, place) for name, place, one in axes if one == size]
                if len(alike) > 1 and 0 < size * ratio <= _LONGEST and (size * ratio).is_integer():
                    yield draft.sized(dict.fromkeys(alike, int(size * ratio)))
            for name in dict.fromkeys(name for name, _, _ in axes):
                own = [(place, size) for one, place, size in axes if one == name]
                for places, factor in ((own[-2:], math.sqrt(ratio)), (own[-1:], ratio), (own[:1], ratio)):
                    sizes = {(name, place): round(size * factor) for place, size in places}
                    whole = all(abs(round(size * factor) - size * factor) < 1e-6 for _, size in places)
                    if sizes and whole and max(sizes.values()) <= _LONGEST:
                        yield draft.sized(sizes)


def _rounded(draft: Draft, complaint: Complaint, maker: Maker) -> Iterator[Draft]:
    """Axes as long as the next multiple of what a model wants them to be one of."""
    for step in dict.fromkeys(int(one or other) for one, other in _MULTIPLE.findall(complaint.message)):
        axes = _axes(draft, maker)
        for most in (1, 2):
            last = [one for name in draft.names for one in [one for one in axes if one[0] == name][-most:]]
            sizes = {(name, place): -(-size // step) * step for name, place, size in last if step and size % step}
            if sizes:
                yield draft.sized(sizes)


def _others(draft: Draft, complaint: Complaint, maker: Maker) -> list[tuple[bool, Draft]]:
    """Other shapes of each argument, and whether they have as many axes as the model asks for."""
    absolute = {int(next(filter(None, found))) for found in _AXES.findall(complaint.message)}
    unpacked = _UNPACKED.search(complaint.message)
    others = []
    for name in draft.names:
        have = len(maker.sizes(draft, name)[1])
        wanted = set(absolute)
        if unpacked:
            # what is unpacked may be a part of the argument, or the argument with an axis more
            wanted = {have + int(unpacked["want"]) - int(unpacked["got"] or int(unpacked["want"]) + 1)}
        if f"input[1, {ROWS}, " in complaint.message:  # rows were taken for channels: a layer saw no axis of rows
            wanted.add(have + 1)
        for choice, shape in enumerate(maker.shapes(draft, name)):
            # where places stand in the text, its shape is known
            if choice != draft.choices.get(name, 0) and not (name == "input_ids" and draft.pieces):
                others.append((len(shape.axes) not in wanted, name in TOKENS, choice, name))
    return [(not unasked, draft.choosing(name, choice)) for unasked, _, choice, name in sorted(others)]
