"""Whole attacks: ours against torchattacks, foolbox and ART; same networks, galaxies, epsilon and steps.

python -m benchmarks.bench_attacks [--quick] [--json PATH] [--run RUN --data DATASET]

Run `make peers` first, or have the peers in this environment; one that is not installed has no figures.
PGD-10 in an L-infinity ball of 0.1 sky sigma per band with a random start, on networks trained for some steps
on galaxies of `benchmarks.galaxies`; the rivals take turns. A peer works in batches of 16 or of 32, whichever
a first pass shows to be faster; on a GPU in one batch.

    ours                ours in the precision that the device chooses for itself (`precision`)
    ours_graph, ours_compiled, ours_compiled_graph      on a GPU
    ours_fp32, ours_tf32, ours_compiled_graph_tf32      in another precision, TF32 on a GPU
    torchattacks, foolbox, art      as they come, on a GPU with TF32
    torchattacks_fp32   without TF32
    torchattacks_tuned  what can be set by hand: channels_last weights, autocast in the precision that the
                        device chooses, and on a CPU freed memory kept in the process, as our commands have it
    torchattacks_tuned_fp32      the same in float32

`of_64` repeats it on a GPU with a batch of 64.
`ratio_X` is X's time over that of the fastest of ours (`fastest`), `ratio_X_same` over that of ours, plain,
in the precision of X; `strength_*` our final cross-entropy over theirs, on the images each returned, in
float32.

`apgd` compares APGD at equal steps with torchattacks' port of AutoAttack's APGD-CE (its best-loss mode), by
loss and by the fraction of outliers, on the same networks and on a trained `--run`. `law` compares the
operations counted in a training step with 1 + 2 K f / 3.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.galaxies import SKY, STAMP, configuration, galaxies, trained
from benchmarks.harness import Benchmark, middle, on_host_clock, parser, ratio, rounds, spread
from benchmarks.peers.driver import Peer
from benchmarks.streaming.stream_readers import PEERS_PYTHON, ROOT
from benchmarks.training.precision import as_it_comes, chosen
from hpcphotoz import attacks
from hpcphotoz.compute import cost
from hpcphotoz.compute.precision import autocast_dtype
from hpcphotoz.config import Model
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.evaluation.batches import read_batches, to_tensors
from hpcphotoz.memory import keep_freed_memory
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.run.network import load_network

EPS, STEPS = 0.1, 10
LIBRARIES = (
    "torchattacks",
    "foolbox",
    "art",
    "torchattacks_fp32",
    "torchattacks_tuned",
    "torchattacks_tuned_fp32",
)
# With --quick: a peer takes seconds to start, and a compiled form many.
QUICK = ("torchattacks", "torchattacks_tuned")
QUICK_FORMS = ("ours", "ours_fp32", "ours_graph", "ours_compiled_graph")
KEPT = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**30)}  # as hpcphotoz.memory
OBJECTS = {"compact": 256, "cnn": 64, "inception": 32}
TRAINING = {"compact": 60, "cnn": 120, "inception": 60}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Task:
    """A network and the objects on which it is attacked."""

    name: str
    spec: dict[str, Any]  # description of the network, from which a peer builds it
    model: nn.Module
    bins: RedshiftBins
    images: Tensor
    ebv: Tensor
    z: Tensor
    eps: Tensor  # (B,) nMgy

    def first(self, n: int) -> "Task":
        """The same with the first n objects."""
        return replace(self, images=self.images[:n], ebv=self.ebv[:n], z=self.z[:n])

    def attack(self, **options: Any) -> Callable[[], Tensor]:
        """Our PGD as a callable."""
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
    benchmark = Benchmark("attacks", options.json, options.quick)
    if DEVICE.type == "cpu":
        keep_freed_memory()
    libraries = QUICK if options.quick else LIBRARIES
    networks = options.networks or (["compact"] if options.quick else ["cnn", "inception"])
    repeat = 3
    print(f"PGD-{STEPS}, eps {EPS} sky sigma, on {DEVICE}; images/s, medians of {repeat}", flush=True)
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-attacks-") as folder:
        for name in networks:
            task = fresh(name, 4 if options.quick else 1)
            precision = chosen(DEVICE, name)
            found: dict[str, Any] = {"precision": precision}
            found |= speed(task, Path(folder), precision, libraries, repeat, benchmark)
            show(name, found)
            benchmark.add(**{name: found})
            if DEVICE.type == "cuda" and not options.quick:
                found["of_64"] = speed(
                    task.first(64), Path(folder), precision, QUICK[:1], repeat, benchmark, ", of 64"
                )
                show(f"{name}, 64", found["of_64"])
            found["law"] = benchmark.attempt(f"{name}, law", law, task)
            found["apgd"] = benchmark.attempt(f"{name}, apgd", apgd, task, Path(folder))
            show_rest(name, found)
            benchmark.add(**{name: found})
        if options.run:
            run = benchmark.attempt("run, apgd", apgd_of_run, options.run, options.data, Path(folder))
            show_rest("run", {"apgd": run})
            benchmark.add(run={"apgd": run})
    for key in ("torchattacks", "foolbox", "art", "torchattacks_same", "torchattacks_tuned"):
        ratios = [benchmark.figures[name].get(f"ratio_{key}") for name in networks]
        benchmark.add(**{f"ratio_{key}": None if None in ratios else min(ratios)})
    benchmark.end()


def given() -> argparse.Namespace:
    """The command line."""
    words = parser(__doc__)
    words.add_argument(
        "--networks", nargs="+", choices=list(OBJECTS), help="compact with --quick, else others"
    )
    words.add_argument("--run", type=Path, help="a trained run, for APGD (needs --data)")
    words.add_argument("--data", type=Path, help="a dataset of that run's bands and stamp size")
    options = words.parse_args()
    if (options.run is None) != (options.data is None):
        words.error("--run and --data belong together")
    return options


def fresh(name: str, part: int = 1) -> Task:
    """A network of that name after a short training, and galaxies that it has not seen.

    Args:
        name: of the network.
        part: divides the steps of training and the objects.
    """
    start, steps = time.perf_counter(), TRAINING[name] // part
    model, bins = trained(name, steps, DEVICE)
    print(f"{name}: trained {steps} steps in {time.perf_counter() - start:.0f} s", flush=True)
    objects = OBJECTS[name] * (8 if DEVICE.type == "cuda" else 1) // part
    images, ebv, z = (t.to(DEVICE) for t in galaxies(objects, seed=2))
    spec = described(configuration(name).model, STAMP, [10 * s for s in SKY])
    return Task(name, spec, model, bins, images, ebv, z, EPS * torch.tensor(SKY, device=DEVICE))


def of_run(run: Path, data: Path) -> Task:
    """A trained run and the first galaxies of a dataset."""
    network, manifest = load_network(run, DEVICE), read_manifest(data)
    found = to_tensors(next(iter(read_batches(data, manifest, 256, "reading"))), DEVICE)
    scale = network.module.state_dict()["normalise.scale"].flatten().tolist()
    spec = described(network.config.model, network.stamp, scale)
    eps = 0.05 * found["sky_sigma"].mean(0)  # where about half of a standard network's galaxies still hold
    return Task(
        "run", spec, network.module, network.bins, found["images"], found["ebv"], found["z_spec"], eps
    )


def apgd_of_run(run: Path, data: Path, folder: Path) -> dict[str, Any]:
    """`apgd` on a trained run."""
    return apgd(of_run(run, data), folder)


def described(model: Model, stamp: int, scale: list[float]) -> dict[str, Any]:
    """A network as a peer builds it, without the configuration's library."""
    options = model.model_dump(include={"bins", "normalisation", "width"})
    return {"network": model.name, "stamp": stamp, "scale": scale, **options}


