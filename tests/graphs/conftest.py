"""Fixtures of the op tests."""

from __future__ import annotations

import numpy as np
import pytest
from tests.graphs.one_op import OneOpModels


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> OneOpModels:
    """Models of one op, written to a folder of this test session."""
    return OneOpModels(tmp_path_factory.mktemp("one_op"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
