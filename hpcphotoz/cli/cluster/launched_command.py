"""The job of `launch ... -- predict`, or of another command than `train`, checked before it is queued."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpcphotoz.errors import BadInput

if TYPE_CHECKING:
    from hpcphotoz.launch.command_job import CommandJob

# Options with what the commands read; `sources` of an ingest may be absent with --damaged skip.
_INPUTS = ("runs", "run", "data", "knn_train", "onto", "frames", "images", "objects", "redshifts", "sources")


def command_job(words: Sequence[str], command: Sequence[str], inputs_are_there: bool = True) -> "CommandJob":
    """The job that runs a command line in the present folder.

    Args:
        words: of the command line to run, without "hpcphotoz".
        command: the whole command line, for the record.
        inputs_are_there: False: another job is to write them.

    Raises:
        BadInput: words that are not understood, no such input, or an output that cannot be written.
    """
    from hpcphotoz.cli import parse
    from hpcphotoz.launch.command_job import CommandJob

    options = parse(words)
    out = getattr(options, "out", None)
    if out is None:
        raise BadInput(f"launch: {words[0]} without an output: run it here")
    inputs = [
        path.absolute()
        for name in _INPUTS
        for path in _paths(getattr(options, name, None))
        if name != "sources" or getattr(options, "damaged", "fail") == "fail"
    ]
    for path in inputs:
        if inputs_are_there and not path.exists():
            raise BadInput(f"{path}: no such file or folder")
    _check(options, out, inputs_are_there)
    folders = str(Path.cwd()), f"{out.absolute()}.job", "hpcphotoz.cli:run"
    return CommandJob(tuple(words), *folders, tuple(map(str, inputs)), tuple(command))


def _paths(value: object) -> list[Path]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, Path)]


def _check(options: argparse.Namespace, out: Path, inputs_are_there: bool) -> None:
    """Refuse what the command would refuse: an output in use, or no dataset; create nothing."""
    from hpcphotoz.cli.network_options import require_data
    from hpcphotoz.data.format.folder import check_dataset_folder
    from hpcphotoz.data.format.manifest import read_manifest

    if options.command in ("predict", "evaluate", "attack"):
        require_data(options, getattr(options, "runs", None) or [options.run])
        if inputs_are_there:
            read_manifest(options.data)
    if options.command == "predict":
        from hpcphotoz.predict import check_output_path, check_points_path

        check_output_path(out)
        if options.points is not None:
            check_points_path(options.points)
    elif options.command == "evaluate":
        from hpcphotoz.evaluation.report.folder import check_report_folder

        check_report_folder(out)
    elif not getattr(options, "append", False):
        check_dataset_folder(out)
