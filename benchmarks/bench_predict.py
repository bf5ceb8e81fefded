"""Prediction for a catalogue: our command against the plain network behind a DataLoader over h5py.

python -m benchmarks.bench_predict [--quick] [--networks inception cnn] [--parts rate memory] [--json PATH]

`rate`: objects a second, from the first batch asked for to the PDFs on the disk, each rival in a process of
its own, in turn in one run; imports, the load of the network and a pass to warm up are not timed. The same
weights and the same float32 shards.

    peer         `benchmarks/peers/predict.py`: the network in the form of the author's public code, float32,
                 torch's defaults; batch size and number of reading processes are the best of a trial
    peer_tuned   the same with channels_last weights and images and the freed memory kept, set by hand
    ours         `hpcphotoz predict --precision auto`: checksums compared, PDFs and columns written
    ours_fp32    the same with its default, float32

`ratio_author_network` is ours over peer of the first network, `ratio_author_network_tuned` ours over
peer_tuned, the `_fp32` ones those of ours_fp32. `change` compares the mean redshifts of the rivals, in units
of the PDF's standard deviation: of random weights, which says that they compute the same and not what
bfloat16 costs.

`memory`: the largest resident size of a prediction of 1e3 and of 1e6 objects (--quick: 1e5) of 16 pixels with
the compact network; the larger data set is virtual, many hard links to one shard. `mib_growth` is the
difference.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from benchmarks.harness import Benchmark, middle, parser, ratio, rounds, spread
from benchmarks.streaming.stream_data import BANDS, SKY, STAMP, make_stamps, write
from benchmarks.streaming.stream_memory import peak_mib
from benchmarks.streaming.stream_survey import link_shards
from hpcphotoz.config import Config, Model
from hpcphotoz.models.build import bins_of, build
from hpcphotoz.training.run.network import TrainedNetwork, save_network

ROOT = Path(__file__).parent.parent
NETWORKS = ("inception", "cnn")
TRIED = [(batch, workers) for batch in (32, 128) for workers in (0, 1)]  # of the peer
TIMEOUT_S = 1800
RATIOS = {
    "ratio_author_network": ("ours", "peer"),
    "ratio_author_network_tuned": ("ours", "peer_tuned"),
    "ratio_author_network_fp32": ("ours_fp32", "peer"),
    "ratio_author_network_tuned_fp32": ("ours_fp32", "peer_tuned"),
}


def main() -> None:
    """Measure, print tables."""
    words = parser(__doc__)
    words.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    words.add_argument("--parts", nargs="+", choices=("rate", "memory"), default=["rate", "memory"])
    options = words.parse_args()
    if importlib.util.find_spec("safetensors") is None:
        sys.exit("no safetensors: pip install 'hpcphotoz[export]'")
    benchmark = Benchmark("predict", options.json, options.quick)
    gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-predict-") as name:
        folder = Path(name)
        if "rate" in options.parts:
            rows, repeat = (256, 1) if options.quick else ((8192, 5) if gpu else (1024, 3))
            write(folder / "d", make_stamps(rows, STAMP), rows // 2)
            write(folder / "trial", make_stamps(rows // 4, STAMP), rows // 4)
            for network in options.networks[:1] if options.quick else options.networks:
                figures = measure_rates(network, folder, rows, repeat, benchmark, options.quick)
                benchmark.add(**{network: figures})
                if network == options.networks[0]:
                    benchmark.add(**{key: figures[key] for key in RATIOS})
        if "memory" in options.parts:
            found = benchmark.attempt("memory", measure_memory, folder, 10**5 if options.quick else 10**6)
            if found is not None:
                benchmark.add(memory=found)
    benchmark.end()


def measure_rates(
    network: str, folder: Path, rows: int, repeat: int, benchmark: Benchmark, quick: bool
) -> dict[str, Any]:
    """Rates and ratios of the rivals for one network."""
    task = prepare(network, folder)
    tried = [(32, 0)] if quick else TRIED
    forms = {tuned: best_form(task, folder, tuned, tried) for tuned in (False, True)}
    rivals: dict[str, Callable[[], float]] = {
        "peer": partial(peer, task, folder, False, *forms[False]),
        "ours": partial(ours, folder, network, "auto"),
        "peer_tuned": partial(peer, task, folder, True, *forms[True]),
        "ours_fp32": partial(ours, folder, network, "fp32"),
    }
    times = rounds(rivals, repeat, benchmark)
    rates = {name: [rows / s for s in seconds] for name, seconds in times.items()}
    print(f"{network}, {rows} objects\n{'rival':12s} {'objects/s':>10s} {'p20':>8s} {'p80':>8s}")
    for name, values in rates.items():
        found = spread(values)
        print(f"{name:12s} {found['median']:10.1f} {found['p20']:8.1f} {found['p80']:8.1f}")
    per_round = {key: ratio(rates, *pair) for key, pair in RATIOS.items()}
    ratios = {key: middle(found) for key, found in per_round.items()}
    known = (f"{key} {value:.2f}" for key, value in ratios.items() if value is not None)
    print(", ".join(known), flush=True)
    return {
        "objects": rows,
        "objects_per_s": {name: spread(values) for name, values in rates.items()},
        **ratios,
        "ratio_per_round": per_round,
        "peer_batch_and_workers": {"peer": forms[False], "peer_tuned": forms[True]},
        "change": change(folder, network) if len(rates) == len(rivals) else None,
    }


def prepare(network: str, folder: Path) -> dict[str, Any]:
    """A network of random weights as a safetensors file of ours and as a state dict; the peer's task."""
    torch.manual_seed(0)
    model = Model(name=network)
    scale = tuple(SKY.tolist())
    module = build(model, stamp=STAMP, scale=scale).eval()
    trained = TrainedNetwork(
        network, module, bins_of(model), tuple(BANDS), STAMP, 0.396, Config(model=model), 0, "", scale
    )
    save_network(trained, folder / f"{network}.safetensors")
    torch.save(module.state_dict(), folder / f"{network}.pt")
    return {
        "network": network,
        "bins": model.bins,
        "stamp": STAMP,
        "scale": scale,
        "normalisation": model.normalisation,
        "width": model.width,
        "weights": str(folder / f"{network}.pt"),
        "data": str(folder / "d"),
    }


