"""Which Python runs on the nodes: this one, another, that of a conda environment or of a container."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.request.plan import LaunchPlan

# USR2 kills a Python process that has no handler yet, and the job with it. sh ignores it until submitit's
# handler is in place, because `env --ignore-signal` is newer (coreutils 8.31) than Red Hat 8.
_IGNORING_USR2 = """sh -c 'trap "" USR2; exec "$0" "$@"'"""
# Variables of Apptainer that mean --rocm and --nv. The submitting machine does not know the nodes' GPUs.
_GPUS_OF_APPTAINER = "if [ -e /dev/kfd ]; then export APPTAINER_ROCM=1; else export APPTAINER_NV=1; fi"


@dataclass(frozen=True)
class NodePython:
    """How the batch script starts Python.

    Args:
        setup: shell lines before srun.
        srun: further options of srun.
        command: the words after srun that start Python, quoted for the shell.
    """

    setup: tuple[str, ...]
    srun: tuple[str, ...]
    command: str


def node_python(plan: LaunchPlan, code: Path, folders: Sequence[Path]) -> NodePython:
    """The start of Python on the nodes for a plan.

    Args:
        plan: says which Python.
        code: the snapshot, in which Python starts.
        folders: folders that the job reads and writes, which a container has to see; absolute.

    Raises:
        BadInput: a folder whose name cannot be passed to the container.
    """
    setup = (*map(_export, plan.environment), *plan.setup)
    if plan.container:
        python = shlex.quote(_absolute(plan.python or "python3"))
        inside = f"{_IGNORING_USR2} {python}"
        if plan.container_runtime == "pyxis":
            return NodePython(setup, _pyxis(plan, code, folders), inside)
        if plan.gpus:
            setup = (*setup, _GPUS_OF_APPTAINER)
        # Apptainer gives USR2 its default action again: it is ignored inside, too.
        outside = _apptainer(plan, code, folders)
        return NodePython(setup, (), f"{_IGNORING_USR2} {outside} {inside}")
    if plan.conda:
        setup = (*setup, *_conda(plan.conda))
    python = shlex.quote(_absolute(plan.python or ("python" if plan.conda else sys.executable)))
    return NodePython(setup, (), f"{_IGNORING_USR2} {python}")


def _export(variable: tuple[str, str]) -> str:
    """`export NAME="value"`, in which only $NAME and ${NAME} are replaced."""
    name, value = variable
    text = re.sub(r'(["\\`])', r"\\\1", value)
    text = re.sub(r"\$(?![A-Za-z_]|\{[A-Za-z_][A-Za-z0-9_]*\})", r"\\$", text)
    return f'export {name}="{text}"'


def _conda(environment: str) -> tuple[str, ...]:
    return (
        'eval "$("${CONDA_EXE:-conda}" shell.bash hook)"',
        f"conda activate {shlex.quote(_absolute(environment))} || exit 1",
    )


def _apptainer(plan: LaunchPlan, code: Path, folders: Sequence[Path]) -> str:
    image = plan.container if "://" in plan.container else os.path.abspath(plan.container)
    binds = [word for folder in _bindable(folders) for word in ("--bind", folder)]
    return shlex.join(["apptainer", "exec", *binds, "--pwd", str(code), image])


def _pyxis(plan: LaunchPlan, code: Path, folders: Sequence[Path]) -> tuple[str, ...]:
    is_file = plan.container.endswith(".sqsh") or plan.container.startswith(("/", "."))
    image = os.path.abspath(plan.container) if is_file else plan.container
    mounts = ",".join(f"{folder}:{folder}" for folder in _bindable(folders))
    return (f"--container-image={image}", f"--container-mounts={mounts}", f"--container-workdir={code}")


def _bindable(folders: Sequence[Path]) -> list[str]:
    for folder in folders:
        if re.search("[:,]", str(folder)):
            raise BadInput(f"{folder}: a container cannot bind a folder with ':' or ',' in its name")
    return list(dict.fromkeys(map(str, folders)))


def _absolute(name: str) -> str:
    """A path as absolute, because the job starts in another folder; a name without '/' as it is."""
    return os.path.abspath(name) if "/" in name else name
