"""Sentences in two languages, read for their numbers."""

import re

__all__ = ["numbers_in"]


def numbers_in(text: str) -> list[str]:
    """Every number of a sentence as it is written, sorted: the order of words differs between languages."""
    return sorted(re.findall(r"[−-]?\d+(?:,\d{3})*(?:\.\d+)?(?:×10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?%?", text))
