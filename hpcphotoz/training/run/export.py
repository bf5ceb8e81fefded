"""Exports a trained network as one file, and writes a card beside it that says what it is."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import hpcphotoz
from hpcphotoz.atomic import atomic_write, check_output_file
from hpcphotoz.config.model import OWN_NETWORKS
from hpcphotoz.errors import BadInput, first_line
from hpcphotoz.training.run.network import WEIGHTS_SUFFIX, TrainedNetwork, load_network, save_network

PROGRAM_SUFFIX, ONNX_SUFFIX = ".pt2", ".onnx"
SUFFIXES = (WEIGHTS_SUFFIX, PROGRAM_SUFFIX, ONNX_SUFFIX)
_MAX_ONNX_BYTES = 2**31 - 1  # of one file: a limit of protobuf


def export(run: Path, out: Path, report: Path | None = None, *, trust_code: bool = False) -> TrainedNetwork:
    """Write the network of a run as `out`, and a card beside it: JSON, named as `out` with .json after it.

    Args:
        run: run folder, one of its checkpoint files, or a file *.safetensors.
        out: file to write; its suffix is the form. *.safetensors: weights and configuration, which
            `load_network` reads; *.pt2: a program of torch.export; *.onnx: ONNX, which wants the extra
            `onnx`. The last two take images (N, B, y, x) float32 in nMgy and E(B-V) (N,) float32 in mag, for
            any N, and give logits (N, bins).
        report: folder of an evaluation of this run; its metrics and robustness curves go onto the card.
        trust_code: as `load_network`.

    Returns:
        The network that was exported.

    Raises:
        BadInput: another suffix, a run that cannot be loaded, a network that the form cannot hold, a report
            without this run, or a file that cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise BadInput(f"{out}: the name says the form: want one that ends in {', '.join(SUFFIXES)}")
    check_output_file(out)
    network = load_network(run, trust_code=trust_code)
    card = {"file": out.name, **_card(network, run, report)}
    if out.suffix == WEIGHTS_SUFFIX:
        save_network(network, out)
    else:
        _write(out, _program(network, out) if out.suffix == PROGRAM_SUFFIX else _onnx(network, out))
    _write(card_of(out), json.dumps(card, indent=1, allow_nan=False).encode() + b"\n")
    return network


def card_of(file: Path) -> Path:
    """Path of the card of an exported file."""
    return file.with_name(f"{file.name}.json")


def _card(network: TrainedNetwork, run: Path, report: Path | None) -> dict[str, Any]:
    config, record, validation = network.config, {}, None
    if run.suffix != WEIGHTS_SUFFIX:  # which is no part of a run folder
        folder = run if run.is_dir() else run.parent.parent
        record, validation = _record(folder / "provenance.json"), _validation(folder, network.step)
    start = record["starts"][-1] if record.get("starts") else {}
    adversarial = config.adversarial.fraction > 0
    return {
        "name": network.name,
        "hpcphotoz": hpcphotoz.__version__,
        "network": config.model.model_dump(mode="json"),
        "source": start.get("network"),
        "parameters": sum(parameter.numel() for parameter in network.module.parameters()),
        "input": {
            "images": {
                "axes": ["object", "band", "y", "x"],
                "bands": list(network.bands),
                "stamp": network.stamp,
                "unit": "nMgy",
            },
            "ebv": {"axes": ["object"], "unit": "mag"},
        },
        "output": {
            "logits": "their softmax is the probability of each uniform redshift bin",
            "bins": network.bins.n,
            "z_min": network.bins.z_min,
            "z_max": network.bins.z_max,
        },
        "training": {
            "data": start.get("data"),
            "manifest_sha256": network.manifest_sha256,
            "imported": record.get("imported"),
            "steps": network.step,
            "seed": config.run.seed,
            "ema_decay": config.optimiser.ema_decay,
            "from": start.get("from"),
            "eps_sky_sigma": config.attack.eps if adversarial else 0.0,
            "adversarial": config.adversarial.model_dump(mode="json") if adversarial else None,
            "attack": config.attack.model_dump(mode="json") if adversarial else None,
        },
        "validation": validation,
        "evaluation": _evaluation(report, network.name) if report else None,
    }


def _record(path: Path) -> dict[str, Any]:
    """The provenance of a run; a run folder may have lost it."""
    if not path.exists():
        return {}
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        if isinstance(record["starts"], list):
            return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: cannot be read: {first_line(error)}") from None
    raise BadInput(f"{path}: cannot be read: 'starts' is no list")


def _validation(folder: Path, step: int) -> dict[str, Any] | None:
    """The last line of a validation at or before a step; None: there is none."""
    path = folder / "metrics.jsonl"
    try:
        # A line without an end is being written.
        texts = path.read_text().splitlines(keepends=True) if path.exists() else []
        lines = [json.loads(text) for text in texts if text.endswith("\n")]
        found = [line for line in lines if line.get("part") == "validation" and line["step"] <= step]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise BadInput(f"{path}: cannot be read: {first_line(error)}") from None
    return found[-1] if found else None


def _evaluation(report: Path, name: str) -> dict[str, Any]:
    """Metrics, robustness curves, data and attack of a run in a report of `hpcphotoz evaluate`."""
    path = report / "metrics.json"
    try:
        tree = json.loads(path.read_text())
        curves = tree["robustness_curves"][name]
        return {"metrics": tree[name], "robustness": curves, "data": tree["data"], "attack": tree["attack"]}
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}: give the --out of an evaluate") from None
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path}: holds no evaluation of run '{name}'") from None


def _traced(network: TrainedNetwork, out: Path) -> torch.export.ExportedProgram:
    images, rows = torch.zeros(2, len(network.bands), network.stamp, network.stamp), torch.export.Dim("rows")
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(
                network.module, (images, torch.zeros(2)), dynamic_shapes=({0: rows}, {0: rows})
            )
        # The tracer raises errors of no common type for code that it cannot follow.
        except Exception as error:
            own = network.config.model.name in OWN_NETWORKS
            do = "export safetensors" if own else f"change its forward, or export {WEIGHTS_SUFFIX}"
            why = f"{type(error).__name__}: {first_line(error)}"
            raise BadInput(f"{out}: torch.export cannot follow the network ({why}): {do}") from None
    # torch would pickle them into the file; without them torch.export.load has nothing to unpickle.
    program.example_inputs = None
    return program


def _program(network: TrainedNetwork, out: Path) -> bytes:
    content = io.BytesIO()
    with _quiet():
        torch.export.save(_traced(network, out), content)
    return content.getvalue()


def _onnx(network: TrainedNetwork, out: Path) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BadInput(f"{error}: networks as ONNX need `pip install 'hpcphotoz[onnx]'`") from None
    names = {"input_names": ["images", "ebv"], "output_names": ["logits"]}
    traced = _traced(network, out)
    with _quiet():
        try:
            program = torch.onnx.export(traced, **names, dynamo=True, verbose=False)  # type: ignore[arg-type]
        # As the tracer: for operators that have no translation.
        except Exception as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            raise BadInput(f"{out}: the network has no form in ONNX ({why}): export .pt2") from None
    assert program is not None
    proto = program.model_proto
    if proto.ByteSize() > _MAX_ONNX_BYTES:
        raise BadInput(f"{out}: the network is larger than the 2 GiB of an ONNX file: export .pt2")
    content: bytes = proto.SerializeToString()
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and the progress of torch's exporters, which concern their own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _write(out: Path, content: bytes) -> None:
    try:
        with atomic_write(out) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise BadInput(f"{out}: cannot be written: {error.strerror or error}") from None
