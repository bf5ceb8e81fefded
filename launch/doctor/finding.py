"""What the doctor says of one thing that it has checked."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How bad a finding is."""

    OK = 0
    INFO = 1  # worth knowing; nothing to fix
    WARNING = 2  # works, but slower or less safely than it could
    PROBLEM = 3  # a run fails, or loses work


# Every check, in the order of the report. docs/how-to/doctor.md says of each what it looks at.
CHECKS = (
    *("slurm", "munge", "partition", "preemption signal", "grace time", "kill wait", "requeue"),
    *("time limit", "accounting", "environment", "job", "imports", "versions", "cores", "threads"),
    *("gpu", "driver", "host name", "interfaces", "mtu", "gloo", "nccl", "clock", "folder"),
    *("shared folder", "free space", "inodes", "quota", "file speed", "file locking", "rename", "hdf5"),
    *("caches", "shared memory", "open files", "locked memory"),
)


@dataclass(frozen=True)
class Finding:
    """What was found by one check.

    Args:
        name: one of `CHECKS`.
        level: how bad it is.
        text: what was found, and what it means.
        fix: what to do, in one line; "" where there is nothing to fix.
        where: "login node", names of nodes, or "" for the cluster.
    """

    name: str
    level: Level
    text: str
    fix: str = ""
    where: str = ""

    def __post_init__(self) -> None:
        if self.name not in CHECKS:
            raise ValueError(f"no check is called {self.name!r}")
        if self.level >= Level.WARNING and not self.fix:
            raise ValueError(f"{self.name}: a {self.level.name.lower()} needs a fix")


def ok(name: str, text: str, where: str = "") -> Finding:
    """A check that found nothing wrong."""
    return Finding(name, Level.OK, text, "", where)


def info(name: str, text: str, where: str = "") -> Finding:
    """A fact worth knowing."""
    return Finding(name, Level.INFO, text, "", where)


def warning(name: str, text: str, fix: str, where: str = "") -> Finding:
    """Something that makes runs slower or less safe."""
    return Finding(name, Level.WARNING, text, fix, where)


def problem(name: str, text: str, fix: str, where: str = "") -> Finding:
    """Something that makes runs fail or lose work."""
    return Finding(name, Level.PROBLEM, text, fix, where)


def arranged(findings: Iterable[Finding]) -> list[Finding]:
    """Findings in the order of `CHECKS`; those that differ only in where they were found become one.

    What is fine is left out where the same check has found something that is not.
    """
    findings = list(findings)
    bad = {each.name for each in findings if each.level >= Level.WARNING}
    places: dict[tuple[int, int, str, str], list[str]] = {}
    for each in findings:
        if each.level < Level.WARNING and each.name in bad:
            continue
        key = CHECKS.index(each.name), -each.level, each.text, each.fix
        where = places.setdefault(key, [])
        if each.where and each.where not in where:
            where.append(each.where)
    return [
        Finding(CHECKS[place], Level(-level), text, fix, ", ".join(where))
        for (place, level, text, fix), where in sorted(places.items(), key=lambda item: item[0][:2])
    ]
