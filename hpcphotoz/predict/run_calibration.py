"""Fits the calibration of runs on the validation part of their split, and keeps it in the run folder.

`RUN/calibration.json` holds a calibration for each ensemble that was calibrated with this run as its first,
and for predictions with and without averaging over the symmetries. Each belongs to the weights of one
checkpoint of every run.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import hpcphotoz
from hpcphotoz.atomic import write_text
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.select.subset import Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.batches import (
    check_batch,
    check_redshifts,
    divide_rows,
    read_batches,
    to_tensors,
)
from hpcphotoz.evaluation.inference import DatasetForward
from hpcphotoz.evaluation.network import RedshiftNetwork, check_bands_and_stamp, check_names
from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration
from hpcphotoz.predict.catalogue import common_bins
from hpcphotoz.predict.fit import MAX_DEGREE, Fit, bin_of, fit_calibration, stacking_weights
from hpcphotoz.predict.pdfs import average_pdfs
from hpcphotoz.training.optimisation.origin import weights_sha256

FILE = "calibration.json"  # of a run folder
_FORMAT = 1
_ROUNDING = 1e-6  # of the sum of the weights


def calibrate(
    networks: Sequence[RedshiftNetwork],
    runs: Sequence[Path],
    data: Path,
    *,
    subset: Subset,
    method: str = "auto",
    stack: bool = False,
    tta: bool = False,
    batch: int = 256,
    device: torch.device | str = "cpu",
) -> Fit:
    """Fit the calibration of a prediction with these networks, and write it into the first run's folder.

    The PDFs of all objects are held in memory, four bytes a bin, object and network.

    Args:
        networks: those of the prediction.
        runs: their run folders, in the same order.
        data: dataset folder.
        subset: the validation part of the split of the runs' training.
        method: as `fit_calibration`.
        stack: weigh the networks by `stacking_weights`; equal weights otherwise.
        tta: for predictions that average over the eight symmetries of the square.
        batch: batch size.
        device: device of the networks.

    Raises:
        BadInput: as `predict` and `fit_calibration`, a z_spec outside the bins, a run that is no folder, or
            two runs of the same name.
    """
    for run in runs:
        if not run.is_dir():
            raise BadInput(f"{run}: is a file: a calibration is kept in a run folder: give that")
    check_names(networks)  # by which a prediction finds the weight of each
    path = runs[0] / FILE
    kept = _read(path)
    pdfs, z_spec = _validation_pdfs(networks, data, subset, tta, batch, device)
    bins, weights = networks[0].bins, tuple[float, ...]()
    if stack:
        rows, k = np.arange(len(z_spec)), bin_of(bins, z_spec)
        weights = stacking_weights(np.stack([pdf[rows, k] for pdf in pdfs], axis=1))
    mean = np.average(pdfs, axis=0, weights=weights or None)
    found = fit_calibration(mean, bins, z_spec, method)
    calibration = Calibration(weights, found.calibration.temperature, found.calibration.pit)
    found = replace(found, calibration=calibration)
    fitted = {
        "method": method,
        "dataset": str(data.resolve()),
        "manifest_sha256": read_manifest(data).sha256,
        "subset": subset.record(),
        "objects": len(z_spec),
        "log_score": found.score,
        "log_score_before": found.score_before,
        "pit_ks": found.pit_ks,
        "pit_ks_before": found.pit_ks_before,
        "hpcphotoz": hpcphotoz.__version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    entry = {"runs": _identities(networks), "tta": tta, **vars_of(calibration), "fitted": fitted}
    others = [one for one in kept if _key(one) != _key(entry)]
    tree = {"format": _FORMAT, "calibrations": [*others, entry]}
    try:
        write_text(path, json.dumps(tree, indent=1) + "\n")
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None
    return found


def find_calibration(
    networks: Sequence[RedshiftNetwork], runs: Sequence[Path], tta: bool
) -> tuple[Calibration | None, str]:
    """The calibration of a prediction with these networks, and one line for the user about it; "": nothing.

    Args:
        networks: those of the prediction.
        runs: what the user named: run folders, or single files, which have no calibration.
        tta: whether the prediction averages over the symmetries.

    Raises:
        BadInput: a calibration file that cannot be read, or that belongs to another checkpoint of a run.
    """
    paths = [run / FILE for run in runs if run.is_dir() and (run / FILE).exists()]
    if not paths:
        return None, ""
    ours = {"runs": _identities(networks), "tta": tta}
    for path in paths:
        for one in _read(path):
            if _key(one) == _key(ours):
                return _calibration(one, ours, path), f"calibrated as {path} says"
    what = f"{len(networks)} runs" if len(networks) > 1 else "this run alone"
    how = "with" if tta else "without"
    why = f"{paths[0]}: has no calibration for {what} {how} --tta"
    return None, f"{why}: PDFs are not calibrated (hpcphotoz calibrate makes one)"


def vars_of(calibration: Calibration) -> dict[str, Any]:
    """A calibration as JSON."""
    return {
        "weights": list(calibration.weights),
        "temperature": calibration.temperature,
        "pit": list(calibration.pit),
    }


def _calibration(entry: dict[str, Any], ours: dict[str, Any], path: Path) -> Calibration:
    theirs = {run["name"]: run for run in entry["runs"]}
    for run in ours["runs"]:
        fitted = theirs[run["name"]]
        if run["weights_sha256"] != fitted["weights_sha256"]:
            raise BadInput(
                f"{path}: belongs to step {fitted['step']} of run '{run['name']}', whose newest checkpoint "
                f"is step {run['step']} with other weights: run hpcphotoz calibrate again, or give "
                "--no-calibration"
            )
    weight = dict(zip(theirs, entry["weights"], strict=True)) if entry["weights"] else {}
    weights = tuple(weight[run["name"]] for run in ours["runs"]) if weight else ()
    return Calibration(weights, entry["temperature"], tuple(entry["pit"]))


def _identities(networks: Sequence[RedshiftNetwork]) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "step": one.step,
            "weights_sha256": weights_sha256(one.module.state_dict()),
        }
        for one in networks
    ]


def _key(entry: dict[str, Any]) -> tuple[list[str], bool]:
    return sorted(run["name"] for run in entry["runs"]), entry["tta"]


def _read(path: Path) -> list[dict[str, Any]]:
    """The calibrations in a file; none where there is no file."""
    instead = "remove it, and run hpcphotoz calibrate again"
    try:
        tree = json.loads(path.read_bytes())
        if tree["format"] != _FORMAT:
            raise BadInput(f"{path}: format {tree['format']} of a later version: {instead}")
        for one in tree["calibrations"]:
            known = {run["name"] for run in one["runs"] if run["weights_sha256"] and run["step"] >= 0}
            fits = len(known) == len(one["runs"]) and len(one["weights"]) in (0, len(known)) and one["fitted"]
            if not (_is_possible(one) and fits and isinstance(one["tta"], bool)):
                raise ValueError
        return list(tree["calibrations"])
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise BadInput(f"{path}: is no calibration: {instead}") from None


def _is_possible(entry: dict[str, Any]) -> bool:
    """Whether the numbers of a file make PDFs of PDFs."""
    weights, temperature, pit = entry["weights"], entry["temperature"], entry["pit"]
    numbers = np.array([temperature, *pit, *weights])
    if numbers.dtype.kind not in "if" or not np.isfinite(numbers).all() or len(pit) > MAX_DEGREE:
        return False
    if temperature <= 0 or (weights and (min(weights) < 0 or abs(sum(weights) - 1) > _ROUNDING)):
        return False
    with np.errstate(all="ignore"):  # a map beyond the range of numbers
        return bool(np.isfinite(Calibration((), temperature, tuple(pit))(np.full((1, 2), 0.5))).all())


def _validation_pdfs(
    networks: Sequence[RedshiftNetwork],
    data: Path,
    subset: Subset,
    tta: bool,
    batch: int,
    device: torch.device | str,
) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.float64]]:
    """PDFs (N, n) of each network, and the z_spec (N,), of the objects of known redshift."""
    bins = common_bins(networks)
    manifest = read_manifest(data)
    for network in networks:
        check_bands_and_stamp(network, manifest.header, data)
    check_batch(batch)
    check_redshifts(bins, data, manifest, "the runs", subset)
    part = divide_rows(data, manifest, batch, subset)
    forwards = [DatasetForward(network, batch, part.objects * (8 if tta else 1)) for network in networks]
    pdfs: list[list[npt.NDArray[np.float32]]] = [[] for _ in networks]
    z_spec = []
    for stamps in read_batches(data, manifest, batch, "predicting", subset=subset, share=part):
        known = np.isfinite(stamps.z_spec)
        if not known.any():
            continue
        tensor = to_tensors(stamps[known], device)
        inputs = tensor["images"], tensor["ebv"], tensor["object_id"]
        for network, forward, found in zip(networks, forwards, pdfs, strict=True):
            found.append(average_pdfs([network], *inputs, tta=tta, forwards=[forward]).cpu().numpy())
        z_spec.append(stamps.z_spec[known].astype(np.float64))
    if not z_spec:
        raise BadInput(f"{data}: no object of known z_spec{subset.text()}: nothing to calibrate with")
    return [np.concatenate(found) for found in pdfs], np.concatenate(z_spec)
