"""Fixtures that any test may ask for; what they build is in tests/models.py."""

from collections.abc import Callable

import pytest
from torch import Tensor, nn

import tests.shapes  # noqa: F401, first: it checks the shapes of what is imported after it
import tests.shell  # noqa: F401, before models import transformers: it sets the shell right
from tests import models


@pytest.fixture(scope="session")
def build_model() -> Callable[..., nn.Module]:
    """build_model("llama", seed=0): a fresh tiny model at every call."""
    return models.build


@pytest.fixture(scope="session")
def make_batches() -> Callable[..., list[dict[str, Tensor]]]:
    """make_batches("llama", n_batches=2, rows=3, length=12, padded=True): batches as that model takes them."""
    return models.make_batches


@pytest.fixture(params=sorted(models.FACTORIES))
def family(request: pytest.FixtureRequest) -> str:
    """The name of each tiny model in turn."""
    return str(request.param)


@pytest.fixture
def model(family: str) -> nn.Module:
    """A fresh tiny model of each family in turn."""
    return models.build(family)


@pytest.fixture
def batches(family: str) -> list[dict[str, Tensor]]:
    """Two padded batches of three documents for `model`."""
    return models.make_batches(family)
