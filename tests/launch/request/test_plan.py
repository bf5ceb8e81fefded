"""Plans of launches that are refused."""

import re

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.request.plan import LaunchPlan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 0}, "--nodes 0: must be at least 1"),
        ({"gpus_per_node": "-1"}, "--gpus-per-node -1: write a number or type:number"),
        ({"cpus_per_task": 0}, "--cpus-per-task 0"),
        ({"time": "2", "signal_delay_s": 120}, "longer than the job's --time 2"),
        ({"extra": ("=3",)}, "write key=value"),
        ({"extra": ("a b=3",)}, "write key=value"),
        ({"extra": ("cpus_per_task=3",)}, "set by the launcher's own options"),
        ({"extra": ("--signal=USR1@5",)}, "set by the launcher's own options"),
        (
            {"extra": ("parti=debug",)},
            "set by the launcher's own options",
        ),  # sbatch accepts it, but a plan does not
        ({"srun": ("cpu-bind=cores",)}, "--srun=cpu-bind=cores: write --srun=--key=value"),
        ({"srun": ("-c4",)}, "write --srun=--key=value"),
        ({"srun": ("--export=NONE",)}, "export is set by the launcher's own options"),
        ({"srun": ("--signal=USR1@5",)}, "signal is set by the launcher's own options"),
        ({"extra": ("export=NONE",)}, "export is set by the launcher's own options"),
        (
            {"extra": ("dependency=afterok:1",)},
            "dependency is set by the launcher's own options: give --after",
        ),
        ({"extra": ("mem-per-cpu=1G",)}, "mem-per-cpu is set by the launcher's own options: give --mem"),
        ({"extra": ("mem_per_gpu=1G",)}, "mem-per-gpu is set by the launcher's own options: give --mem"),
        ({"srun": ("--kill",)}, "set by the launcher's own options"),
        ({"srun": ("--container-image=a",)}, "set by the launcher's own options"),
        ({"srun": ("--pty",)}, "changes what srun does, not the job"),
        ({"srun": ("--cpu-bind=a\nb",)}, "has a control character"),
        ({"conda": "a", "container": "b.sif"}, "--conda a: the Python is that of --container"),
        ({"container_runtime": "docker"}, "--container-runtime docker: valid: apptainer, pyxis"),
        ({"extra": ("parsable",)}, "changes what sbatch does, not the job"),
        ({"extra": ("test-only",)}, "changes what sbatch does, not the job"),
        ({"extra": ("comment=a\n#SBATCH --uid=0",)}, "--extra 'comment=a\\n#SBATCH --uid=0': has a control"),
        ({"setup": ("module load cuda", "a\r\nb")}, "--setup 'a\\r\\nb': has a control character"),
        *(
            ({name: "a\ntouch /tmp/b"}, f"--{name.replace('_', '-')} 'a\\ntouch /tmp/b': has a control")
            for name in (
                "job_name",
                "partition",
                "account",
                "qos",
                "constraint",
                "exclude",
                "conda",
                "python",
                "comment",
            )
        ),
    ],
)
def test_plan_refuses(options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        LaunchPlan(**options)  # type: ignore[arg-type]


def test_ranks_of_a_node() -> None:
    assert LaunchPlan().ranks_per_node == 1
    assert LaunchPlan(gpus_per_node="h100:4").ranks_per_node == 4
    assert LaunchPlan(gpus_per_node="h100:4", tasks_per_node=2).ranks_per_node == 2
