"""One rank of `hpcphotoz train` that records what it trains on: the process that the chaos test starts.

python -m benchmarks.faults.recorded_rank RECORD train ...

The program itself is not changed: functions of it are wrapped from outside. Every line of RECORD is one write
to a file opened for appending, which a kill cannot take back or divide:

    {"mark": "begun"}      the interpreter runs
    {"mark": "meeting"}    the ranks look for each other; later "resumed", "validation", "validated", "saving"
                           and "saved"; "held": a save or validation waits for a fault, see `hold`
    {"mark": "loaded", "step": 5}               rank 0 has loaded the checkpoint of this name; 0: none
    {"mark": "copied", "step": 10, "begun": 9}  the state for this checkpoint, and the last step begun before
    {"step": 7, "epoch": 0, "objects": [ids], "attacked": [ids]}

The line of a step is written before its update: when its images are there and before ranks average gradients.
A step whose update is in a checkpoint therefore has its lines, on all ranks. `attacked` are the objects whose
images differ from the clean ones when the step uses them.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults.hold import Hold

Function = Callable[..., Any]
LEAVE_OUT = "CHAOS_LEAVE_OUT_STEP"  # variable: at this step one object keeps its clean image


class Record:
    """Appends lines to the record of one rank."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self.begun: int | None = None  # last step that was recorded

    def write(self, **values: Any) -> None:
        """Append one line, by one write."""
        line = (json.dumps(values) + "\n").encode()
        if os.write(self._file, line) != len(line):
            raise OSError("the record of the chaos test was cut: is its disk full?")


class RecordedImages:
    """An `AdversarySource` that records every batch when its attacked images are there.

    Args:
        source: the one that the step would use.
        record: of this rank.
        leave_out: step at which one object keeps its clean image; -1: none.
    """

    def __init__(self, source: Any, record: Record, leave_out: int = -1) -> None:
        self._source, self._record, self._leave_out = source, record, leave_out
        self.overlaps = source.overlaps

    def begin(self, batch: Any) -> None:
        """As of the source."""
        self._source.begin(batch)

    def finish(self, batch: Any) -> Any:
        """The images of the source, (m, B, H, W), which are recorded."""
        images, clean = self._source.finish(batch), batch.images[batch.attacked]
        if batch.step == self._leave_out and len(images):
            images = images.clone()
            images[0] = clean[0]
        changed = (images != clean).flatten(1).any(dim=1)
        self._record.begun = batch.step
        self._record.write(
            step=batch.step,
            epoch=int(batch.epoch),
            objects=batch.object_id.tolist(),
            attacked=batch.object_id[batch.attacked][changed].tolist(),
        )
        return images

    def done(self) -> None:
        """As of the source."""
        self._source.done()


def watch(record: Record) -> None:
    """Wrap the functions of the program whose calls are recorded."""
    from hpcphotoz import atomic
    from hpcphotoz.training import components, loop
    from hpcphotoz.training.distributed import group
    from hpcphotoz.training.run import checkpoint, recorder

    leave_out = int(os.environ.get(LEAVE_OUT, "-1"))

    def recording(build_step: Function) -> Function:
        def built(self: Any, adversaries: Any, role: Any) -> Any:
            return build_step(self, RecordedImages(adversaries, record, leave_out), role)

        return built

    def marking(mark: str, step: bool = False) -> Callable[[Function], Function]:
        def around(function: Function) -> Function:
            def marked(*given: Any, **named: Any) -> Any:
                record.write(mark=mark, **({"step": given[0].step} if step else {}))
                return function(*given, **named)

            return marked

        return around

    def holding(hold: Hold, before: str, after: str) -> Callable[[Function], Function]:
        def around(function: Function) -> Function:
            def held(*given: Any, **named: Any) -> Any:
                record.write(mark=before)
                hold.wait_to_begin(lambda: record.write(mark="held"))
                try:
                    result = function(*given, **named)
                finally:
                    hold.wait_to_end()
                record.write(mark=after)
                return result

            return held

        return around

    def holding_the_rename(flush: Function) -> Function:
        def flushed(path: Path) -> None:
            flush(path)
            save.wait_to_end()

        return flushed

    def telling_the_loaded(resumed: Function) -> Function:
        def loaded(run: Path) -> Any:
            found = resumed(run)
            record.write(mark="loaded", step=checkpoint.step_of(found[0]) if found else 0)
            return found

        return loaded

    def telling_the_copied(save: Function) -> Function:
        def saved(self: Any, state: Any, step: int, *given: Any, **named: Any) -> Any:
            record.write(mark="copied", step=step, begun=record.begun)
            return save(self, state, step, *given, **named)

        return saved

    save, validation = (Hold(record.path, mark) for mark in ("saving", "validation"))
    wrap(checkpoint, "resumed", telling_the_loaded)
    wrap(recorder.RunRecorder, "save", telling_the_copied)
    wrap(components.TrainingComponents, "build_step", recording)
    wrap(group, "process_group", marking("meeting"))
    wrap(loop.TrainingLoop, "run", marking("resumed", step=True))
    wrap(loop, "validate", holding(validation, "validation", "validated"))
    wrap(checkpoint, "write_file", holding(save, "saving", "saved"))
    wrap(atomic, "flush_file", holding_the_rename)  # of the temporary file, before it gets its name


def wrap(place: Any, name: str, around: Callable[[Function], Function]) -> None:
    """Put what `around` makes of a function in its place.

    Raises:
        AttributeError: there is no such function.
    """
    setattr(place, name, around(getattr(place, name)))


def main() -> int:
    """Run the command line after the first word, and return its exit status."""
    record = Record(Path(sys.argv[1]))
    record.write(mark="begun")
    sys.argv = ["hpcphotoz", *sys.argv[2:]]
    from hpcphotoz.__main__ import main as program

    watch(record)
    return program()


if __name__ == "__main__":
    sys.exit(main())
