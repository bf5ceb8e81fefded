"""A real Slurm: what it refuses is one clear line."""

from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.request.plan import LaunchPlan
from hpcphotoz.launch.slurm import submit
from tests.helpers.launch.cluster import Cluster
from tests.helpers.launch.jobs import cluster_or_skip
from tests.helpers.launch.runs import small


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (LaunchPlan(partition="nowhere"), "invalid partition specified: nowhere"),
        (LaunchPlan(partition="main", exclude="nowhere"), "Invalid node name"),
        (LaunchPlan(partition="high"), "partition not available"),
    ],
    ids=["no such partition", "no such node", "closed partition"],
)
def test_a_refusal_is_one_line(
    plan: LaunchPlan, said: str, cluster: Cluster, dataset: Path, tmp_path: Path
) -> None:
    cluster.command("scontrol", "update", "partitionname=high", "state=drain")
    with pytest.raises(BadInput, match=rf"\Asbatch refused the job: .*{said}.*\Z"):
        submit(plan, TrainJob.of(small(3), dataset, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_full_queue_is_one_line(dataset: Path, tmp_path: Path) -> None:
    """sbatch tries for two minutes before it gives up."""
    for cluster in cluster_or_skip(conf="MaxJobCount=2"):
        cluster.command("sbatch", "--hold", "--output=/dev/null", "--wrap", "true")
        with pytest.raises(BadInput, match=r"\Asbatch refused the job: .*unable to accept job.*\Z"):
            submit(LaunchPlan(), TrainJob.of(small(3), dataset, tmp_path / "run"))
        assert not (tmp_path / "run").exists()
