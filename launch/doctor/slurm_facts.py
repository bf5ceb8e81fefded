"""Asks Slurm for its configuration and its partitions."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence

from hpcphotoz.errors import BadInput, nearest
from hpcphotoz.launch.doctor.facts import ClusterFacts

_TIMEOUT_S = 30


def collect_cluster(partition: str, time_s: int, signal_delay_s: int) -> ClusterFacts:
    """Facts on the cluster of this machine, and on a partition.

    Args:
        partition: its name; "": the default one.
        time_s, signal_delay_s: of the launch that the user has in mind.

    Raises:
        BadInput: no such partition.
    """
    if shutil.which("scontrol") is None:
        return ClusterFacts(installed=False)
    config, error = ask(["scontrol", "show", "config"])
    uses_munge = config.get("AuthType", "auth/munge") == "auth/munge"
    munge = _munge(config.get("AuthInfo", "")) if uses_munge else ""
    if error:
        return ClusterFacts(error=error, munge_error=munge)
    return ClusterFacts(
        config=config,
        partition=pick_partition(read_partitions(), partition),
        munge_error=munge,
        has_sacct=shutil.which("sacct") is not None,
        time_s=time_s,
        signal_delay_s=signal_delay_s,
    )


def run(words: Sequence[str], given: str = "") -> tuple[str, str]:
    """Output of a command, and why it failed; "": it did not.

    Args:
        words: the command.
        given: its standard input.
    """
    try:
        done = subprocess.run(
            words, input=given, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return "", f"{words[0]} does not answer within {_TIMEOUT_S} s"
    except OSError as error:
        return "", f"{words[0]}: {error.strerror}"
    said = " ".join((done.stderr.strip() or done.stdout.strip()).split())[-300:]
    return done.stdout, (said or f"exit status {done.returncode}") if done.returncode else ""


def ask(words: Sequence[str]) -> tuple[dict[str, str], str]:
    """The lines "name = value" that a command prints, and why it failed; "": it did not."""
    text, error = run(words)
    found = re.findall(r"^(\w+) *= ?(.*?) *$", text, re.MULTILINE)
    return dict(found), error


def fields(line: str) -> dict[str, str]:
    """The words "name=value" of a line of `scontrol --oneliner`."""
    return {name: value for name, has, value in (word.partition("=") for word in line.split()) if has}


def read_partitions() -> dict[str, Mapping[str, str]]:
    """The partitions of this cluster, each with its fields as `scontrol` prints them.

    Raises:
        BadInput: Slurm does not answer.
    """
    text, error = run(["scontrol", "show", "partition", "--oneliner"])
    if error:
        raise BadInput(f"scontrol show partition: {error}")
    return {each["PartitionName"]: each for each in map(fields, text.splitlines()) if "PartitionName" in each}


def pick_partition(known: Mapping[str, Mapping[str, str]], wanted: str) -> Mapping[str, str]:
    """A partition by its name; "": the default one.

    Args:
        known: of `read_partitions`.
        wanted: its name.

    Raises:
        BadInput: there is none.
    """
    if wanted in known:
        return known[wanted]
    if wanted:
        raise BadInput(no_partition(wanted, known))
    default = [each for each in known.values() if each.get("Default") == "YES"]
    if not default:
        raise BadInput(f"this cluster has no default partition: give --partition, one of {', '.join(known)}")
    return default[0]


def no_partition(wanted: str, known: Iterable[str]) -> str:
    """What to say of a partition that is not there, with the nearest one and all."""
    names = list(known)
    return f"--partition {wanted}: no such partition{nearest(wanted, names)}: it has {', '.join(names)}"


def _munge(auth_info: str) -> str:
    """Why munge does not sign; "": it does, or its commands are not here.

    Args:
        auth_info: Slurm's AuthInfo, which may name munge's socket.
    """
    if shutil.which("munge") is None or shutil.which("unmunge") is None:
        return ""
    found = re.search(r"(?:^|,)socket=([^,]+)", auth_info)
    socket = [f"--socket={found[1]}"] if found else []
    credential, error = run(["munge", "-n", *socket])
    return error or run(["unmunge", *socket], credential)[1]
