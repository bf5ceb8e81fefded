"""The recorded batch scripts: which plan each belongs to, and how they are written anew.

python -m tests.helpers.launch.golden --write
"""

import shlex
import sys
from pathlib import Path
from typing import Any

from hpcphotoz.launch.executor import slurm_executor
from hpcphotoz.launch.request.profile import load_profile, plan_of
from tests.helpers.paths import ROOT

FOLDER = ROOT / "tests" / "launch" / "request" / "golden"
LAUNCH = Path("/scratch/a run/launch")
PROFILES = ("cpu", "frontier", "generic", "jean-zay", "perlmutter", "snellius")
_OWN = {"nodes": 2, "account": "cosmo"}
_PYTHONS: dict[str, dict[str, Any]] = {
    "conda": {"conda": "/envs/photo z", "setup": ["module load conda"]},
    "apptainer": {"container": "/images/torch 2.sif", "gpus_per_node": "h100:4", "mem": "0"},
    "pyxis": {
        "container": "nvcr.io#nvidia/pytorch:26.01-py3",
        "container_runtime": "pyxis",
        "gpus_per_node": "4",
        "time": "1-02:00:00",
        "srun": ["--cpu-bind=cores"],
    },
}
NAMES = (*PROFILES, *_PYTHONS)


def template_of_end() -> str:
    """The end of every batch script, as recorded, to be formatted with `python` and `launch`."""
    text = (FOLDER / "generic.sh").read_text()
    end = text[text.index("# teardown\n") :].replace("{", "{{").replace("}", "}}")
    return end.replace("PYTHON", "{python}").replace(shlex.quote(str(LAUNCH)), "{launch}")


def script(name: str) -> str:
    """The batch script of a recorded case, with this Python as PYTHON."""
    profile = load_profile(name) if name in PROFILES else None
    plan = plan_of(_OWN | _PYTHONS.get(name, {}), profile)
    executor = slurm_executor(plan, LAUNCH, LAUNCH / "code-0123", [LAUNCH.parent, Path("/data/my set")])
    text = str(executor._make_submission_file_text(executor._submitit_command_str, ""))
    return text.replace(shlex.quote(sys.executable), "PYTHON")


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    for one in NAMES:
        (FOLDER / f"{one}.sh").write_text(script(one))
