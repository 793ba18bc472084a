"""Reasons in short: the first sentence of a refusal, and reasons that are alike under one heading."""

import re

__all__ = ["first_sentence"]

_LONGEST = 240


def first_sentence(message: str) -> str:
    """What a message says first, without the place where it happened.

    Args:
        message: of a refusal.

    >>> first_sentence("layer 0 (encoder.0.attn): its heads are mixed, so no; the model was left as it was. More")
    'its heads are mixed, so no'
    """
    text = " ".join(message.split())
    text = re.sub(r"^layer \d+ \([^)]*\): ", "", text)
    text = re.split(r"; the model was left|\. (?=[A-Z])", text, maxsplit=1)[0]
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
