"""A training under chaos: ranks killed, stopped and starved of disk at random, and what is left of the run.

python -m benchmarks.faults.chaos [--quick] [--seed 0] [--json PATH]

A small adversarial training of a few hundred steps is started again after every fault of a plan, which the
seed alone determines: SIGKILLs of single ranks and of all at once, at random instants of steps, while a
checkpoint is written, during a validation, while ranks start or meet; SIGSTOPs, some for longer than
run.timeout_s; a full disk (a small disk of memory, which needs root). After some kills the newest checkpoint
is damaged. Every start has another number of ranks, 1 to 4, and another overlap mode.

Afterwards the run is compared with an undisturbed one:

    max_weight_difference      greatest difference of a final weight. Rounding alone explains it: the same
                               training without faults on other numbers of ranks differs by
                               `weight_difference_of_undisturbed_runs`, the one attack of one object that is
                               left out in the last step by `weight_difference_of_one_attack_left_out`. The
                               test asks for at most ten times the first, and less than the second
    objects_lost, objects_repeated, attacks_missing, attacks_repeated, batches_changed
                               added up over epochs and steps, from the ids that every rank records of the
                               steps whose updates are in the final weights: see `faults/audit.py`
    hung                       ranks that did not end within twice run.timeout_s + 20 s after a fault, or did
                               not go on after a short stop
    unnamed                    kills and long stops of a rank that no message of the others names
    findings                   whatever else should not be: tracebacks, starts that ended by themselves,
                               faults that did not come to strike, a damaged checkpoint that nobody told of

Status 1 if any of these is not as it should be.
"""

import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.faults.audit import Audit
from benchmarks.faults.campaign import Campaign
from benchmarks.faults.disk import SmallDisk, small_disk
from benchmarks.faults.plan import FULL_DISK, Layout, draw
from benchmarks.faults.recorded_rank import LEAVE_OUT
from benchmarks.faults.training import TIMEOUT_S, Training, losses, weight_difference
from benchmarks.harness import Benchmark, parser

EPOCHS, QUICK_EPOCHS = 20, 4
ALONE = Layout(1, "off")
OTHERS = [Layout(2, "off"), Layout(3, "off"), Layout(4, "ranks", 1)]  # of the undisturbed runs
ROUNDING = 10  # times the difference of undisturbed runs: those are a few samples of it


def main() -> None:
    """Disturb, compare and print."""
    words = parser(__doc__)
    words.add_argument("--seed", type=int, default=0, help="of the plan of faults")
    options = words.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # not without its ranks and disk
    benchmark = Benchmark("chaos", options.json)
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-chaos-") as folder:
        benchmark.add(**measure(Path(folder), options.seed, options.quick))
    figures = benchmark.figures
    for name, value in figures.items():
        if name not in ("plan", "struck", "findings"):
            print(f"{name:42} {value}")
    for finding in figures["findings"]:
        print(f"FOUND: {finding}")
    wrong = problems(figures)
    print(f"seed {options.seed}: {'; '.join(wrong) or 'as it should be'}")
    sys.exit(1 if wrong else 0)