def speed(
    task: Task,
    folder: Path,
    precision: str,
    libraries: Sequence[str],
    repeat: int,
    benchmark: Benchmark,
    which: str = "",
) -> dict[str, Any]:
    """Images per second of every rival, and the strength of each attack.

    Args:
        task: what is attacked.
        folder: for the peers' files.
        precision: of `ours` and of the tuned peer.
        libraries: the peers.
        repeat: rounds.
        benchmark: notes rivals that fail.
        which: behind the network's name in such notes.
    """
    about, same = f"{task.name}{which}, ", aliases(precision)
    attacked, losses = dict[str, Callable[[], Tensor]](), {"clean": task.judged(task.images)["loss"]}
    for name, attack in variants(task, precision).items():
        if libraries == QUICK and name not in QUICK_FORMS:
            continue
        judged = benchmark.attempt(about + name, lambda a: task.judged(a()), attack)
        if judged is not None:
            attacked[name], losses[name] = attack, judged["loss"]
    peers, answers = dict[str, Peer](), dict[str, Any]()

    def asked(library: str, peer: Peer) -> float:
        answers[library] = peer.ask(f"pgd {STEPS}", 600)
        return float(answers[library]["seconds"])

    try:
        rivals = {about + name: on_host_clock(attack) for name, attack in attacked.items()}
        for library in libraries:
            if library in same:
                continue
            peer = benchmark.attempt(about + library, start_peer, library, task, folder, precision)
            if peer is not None:
                peers[library] = peer
                rivals[about + library] = lambda library=library, peer=peer: asked(library, peer)  # type: ignore[misc]
        found_times = rounds(rivals, repeat, benchmark)
    finally:
        for peer in peers.values():
            peer.close()
    times = {name.removeprefix(about): values for name, values in found_times.items()}
    losses |= {library: answer["loss"] for library, answer in answers.items()}
    for name, other in same.items():
        if other in times:
            times[name], losses[name] = times[other], losses[other]
    rates = {name: spread([len(task.z) / t for t in values]) for name, values in times.items()}
    found: dict[str, Any] = {"objects": len(task.z), "images_per_s": rates, "loss": losses}
    found["versions"] = {library: peer.version for library, peer in peers.items()}
    ours = [name for name in times if name.startswith("ours")]
    found["fastest"] = max(ours, key=lambda name: rates[name]["median"], default=None)
    for library in libraries:
        plain = f"ours_{precision_of(library, precision)}"
        for against, suffix in ((found["fastest"], ""), (plain, "_same")):
            compared = ratio(times, library, against) if against else None
            found[f"ratio_{library}{suffix}"] = middle(compared)
            found[f"strength_{library}{suffix}"] = losses[against] / losses[library] if compared else None
    return found


