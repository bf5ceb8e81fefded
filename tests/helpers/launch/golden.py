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
# The end of every batch script, to be formatted with `python` and `launch`.
TEARDOWN = """\
# teardown
status=$?
if [ $status -ne 0 ] && [ $status -ne 75 ]; then
  trap '' TERM
  job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}; job=${{job:-$SLURM_JOB_ID}}
  if exclude=$({{ scontrol show job --oneliner $job; scontrol show partition --oneliner \
$SLURM_JOB_PARTITION; }} | sh -c 'trap "" USR2; exec "$0" "$@"' {python} \
-m hpcphotoz.launch.requeue.after_step {launch} $status); then
    if [ -n "$exclude" ] && ! sbatch --test-only --exclude=$exclude "$0" >/dev/null 2>&1; then
      echo "hpcphotoz: without $exclude Slurm has too few nodes for this job: not excluded"
      exclude=
    fi
    case "$(scontrol show job --oneliner $job)" in *" JobState=RUNNING "*)
      scontrol requeue $job &&
        [ -n "$exclude" ] && scontrol update JobId=$job ExcNodeList=$exclude
    esac
  fi
fi
exit $status
"""
NAMES = (*PROFILES, *_PYTHONS)


def script(name: str) -> str:
    """The batch script of a recorded case, with this Python as PYTHON."""
    profile = load_profile(name) if name in PROFILES else None
    plan = plan_of(_OWN | _PYTHONS.get(name, {}), profile)
    launch = Path("/scratch/a run/launch")
    executor = slurm_executor(plan, launch, launch / "code-0123", [launch.parent, Path("/data/my set")])
    text = str(executor._make_submission_file_text(executor._submitit_command_str, ""))
    return text.replace(shlex.quote(sys.executable), "PYTHON")


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    for one in NAMES:
        (FOLDER / f"{one}.sh").write_text(script(one))
