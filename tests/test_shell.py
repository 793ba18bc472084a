"""The suite sets its own environment, whatever the shell's."""

import json
import os
import subprocess
import sys

import pytest

ODD = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TERM": "dumb",
    "COLUMNS": "200",
    "NO_COLOR": "1",
    "TRANSFORMERS_VERBOSITY": "debug",
}


def test_the_shell_s_own_settings_do_not_reach_a_test() -> None:
    source = "import json, os, tests.shell; print(json.dumps(dict(os.environ)))"
    done = subprocess.run(
        [sys.executable, "-c", source], env=os.environ | ODD, capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    assert {name: seen.get(name) for name in ODD} == dict.fromkeys(ODD) | {"TERM": "xterm-256color"}
    assert seen["HF_HUB_OFFLINE"] == "1"
    assert seen["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("name", sorted({*ODD} - {"TERM"}))
def test_none_of_them_is_set_here(name: str) -> None:
    assert name not in os.environ
