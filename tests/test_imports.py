"""Modules import with the packages of a plain GPU image alone."""

import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

TORCH = {"torch", "triton", "numpy", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock"}
TORCH |= {"fsspec", "typing_extensions", "setuptools", "cuda", "torchgen", "functorch", "optree"}
# Other packages in usual GPU images with torch.
IMAGE = TORCH | {"h5py", "mpi4py", "rich", "pygments", "markdown_it", "mdurl", "xxhash", "scipy", "tqdm"}
IMAGE |= {"matplotlib", "mpl_toolkits", "PIL", "cycler", "kiwisolver", "contourpy", "pyparsing", "dateutil"}
IMAGE |= {"packaging", "yaml", "psutil", "safetensors", "six", "fontTools"}
FOUR = {"pydantic", "pydantic_core", "typing_inspection", "annotated_types"}  # small wheels that a user adds

BLOCKED = '''
import importlib, importlib.metadata, sys

allowed = set(sys.argv[1].split(","))
installed = set(importlib.metadata.packages_distributions())

finders = list(sys.meta_path)

class Allowed:
    """What other finders find, without the blocked packages: as if these were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in installed - allowed - {"hpcphotoz"}:
            return None
        found = (finder.find_spec(name, path, target) for finder in finders)
        return next((spec for spec in found if spec is not None), None)

sys.meta_path[:] = [Allowed()]
for name in sys.argv[2].split(","):
    importlib.import_module(name)
'''


def modules(*folders: str) -> list[str]:
    """Every module under some folders of the repository, as it is imported."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    files = [file for file in files if "peers" not in file.parts]  # they run in another environment
    return [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files
    ]


@pytest.mark.parametrize(
    ("allowed", "names"),
    [
        (TORCH, modules("hpcphotoz/kernels")),
        (
            IMAGE | FOUR,
            modules(
                "hpcphotoz/models",
                "hpcphotoz/compute",
                "hpcphotoz/attacks",
                "hpcphotoz/data",
                "hpcphotoz/training",
            ),
        ),
        (IMAGE | FOUR, ["hpcphotoz.cli", *modules("hpcphotoz/evaluation")]),
        (IMAGE | FOUR, modules("benchmarks")),
    ],
    ids=["kernels", "training", "evaluation", "benchmarks"],
)
def test_modules_import_beside_few_packages(allowed: set[str], names: list[str]) -> None:
    found = subprocess.run(
        [sys.executable, "-c", BLOCKED, ",".join(sorted(allowed)), ",".join(names)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert len(names) > 3 and found.returncode == 0, found.stderr


ON_A_CPU = """
import sys, torch
from hpcphotoz import attacks
from hpcphotoz.config.load import parse
from hpcphotoz.models.build import bins_of, build

config = parse({"model": {"width": 8, "bins": 20}, "attack": {"random_start": True}}, "test")
network, bins = build(config.model, stamp=16, scale=(1.0,)), bins_of(config.model)
x, one = torch.zeros(2, 1, 16, 16), torch.full((2,), 0.1)
given = dict(attack=config.attack, bins=bins)
attacks.perturb(network, x, one, one, one[:, None], torch.arange(2), **given)
bins.mean(network(x, one))
print(*{"triton", "torch._inductor", "torch._dynamo"} & set(sys.modules))
"""


def test_attacks_on_a_cpu_do_not_wait_for_the_import_of_compilers() -> None:
    found = subprocess.run(
        [sys.executable, "-c", ON_A_CPU], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    assert not found.stdout.strip(), found.stdout


def test_missing_packages_are_refused() -> None:
    found = subprocess.run(
        [sys.executable, "-c", BLOCKED, "torch", "pydantic"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "No module named 'pydantic'" in found.stderr