def measure(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Run the undisturbed trainings and the disturbed one, and compare them.

    Args:
        folder: empty; for datasets, runs and records.
        seed: of the plan of faults.
        quick: the short form.
    """
    began = time.monotonic()
    training = Training.make(folder, QUICK_EPOCHS if quick else EPOCHS, seed=0)
    runs = folder / "undisturbed"
    audits = {"alone": _undisturbed(training, runs / "alone", ALONE)}
    reference, last_step = runs / "alone/run", audits["alone"].steps - 1
    others = OTHERS[:1] if quick else OTHERS
    for layout in others:
        audits[f"on {layout.world_size} ranks"] = _undisturbed(
            training, runs / str(layout.world_size), layout
        )
    control = _undisturbed(training, runs / "control", ALONE, **{LEAVE_OUT: str(last_step)})
    plan = draw(seed, last_step + 1, quick)
    with small_disk(folder / "disk") as disk:
        campaign = _campaign(training, folder, seed, disk)
        print("\n".join(map(str, plan)), flush=True)
        campaign.endure(plan, Layout(2, "off"))
        run = campaign.run
        undisturbed = [runs / str(layout.world_size) / "run" for layout in others]
        figures = {
            **summary(campaign),
            "max_weight_difference": weight_difference(run, reference),
            "weight_difference_of_undisturbed_runs": max(
                weight_difference(each, reference) for each in undisturbed
            ),
            "weight_difference_of_one_attack_left_out": weight_difference(runs / "control/run", reference),
            **curves(run, reference),
            **asdict(training.audit(campaign.records)),
        }
    # The audit itself is audited: it finds nothing in undisturbed runs, and the one attack left out.
    blind = [name for name, found in audits.items() if not found.clean]
    if blind or (control.attacks_missing, control.objects_lost) != (1, 0):
        campaign.findings.append(f"the audit is wrong about undisturbed runs {blind} or about the control")
    figures |= {"seed": seed, "quick": quick, "seconds": round(time.monotonic() - began, 1)}
    if isinstance(disk, str):
        figures["disk_full_left_out"] = f"{campaign.counts['disk_full_left_out']} faults: {disk}"
    figures["findings"] = campaign.findings
    figures["plan"] = list(map(str, plan))
    figures["struck"] = [{**asdict(each), "fault": str(each.fault)} for each in campaign.struck]
    return figures


def _undisturbed(training: Training, folder: Path, layout: Layout, **environment: str) -> Audit:
    folder.mkdir(parents=True)
    print(f"undisturbed: {layout.world_size} ranks, {layout.mode} {environment or ''}", flush=True)
    return training.undisturbed(folder / "run", layout, **environment)


def _campaign(training: Training, folder: Path, seed: int, disk: SmallDisk | str) -> Campaign:
    records, run = folder / "records", folder / "disk/run"
    records.mkdir()
    return Campaign(
        run=run,
        folder=records,
        words=lambda layout: training.words(run, layout),
        timeout_s=TIMEOUT_S,
        disk=disk if isinstance(disk, SmallDisk) else None,
        chance=random.Random(seed),
        say=lambda text: print(text, flush=True),
    )


def summary(campaign: Campaign) -> dict[str, Any]:
    """What struck, and how the starts took it."""
    struck, layouts = campaign.struck, campaign.layouts
    return {
        "kills": sum(each.killed > 0 for each in struck),
        "processes_killed": sum(each.killed for each in struck),
        "kills_in_a_save": sum(each.in_save for each in struck),
        "stops": sum(each.stopped for each in struck),
        "stops_beyond_the_timeout": sum(each.stopped > 0 and not each.goes_on for each in struck),
        "disk_full": sum(each.fault.kind == FULL_DISK for each in struck),
        "checkpoints_damaged": campaign.counts["torn"],
        "checkpoints_damaged_and_told": campaign.counts["torn_told"],
        "restarts": len(layouts) - 1,
        "world_sizes": _counted([layout.world_size for layout in layouts]),
        "overlap_modes": _counted([layout.mode for layout in layouts]),
        "hung": sum(len(each.hung) for each in struck),
        "unnamed": sum(each.named is False for each in struck),
        "longest_end_s": max((each.end_s for each in struck), default=0.0),
    }


def _counted(values: Sequence[object]) -> dict[str, int]:
    return {str(value): values.count(value) for value in sorted(set(values), key=str)}


def curves(run: Path, reference: Path) -> dict[str, Any]:
    """The loss curve of a run beside that of another: lines that are missing or twice, and the difference."""
    ours, theirs = losses(run), losses(reference)
    wrong = [step for step, _ in ours] != [step for step, _ in theirs]
    by_step = dict(theirs)
    difference = max(abs(loss - by_step.get(step, float("inf"))) for step, loss in ours)
    return {"loss_lines_wrong": int(wrong), "max_loss_difference": difference}


ZERO = "objects_lost objects_repeated attacks_missing attacks_repeated batches_changed".split()
ZERO += ["hung", "unnamed", "loss_lines_wrong"]


def problems(figures: dict[str, Any]) -> list[str]:
    """What is not as it should be, in words; empty: the run has endured."""
    wrong = [f"{name} {figures[name]}" for name in ZERO if figures[name]]
    wrong += [f"{len(figures['findings'])} findings"] if figures["findings"] else []
    difference = figures["max_weight_difference"]
    rounding = ROUNDING * figures["weight_difference_of_undisturbed_runs"]
    if not difference <= min(rounding, figures["weight_difference_of_one_attack_left_out"]):
        wrong.append(f"the weights differ by {difference:.1e}, more than rounding explains")
    return wrong


if __name__ == "__main__":
    main()
