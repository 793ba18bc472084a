"""What stands in English and in Japanese: the words of claims, so that pages in both say the same."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

__all__ = ["LANGUAGES", "NOTHING", "Both", "Language", "joined"]

Language = Literal["en", "ja"]
LANGUAGES: tuple[Language, ...] = ("en", "ja")


@dataclass(frozen=True)
class Both:
    """The same in two languages.

    Attributes:
        en: in English.
        ja: in Japanese.

    >>> Both("One head.", "ヘッドは1個。") + Both("Two layers.", "層は2つ。")
    Both(en='One head. Two layers.', ja='ヘッドは1個。層は2つ。')
    """

    en: str
    ja: str

    def __bool__(self) -> bool:
        return bool(self.en)

    def __add__(self, other: Self) -> "Both":
        return joined([self, other])

    def of(self, language: Language) -> str:
        """In one of them."""
        return self.en if language == "en" else self.ja


NOTHING = Both("", "")


def joined(parts: Iterable[Both], en: str = " ", ja: str = "") -> Both:
    """Several, one after another; empty ones are left out.

    Args:
        parts: what is joined.
        en, ja: what stands between two of them.
    """
    every = [part for part in parts if part]
    return Both(en.join(part.en for part in every), ja.join(part.ja for part in every))
