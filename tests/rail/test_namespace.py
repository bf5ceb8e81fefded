"""The stages in RAIL's namespace: RAIL finds them, and none of its own files is hidden."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

pytest.importorskip("rail.core", reason="needs pz-rail-base: pip install 'hpcphotoz[rail]'")

OURS = sorted(path.relative_to(ROOT) for path in (ROOT / "rail").rglob("*.py"))
STAGES = ["HpcPhotozEstimator", "HpcPhotozInformer", "HpcPhotozLabels"]


def run(code: str, folder: Path) -> str:
    """What Python code prints as its last line, run in a folder where nothing of ours lies."""
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()[-1]


def test_no_file_of_rail_is_hidden() -> None:
    theirs = {str(path) for path in metadata.files("pz-rail-base") or []}
    assert "rail/estimation/algos/train_z.py" in theirs
    assert not theirs & {str(path) for path in OURS}
    # An __init__.py in a folder that RAIL and its algorithm packages share would hide all of theirs.
    shared = {str(Path(path).parent) for path in theirs if path.startswith("rail/")} | {"rail"}
    assert [path for path in OURS if path.name == "__init__.py" and str(path.parent) in shared] == []


def test_rail_finds_the_stages(tmp_path: Path) -> None:
    code = """
import json, rail.stages
from rail.core import RailEnv
from rail.core.stage import RailStage
rail.stages.import_and_attach_all(silent=True)
stages = {name: found[0].__module__ for name, found in RailStage.pipeline_stages.items() if "Hpc" in name}
modules = [name for name in RailEnv.list_rail_modules() if "hpcphotoz" in name]
bases = [base for base, names in RailEnv._stage_dict.items() if any("Hpc" in name for name in names)]
print(json.dumps([stages, modules, bases, hasattr(rail.stages, "HpcPhotozEstimator")]))
"""
    stages, modules, bases, attached = json.loads(run(code, tmp_path))
    # ceci starts a stage by this module; of a package that is no namespace it would start the command line.
    assert stages == dict.fromkeys(STAGES, "rail.estimation.algos.hpcphotoz")
    assert modules == ["rail.estimation.algos.hpcphotoz"] and attached
    assert set(bases) == {"RailStage", "CatEstimator", "CatInformer"}


def test_rail_makes_functions_of_the_stages(tmp_path: Path) -> None:
    code = """
from rail.interactive.estimation import algos
print(sorted(name for name in dir(algos.hpcphotoz) if not name.startswith("_")))
assert "epochs" in algos.hpcphotoz.hpcphotoz_informer.__doc__
"""
    assert run(code, tmp_path) == "['hpcphotoz_estimator', 'hpcphotoz_informer', 'hpcphotoz_labels']"


@pytest.mark.slow
def test_the_functions_take_paths(model: Path, dataset: Path, tmp_path: Path) -> None:
    code = f"""
from rail.interactive.estimation import algos
options = dict(input_data={str(dataset)!r}, model={str(model)!r}, device="cpu")
print(algos.hpcphotoz.hpcphotoz_estimator(**options)["output"].npdf)
"""
    assert run(code, tmp_path) == "75" and not list(tmp_path.iterdir())


def test_without_rail_the_extra_is_named(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["ceci.config"] = None
try:
    import rail.hpcphotoz
except ImportError as error:
    print(error)
"""
    assert run(code, tmp_path).endswith("the stages for RAIL need `pip install 'hpcphotoz[rail]'`")


@pytest.mark.parametrize("name", STAGES)
def test_docstrings_are_in_the_form_of_numpydoc(name: str) -> None:
    from rail.core.stage import RailStage

    import rail.hpcphotoz  # noqa: F401

    stage = RailStage.pipeline_stages[name][0]
    summary, _, rest = stage.__doc__.partition("\n")
    assert summary and "\nParameters\n----------\n" in rest and "(INPUT)" in rest
    assert stage.interactive_function.startswith("hpcphotoz_") and stage.entrypoint_function
