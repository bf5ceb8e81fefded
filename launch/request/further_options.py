"""Further options of sbatch and srun that a launch passes on, and those that it refuses."""

import re

from hpcphotoz.errors import BadInput

_SBATCH_OWN = (
    "account array chdir constraint cpus-per-task dependency error exclude export export-file gpus-per-node "
    "job-name kill-on-invalid-dep mem mem-per-cpu mem-per-gpu nodes no-requeue ntasks ntasks-per-node "
    "open-mode output partition qos requeue signal time"
).split()
# Options that change what sbatch or srun does or prints, not the job.
_SBATCH_ACTIONS = "help parsable quiet test-only usage version wait wrap".split()
_SRUN_OWN = (
    "chdir container-image container-mounts container-workdir cpus-per-task error export kill-on-bad-exit "
    "nodes ntasks ntasks-per-node output signal unbuffered wait"
).split()
_INSTEAD = {"dependency": "--after", "mem-per-cpu": "--mem", "mem-per-gpu": "--mem"}
_SRUN_ACTIONS = "help input jobid multi-prog pty test-only usage version".split()


def parse_option(entry: str) -> tuple[str, str]:
    """The key and value of a further option, "key=value" or "key"; the value of "key" alone is empty."""
    key, _, value = entry.partition("=")
    return key.removeprefix("--").replace("_", "-"), value


def check_extra(entry: str) -> None:
    """Raise BadInput for a further sbatch option that is malformed, or that the launcher sets itself."""
    where = f"extra Slurm parameter '{entry}'"
    _check(parse_option(entry)[0], where, "reservation=photoz", _SBATCH_OWN, "sbatch", _SBATCH_ACTIONS)


def check_srun(entry: str) -> None:
    """Raise BadInput for a further srun option that is malformed, or that the launcher sets itself."""
    key = parse_option(entry)[0] if entry.startswith("--") else ""
    _check(key, f"--srun={entry}", "--srun=--cpu-bind=cores", _SRUN_OWN, "srun", _SRUN_ACTIONS)


def _check(key: str, where: str, example: str, own: list[str], program: str, actions: list[str]) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
        form = "key=value" if program == "sbatch" else "--srun=--key=value"
        raise BadInput(f"{where}: write {form}, e.g. {example}")
    # Both programs accept the beginning of an option's name for the whole name.
    if any(name.startswith(key) for name in own):
        instead = f": give {_INSTEAD[key]}" if key in _INSTEAD else ""
        raise BadInput(f"{where}: {key} is set by the launcher's own options{instead}")
    if any(name.startswith(key) for name in actions):
        raise BadInput(f"{where}: changes what {program} does, not the job; see --dry-run")