def aliases(precision: str) -> dict[str, str]:
    """Rivals that are identical to others on this device and need not run twice."""
    found = {f"ours_{precision}": "ours"}
    if precision == "fp32":
        found["torchattacks_tuned_fp32"] = "torchattacks_tuned"
    if as_it_comes(DEVICE) == "fp32":
        found["torchattacks_fp32"] = "torchattacks"
    return found


def precision_of(library: str, precision: str) -> str:
    """The precision that a peer works in, where the device chooses `precision`."""
    if library.endswith("_fp32"):
        return "fp32"
    return precision if library.endswith("_tuned") else as_it_comes(DEVICE)


def variants(task: Task, precision: str) -> dict[str, Callable[[], Tensor]]:
    """Our attack by the ways in which it can be computed here, in the device's precision and in others."""

    def passes(name: str, compiled: bool = False) -> attacks.Passes:
        return attacks.Passes(autocast=autocast_dtype(name), tf32=name == "tf32", compiled=compiled)

    found = {"ours": task.attack(passes=passes(precision))}
    for name in sorted({"fp32", as_it_comes(DEVICE)} - {precision}):
        found[f"ours_{name}"] = task.attack(passes=passes(name))
    if DEVICE.type == "cuda":
        found["ours_graph"] = task.attack(passes=passes(precision), graph=True)
        found["ours_compiled"] = task.attack(passes=passes(precision, True))
        for name in sorted({precision, "tf32", "bf16"}):
            suffix = "" if name == precision else f"_{name}"
            found[f"ours_compiled_graph{suffix}"] = task.attack(passes=passes(name, True), graph=True)
    return found


def start_peer(
    library: str, task: Task, folder: Path, precision: str = "fp32", steps: int = 3
) -> Peer | None:
    """A peer at the better of two batch sizes; None where it is not installed.

    Args:
        library: its name; with "_tuned": set by hand; with "_fp32": in float32.
        task: what it attacks.
        folder: for its files.
        precision: that the device chooses.
        steps: of the first pass, which shows the better batch size.

    Raises:
        RuntimeError: it fails.
    """
    name, tuned = library.partition("_")[0], "_tuned" in library
    python = PEERS_PYTHON if PEERS_PYTHON.exists() else Path(sys.executable)
    model, data = folder / f"{task.name}.pt", folder / f"{task.name}-data.pt"
    torch.save({**task.spec, "state": task.model.state_dict()}, model)
    found: list[tuple[float, Peer]] = []
    try:
        for batch in (len(task.z),) if DEVICE.type == "cuda" else (16, 32):
            what = {"images": task.images, "ebv": task.ebv, "label": task.bins.index(task.z), "eps": task.eps}
            how = {"batch": batch, "tuned": tuned, "precision": precision_of(library, precision)}
            torch.save({**{k: v.contiguous() for k, v in what.items()}, **how}, data)
            script = ROOT / "benchmarks" / "peers" / "attack.py"
            command: list[str | Path] = [python, script, name, model, data]
            peer = Peer(library, command, environment=KEPT if tuned else None)
            found.append((float("inf"), peer))
            peer.ask("pgd 1", 600)
            found[-1] = (float(peer.ask(f"pgd {steps}", 600)["seconds"]), peer)
    except RuntimeError as error:
        for _, peer in found:
            peer.close()
        if "ModuleNotFoundError" not in str(error):
            raise
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
        found[f"K{k}_f{f:g}_of_clean_step"] = (one + attack) / one / cost.attack_cost_law(k, f)
        found[f"K{k}_f{f:g}_of_three_forwards"] = (1 + attack / (3 * forward)) / cost.attack_cost_law(k, f)
    return found


def show(name: str, found: dict[str, Any]) -> None:
    """The speed of one network's rivals."""
    for rival, rate in found["images_per_s"].items():
        fastest, same = (found.get(f"ratio_{rival}{suffix}") for suffix in ("", "_same"))
        beside = f"  fastest of ours / it {fastest:5.2f}" if fastest else ""
        beside += f", in its precision {same:5.2f}" if same else ""
        print(f"{name:13s} {rival:24s} {rate['median']:8.1f}  loss {found['loss'][rival]:7.4f}{beside}")


def show_rest(name: str, found: dict[str, Any]) -> None:
    """The law and APGD."""
    for what, value in (found.get("law") or {}).items():
        print(f"{name:10s} operations over the law, {what}: {value:.3f}")
    a = found["apgd"] or {}
    for who in ("clean", "ours_pgd", "ours", "torchattacks"):
        if a.get(who):
            print(
                f"{name:10s} APGD-{a['steps']} {who:13s} loss {a[who]['loss']:7.4f}"
                f"  eta {100 * a[who]['eta']:5.1f} %",
                flush=True,
            )


if __name__ == "__main__":
    main()
