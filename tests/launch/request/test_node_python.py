"""The Python that runs on the nodes, as a shell reads its start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.request.node_python import NodePython, node_python
from hpcphotoz.launch.request.plan import LaunchPlan
from tests.helpers.launch.runs import Install

CODE = Path("/runs/a run/launch/code-0123")
FOLDERS = (Path("/runs/a run"), Path("/data/my set"))
# What Python of a rank sees: whether USR2 is ignored, an environment variable, its arguments.
ASK = (
    "import os, signal, sys; print(int(signal.getsignal(signal.SIGUSR2)), os.environ.get('A'), sys.argv[1:])"
)


def run(python: NodePython, *words: str) -> list[str]:
    """Run the lines before srun and the start of Python as the batch script does; the lines printed."""
    line = " ".join([python.command, *words])
    done = subprocess.run(
        ["bash", "-c", "\n".join([*python.setup, line])], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_this_python_is_the_default_and_ignores_usr2() -> None:
    python = node_python(LaunchPlan(), CODE, FOLDERS)
    assert (python.setup, python.srun) == ((), ())
    assert sys.executable in python.command
    (line,) = run(python, "-c", f'"{ASK}"', "'a b'")
    assert line == "1 None ['a b']"


def test_variables_keep_their_text_but_for_those_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "me")
    plan = LaunchPlan(environment=(("A", 'x "$USER" ${USER}$(id) `id` \\ $5'),))
    (line,) = run(node_python(plan, CODE, FOLDERS), "-c", "\"import os; print(os.environ['A'])\"")
    assert line == 'x "me" me$(id) `id` \\ $5'


def test_a_module_gives_its_python(install: Install) -> None:
    install("python", "echo from the module")
    assert run(node_python(LaunchPlan(python="python"), CODE, FOLDERS)) == ["from the module"]


def test_what_is_no_variable_in_a_value_stays_as_it_is() -> None:
    for value in ("${", "${HOME", "${X:-$(id)}", "${X@P}", "${1bad}", "${A[$(id)]}"):
        (export,) = node_python(LaunchPlan(environment=(("A", value),)), Path("/code"), ()).setup
        words = ["bash", "-c", f'{export}\nprintf "%s" "$A"']
        done = subprocess.run(
            words, capture_output=True, text=True, env={"X": "$(id)"}, timeout=60, check=True
        )
        assert (done.stdout, done.stderr) == (value, "")


def test_a_conda_environment_is_activated(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONDA_EXE", raising=False)
    install("conda", "echo 'conda() { echo \"conda $*\"; }'")
    install("python", 'echo "python $*"')
    python = node_python(LaunchPlan(conda="/envs/photo z"), CODE, FOLDERS)
    assert run(python, "-u") == ["conda activate /envs/photo z", "python -u"]


def test_a_missing_conda_environment_ends_the_job(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONDA_EXE", raising=False)
    install("conda", "echo 'conda() { return 1; }'")
    python = node_python(LaunchPlan(conda="none"), CODE, FOLDERS)
    done = subprocess.run(
        ["bash", "-c", "\n".join([*python.setup, "echo on"])], timeout=60, capture_output=True
    )
    assert (done.returncode, done.stdout) == (1, b"")


def test_apptainer_binds_the_folders_and_ignores_usr2_inside(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake container resets USR2 to its default, as Apptainer does, then runs what follows IMAGE."""
    monkeypatch.chdir(tmp_path)
    reset = "import os, signal, sys; signal.signal(signal.SIGUSR2, signal.SIG_DFL); "
    reset += "os.execvp(sys.argv[1], sys.argv[1:])"
    install(
        "apptainer",
        'echo "$# $APPTAINER_NV"; while [ "${1%.sif}" = "$1" ]; do echo "$1"; shift; done; echo "$1"; shift\n'
        f'exec {sys.executable} -c "{reset}" "$@"',
    )
    plan = LaunchPlan(container="torch 2.sif", gpus_per_node="4", python=sys.executable)
    lines = run(node_python(plan, CODE, FOLDERS), "-c", f'"{ASK}"')
    assert lines[0].split()[1] == "1"
    assert lines[1:-1] == [
        *("exec", "--bind", "/runs/a run", "--bind", "/data/my set", "--pwd", str(CODE)),
        f"{tmp_path}/torch 2.sif",
    ]
    assert lines[-1].startswith("1 ")


def test_pyxis_mounts_the_folders() -> None:
    plan = LaunchPlan(container="nvcr.io#nvidia/pytorch:26.01", container_runtime="pyxis")
    python = node_python(plan, CODE, (*FOLDERS, FOLDERS[0]))
    assert python.srun == (
        "--container-image=nvcr.io#nvidia/pytorch:26.01",
        "--container-mounts=/runs/a run:/runs/a run,/data/my set:/data/my set",
        f"--container-workdir={CODE}",
    )
    assert python.command.endswith(" python3")
    local = LaunchPlan(container="./torch.sqsh", container_runtime="pyxis")
    assert node_python(local, CODE, ()).srun[0] == f"--container-image={os.path.abspath('torch.sqsh')}"


def test_an_image_of_a_registry_stays_as_it_is() -> None:
    plan = LaunchPlan(container="docker://pytorch/pytorch")
    assert " docker://pytorch/pytorch " in node_python(plan, CODE, FOLDERS).command
    assert node_python(plan, CODE, FOLDERS).setup == (), "no GPUs: neither --nv nor --rocm"


@pytest.mark.parametrize("name", ["/data/a:b", "/data/a,b"])
@pytest.mark.parametrize("runtime", ["apptainer", "pyxis"])
def test_a_folder_that_cannot_be_bound_is_refused(name: str, runtime: str) -> None:
    plan = LaunchPlan(container="a.sif", container_runtime=runtime)
    with pytest.raises(BadInput, match="a container cannot bind a folder with ':' or ','"):
        node_python(plan, CODE, (Path(name),))
