"""The cluster that the tests of a module share, and the curve of a run that nothing disturbs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ranks
from tests.helpers.launch.cluster import Cluster
from tests.helpers.launch.jobs import Curve, cluster_or_skip, disturbed_config, training


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from cluster_or_skip(preempt_signal=True)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Curve:
    """(step, loss) of `disturbed_config` on four ranks, when nothing disturbs it."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    submitted = training(cluster, dataset, run, disturbed_config())
    cluster.wait_for(submitted.job_id, "COMPLETED", 300)
    return ranks.curve(run)
