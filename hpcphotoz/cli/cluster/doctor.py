"""The command `launch doctor`."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hpcphotoz.cli.parser import Commands, command, count, path
from hpcphotoz.cli.runs.summary import print_lines
from hpcphotoz.errors import BadInput
from hpcphotoz.output import number_of, say

if TYPE_CHECKING:
    from hpcphotoz.launch.doctor.finding import Finding


def doctor(options: argparse.Namespace) -> int:
    """Check login node, cluster and, by a short job, some nodes. Exit status 1: there are problems."""
    from hpcphotoz.launch.doctor.examination import examine
    from hpcphotoz.launch.doctor.finding import Level
    from hpcphotoz.launch.request.profile import load_profile, plan_of

    if not options.folder.is_dir():
        raise BadInput(f"--folder {options.folder}: no such folder: give the one in which runs will be")
    names = ("partition", "account", "gpus_per_node", "cpus_per_task")
    given = {name: getattr(options, name) for name in names}
    plan = plan_of(given, load_profile(options.profile) if options.profile else None)
    found = examine(
        plan, options.nodes, options.folder.absolute(), options.wait_s, lambda text: say(text, sys.stderr)
    )
    if options.json:
        findings = [asdict(each) | {"level": each.level.name.lower()} for each in found]
        print(json.dumps({"findings": findings, "problems": _count(found, Level.PROBLEM)}, indent=1))
    else:
        for line in table(found):
            print_lines([line])
    return 1 if _count(found, Level.PROBLEM) else 0


def table(found: "list[Finding]") -> list[str]:
    """The report as lines: level, check, what was found where, and below it what to fix."""
    from hpcphotoz.launch.doctor.finding import Level

    lines = []
    for each in found:
        where = f"{each.where}: " if each.where else ""
        lines.append(f"{each.level.name.lower():8}{each.name:19}{where}{each.text}")
        if each.fix:
            lines.append(f"{'':8}{'fix:':>17}  {each.fix}")
    problems, warnings = _count(found, Level.PROBLEM), _count(found, Level.WARNING)
    return [*lines, f"{number_of(problems, 'problem')}, {number_of(warnings, 'warning')}"]


def _count(found: "list[Finding]", level: int) -> int:
    return sum(each.level == level for each in found)


def add(kinds: Commands) -> None:
    """Add the parser of `launch doctor`."""
    p = command(kinds, "doctor", doctor)
    profile = "a profile of a cluster, or the path of one (see `hpcphotoz profiles`)"
    p.add_argument("--profile", metavar="NAME", help=profile)
    p.add_argument("--partition", help="partition to check (default: the cluster's)")
    p.add_argument("--account", help="account of the job")
    p.add_argument("--nodes", type=count, help="nodes to check (default 2, or 1 in a partition of one)")
    gpus = "GPUs per node, e.g. 4 or h100:4 (default 0: GPUs and NCCL are not checked)"
    p.add_argument("--gpus-per-node", metavar="[TYPE:]N", help=gpus)
    p.add_argument("--cpus-per-task", type=int, help="CPUs per rank (default 2)")
    folder = "folder in which runs will be, shared by the nodes (default: the present one)"
    p.add_argument("--folder", type=path, default=Path("."), metavar="DIR", help=folder)
    p.add_argument("--wait-s", type=count, default=600, help="seconds to wait for the job (default 600)")
    p.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
