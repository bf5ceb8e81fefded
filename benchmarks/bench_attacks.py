"""Whole attacks: ours against torchattacks, foolbox and ART; same networks, galaxies, epsilon and steps.

python -m benchmarks.bench_attacks [--quick] [--json PATH] [--run RUN --data DATASET]

Run `make peers` first, or have the peers in this environment; without one its figures are null. PGD-10 in an
L-infinity ball of 0.1 sky sigma per band with a random start, on networks trained for some steps on galaxies
of `benchmarks.galaxies`; the rivals take turns. A peer works in batches of 16 or of 32, whichever a first
pass shows to be faster, in float32, as its documentation has it. Ours is measured in float32 and with
bfloat16 autocast, and on a GPU as a CUDA graph; on a CPU with freed memory kept in the process, as the
commands have it (the peers run as they come; MALLOC_TRIM_THRESHOLD_ in the environment would do the same).
`torchattacks_tuned` has all of it set by hand: channels_last weights, bfloat16 autocast around the attack,
the memory kept: what is left of the ratio then is the attack's own.
`strength_*` is our final cross-entropy over theirs, on the images each returned, in float32.

`apgd` compares APGD at equal steps with torchattacks' port of AutoAttack's APGD-CE (its best-loss mode), by
loss and by the fraction of outliers, on the same networks and on a trained `--run`. `law` compares the
operations counted in a training step with 1 + 2 K f / 3. On a GPU, TF32 is on for all.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.galaxies import SKY, STAMP, configuration, galaxies, trained
from benchmarks.harness import parser, record, rounds, spread
from benchmarks.peers.driver import Peer
from benchmarks.stream_readers import PEERS_PYTHON, ROOT
from hpcphotoz import attacks
from hpcphotoz.attacks import cost
from hpcphotoz.config import Model
from hpcphotoz.data.shards import read_manifest
from hpcphotoz.evaluation.network import batches, tensors
from hpcphotoz.memory import keep_freed_memory
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.checkpoint import load_network

EPS, STEPS = 0.1, 10
LIBRARIES = ("torchattacks", "foolbox", "art", "torchattacks_tuned")
KEPT = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**30)}  # as hpcphotoz.memory
OBJECTS = {"compact": 256, "cnn": 64, "inception": 32}
TRAINING = {"compact": 60, "cnn": 120, "inception": 60}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Task:
    """A network and what of it is attacked."""

    name: str
    told: dict[str, Any]  # the network, for a peer to build
    model: nn.Module
    bins: RedshiftBins
    images: Tensor
    ebv: Tensor
    z: Tensor
    eps: Tensor  # (B,) nMgy

    def attack(self, **options: Any) -> Callable[[], Tensor]:
        """Our PGD, to be called."""
        loss = attacks.cross_entropy(self.bins)
        if options.pop("graph", False):
            graph = attacks.PGD(self.model, self.eps, steps=STEPS, loss=loss, graph=True, **options)
            return lambda: graph(self.images, self.z, self.ebv)
        start = attacks.RandomStart(torch.arange(len(self.z), device=DEVICE), seed=0)
        return lambda: attacks.pgd(
            self.model,
            self.images,
            self.ebv,
            self.z,
            self.eps,
            loss=loss,
            steps=STEPS,
            start=start,
            **options,
        )

    @torch.no_grad()
    def judged(self, images: Tensor) -> dict[str, float]:
        """Mean cross-entropy and fraction of outliers of attacked images, in float32."""
        parts = zip(*(torch.split(t, 32) for t in (images.to(DEVICE), self.ebv)), strict=True)
        logits = torch.cat([self.model(x, e) for x, e in parts])
        away = (self.bins.mean(logits) - self.z).abs() / (1 + self.z)
        loss = functional.cross_entropy(logits, self.bins.index(self.z))
        return {"loss": float(loss), "eta": float((away > 0.05).float().mean())}


def main() -> None:
    """Measure and print a table."""
    options = given()
    if DEVICE.type == "cpu":
        keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    networks = ["compact"] if options.quick else ["cnn", "inception"]
    repeat, figures = 3, dict[str, Any]()
    print(f"PGD-{STEPS}, eps {EPS} sky sigma, on {DEVICE}; images/s, medians of {repeat}", flush=True)
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-attacks-") as folder:
        for name in networks:
            task = fresh(name)
            figures[name] = {
                **speed(task, Path(folder), repeat),
                "law": law(task),
                "apgd": apgd(task, Path(folder)),
            }
            show(name, figures[name])
        if options.run:
            figures["run"] = {"apgd": apgd(of_run(options.run, options.data), Path(folder))}
            show("run", figures["run"])
    for key in ("torchattacks", "foolbox", "art", "torchattacks_fp32", "torchattacks_tuned"):
        ratios = [figures[name][f"ratio_{key}"] for name in networks]
        figures[f"ratio_{key}"] = None if None in ratios else min(ratios)
    record("attacks", figures, options.json)


def given() -> argparse.Namespace:
    """The command line."""
    words = parser(__doc__)
    words.add_argument("--run", type=Path, help="a trained run, for APGD (needs --data)")
    words.add_argument("--data", type=Path, help="a dataset of that run's bands and stamp size")
    options = words.parse_args()
    if (options.run is None) != (options.data is None):
        words.error("--run and --data belong together")
    return options


def fresh(name: str) -> Task:
    """A network of that name after some training, and galaxies that it has not seen."""
    start = time.perf_counter()
    model, bins = trained(name, TRAINING[name], DEVICE)
    print(f"{name}: trained {TRAINING[name]} steps in {time.perf_counter() - start:.0f} s", flush=True)
    objects = OBJECTS[name] * (8 if DEVICE.type == "cuda" else 1)
    images, ebv, z = (t.to(DEVICE) for t in galaxies(objects, seed=2))
    told = described(configuration(name).model, STAMP, [10 * s for s in SKY])
    return Task(name, told, model, bins, images, ebv, z, EPS * torch.tensor(SKY, device=DEVICE))


def of_run(run: Path, data: Path) -> Task:
    """A trained run and the first galaxies of a dataset."""
    network, manifest = load_network(run, DEVICE), read_manifest(data)
    found = tensors(next(iter(batches(data, manifest, 256, "reading"))), DEVICE)
    scale = network.module.state_dict()["normalise.scale"].flatten().tolist()
    told = described(network.config.model, network.stamp, scale)
    eps = 0.05 * found["sky_sigma"].mean(0)  # where about half of a standard network's galaxies still hold
    return Task(
        "run", told, network.module, network.bins, found["images"], found["ebv"], found["z_spec"], eps
    )


def described(model: Model, stamp: int, scale: list[float]) -> dict[str, Any]:
    """A network as a peer builds it, without the configuration's library."""
    options = model.model_dump(include={"bins", "normalisation", "width"})
    return {"network": model.name, "stamp": stamp, "scale": scale, **options}


