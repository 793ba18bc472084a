"""Drafts of an example: which arguments, in which shapes, with which pieces in the text; and the making of them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as made_by
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor

from headscope.anatomy.examples.facts import Facts, field, text_config
from headscope.anatomy.examples.values import GOES_BESIDE, ROWS, Shape, shapes_of, size_of

__all__ = ["TOKENS", "Draft", "Maker", "kind_of"]

_KINDS = {"image": 1, "video": 2, "audio": 3}
_WORDS = (("video", "video"), ("audio|input_features|input_values|speech", "audio"), ("pixel|image|patches", "image"))


def kind_of(name: str) -> str:
    """What an argument holds: "image", "video" or "audio" by its name; "" for what goes with one, and for text.

    >>> kind_of("pixel_values"), kind_of("input_features"), kind_of("image_grid_thw")
    ('image', 'audio', '')
    """
    if name.endswith((*GOES_BESIDE, "position")):
        return ""
    return next((kind for word, kind in _WORDS if re.search(word, name)), "")


@dataclass(frozen=True)
class Draft:
    """What an example is made from.

    Attributes:
        names: its arguments, in the order in which numbers are drawn for them.
        choices: by argument, which of its shapes is taken; the first where none is told.
        sizes: by argument and axis, a size that the model asked for.
        pieces: by kind ("image", "video", "audio"), how many tokens of each row stand for pieces of it.
    """

    names: tuple[str, ...]
    choices: Mapping[str, int] = made_by(default_factory=dict)
    sizes: Mapping[tuple[str, int], int] = made_by(default_factory=dict)
    pieces: Mapping[str, int] = made_by(default_factory=dict)

    def key(self) -> Any:
        """The same for drafts that make the same example."""
        return (
            frozenset(self.names),
            frozenset(item for item in self.choices.items() if item[1]),
            frozenset(self.sizes.items()),
            frozenset(self.pieces.items()),
        )

    def having(self, *names: str) -> "Draft":
        """A draft with further arguments."""
        return replace(self, names=tuple(dict.fromkeys((*self.names, *names))))

    def without(self, name: str) -> "Draft":
        """A draft with one argument less."""
        return replace(self, names=tuple(one for one in self.names if one != name))

    def choosing(self, name: str, choice: int) -> "Draft":
        """A draft with another shape of one argument, and without sizes that were asked for of the one before."""
        sizes = {place: size for place, size in self.sizes.items() if place[0] != name}
        return replace(self, choices={**self.choices, name: choice}, sizes=sizes)

    def sized(self, sizes: Mapping[tuple[str, int], int]) -> "Draft":
        """A draft with other sizes of some axes."""
        return replace(self, sizes={**self.sizes, **sizes})

    def standing(self, kind: str, count: int) -> "Draft":
        """A draft with so many tokens in each row that stand for pieces of something."""
        return replace(self, pieces={**self.pieces, kind: count})


class Maker:
    """Makes the example of a draft: seeded, so that one draft gives the same example every time.

    Args:
        facts: of the model's configs.
        takes: what its forward takes.
        barred: token ids that are not drawn, for they stand for something.
        dtype: of its weights.
    """

    def __init__(
        self, facts: Facts, takes: Mapping[str, Parameter], barred: frozenset[int], dtype: torch.dtype = torch.float32
    ) -> None:
        self._facts, self._takes, self._barred, self._dtype = facts, takes, barred, dtype

    def shapes(self, draft: Draft, name: str) -> tuple[Shape, ...]:
        """Shapes that an argument may have, most likely first."""
        found = shapes_of(name, draft.names, self._takes.get(name))
        if size_of("series", self._facts) > 1:  # several at a time have an axis of their own
            found = tuple(sorted(found, key=lambda shape: "series" not in shape.axes))
        return found

    def make(self, draft: Draft) -> dict[str, Any]:
        """The example; what goes with the tokens is made after them."""
        generator = torch.Generator().manual_seed(0)
        example: dict[str, Any] = {}
        late = [name for name in draft.names if name in _WITH_TOKENS and "input_ids" in draft.names]
        for name in draft.names:
            if name in ("input_ids", "decoder_input_ids"):
                example[name] = self._tokens(name, draft, generator)
            elif name not in late:
                example[name] = self._value(name, draft, generator)
        for name in late:
            example[name] = _WITH_TOKENS[name](self._kinds(draft, example["input_ids"]))
        return example

    def _value(self, name: str, draft: Draft, generator: torch.Generator) -> Any:
        shape, sizes = self.sizes(draft, name)
        value = shape.fill(sizes, self._facts, generator)
        return value.to(self._dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def sizes(self, draft: Draft, name: str) -> tuple[Shape, list[int]]:
        """The shape of an argument of a draft, and how long its axes are."""
        shapes = self.shapes(draft, name)
        shape = shapes[min(draft.choices.get(name, 0), len(shapes) - 1)]
        sizes = [draft.sizes.get((name, place), size_of(axis, self._facts)) for place, axis in enumerate(shape.axes)]
        for place, axis in enumerate(shape.axes):
            if axis == "heard" and (name, place) not in draft.sizes:
                sizes[place] = self._moments(draft) or sizes[place]
        return shape, sizes

    def _moments(self, draft: Draft) -> int:
        """How long the sound of a draft is; 0 where there is none."""
        for name in draft.names:
            if kind_of(name) == "audio":
                shape, sizes = self.sizes(draft, name)
                along = [size for axis, size in zip(shape.axes, sizes, strict=True) if axis not in ("row", "mel", "1")]
                return next(iter(along), 0)
        return 0

    def _tokens(self, name: str, draft: Draft, generator: torch.Generator) -> Tensor:
        _, sizes = self.sizes(draft, name)
        drawn = draw_tokens(sizes, self._facts, generator, self._barred, decoder=name != "input_ids")
        if name != "input_ids" or not draft.pieces or drawn.ndim != 2:  # of codes there are none
            return drawn
        runs = [run.expand(len(drawn), -1) for run, _ in self._runs(draft)]
        return torch.cat([drawn[:, :1], *runs, drawn[:, 1:]], 1)

    def _runs(self, draft: Draft) -> list[tuple[Tensor, Tensor]]:
        """Of each kind, tokens that stand for its pieces, between those that begin and end them; and their kinds."""
        runs = []
        for kind, count in draft.pieces.items():
            mark, edges = self._facts.placeholder(kind), [self._facts.edge(kind, side) for side in ("start", "end")]
            ids = [edges[0], *[1 if mark is None else mark] * count, edges[1]]
            kinds = [0, *[_KINDS[kind]] * count, 0]
            kept = [(one, what) for one, what in zip(ids, kinds, strict=True) if one is not None]
            runs.append((torch.tensor([one for one, _ in kept]), torch.tensor([what for _, what in kept])))
        return runs

    def _kinds(self, draft: Draft, ids: Tensor) -> Tensor:
        """By row and position, the number of what a token stands for a piece of: 0 for text."""
        shape, _ = self.sizes(draft, "input_ids")
        kinds = torch.zeros(ROWS, ids.shape[shape.axes.index("position")], dtype=torch.long)
        run = torch.cat([kinds[0, :1], *(kinds for _, kinds in self._runs(draft))])
        kinds[:, : len(run)] = run[: kinds.shape[1]]
        return kinds


def draw_tokens(
    sizes: Sequence[int],
    facts: Facts,
    generator: torch.Generator,
    barred: frozenset[int] = frozenset(),
    decoder: bool = False,
) -> Tensor:
    """Random tokens, none of them the one that pads: some models make positions, or a mask, from where it stands."""
    config = facts.config
    text = text_config(config, decoder)
    vocabulary = field(text, "vocab_size") or field(config, "vocab_size") or facts.number(("vocab_size",), 2, "text")
    if decoder:
        vocabulary = field(field(config, "decoder"), "vocab_size") or vocabulary
    vocabulary = int(vocabulary)
    drawn = torch.randint(0, vocabulary, tuple(sizes), generator=generator)
    not_drawn = barred | ({pad} if isinstance(pad := field(text, "pad_token_id"), int) else set())
    for _ in range(min(len(not_drawn), vocabulary - 1)):
        unmeant = torch.isin(drawn, torch.tensor(sorted(not_drawn)))
        if not bool(unmeant.any()):
            break
        drawn = torch.where(unmeant, (drawn + 1) % vocabulary, drawn)
    return drawn


_WITH_TOKENS: dict[str, Callable[[Tensor], Tensor]] = {
    "attention_mask": torch.ones_like,
    "token_type_ids": torch.zeros_like,
    "mm_token_type_ids": torch.clone,
    "position_ids": lambda kinds: torch.arange(kinds.shape[1]).expand(kinds.shape).contiguous(),
    "image_embeds_position_mask": lambda kinds: (kinds > 0).long(),
}
"""Arguments that are as long as the text is."""
TOKENS = frozenset({"input_ids", "decoder_input_ids", *_WITH_TOKENS})
"""These, and the tokens themselves."""
