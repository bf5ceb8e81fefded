"""Passes the lines of metrics.jsonl on: to the view at the terminal, TensorBoard, and Weights & Biases."""

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from hpcphotoz.config import Config
from hpcphotoz.errors import BadInput, first_line

_log = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes lines of metrics.jsonl, right after they are written."""

    name: str  # in messages

    def write(self, line: Mapping[str, Any]) -> None:
        """Take a line."""
        ...

    def close(self) -> None:
        """Take no more lines; called once."""
        ...


def check_sinks(config: Config) -> None:
    """Refuse sinks of `run.sinks` whose package is not installed; nothing is imported.

    Raises:
        BadInput: with the extra that brings the package.
    """
    for name in config.run.sinks:
        # Without an origin it is a folder of this name, such as wandb makes in the working directory.
        if (found := find_spec(name)) is None or found.origin is None:
            raise BadInput(f"run.sinks {name}: not installed: pip install 'hpcphotoz[{name}]'")


def open_sinks(
    config: Config, out: Path, step: int, seen: int, earlier: Sequence[Mapping[str, Any]]
) -> "Sinks":
    """The sinks of `run.sinks`; one that cannot be opened is left out with a warning.

    Args:
        config, out: options and folder of the run.
        step: from which the run goes on; lines after it come again.
        seen: step of the last line that the processes before have written, 0: none.
        earlier: the lines up to `step`.
    """
    sinks = Sinks()
    for name in config.run.sinks:
        # Imported here: each needs the package of an extra.
        if name == "tensorboard":
            from hpcphotoz.training.reporting.tensorboard import TensorBoardSink

            sinks.open("TensorBoard", lambda: TensorBoardSink(out, step))
        else:
            from hpcphotoz.training.reporting.weights_and_biases import WeightsAndBiasesSink

            sinks.open("Weights & Biases", lambda: WeightsAndBiasesSink(out, config, seen, earlier))
    return sinks


class Sinks:
    """Several sinks. One that fails is said once and closed; training goes on without it."""

    def __init__(self) -> None:
        self._sinks: list[Sink] = []

    def open(self, name: str, make: Callable[[], Sink]) -> None:
        """Add the sink that `make` returns."""
        try:
            self._sinks.append(make())
        except Exception as error:  # whatever a foreign library raises must not end a training
            _warn(name, error)

    def append(self, sink: Sink) -> None:
        """Add a sink."""
        self._sinks.append(sink)

    def write(self, line: Mapping[str, Any]) -> None:
        """Pass a line to every sink."""
        for sink in list(self._sinks):
            try:
                sink.write(line)
            except Exception as error:  # as in `open`
                _warn(sink.name, error)
                self._sinks.remove(sink)
                _close(sink)

    def close(self) -> None:
        """Close every sink."""
        sinks, self._sinks = self._sinks, []
        for sink in sinks:
            if (error := _close(sink)) is not None:
                _warn(sink.name, error)


def _close(sink: Sink) -> Exception | None:
    try:
        sink.close()
    except Exception as error:  # as in `Sinks.open`
        return error
    return None


def _warn(name: str, error: Exception) -> None:
    said = f"{type(error).__name__}: {first_line(error)}"
    _log.warning("%s failed, and is off until the run is started again: %s", name, said)
