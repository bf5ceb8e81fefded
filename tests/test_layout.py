"""The architecture: links, the direction of imports, and the tree in the README."""

import ast
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from hpcphotoz.config.load import recipes
from tests.helpers.paths import ROOT

PACKAGE = ROOT / "hpcphotoz"

# Floors, from the top: a module may import from its own floor and from those below.
FLOORS = [
    ["cli", "__main__"],
    ["launch", "predict", "api", "rail"],
    ["training"],
    ["evaluation"],
    ["sources"],
    ["attacks", "data"],
    [
        "kernels",
        "models",
        "compute",
        "world",
        "node",
        "config",
        "progress",
        "ranks",
        "errors",
        "memory",
        "output",
        "provenance",
        "atomic",
        "locks",
        "heartbeat",
        "__init__",
    ],
]
ALONE = ["data/order.py", "evaluation/metrics/"]  # import nothing else of this package
ONLY_IN = {
    "galsim": "sources",
    "astropy": "sources",
    "speclite": "sources",
    "submitit": "launch",
    "matplotlib": "evaluation",
    "mpi4py": "sources",
    "zarr": "sources",
    "pyarrow": "sources",
    "triton": "kernels",
    "safetensors": "training",
    "qp": "rail",
    "rail": "rail",
    "ceci": "rail",
}


def modules(package: Path = PACKAGE) -> list[Path]:
    names = list(package.glob("**/*.py"))
    names += [p for link in ("kernels", "launch") for p in (package / link).rglob("*.py")]
    return sorted({p.relative_to(package) for p in names})


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(k for k, names in enumerate(FLOORS) if name in names)


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports_go_down(path: Path) -> None:
    if path == Path("__init__.py"):
        return  # names the functions of api.py, which it imports when they are first used
    ours = {name for name in imported(path) if name.split(".")[0] == "hpcphotoz"}
    for name in ours:
        parts = name.split(".")
        target = parts[1] if len(parts) > 1 and any(parts[1] in names for names in FLOORS) else "__init__"
        if target != part(path):
            assert floor(target) >= floor(part(path)), f"{path} imports {name}: upwards"
        if target == "launch" and part(path) != "launch":
            assert path.parts[0] == "cli", f"{path} imports launch; only cli may"
        assert target != "cli" or part(path) in FLOORS[0]
    if part(path) == "kernels":
        assert all(name.startswith("hpcphotoz.kernels") for name in ours), f"{path}: only torch and triton"
    for alone in ALONE:
        if str(path).startswith(alone):
            own = "hpcphotoz." + alone.strip("/").replace("/", ".")
            assert all(name.startswith(own) for name in ours), f"{path} imports nothing else of ours"


@pytest.mark.parametrize("path", modules(), ids=str)
def test_other_libraries_stay_where_they_belong(path: Path) -> None:
    for name in imported(path):
        assert name.split(".")[0] not in ("benchmarks", "tests"), f"{path} imports {name}"
        home = ONLY_IN.get(name.split(".")[0])
        assert home is None or part(path) == home, f"{path} imports {name}; only {home} may"


