"""Whole attacks: ours against torchattacks, foolbox and ART at equal networks, galaxies, epsilon and steps.

python -m benchmarks.bench_attacks [--quick] [--minutes M] [--json PATH] [--run RUN --data DATASET]

Run `make peers` first, or install the peers in this environment; a peer that is not installed has no figures.
PGD-10 in an L-infinity ball of 0.1 sky sigma per band with a random start, on networks trained for some steps
on galaxies of `benchmarks.training.galaxies`; the rivals take turns. A peer works in batches of 16 or of 32,
whichever a first pass shows to be faster; on a GPU in one batch.

    ours                ours in the precision that the device chooses (`precision`)
    ours_graph, ours_compiled, ours_compiled_graph      on a GPU
    ours_fp32, ours_tf32, ours_compiled_graph_tf32      in another precision, TF32 on a GPU
    torchattacks, foolbox, art      with their defaults, which on a GPU means TF32
    torchattacks_fp32   without TF32
    torchattacks_tuned  with what can be set by hand: channels_last weights, autocast in the precision that
                        the device chooses, and on a CPU freed memory kept in the process, as our commands do
    torchattacks_tuned_fp32      the same in float32

`NETWORK_64` repeats the comparison on a GPU with a batch of 64.
`ratio_X` is X's time over that of the fastest of ours (`fastest`), `ratio_X_same` over that of plain `ours`
in the precision of X, `ratio_X_same_fastest` over that of the fastest of ours in it; `strength_*` is our
final cross-entropy over theirs, computed in float32 on the images that each returned. Below 0.98 no ratio is
given, and the comparison counts as failed; so does a rival whose images leave the ball.

`apgd` compares APGD at equal steps with torchattacks' port of AutoAttack's APGD-CE (in its best-loss mode),
by loss and by the fraction of outliers, on the same networks and on a trained `--run`. `law` compares the
operations counted in a training step with 1 + 2 K f / 3.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.attacks.speed import LIBRARIES, QUICK, speed, start_peer
from benchmarks.attacks.task import DEVICE, EPS, OBJECTS, STEPS, Task, make_task, task_of_run
from benchmarks.harness import Benchmark, parser
from benchmarks.training.precision import chosen_precision
from hpcphotoz import attacks
from hpcphotoz.compute import cost
from hpcphotoz.memory import keep_freed_memory


def main() -> None:
    """Measure and print a table."""
    options = parse_arguments()
    benchmark = Benchmark("attacks", options.json, options.quick, options.minutes)
    if DEVICE.type == "cpu":
        keep_freed_memory()
    libraries = QUICK if options.quick else LIBRARIES
    networks = options.networks or (["compact"] if options.quick else ["cnn", "inception"])
    repeat = 3
    print(f"PGD-{STEPS}, eps {EPS} sky sigma, on {DEVICE}; images/s, medians of {repeat}", flush=True)
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-attacks-") as folder:
        for name in networks:
            task = make_task(name, 4 if options.quick else 1)
            precision = chosen_precision(DEVICE, name)
            given = Path(folder), precision
            found = benchmark.earlier(name)
            if found is None:
                found = {"precision": precision, **speed(task, *given, libraries, repeat, benchmark)}
            show(name, found)
            benchmark.add(**{name: found})
            if DEVICE.type == "cuda" and not options.quick:
                small = benchmark.earlier(f"{name}_64")
                if small is None:
                    small = speed(task.first(64), *given, QUICK[:1], repeat, benchmark, "_64")
                    small |= {"precision": precision}
                show(f"{name}_64", small)
                benchmark.add(**{f"{name}_64": small})
            for what, work in {
                "law": lambda task=task: law(task),
                "apgd": lambda task=task: apgd(task, Path(folder)),
            }.items():
                found[what] = found.get(what) or benchmark.attempt(f"{what}, {name}", work)
            show_rest(name, found)
            benchmark.add(**{name: found})
        if options.run:
            run = benchmark.attempt(
                "run, apgd", lambda: apgd(task_of_run(options.run, options.data), Path(folder))
            )
            show_rest("run", {"apgd": run})
            benchmark.add(run={"apgd": run})
    for key in ("torchattacks", "foolbox", "art", "torchattacks_same", "torchattacks_tuned"):
        ratios = [benchmark.figures[name].get(f"ratio_{key}") for name in networks]
        benchmark.add(**{f"ratio_{key}": None if None in ratios else min(ratios)})
    benchmark.end()


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    words = parser(__doc__, resumable=True)
    words.add_argument(
        "--networks", nargs="+", choices=list(OBJECTS), help="compact with --quick, else others"
    )
    words.add_argument("--run", type=Path, help="a trained run, for APGD (needs --data)")
    words.add_argument("--data", type=Path, help="a dataset of that run's bands and stamp size")
    options = words.parse_args()
    if (options.run is None) != (options.data is None):
        words.error("--run and --data belong together")
    return options


def apgd(task: Task, folder: Path, steps: int = 20) -> dict[str, Any]:
    """Loss and outliers of APGD-CE, ours and torchattacks', at equal steps."""
    loss = attacks.cross_entropy(task.bins)
    start = attacks.RandomStart(torch.arange(len(task.z), device=DEVICE), seed=0)
    adv = attacks.apgd(
        task.model, task.images, task.ebv, task.z, task.eps, loss=loss, steps=steps, start=start
    )
    fixed = attacks.pgd(
        task.model, task.images, task.ebv, task.z, task.eps, loss=loss, steps=steps, start=start, best=True
    )
    found: dict[str, Any] = {"steps": steps, "objects": len(task.z), "clean": task.judge(task.images)}
    found |= {"ours": task.judge(adv), "ours_pgd": task.judge(fixed), "torchattacks": None}
    peer = start_peer("torchattacks", task, folder, steps=1)
    if peer is not None:
        try:
            peer.ask(f"apgd {steps}", 600)
            peer.ask(f"save {folder / 'apgd.pt'}", 60)
        finally:
            peer.close()
        theirs = torch.load(folder / "apgd.pt", weights_only=True)
        found["torchattacks"] = task.judge(theirs)
        found["eta_difference"] = found["ours"]["eta"] - found["torchattacks"]["eta"]
    return found


def law(task: Task) -> dict[str, float]:
    """Counted operations of an adversarial training step over those of a clean one, divided by the law.

    `of_three_forwards` counts three forward passes for the clean step, as the law does. `of_clean_step`
    counts a real clean step, which is cheaper: it needs no gradient of the images.
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
    """Print the speed of one network's rivals."""
    for rival, rate in found["images_per_s"].items():
        fastest, same = (found.get(f"ratio_{rival}{suffix}") for suffix in ("", "_same"))
        beside = f"  fastest of ours / it {fastest:5.2f}" if fastest else ""
        beside += f", in its precision {same:5.2f}" if same else ""
        print(f"{name:13s} {rival:24s} {rate['median']:8.1f}  loss {found['loss'][rival]:7.4f}{beside}")


def show_rest(name: str, found: dict[str, Any]) -> None:
    """Print the law and APGD."""
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
