"""Configurations of saved models, altered in place."""

import json
from pathlib import Path
from typing import Any


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