def speed(task: Task, folder: Path, repeat: int) -> dict[str, Any]:
    """Images a second of every rival, and how strong each attack is."""
    bf16 = attacks.Passes(autocast=torch.bfloat16)
    ours = {"ours_fp32": task.attack(), "ours": task.attack(passes=bf16)}
    if DEVICE.type == "cuda":
        ours["ours_graph"] = task.attack(passes=bf16, graph=True)
    losses = {name: task.judged(attack())["loss"] for name, attack in ours.items()}
    peers, answers = {library: start_peer(library, task, folder) for library in LIBRARIES}, dict[str, Any]()

    def asked(library: str, peer: Peer) -> float:
        answers[library] = peer.ask(f"pgd {STEPS}", 600)
        return float(answers[library]["seconds"])

    try:
        rivals: dict[str, Callable[[], float]] = {name: timed(attack) for name, attack in ours.items()}
        for library, peer in peers.items():
            if peer is not None:
                rivals[library] = lambda library=library, peer=peer: asked(library, peer)  # type: ignore[misc]
        times = rounds(rivals, repeat)
    finally:
        for peer in filter(None, peers.values()):
            peer.close()
    losses |= {library: answer["loss"] for library, answer in answers.items()}
    rates = {name: spread([len(task.z) / t for t in values]) for name, values in times.items()}
    found: dict[str, Any] = {"objects": len(task.z), "images_per_s": rates, "loss": losses}
    found["versions"] = {library: peer.version for library, peer in peers.items() if peer is not None}
    best = "ours_graph" if "ours_graph" in times else "ours"
    found["loss"]["clean"] = task.judged(task.images)["loss"]
    for library in LIBRARIES:
        for against, suffix in ((best, ""), ("ours_fp32", "_fp32")):
            known = library in times
            found[f"ratio_{library}{suffix}"] = ratio(times[library], times[against]) if known else None
            found[f"strength_{library}{suffix}"] = losses[against] / losses[library] if known else None
    return found


def ratio(theirs: list[float], ours: list[float]) -> float:
    """How many times longer they take: median over rounds."""
    return spread([t / o for t, o in zip(theirs, ours, strict=True)])["median"]


def timed(attack: Callable[[], Tensor]) -> Callable[[], float]:
    """Seconds of a call."""

    def measure() -> float:
        start = time.perf_counter()
        attack()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return measure


