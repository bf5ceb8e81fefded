"""Golden losses: the loss curves of the small recipes on a CPU, which a change of code must not move.

python -m tests.helpers.training.golden            # how far this machine is from the file
python -m tests.helpers.training.golden --write    # after a change that is meant to move them
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from hpcphotoz.config import Config
from hpcphotoz.config.load import load
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.datasets import make_dataset
from tests.helpers.paths import ROOT

FILE = ROOT / "tests" / "training" / "exact" / "golden.json"

# Two epochs, of which the last batch is a partial one, and a schedule that rises, falls and ends in them.
_SHORT = {
    **{"run.epochs": "2", "run.global_batch": "16", "run.log_steps": "1"},
    **{"optimiser.warmup_steps": "3", "data.block_rows": "8", "data.window_blocks": "3"},
    **{"data.validation": "0", "compute.precision": "fp32", "compute.deterministic": "true"},
}
# A network of ten steps hardly feels the attack of the recipe, whose second step ends at the ball's surface.
_STRONG = {"attack.eps": "2", "attack.step_size": "0.5", "attack.steps": "3"}
# Each curve: its recipe, and options that differ from it.
CURVES: dict[str, tuple[str, dict[str, str]]] = {
    "standard": ("standard", {}),
    "adversarial": ("adversarial", {}),
    "strong": ("adversarial", _STRONG),
    "free": ("adversarial", {"adversarial.objective": "free", **_STRONG}),
    "trades": ("adversarial", {"adversarial.objective": "consistency", **_STRONG}),
}


def golden_config(name: str, **changed: str) -> Config:
    """The configuration of one curve, with `section.key` -> text changed."""
    recipe, options = CURVES[name]
    return load(recipe, {**_SHORT, **options, **changed})


def losses(name: str, data: Path, out: Path, **changed: str) -> list[float]:
    """The loss of every step of one curve, trained here."""
    train(golden_config(name, **changed), data, out, device="cpu")
    return [loss for _, loss in ranks.curve(out)]


def golden() -> dict[str, list[float]]:
    """The losses of the file."""
    found: dict[str, list[float]] = json.loads(FILE.read_text())["losses"]
    return found


def dataset_in(folder: Path) -> Path:
    """The objects that all curves are trained on: 75 of 16 pixels in three shards."""
    return make_dataset(folder / "set", n=75, shard_rows=32)


def main() -> None:
    """Train all curves; print the greatest difference of each, or write the file."""
    parser = argparse.ArgumentParser(description="Golden losses of the small recipes on a CPU")
    parser.add_argument("--write", action="store_true", help=f"write {FILE.relative_to(ROOT)}")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = dataset_in(Path(folder))
        found = {name: losses(name, data, Path(folder) / name) for name in CURVES}
    made = {"torch": torch.__version__, "vector_unit": torch.backends.cpu.get_cpu_capability()}
    if given.write:
        content: dict[str, Any] = {"made_with": {**made, "threads": torch.get_num_threads()}, "losses": found}
        FILE.write_text(json.dumps(content, indent=1) + "\n")
        return
    for name, ours in found.items():
        apart = max(abs(a - b) for a, b in zip(ours, golden()[name], strict=True))
        print(f"{name}: {apart:.1e}")


if __name__ == "__main__":
    main()
