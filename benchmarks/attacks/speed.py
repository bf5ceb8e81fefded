"""Speed and strength of PGD: ours in every form, and the peers."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.attacks.task import DEVICE, FARTHEST, STEPS, Task
from benchmarks.harness import Benchmark, middle, on_host_clock, ratio, rounds, spread
from benchmarks.peers.driver import KEEP_MEMORY, Peer
from benchmarks.streaming.stream_readers import PEERS_PYTHON, ROOT
from benchmarks.training.precision import default_precision
from hpcphotoz import attacks
from hpcphotoz.compute.precision import autocast_dtype

LIBRARIES = (
    "torchattacks",
    "foolbox",
    "art",
    "torchattacks_fp32",
    "torchattacks_tuned",
    "torchattacks_tuned_fp32",
)
WEAKEST = 0.98  # of a peer's final cross-entropy: with less, our attack is another one, and no ratio is given
# With --quick: a peer takes seconds to start, and a compiled form many.
QUICK = ("torchattacks", "torchattacks_tuned")
QUICK_FORMS = ("ours", "ours_fp32", "ours_graph", "ours_compiled_graph")


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
        task: the network and objects that are attacked.
        folder: for the peers' files.
        precision: of `ours` and of the tuned peer.
        libraries: names of the peers.
        repeat: number of rounds.
        benchmark: records rivals that fail.
        which: follows the network's name, in those records too.
    """
    about, same = f"{task.name}{which}, ", aliases(precision)
    attacked, losses = dict[str, Callable[[], Tensor]](), {"clean": task.judge(task.images)["loss"]}
    for name, attack in variants(task, precision).items():
        if libraries == QUICK and name not in QUICK_FORMS:
            continue
        judged = benchmark.attempt(about + name, lambda a: task.judge(task.attacked(a())), attack)
        if judged is not None:
            attacked[name], losses[name] = attack, judged["loss"]
    peers, answers = dict[str, Peer](), dict[str, Any]()

    def asked(library: str, peer: Peer) -> float:
        answers[library] = peer.ask(f"pgd {STEPS}", 600)
        if not answers[library]["worst"] <= FARTHEST:
            raise ValueError(
                f"attacked images are {answers[library]['worst']:.4g} epsilon away: outside the ball"
            )
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
        theirs = precision_of(library, precision)
        same_precision = [name for name in ours if precision_of_ours(name, precision) == theirs]
        quickest = max(same_precision, key=lambda name: rates[name]["median"], default=None)
        rivals_of_it = {"": found["fastest"], "_same": f"ours_{theirs}", "_same_fastest": quickest}
        for suffix, against in rivals_of_it.items():
            compared = ratio(times, library, against) if against else None
            strength = losses[against] / losses[library] if against and compared else None
            found[f"strength_{library}{suffix}"] = strength
            if strength is not None and not strength >= WEAKEST:
                why = f"{against} reaches {strength:.3f} of the loss of {library}: no ratio is given"
                benchmark.failed(f"{about}ratio_{library}{suffix}", ValueError(why))
                compared = None
            found[f"ratio_{library}{suffix}"] = middle(compared)
    return found


def aliases(precision: str) -> dict[str, str]:
    """Names of rivals that equal another rival on this device, and the name of that one."""
    found = {f"ours_{precision}": "ours"}
    if precision == "fp32":
        found["torchattacks_tuned_fp32"] = "torchattacks_tuned"
    if default_precision(DEVICE) == "fp32":
        found["torchattacks_fp32"] = "torchattacks"
    return found


def precision_of(library: str, precision: str) -> str:
    """The precision of a peer on a device that chooses `precision` for us."""
    if library.endswith("_fp32"):
        return "fp32"
    return precision if library.endswith("_tuned") else default_precision(DEVICE)


def precision_of_ours(name: str, precision: str) -> str:
    """The precision of one of ours on a device that chooses `precision`."""
    last = name.rpartition("_")[2]
    return last if last in ("fp32", "tf32", "bf16") else precision


def variants(task: Task, precision: str) -> dict[str, Callable[[], Tensor]]:
    """Our attack in every form that this device has: precisions, CUDA graphs, compiled."""

    def passes(name: str, compiled: bool = False) -> attacks.Passes:
        return attacks.Passes(autocast=autocast_dtype(name), tf32=name == "tf32", compiled=compiled)

    found = {"ours": task.attack(passes=passes(precision))}
    for name in sorted({"fp32", default_precision(DEVICE)} - {precision}):
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
    """Start a peer at the faster of two batch sizes; None where it is not installed.

    Args:
        library: its name; "_tuned" sets options by hand, "_fp32" computes in float32.
        task: the network and objects that it attacks.
        folder: for its files.
        precision: the precision that the device chooses.
        steps: number of PGD steps in the pass that compares the batch sizes.

    Raises:
        RuntimeError: the peer fails.
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
            peer = Peer(library, command, environment=KEEP_MEMORY if tuned else None)
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