def start_peer(library: str, task: Task, folder: Path, steps: int = 3) -> Peer | None:
    """A peer at the better of two batch sizes; None where it is not installed."""
    tuned = library.endswith("_tuned")
    python = PEERS_PYTHON if PEERS_PYTHON.exists() else Path(sys.executable)
    model, data = folder / f"{task.name}.pt", folder / f"{task.name}-data.pt"
    torch.save({**task.told, "state": task.model.state_dict()}, model)
    found: list[tuple[float, Peer]] = []
    for batch in (len(task.z),) if DEVICE.type == "cuda" else (16, 32):
        what = {"images": task.images, "ebv": task.ebv, "label": task.bins.index(task.z), "eps": task.eps}
        torch.save({**{k: v.contiguous() for k, v in what.items()}, "batch": batch, "tuned": tuned}, data)
        command: list[str | Path] = [
            python,
            ROOT / "benchmarks" / "peers" / "attack.py",
            library.removesuffix("_tuned"),
            model,
            data,
        ]
        try:
            peer = Peer(library, command, environment=KEPT if tuned else None)
            peer.ask("pgd 1", 600)
            found.append((peer.ask(f"pgd {steps}", 600)["seconds"], peer))
        except RuntimeError as error:
            print(f"{library}: {str(error).splitlines()[-1]}", flush=True)
            return None
    found.sort(key=lambda pair: pair[0])
    for _, slower in found[1:]:
        slower.close()
    return found[0][1]


def apgd(task: Task, folder: Path, steps: int = 20) -> dict[str, Any]:
    """APGD-CE, ours and torchattacks', at equal steps."""
    loss = attacks.cross_entropy(task.bins)
    start = attacks.RandomStart(torch.arange(len(task.z), device=DEVICE), seed=0)
    adv = attacks.apgd(
        task.model, task.images, task.ebv, task.z, task.eps, loss=loss, steps=steps, start=start
    )
    fixed = attacks.pgd(
        task.model, task.images, task.ebv, task.z, task.eps, loss=loss, steps=steps, start=start, best=True
    )
    found: dict[str, Any] = {"steps": steps, "objects": len(task.z), "clean": task.judged(task.images)}
    found |= {"ours": task.judged(adv), "ours_pgd": task.judged(fixed), "torchattacks": None}
    peer = start_peer("torchattacks", task, folder, steps=1)
    if peer is not None:
        try:
            peer.ask(f"apgd {steps}", 600)
            peer.ask(f"save {folder / 'apgd.pt'}", 60)
        finally:
            peer.close()
        theirs = torch.load(folder / "apgd.pt", weights_only=True)
        found["torchattacks"] = task.judged(theirs)
        found["eta_difference"] = found["ours"]["eta"] - found["torchattacks"]["eta"]
    return found


def law(task: Task) -> dict[str, float]:
    """Operations of an adversarial training step over those of a clean one, over the law; counted, not timed.

    `of_three_forwards` takes three forward passes for the clean step, as the law does. A real clean step is
    cheaper by the first layer's input gradient, which nobody needs: `of_clean_step`.
    """
    few = slice(0, 4)
    images, ebv, z = task.images[few], task.ebv[few], task.z[few]
    loss = attacks.cross_entropy(task.bins)

    def clean() -> None:
        loss(task.model(images, ebv), z).sum().backward()  # type: ignore[no-untyped-call]

    one, forward = cost.flops(clean), cost.flops(lambda: task.model(images, ebv))
    for parameter in task.model.parameters():
        parameter.grad = None
    found = {}
    for k, f in ((3, 0.5), (3, 1.0), (10, 1.0)):
        rows = slice(0, int(4 * f))
        attack = cost.flops(
            lambda k=k, rows=rows: attacks.pgd(  # type: ignore[misc]
                task.model, images[rows], ebv[rows], z[rows], task.eps, loss=loss, steps=k
            )
        )
        found[f"K{k}_f{f:g}_of_clean_step"] = (one + attack) / one / cost.law(k, f)
        found[f"K{k}_f{f:g}_of_three_forwards"] = (1 + attack / (3 * forward)) / cost.law(k, f)
    return found


def show(name: str, found: dict[str, Any]) -> None:
    """A table of one network."""
    for rival, rate in found.get("images_per_s", {}).items():
        times = found.get(f"ratio_{rival}")
        single = found.get(f"ratio_{rival}_fp32")
        beside = f"  ours / it {times:5.2f}, fp32 {single:5.2f}" if times else ""
        print(f"{name:10s} {rival:14s} {rate['median']:8.1f}  loss {found['loss'][rival]:7.4f}{beside}")
    for what, value in found.get("law", {}).items():
        print(f"{name:10s} operations over the law, {what}: {value:.3f}")
    a = found["apgd"]
    for who in ("clean", "ours_pgd", "ours", "torchattacks"):
        if a[who]:
            print(
                f"{name:10s} APGD-{a['steps']} {who:13s} loss {a[who]['loss']:7.4f}"
                f"  eta {100 * a[who]['eta']:5.1f} %"
            )


if __name__ == "__main__":
    main()
