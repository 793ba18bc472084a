"""Code that comes with a model."""

import sys

import pytest
import transformers

from headscope.errors import ModelError
from headscope.models.loading import load_model
from tests.unit.models.loading.configs import edit_config

REMOTE = """
from pathlib import Path
from transformers import BertModel
Path({marker!r}).touch()
class OwnModel(BertModel):
    {body}
"""
REMOTE_CONFIG = "from transformers import BertConfig\nclass OwnConfig(BertConfig):\n    model_type = 'own'\n"


@pytest.fixture(params=["own config", "config of transformers"])
def remote(request, bare, tmp_path, monkeypatch):
    """A model with code of its own, which leaves a file called "ran" when it runs."""
    own = request.param == "own config"
    body = "from .own_config import OwnConfig as config_class" if own else "pass"
    (bare / "own_model.py").write_text(REMOTE.format(marker=str(tmp_path / "ran"), body=body))
    (bare / "own_config.py").write_text(REMOTE_CONFIG)
    auto = {"AutoModel": "own_model.OwnModel"}
    if own:
        edit_config(bare, model_type="own", auto_map=auto | {"AutoConfig": "own_config.OwnConfig"})
    else:
        edit_config(bare, auto_map=auto)
    edit_config(bare, architectures=["OwnModel"])
    # where transformers copies such code to, and how it becomes importable
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return bare


def test_code_that_comes_with_a_model_does_not_run_unasked(remote, tmp_path):
    with pytest.raises(ModelError, match=r"own Python code.*, which would run .*trust_remote_code=True"):
        load_model(remote)
    assert not (tmp_path / "ran").exists()


def test_code_that_comes_with_a_model_runs_when_asked(remote, tmp_path):
    loaded = load_model(remote, trust_remote_code=True)
    assert type(loaded.model).__name__ == "OwnModel"
    assert (tmp_path / "ran").exists()


# ---- names on the hub