def best_form(
    task: dict[str, Any], folder: Path, tuned: bool, tried: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """The peer's quickest batch size and number of reading processes here: two tries each over `trial`."""
    if len(tried) == 1:
        return tried[0]
    trial = {**task, "data": str(folder / "trial")}
    seconds = [(peer(trial, folder, tuned, *form), form) for form in [*tried, *tried]]
    return min(seconds)[1]


def peer(task: dict[str, Any], folder: Path, tuned: bool, batch: int, workers: int) -> float:
    """Seconds of the peer."""
    out = folder / f"{task['network']}-peer{'_tuned' if tuned else ''}.npy"
    path = folder / "task.json"
    path.write_text(json.dumps({**task, "tuned": tuned, "batch": batch, "workers": workers, "out": str(out)}))
    kept = {"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_MAX_": "0"} if tuned else {}
    return float(run_process([str(ROOT / "benchmarks/peers/predict.py"), str(path)], kept))


def ours(folder: Path, network: str, precision: str) -> float:
    """Seconds of our command."""
    code = "from benchmarks.bench_predict import child; child"
    given = str(folder / "d"), str(folder / f"{network}.safetensors"), precision
    return float(run_process(["-c", f"{code}{given!r}"])[0])


def child(data: str, network: str, precision: str, batch: int = 0) -> None:
    """Predict in this process; print seconds, objects and MiB at the peak."""
    from hpcphotoz.cli.network_options import batch_size, choose_device, choose_precision
    from hpcphotoz.predict import predict
    from hpcphotoz.training.run.network import load_network

    device = choose_device("auto")
    loaded = load_network(network, device)
    found = choose_precision(precision, loaded, device, "PDFs")
    out = Path(network).with_name(f"{Path(network).stem}-{precision}.hdf5")
    size = batch or batch_size(device, gradients=False)
    warm = Path(network).with_name("warm")
    if not warm.exists():
        write(warm, make_stamps(size, loaded.stamp), size)
    predict([loaded], warm, out, batch=size, device=device, precision=found)
    start = time.perf_counter()
    objects = predict([loaded], Path(data), out, batch=size, device=device, precision=found)
    print(json.dumps([time.perf_counter() - start, objects, peak_mib()]))


def change(folder: Path, network: str) -> dict[str, float]:
    """Largest change of the mean redshift from the plain network's, in units of its PDF's sigma."""
    with h5py.File(folder / f"{network}-fp32.hdf5") as file:
        bins = file["meta/bins"][0]
        sigma, own = file["ancil/sigma"][:], file["ancil/zmean"][:]
    with h5py.File(folder / f"{network}-auto.hdf5") as file:
        auto = file["ancil/zmean"][:]
    plain = np.load(folder / f"{network}-peer.npy") @ ((bins[1:] + bins[:-1]) / 2)
    return {
        "ours": float(np.abs((auto - plain) / sigma).max()),
        "ours_fp32": float(np.abs((own - plain) / sigma).max()),
    }


def measure_memory(folder: Path, many: int) -> dict[str, Any]:
    """Peak MiB and rate of a prediction of a thousand objects, and of many."""
    small, shard_rows = folder / "small", 1000
    write(small, make_stamps(shard_rows, 16), shard_rows)
    model = Model(name="compact", width=8, bins=20)
    scale = tuple(SKY.tolist())
    module = build(model, stamp=16, scale=scale).eval()
    trained = TrainedNetwork(
        "compact", module, bins_of(model), tuple(BANDS), 16, 0.396, Config(model=model), 0, "", scale
    )
    (folder / "tiny").mkdir()
    save_network(trained, folder / "tiny" / "compact.safetensors")
    link_shards(small, folder / "many", many // shard_rows)
    found = {}
    code = "from benchmarks.bench_predict import child; child"
    for name in ("small", "many"):
        given = str(folder / name), str(folder / "tiny" / "compact.safetensors"), "fp32", 250
        seconds, objects, mib = run_process(["-c", f"{code}{given!r}"])
        found[name] = {"objects": objects, "mib": mib, "objects_per_s": objects / seconds}
        print(f"{objects} objects: {mib:.0f} MiB at the peak, {objects / seconds:.0f} objects/s", flush=True)
    return {**found, "mib_growth": found["many"]["mib"] - found["small"]["mib"]}


def run_process(words: list[str], variables: dict[str, str] | None = None) -> Any:
    """The JSON of the last line that `python WORDS` prints."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, **(variables or {})},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
