"""What a checkpoint costs: throughput, blocking time, time from a signal to the saved file, time to resume.

python -m benchmarks.bench_checkpoint [--quick] [--network inception] [--rounds 5] [--json PATH]

Adversarial steps (PGD-3 on half of a batch of 32) of one rank with all cores, in the precision that the
device chooses, are taken in turns without a save and with one save after the first step, by:

    ours                 the writer of `hpcphotoz train`: checksum, flush, rename; weights as safetensors too
    torch.save           torch.save in the loop: flush, rename
    torch async          torch.distributed.checkpoint.async_save
    torch async, reused  the same with a stager that keeps its memory

`cost_per_minute`: seconds that the steps with a save took longer than as many without, over the 60 s in which
one save is made: the fraction of throughput that a checkpoint a minute costs. It counts the copy and what the
thread takes from the cores of the steps. `blocked_s`: seconds in the call. `total_s`: from the call until the
files are on the disk. Medians over the rounds.

`load_s`: seconds to find, load, verify and restore the checkpoint, in a process that has torch.
`signal_to_saved_s`, `signal_to_exit_s`, `start_to_step_s`: of a run of `hpcphotoz train` that gets SIGUSR2
and is started again: from the signal until the file is in its place (the step that was running included) and
until the process has ended; from the start until the first step after the resume is recorded.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Benchmark, middle, parser, rounds, spread
from benchmarks.training import train_runs
from benchmarks.training.galaxies import SKY
from benchmarks.training.precision import chosen_precision
from benchmarks.training.savers import Saver, savers, timed
from benchmarks.training.steps import assembled
from hpcphotoz.config import Config
from hpcphotoz.config.load import configure, to_toml
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.run.checkpoint import State

SIZE = 32
MINUTE_S = 60.0
TIMEOUT_S = 600.0
POLL_S = 0.002
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Measure and print."""
    words = parser(__doc__)
    words.add_argument("--network", help="inception; compact with --quick")
    words.add_argument("--rounds", type=int, default=5, help="rounds of each rival; 1 with --quick")
    words.add_argument(
        "--window-s", type=float, default=12.0, help="seconds of steps in which one save is made"
    )
    options = words.parse_args()
    network = options.network or ("compact" if options.quick else "inception")
    benchmark = Benchmark("checkpoint", options.json, options.quick)
    config = configure(
        "benchmark",
        **{"name": network, "precision": chosen_precision(DEVICE, network)},
        **{"compiled": "off", "graphs": "off", "fraction": 0.5, "steps": 3},
    )
    benchmark.add(network=network, batch=SIZE, precision=config.compute.precision)
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-checkpoint-") as folder:
        window, repeat = (2.0, 1) if options.quick else (options.window_s, options.rounds)
        costs(config, Path(folder), window, repeat, benchmark)
        found = benchmark.attempt("stop and resume", stop_and_resume, network, Path(folder))
        benchmark.add(**(found or {}))
        for name, value in (found or {}).items():
            print(f"{name:20s} {value:8.3f}")
    benchmark.end()


def costs(config: Config, folder: Path, window_s: float, repeat: int, benchmark: Benchmark) -> None:
    """Add, by way of saving: cost per minute, seconds blocked; and the time to load."""
    step, components, _ = assembled(config, SIZE, DEVICE)
    step()  # the optimiser has its state now
    start = time.perf_counter()
    step()
    steps = max(2, round(window_s / (time.perf_counter() - start)))

    def state() -> State:
        return state_of(components)

    rivals = savers(folder, state)
    blocked: dict[str, list[float]] = {}
    total: dict[str, list[float]] = {}

    def rival(name: str, saver: Saver | None) -> Callable[[], float]:
        def measure() -> float:
            found = timed(step, saver, steps)
            if found.total_s > found.seconds:
                raise RuntimeError(f"saving took longer than {steps} steps: choose a longer --window-s")
            blocked.setdefault(name, []).append(found.blocked_s)
            total.setdefault(name, []).append(found.total_s)
            return found.seconds

        return measure

    with_none = {"no save": rival("no save", None)}
    times = rounds(
        {**with_none, **{name: rival(name, saver) for name, saver in rivals.items()}}, repeat, benchmark
    )
    if "no save" not in times:
        return  # --quick on a slow machine
    figures: dict[str, Any] = {}
    bytes_ = sum(tensor.nbytes for tensor in tensors_of(state()))
    print(f"{config.model.name}: {bytes_ / 1e6:.1f} MB, {steps} steps of {SIZE} a window")
    print(f"{'':20s} {'blocked s':>10s} {'total s':>8s} {'cost a minute':>14s} {'p20':>7s} {'p80':>7s}")
    for name in rivals:
        if name not in times:
            continue
        pairs = zip(times[name], times["no save"], strict=False)
        cost = spread([(with_save - without) / MINUTE_S for with_save, without in pairs])
        stood, took = (spread(each[name][-len(times[name]) :]) for each in (blocked, total))
        figures[name] = {"cost_per_minute": cost, "blocked_s": stood, "total_s": took}
        row = f"{cost['median']:14.2%} {cost['p20']:7.2%} {cost['p80']:7.2%}"
        print(f"{name:20s} {stood['median']:10.3f} {took['median']:8.3f} {row}", flush=True)
    benchmark.add(
        bytes=bytes_,
        steps=steps,
        seconds_without=spread(times["no save"]),
        savers=figures,
        **{
            key: middle(figures.get("ours", {}).get(key))
            for key in ("cost_per_minute", "blocked_s", "total_s")
        },
    )
    loaded = benchmark.attempt("load", load, components, folder / "ours", 1 if repeat == 1 else 5)
    benchmark.add(load_s=loaded)
    if loaded:
        print(f"{'load_s':20s} {loaded['median']:8.3f}")


