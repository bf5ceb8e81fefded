"""Every rank has its own device, and no run falls back to CPUs without being asked."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hpcphotoz.errors import BadInput
from hpcphotoz.training.distributed import rank_device
from hpcphotoz.training.distributed.rank_device import choose_device, conflict
from hpcphotoz.world import World


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """UUIDs of the GPUs that torch shows this process, which the test fills; there are no device files."""
    shown: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(shown))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda chosen: SimpleNamespace(uuid=shown[chosen.index])
    )
    monkeypatch.setattr(rank_device, "_DEVICE_FILES", str(tmp_path))
    return shown


@pytest.mark.parametrize("launcher", ["torchrun", "slurm", "openmpi"])
def test_a_rank_that_sees_one_gpu_uses_it(launcher: str, gpus: list[str]) -> None:
    """`--gpus-per-task` and cgroups show one GPU, whatever the launcher says of ranks on the node."""
    gpus += ["a"]
    for rank in range(4):
        assert choose_device(World(rank, 4, rank, 4, launcher), env={}) == torch.device("cuda", 0)


def test_a_rank_that_sees_all_gpus_uses_its_own(gpus: list[str]) -> None:
    gpus += ["a", "b", "c", "d"]
    chosen = [choose_device(World(4 + k, 8, k, 4), env={}) for k in range(4)]
    assert chosen == [torch.device("cuda", k) for k in range(4)]
    assert [rank_device.identity(each) for each in chosen] == gpus


def test_more_ranks_than_gpus_are_refused_without_device_cpu(gpus: list[str]) -> None:
    gpus += ["a", "b"]
    for rank in range(4):
        with pytest.raises(BadInput, match="4 ranks on .*, which shows them 2 GPUs.*--device cpu"):
            choose_device(World(rank, 4, rank, 4, "torchrun"), env={})
        assert choose_device(World(rank, 4, rank, 4), "cpu", {}) == torch.device("cpu")


@pytest.mark.parametrize(
    "env",
    [
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": "GPU-8f5d0c1e"},
        {"CUDA_VISIBLE_DEVICES": "MIG-8f5d0c1e"},
        {"SLURM_STEP_GPUS": "2", "CUDA_VISIBLE_DEVICES": ""},
        {"SLURM_GPUS_PER_TASK": "1"},
        {"SLURM_GPUS_ON_NODE": "4"},
    ],
    ids=str,
)
def test_gpus_that_were_asked_for_must_be_there(env: dict[str, str], gpus: list[str]) -> None:
    with pytest.raises(BadInput, match="a GPU was asked for.*sees none on .*--device cpu"):
        choose_device(World(), env=env)
    assert choose_device(World(), "cpu", env) == torch.device("cpu")


@pytest.mark.parametrize(
    "env",
    [{}, {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}, {"SLURM_GPUS_ON_NODE": "0"}],
    ids=str,
)
def test_without_a_gpu_it_is_the_cpu(env: dict[str, str], gpus: list[str]) -> None:
    assert choose_device(World(), env=env) == torch.device("cpu")
    with pytest.raises(BadInput):
        choose_device(World(), "cuda", env)


def test_a_gpu_that_torch_cannot_use_is_an_error(gpus: list[str], tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    with pytest.raises(BadInput, match="or is there, but torch"):
        choose_device(World(), env={})
    assert choose_device(World(), env={"CUDA_VISIBLE_DEVICES": ""}) == torch.device("cpu")


@pytest.mark.parametrize("wanted", ["gpu", "CUDA", "cuda:1", "cpu:0", "", torch.device("cuda")], ids=str)
def test_another_word_for_a_device_is_refused(wanted: str, gpus: list[str]) -> None:
    """It would be the CPU without a GPU, and GPU 0 with one."""
    for _ in range(2):
        with pytest.raises(BadInput, match="device .*: want one of 'auto', 'cuda', 'cpu'"):
            choose_device(World(), wanted, {})
        gpus += ["a"]


def test_two_ranks_never_share_a_gpu() -> None:
    assert conflict([("n1", "a"), ("n1", "b"), ("n2", "c")]) is None
    assert conflict([("n1", "cpu"), ("n1", "cpu")]) is None
    found = conflict([("n1", "a"), ("n1", "b"), ("n2", "c"), ("n1", "b")])
    assert found is not None and found[0] == 3
    assert "ranks 1 and 3 on n1 have the same GPU b" in found[1]


@pytest.mark.parametrize("places", [[("n1", "a"), ("n2", "cpu")], [("n2", "cpu"), ("n1", "a")]])
def test_nodes_with_and_without_gpus_do_not_train_together(places: list[tuple[str, str]]) -> None:
    found = conflict(places)
    assert found is not None and found[0] == 1
    assert "on n1 has a GPU" in found[1] and "on n2 has none" in found[1]
