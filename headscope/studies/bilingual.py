"""What stands in English and in Japanese: the words of claims, so that pages in both say the same."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from headscope._support.formatting import markdown_table

__all__ = ["LANGUAGES", "NOTHING", "Both", "Language", "first_sentence", "joined", "tables"]

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


def first_sentence(text: Both) -> Both:
    """The first sentence of several.

    >>> first_sentence(Both("It is 0.5. That is half.", "0.5です。半分です。"))
    Both(en='It is 0.5.', ja='0.5です。')
    """
    en, ja = text.en.partition(". ")[0], text.ja.partition("。")[0]
    return Both(f"{en.removesuffix('.')}.", f"{ja}。") if text else NOTHING


def tables(head: Sequence[Both], rows: Iterable[Sequence[Both | str]]) -> Both:
    """A table in Markdown.

    Args:
        head: what stands above the columns.
        rows: cells; one that is no Both is the same in both languages, but "0.1 to 0.2" is 0.1〜0.2 in Japanese.

    >>> print(tables([Both("heads", "ヘッド数")], [["1 to 2"]]).ja)
    | ヘッド数 |
    | --- |
    | 1〜2 |
    """
    cells = [
        [cell if isinstance(cell, Both) else Both(cell, cell.replace(" to ", "〜")) for cell in row] for row in rows
    ]
    en, ja = (
        markdown_table([own.of(language) for own in head], [[cell.of(language) for cell in row] for row in cells])
        for language in LANGUAGES
    )
    return Both(en, ja)