def test_training_needs_no_library_of_the_sources() -> None:
    code = (
        "import sys\n"
        "absent = 'galsim astropy speclite submitit matplotlib mpi4py scipy triton'\n"
        "for name in absent.split():\n"
        "    sys.modules[name] = None\n"
        "import hpcphotoz.cli, hpcphotoz.training.trainer, hpcphotoz.predict, hpcphotoz.attacks\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("root", ["hpcphotoz", "kernels", "launch", "rail", "benchmarks", "tests"])
def test_no_folder_holds_more_than_twelve_modules(root: str) -> None:
    for folder in {path.parent for path in (ROOT / root).rglob("*.py")}:
        names = [path.name for path in folder.glob("*.py")]
        assert len(names) <= 12, f"{folder.relative_to(ROOT)} holds {len(names)} modules: {sorted(names)}"


def test_links_are_relative_and_have_no_init() -> None:
    for name in ("kernels", "launch"):
        assert (PACKAGE / name).is_symlink() and (PACKAGE / name).readlink() == Path("..") / name
        assert not (ROOT / name / "__init__.py").exists()


def test_a_lost_link_is_reported(tmp_path: Path) -> None:
    (tmp_path / "hpcphotoz").mkdir()
    (tmp_path / "hpcphotoz" / "__init__.py").write_text((PACKAGE / "__init__.py").read_text())
    (tmp_path / "hpcphotoz" / "kernels").write_text("../kernels")  # what a source zip leaves of a link
    found = subprocess.run(
        [sys.executable, "-c", "import hpcphotoz"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "the link to ../kernels was lost" in found.stderr


@pytest.mark.slow
def test_a_plain_installation_is_whole(tmp_path: Path) -> None:
    """An installation that is not editable has folders for links, and all files that are not Python."""
    clone, target = tmp_path / "clone", tmp_path / "installed"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True, timeout=60)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(clone)], check=True, timeout=200)
    names = {
        str(p.relative_to(target / "hpcphotoz")) for p in (target / "hpcphotoz").rglob("*") if p.is_file()
    }
    missing = (
        {str(p) for p in modules(clone / "hpcphotoz")}
        | {"py.typed"}
        | {f"recipes/{n}.toml" for n in recipes()}
        | {f"launch/profiles/{path.name}" for path in (ROOT / "launch" / "profiles").iterdir()}
    )
    assert not missing - names
    assert not (target / "hpcphotoz" / "kernels").is_symlink()
    assert (target / "rail" / "estimation" / "algos" / "hpcphotoz.py").is_file()
    pytest.importorskip("rail.core", reason="needs pz-rail-base: pip install 'hpcphotoz[rail]'")
    subprocess.run(
        [sys.executable, "-c", "import rail.hpcphotoz as ours, rail.core; print(ours.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        check=True,
        timeout=120,
    )


def tracked() -> set[str]:
    try:
        found = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: the tree cannot be compared")
    return set(found.stdout.split())


def test_the_tree_of_the_readme_is_that_of_the_repository() -> None:
    text = (ROOT / "README.md").read_text()
    tree = text[text.index("```tree") + len("```tree") :].split("```")[0]
    told, folders = set(), [""]
    for line in filter(str.strip, tree.splitlines()):
        names = re.split(r"\s{2,}", line.strip())[0]
        depth = (len(line) - len(line.lstrip())) // 2
        for name in names.split():
            path = "".join(folders[: depth + 1]) + name
            told.add(path)
            if name.endswith("/"):
                folders[depth + 1 :] = [name]
    for path in told:
        assert (ROOT / path).exists(), f"README names {path}, which is not there"
    for path in tracked():
        if Path(path).name in ("__init__.py", ".gitignore", ".gitkeep") or path in (
            "hpcphotoz/kernels",
            "hpcphotoz/launch",
        ):
            continue
        covered = path in told or any(
            t.endswith("/") and path.startswith(t) and not _listed(t, told) for t in told
        )
        assert covered, f"{path} is in the repository and not in the README's tree"


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150, f"README has {len(lines)} lines: at most 150, the rest belongs in docs/"


def _listed(folder: str, told: set[str]) -> bool:
    return any(path.startswith(folder) and path != folder for path in told)


def test_no_file_names_a_place_or_machine() -> None:
    pattern = re.compile(r"/wor[k]/|/roo[t]/|/hom[e]/")
    for name in tracked():
        path = ROOT / name
        if path.is_file() and path.suffix in (".py", ".md", ".toml", ".json", ".txt", ""):
            assert not pattern.search(path.read_text()), f"{name} names a path of some machine"


def test_every_pinned_version_takes_the_oldest_python_that_pyproject_allows() -> None:
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    for name, version in pins:
        try:
            found = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue  # of the documentation, which is installed for `make docs`
        if found["Version"] == version and (wanted := found["Requires-Python"]):
            assert "3.11.0" in SpecifierSet(wanted), f"{name}=={version} wants Python {wanted}"


def test_an_installation_that_fails_says_why(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$2" in\n venv) mkdir -p "$3/bin"; cp "$0" "$3/bin/python";;\n'
        ' pip) echo "The conflict is caused by: a constraint"; exit 1;;\nesac\n'
    )
    python.chmod(0o755)
    words = ["make", "env", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode and "The conflict is caused by: a constraint" in done.stderr
    assert "pip.log" in done.stderr and not (tmp_path / "venv/.ready").exists()
