"""The snapshot of the code is complete, and is trusted only while it is unchanged."""

import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.launch import snapshot


def test_snapshot_is_a_copy_of_the_whole_package(tmp_path: Path) -> None:
    code = snapshot.take(tmp_path)
    assert code == snapshot.folder(tmp_path) == snapshot.take(tmp_path)
    for name in (
        "__main__.py",
        "launch/job.py",
        "launch/profiles/cpu.toml",
        "kernels/reference.py",
        "recipes/standard.toml",
        "py.typed",
    ):
        assert (code / "hpcphotoz" / name).is_file()
    assert not [path for path in code.rglob("*") if path.is_symlink()]
    assert list(tmp_path.iterdir()) == [code]


@pytest.mark.parametrize("what", ["changed", "added", "removed"])
def test_a_snapshot_that_was_changed_is_not_trusted(what: str, tmp_path: Path) -> None:
    code = snapshot.take(tmp_path)
    file = code / "hpcphotoz" / ("new.py" if what == "added" else "errors.py")
    if what == "removed":
        file.unlink()
    else:
        file.write_text("raise SystemExit\n")
    for use in (lambda: snapshot.take(tmp_path), lambda: snapshot.check(code)):
        with pytest.raises(BadInput, match=f"{code}: this code was changed"):
            use()


def test_a_snapshot_brings_the_compiled_files_of_this_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are still valid there: Python writes none when it imports the copy."""
    package, here = tmp_path / "hpcphotoz", sys.implementation.cache_tag
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr("hpcphotoz.__file__", str(package / "__init__.py"))
    before = snapshot.folder(tmp_path)
    compiled = Path(py_compile.compile(str(package / "__init__.py"), doraise=True) or "")
    for name in (f"__init__.{here}.pyc.1234", "__init__.cpython-27.pyc", "notes.py"):
        (compiled.parent / name).touch()
    code = snapshot.take(tmp_path)
    assert code == before and snapshot.take(tmp_path) == code
    copy = code / "hpcphotoz" / "__pycache__" / compiled.name
    assert list(copy.parent.iterdir()) == [copy]
    words = [sys.executable, "-v", "-c", "import hpcphotoz"]
    said = subprocess.run(words, cwd=code, check=True, timeout=60, capture_output=True, text=True).stderr
    assert f"{copy} matches" in said


def test_a_link_to_nothing_is_left_out_of_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editor's lock is one: .#step.py."""
    package = tmp_path / "hpcphotoz"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr("hpcphotoz.__file__", str(package / "__init__.py"))
    before = snapshot.folder(tmp_path)
    (package / ".#step.py").symlink_to("someone@host.1234:1700000000")
    assert snapshot.take(tmp_path) == before == snapshot.take(tmp_path)
    assert [path.name for path in (before / "hpcphotoz").iterdir()] == ["__init__.py"]


def test_a_snapshot_that_has_run_is_trusted(tmp_path: Path) -> None:
    code = snapshot.take(tmp_path)
    words = [sys.executable, "-m", "hpcphotoz", "--version"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(words, cwd=code, env=env, check=True, timeout=60, capture_output=True)
    assert list(code.rglob("*.pyc"))
    assert snapshot.take(tmp_path) == code


def test_a_file_that_is_changed_during_the_copy_is_trusted_as_it_was_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree

    def changed(source: Any, target: Any, *args: Any, **options: Any) -> Any:
        found = copy(source, target, *args, **options)
        if Path(target).name == "hpcphotoz":
            with (Path(target) / "errors.py").open("a") as file:
                file.write("# saved in an editor meanwhile\n")
        return found

    before = snapshot.folder(tmp_path)
    monkeypatch.setattr(shutil, "copytree", changed)
    code = snapshot.take(tmp_path)
    snapshot.check(code)
    assert code != before and list(tmp_path.iterdir()) == [code]