def state_of(components: TrainingComponents) -> State:
    """What a checkpoint holds, without a dataset."""
    return {
        "model": components.module.state_dict(),
        "optimiser": components.optimiser.state_dict(),
        "step": 0,
        "config": components.config.model_dump(),
        **{
            "manifest_sha256": "",
            "bands": list("ugriz"),
            "stamp": 64,
            "pixel_scale": 0.396,
            "scale": list(SKY),
        },
        "order": 0,
    }


def tensors_of(state: Any) -> list[torch.Tensor]:
    """All tensors of a state."""
    if isinstance(state, torch.Tensor):
        return [state]
    items = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for item in items for tensor in tensors_of(item)]


def load(components: TrainingComponents, run: Path, repeat: int) -> dict[str, float]:
    """Seconds to find, load, verify and restore the newest checkpoint."""

    def measure() -> float:
        start = time.perf_counter()
        found = checkpoint.resumed(run)
        assert found is not None
        components.restore(found[1])
        return time.perf_counter() - start

    return spread([measure() for _ in range(repeat)])


def stop_and_resume(network: str, folder: Path) -> dict[str, float]:
    """Seconds of the stop and of the restart of a run of `hpcphotoz train`.

    Raises:
        RuntimeError: the run fails or takes too long.
    """
    data, out, file = folder / "data", folder / "run", folder / "config.toml"
    train_runs.write_dataset(data, 512)
    config = configure(
        "benchmark",
        **{"name": network, "precision": chosen_precision(DEVICE, network), "compiled": "off"},
        **{"validation": 0, "epochs": 1000, "global_batch": SIZE, "log_steps": 1, "checkpoint_steps": 10**6},
        **{"fraction": 0.5, "steps": 3},
    )
    file.write_text(to_toml(config))
    words = [sys.executable, "-m", "hpcphotoz", "train", str(file), "--data", str(data), "--out", str(out)]
    found = {}
    with started(words) as run:
        until(lambda: len(steps_of(out)) >= 3, run)
        signalled = time.monotonic()
        run.send_signal(signal.SIGUSR2)
        until(lambda: bool(list((out / "checkpoints").glob("step-*.pt"))), run)
        found["signal_to_saved_s"] = time.monotonic() - signalled
        run.wait(TIMEOUT_S)
        found["signal_to_exit_s"] = time.monotonic() - signalled
    before, again = steps_of(out)[-1], time.monotonic()
    with started(words) as run:
        until(lambda: steps_of(out)[-1:] > [before], run)
        found["start_to_step_s"] = time.monotonic() - again
        run.terminate()
        run.wait(TIMEOUT_S)
    return found


@contextmanager
def started(words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process, which has ended after the block."""
    run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield run
    finally:
        run.kill()
        run.communicate()


def until(condition: Callable[[], bool], run: subprocess.Popen[bytes]) -> None:
    """Poll until the condition holds; raises RuntimeError if the run ends before, or it takes too long."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        if run.poll() is not None and not condition():
            said = run.stderr.read().decode()[-500:] if run.stderr else ""
            raise RuntimeError(f"the run ended with status {run.returncode}: {said}")
        if time.monotonic() > end:
            raise RuntimeError(f"the run took more than {TIMEOUT_S:g} s")
        time.sleep(POLL_S)


def steps_of(run: Path) -> list[int]:
    """Steps with a loss in the metrics of a run."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [line["step"] for line in lines if "loss" in line]


if __name__ == "__main__":
    main()
