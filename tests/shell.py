"""The same tests in any shell: what a user has set there for model hubs and terminals is not what is tested.

To be imported before transformers and rich are; processes that tests start get it from here.
"""

import os

__all__: list[str] = []

_HUBS = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_")
_TERMINAL = ("CLICOLOR", "COLORTERM", "COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR", "TTY_", "_TYPER_")

for name in [name for name in os.environ if name.startswith((*_HUBS, *_TERMINAL))]:
    del os.environ[name]
os.environ["TERM"] = "xterm-256color"
os.environ["MPLBACKEND"] = "Agg"  # no window, whatever the screen
os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches out to a model hub
