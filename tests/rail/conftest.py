"""One small network for all tests of RAIL's stages, and stages that compute on the CPU."""

from pathlib import Path
from typing import Any

import pytest

import hpcphotoz
from hpcphotoz.data.format.stamps import COLUMNS, Stamps
from hpcphotoz.training.run.network import load_network, save_network

SMALL: dict[str, Any] = {"width": 8, "bins": 20, "global_batch": 16, "precision": "fp32", "max_steps": 4}


def columns(stamps: Stamps) -> dict[str, Any]:
    """Stamps as a table: the fixed columns by name, and the extra ones."""
    return {**{name: getattr(stamps, name) for name in COLUMNS}, **stamps.extra}


@pytest.fixture(scope="session")
def small_run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on `dataset`."""
    run = tmp_path_factory.mktemp("runs") / "small"
    return hpcphotoz.train("standard", dataset, run, device="cpu", **SMALL)


@pytest.fixture(scope="session")
def model(small_run: Path) -> Path:
    """The network of `small_run` as a model file."""
    path = small_run.with_name("model.safetensors")
    save_network(load_network(small_run), path)
    return path
