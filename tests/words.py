"""Sentences in two languages, read for their numbers."""

import re

from headscope.studies.bilingual import Both

__all__ = ["numbers_in", "same_numbers"]


def numbers_in(text: str) -> list[str]:
    """Every number of a sentence as it is written, sorted: the order of words differs between languages."""
    return sorted(re.findall(r"[−-]?\d+(?:,\d{3})*(?:\.\d+)?(?:×10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?%?", text))


def same_numbers(words: Both) -> bool:
    """Whether both languages tell the same numbers, in whatever order, and end as sentences do.

    Japanese writes small numbers as digits where English has words: "one head" is 1ヘッド, "three terms" 3つの項.
    """
    japanese = re.sub(r"(?<![\d.])[1-9](?=ヘッド|つ|回|個のヘッド)", "", words.ja)
    return numbers_in(words.en) == numbers_in(japanese) and words.en.endswith(".") and words.ja.endswith("。")
