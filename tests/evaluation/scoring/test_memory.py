"""Peak memory of an evaluation does not grow with the number of objects."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.datasets import linked_dataset, noise_stamps, write_stamps
from tests.helpers.paths import ROOT

# Prints the peak memory in MB, and the number of objects that were measured.
CODE = """
import resource, sys
from pathlib import Path
from hpcphotoz.evaluation.robustness import evaluate
from tests.helpers.networks import StubNetwork
networks = [StubNetwork(), StubNetwork("other")]
found = evaluate(networks, Path(sys.argv[1]), eps=(0.1,), methods=("fgsm",), batch=2048)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, found.objects)
"""


def peak(data: Path) -> tuple[int, int]:
    found = subprocess.run(
        [sys.executable, "-c", CODE, str(data)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    memory, objects = found.stdout.split()
    return int(memory), int(objects)


@pytest.mark.slow
def test_peak_memory_is_that_of_a_thousand_objects(tmp_path: Path) -> None:
    """Six tables of scores of 200,000 objects are 27 MB, and were held several times over."""
    real = write_stamps(tmp_path / "real", noise_stamps(10_000), shard_rows=10_000)
    few, _ = peak(write_stamps(tmp_path / "few", noise_stamps(1_000), shard_rows=1_000))
    one, _ = peak(real)
    many, objects = peak(linked_dataset(real, tmp_path / "many", 20))
    assert objects == 200_000
    # A full block of scores and of a batch is in memory from 10,000 objects on.
    assert many < one + 12, f"{few} MB for 1,000 objects, {one} for 10,000, {many} for 200,000"
