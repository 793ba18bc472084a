"""What a model's configs say of its inputs: sizes by the names of fields, looked for in every config inside."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from headscope._support.running import unwrapped

__all__ = ["SENSES", "Facts", "field", "placeholders", "text_config"]

SENSES = {
    "text": re.compile(r"text|llm|language|decoder"),
    "sight": re.compile(r"vision|visual|image|vit|backbone|encoder"),
    "sound": re.compile(r"audio|speech|sound|codec|encoder"),
}
"""How configs of towers are called, by what these read."""

_STANDS_FOR = re.compile(r"(image|video|vision|audio|speech|sound|img|media)\w*(token|id|index)")
# where a kind of placeholder is told, most telling first
_PLACES = {
    "image": ("image_token_id", "image_token_index", "img_context_token_id", "media_token_id", "image_patch_id"),
    "video": ("video_token_id", "video_token_index", "image_token_id"),
    "audio": ("audio_token_id", "audio_token_index", "speech_token_id", "sound_token_id", "speech_token_index"),
}


def field(config: Any, name: str, default: Any = None) -> Any:
    """A field of a config, which may raise instead of answering (AmbiguousGlobalPerLayerAttributeError)."""
    try:
        return getattr(config, name)
    except Exception:
        return default


def text_config(config: Any, decoder: bool = False) -> Any:
    """The config of what reads text; of two that do, that of the encoder, or of the decoder."""
    find = getattr(config, "get_text_config", None)
    if find is None:
        return config
    try:
        return find()
    except ValueError:
        return find(decoder=decoder, encoder=not decoder)


def placeholders(model: nn.Module) -> frozenset[int]:
    """Token ids that stand for something that is no text, such as a patch of a picture; told by a model's configs."""
    found: set[int] = set()
    todo = [getattr(unwrapped(model), "config", None)]
    while todo:
        known = getattr(todo.pop(), "__dict__", {})
        found |= {v for name, v in known.items() if _STANDS_FOR.match(name) and type(v) is int and v >= 0}
        todo += [value for name, value in known.items() if name.endswith("config")]
    return frozenset(found)


class Facts:
    """The configs of a model, read as one: the outermost first, then those of the tower that is asked about.

    Args:
        config: the model's.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self._all = list(_walk(config, "", set()))

    def read(self, names: Sequence[str], sense: str = "") -> Any:
        """The first of some fields that holds something, most telling name first; None where none does.

        Args:
            names: of the fields.
            sense: a key of `SENSES`: the tower whose configs are asked before the others'.
        """
        pattern = SENSES.get(sense)
        order = sorted(self._all, key=lambda one: (one[0] != "", pattern is None or not pattern.search(one[0])))
        for name in names:
            for _, config in order:
                value = field(config, name)
                if value is not None and not isinstance(value, bool):
                    return value
        return None

    def number(self, names: Sequence[str], default: int, sense: str = "") -> int:
        """The same as a whole number; of a list the first."""
        value = self.read(names, sense)
        while isinstance(value, (list, tuple, dict)) and value:
            value = next(iter(value.values() if isinstance(value, dict) else value))
        return value if isinstance(value, int) and value > 0 else default

    def placeholder(self, kind: str) -> int | None:
        """The token that stands for a piece of an image, a video or a sound."""
        value = self.read(_PLACES[kind], "text")
        return value if isinstance(value, int) and value >= 0 else None

    def edge(self, kind: str, side: str) -> int | None:
        """The token that stands before ("start") or behind ("end") the pieces of a kind, where there is one."""
        word = {"image": "vision"}.get(kind, kind)
        value = self.read([f"{word}_{side}_token_id", f"{kind}_{side}_token_id"], "text")
        return value if isinstance(value, int) and value >= 0 else None


def _walk(config: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """A config and those inside it, each with the names that lead there."""
    if id(config) in seen:
        return
    seen.add(id(config))
    yield path, config
    for name, value in getattr(config, "__dict__", {}).items():
        if hasattr(type(value), "model_type"):
            yield from _walk(value, f"{path}.{name}", seen)
