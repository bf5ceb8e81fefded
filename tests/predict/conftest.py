"""Fixtures of the tests of prediction."""

import warnings
from types import ModuleType

import pytest


@pytest.fixture
def qp() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the import of qp warns
        module: ModuleType = pytest.importorskip(
            "qp", reason="needs qp-prob: pip install hpcphotoz[dev]", exc_type=ImportError
        )
    return module
