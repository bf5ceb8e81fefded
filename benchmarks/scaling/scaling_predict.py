"""The assumptions of the predictions, each with unit and source, and the tables that follow from them."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.scaling.scaling_model import (
    Assumptions,
    Attack,
    Quantity,
    compute_s,
    exposed_s,
    gradients_s,
    step_s,
    strong,
    weak,
)
from hpcphotoz.compute.cost import attack_cost_law
from hpcphotoz.errors import BadInput

PEAK, MEMORY = 989e12, 3.35e12  # H100 SXM, dense bfloat16 (FLOP/s) and memory (byte/s), from its data sheet
ACHIEVED = 0.1  # of PEAK
ATTACKS = {"clean": Attack(0, 0.0), "PGD-3": Attack(3, 0.5), "PGD-10": Attack(10, 0.5)}
RANKS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)
WEAK_BATCH, STRONG_BATCH = 256, 16384  # a GPU; of all: 16 a GPU on 1,024, and one would take it in pieces


def core(image: float, update: float, parameters: int, alpha: float, beta: float) -> Assumptions:
    """Cores of this machine, one flat ring: seconds of an image's clean step, of an update, a hop, a byte."""
    two, ring = "measured: two batch sizes on one rank", "measured: gloo on this machine"
    return Assumptions(
        image=Quantity(image, "s/image", two + ", over the cost law"),
        floor=Quantity(0, "s/pass", "assumed: no launches on a CPU"),
        update=Quantity(update, "s/step", two),
        gradients=Quantity(4 * parameters, "bytes", "counted: float32"),
        bucket=Quantity(25 * 2**20, "bytes", "assumed: torch's default"),
        overlap=Quantity(0, "of the backward pass", "assumed: gloo's threads take the core from it"),
        jitter=Quantity(0, "of a step", "assumed: it is in the measured spread"),
        node=Quantity(1, "ranks/node", "assumed: a flat ring"),
        alpha_inside=Quantity(0, "s/hop", "assumed: unused"),
        beta_inside=Quantity(0, "s/byte", "assumed: unused"),
        alpha=Quantity(alpha, "s/hop", ring),
        beta=Quantity(beta, "s/byte", ring),
        trees=Quantity(0, "0 or 1", "assumed: gloo takes the ring"),
    )


def on_gpus(here: Assumptions, flops: float, tensors: int, image: Quantity | None) -> Assumptions:
    """The same ring with GPUs: measured seconds an image, or with None the counted FLOP at ACHIEVED of PEAK.

    Args:
        flops: an image, clean step (two a multiply-add).
        tensors: of parameters.
    """
    parameters = here.gradients.value / 4
    said = (
        f"assumed: {flops / 1e9:.2f} GFLOP/image (counted) at {100 * ACHIEVED:.0f} % of {PEAK / 1e12:.0f} T/s"
    )
    return dataclasses.replace(
        here,
        image=image or Quantity(flops / (ACHIEVED * PEAK), "s/image", said),
        floor=Quantity(5e-6 * tensors, "s/pass", f"assumed: {tensors} launches (parameter tensors) of 5 us"),
        update=Quantity(56 * parameters / MEMORY, "s/step", "assumed: 56 bytes a parameter at 3.35 TB/s"),
        overlap=Quantity(0.8, "of the backward pass", "assumed"),
        jitter=Quantity(0.01, "of a step", "assumed"),
    )


def on_cluster(gpus: Assumptions) -> Assumptions:
    """The same GPUs in nodes of eight, a network port for each."""
    return dataclasses.replace(
        gpus,
        node=Quantity(8, "ranks/node", "assumed"),
        alpha_inside=Quantity(3e-6, "s/hop", "assumed: NVLink"),
        beta_inside=Quantity(1 / 360e9, "s/byte", "assumed: NVLink, 80 % of 450 GB/s each way"),
        alpha=Quantity(5e-6, "s/hop", "assumed: InfiniBand"),
        beta=Quantity(1 / 40e9, "s/byte", "assumed: InfiniBand, 80 % of 50 GB/s a GPU"),
        trees=Quantity(1, "0 or 1", "assumed: NCCL takes the quicker"),
    )


def gpu_image(path: Path, network: str, trained: Attack) -> Quantity:
    """Seconds an image of a clean step on one GPU; that of a training over the cost law.

    Raises:
        BadInput: no such file, or nothing of this network in it that was measured on a GPU.
    """
    try:
        tree = json.loads(path.read_text())
        figures, device = tree["figures"], str(tree.get("device", path.name))
        if "samples_per_s" in figures:
            found, said = figures["samples_per_s"][network], "clean steps"
            rate = float(found["median"] if isinstance(found, dict) else found)
        else:
            found, said = figures["peer"][network], "training, over the cost law,"
            rate = attack_cost_law(*trained) * float(found["images_per_s"]["ours"]["median"]) / found["ranks"]
        if " cores of " in device or not 0 < rate < math.inf:
            raise ValueError(f"{rate} images/s on {device}")
    except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        want = f"want figures.samples_per_s.{network} of a GPU, or a record of bench_step on one"
        raise BadInput(f"{path}: {type(error).__name__} {error}: {want}") from None
    return Quantity(1 / rate, "s/image", f"measured: {said} on {device}")


def table(a: Assumptions) -> list[dict[str, Any]]:
    """Step times (s) and efficiencies: weak with WEAK_BATCH a rank, strong with STRONG_BATCH in all."""
    return [
        {
            "scaling": scaling,
            "attack": name,
            "ranks": p,
            "batch_per_rank": batch,
            "step_s": step_s(a, p, batch, attack),
            "compute_s": compute_s(a, batch, attack),
            "allreduce_s": gradients_s(a, p),
            "exposed_s": exposed_s(a, p, batch),
            "efficiency": efficiency,
        }
        for name, attack in ATTACKS.items()
        for p in RANKS
        for scaling, batch, efficiency in (
            ("weak", WEAK_BATCH, weak(a, p, WEAK_BATCH, attack)),
            ("strong", STRONG_BATCH / p, strong(a, p, STRONG_BATCH, attack)),
        )
    ]
