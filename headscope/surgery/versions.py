"""Which versions wrote a saved model, and which read it: what is told when it does not fit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headscope._support.environment import versions

__all__ = ["saved_versions", "told_versions"]

_ASKED = ("transformers", "headscope")


def saved_versions(about: Mapping[str, Any], config: Path) -> dict[str, str]:
    """By name, as far as they are known.

    Args:
        about: what headscope says of the folder; {} for a folder of `save_pretrained`.
        config: the config that transformers wrote, where there is one; it tells of transformers alone.
    """
    saved = about.get("versions", {})
    try:
        told = json.loads(config.read_text("utf-8")).get("transformers_version")
    except (OSError, ValueError, AttributeError):
        told = None
    known = {"transformers": told, **(saved if isinstance(saved, dict) else {})}
    return {name: str(version) for name, version in known.items() if version}


def told_versions(saved: Mapping[str, str]) -> str:
    """In words, with which versions something was saved, and which are here where these are others.

    Args:
        saved: of `saved_versions`.

    >>> told_versions({})
    'it does not tell with which version of transformers it was saved'
    >>> told_versions({"transformers": "5.0.0"}).startswith("it was saved with transformers 5.0.0, here is ")
    True
    """
    here = versions()
    known = {name: saved[name] for name in _ASKED if name in saved}
    others = {name: version for name, version in known.items() if version != here[name]}
    if not known:
        return "it does not tell with which version of transformers it was saved"
    if not others:
        return f"it was saved with {' and '.join(map(' '.join, known.items()))}, as are here"
    words = (f"{name} {version}, here is {here[name]}" for name, version in others.items())
    return f"it was saved with {'; and with '.join(words)}"
