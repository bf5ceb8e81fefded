"""Environment variables: which GPUs are visible."""

from pathlib import Path

import pytest
import torch

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.environment import visible_gpus
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.local import run_local
from hpcphotoz.launch.request.plan import LaunchPlan


@pytest.mark.parametrize(
    ("wanted", "given", "kept"),
    [
        (0, None, None),
        (0, "", ""),
        (0, "GPU-8f5d0c1e", "GPU-8f5d0c1e"),
        (2, None, "0,1"),
        (2, "GPU-8f,GPU-5d,GPU-0c", "GPU-8f,GPU-5d"),
        (1, "MIG-8f5d0c1e", "MIG-8f5d0c1e"),
        (2, "3, 1", "3,1"),
    ],
)
def test_visible_gpus_are_kept_as_they_are_named(wanted: int, given: str | None, kept: str | None) -> None:
    assert visible_gpus(wanted, given) == kept


@pytest.mark.parametrize("given", ["", "-1", "GPU-8f"])
def test_more_gpus_than_visible_are_refused(
    given: str, job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    with pytest.raises(BadInput, match="--gpus-per-node 2: CUDA_VISIBLE_DEVICES names [01]"):
        run_local(LaunchPlan(gpus_per_node="2"), job)
    assert not Path(job.out).exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_gpus_that_are_not_here_are_not_replaced_by_cpus(job: TrainJob) -> None:
    with pytest.raises(BadInput, match="a GPU was asked for .* --device cpu"):
        run_local(LaunchPlan(gpus_per_node="2"), job, lambda _: None)
