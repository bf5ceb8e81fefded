"""What the doctor reads of a node's driver and GPUs."""

from pathlib import Path

import pytest
import torch

from hpcphotoz.launch.doctor import network
from hpcphotoz.launch.doctor.facts import NodeFacts
from hpcphotoz.launch.doctor.finding import Level
from hpcphotoz.launch.doctor.network import look_at_gpus
from hpcphotoz.launch.doctor.node_rules import judge_nodes
from tests.helpers.launch.runs import Install

SMI = "| NVIDIA-SMI 535.54.03   Driver Version: 535.54.03    CUDA Version: {cuda}     |"


def levels() -> dict[str, Level]:
    node = NodeFacts(where="n1", asked_gpus=1, gpu=look_at_gpus())
    return {each.name: each.level for each in judge_nodes([node], None) if each.name in ("gpu", "driver")}


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with NVIDIA's driver, and a torch that is built for CUDA 12.8 and computes on CPUs."""
    (tmp_path / "version").touch()
    monkeypatch.setattr(network, "_NVIDIA", tmp_path / "version")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.version, "hip", None)
    cpu, own = torch.device("cpu"), torch.device
    monkeypatch.setattr(torch, "device", lambda *words: cpu if words[0] == "cuda" else own(*words))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")


def test_a_driver_that_suits_is_fine(nvidia: None, install: Install) -> None:
    install("nvidia-smi", f"echo '{SMI.format(cuda='12.2')}'")  # older, of the same major version
    assert levels() == {"gpu": Level.OK, "driver": Level.OK}
    assert look_at_gpus().driver == "535.54.03"


def test_a_driver_that_is_too_old_is_found(nvidia: None, install: Install) -> None:
    install("nvidia-smi", f"echo '{SMI.format(cuda='11.8')}'")
    assert levels()["driver"] is Level.PROBLEM


def test_a_gpu_that_computes_nonsense_is_found(
    nvidia: None, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("nvidia-smi", f"echo '{SMI.format(cuda='12.8')}'")
    monkeypatch.setattr(torch, "ones", torch.zeros)
    assert levels() == {"gpu": Level.PROBLEM, "driver": Level.OK}


def test_a_torch_for_cpus_on_a_node_with_gpus_is_found(
    nvidia: None, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("nvidia-smi", f"echo '{SMI.format(cuda='12.8')}'")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert look_at_gpus().torch_build == "cpu"
    assert levels() == {"gpu": Level.PROBLEM, "driver": Level.PROBLEM}


def test_no_driver_at_all_is_found(nvidia: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(network, "_NVIDIA", tmp_path / "none")
    monkeypatch.setattr(network, "_AMD", tmp_path / "none")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert levels() == {"gpu": Level.PROBLEM, "driver": Level.PROBLEM}


def test_rocm_on_an_amd_node_is_fine(nvidia: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(network, "_NVIDIA", tmp_path / "none")
    monkeypatch.setattr(network, "_AMD", tmp_path / "version")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert look_at_gpus().torch_build == "rocm 6.4"
    assert levels() == {"gpu": Level.OK, "driver": Level.OK}
