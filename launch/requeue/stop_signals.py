"""Whether a job restarts after a stop, and the signals that tell."""

import os
import select
import signal
import subprocess
import time
from typing import Self

from hpcphotoz.output import say

# A signal reaches the nodes one after the other: rank 0 may stop at another rank's signal before its own.
STRAGGLING_SIGNAL_S = 10.0


def own_job_id() -> str:
    """The id of the job this process runs in; of a task of an array, `<array>_<index>`.

    Slurm takes the number of an array's last task for the whole array.
    """
    array, index = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{index}" if array and index else os.environ["SLURM_JOB_ID"]


def asks_for_requeue(seen: set[int], at_time_limit: bool = True) -> bool:
    """Whether the job restarts after this stop.

    SIGUSR2 (time limit, preemption) asks for a restart. SIGTERM means a preemption on clusters that do not
    send the user's signal, and otherwise a cancellation, like SIGINT: Slurm is asked which it is. After
    SIGUSR1, a file STOP or the end of the wall-time budget alone the job stays away.

    Args:
        seen: signals that have arrived.
        at_time_limit: whether it restarts after SIGUSR2 without a preemption.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return signal.SIGUSR2 in seen and not seen & {signal.SIGTERM, signal.SIGINT}
    command = ["scontrol", "show", "job", "--oneliner", own_job_id()]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        say(f"cannot ask Slurm why the job was stopped: {error}")
        text = ""
    facts = dict(word.partition("=")[::2] for word in text.split())
    if facts.get("JobState") in ("CANCELLED", "COMPLETING") and facts.get("Reason") != "TimeLimit":
        return False  # cancelled, or requeued already; both are COMPLETING while a task is alive
    preempted = facts.get("PreemptTime", "None") != "None"
    return (signal.SIGUSR2 in seen and (at_time_limit or preempted)) or (signal.SIGTERM in seen and preempted)


class SignalRecorder:
    """Records this process's signals, whatever handlers are installed (the trainer's only set a flag)."""

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._earlier = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._earlier)
        os.close(self._read)
        os.close(self._write)

    def seen(self, wait_s: float) -> set[int]:
        """Which of USR1, USR2, TERM and INT have arrived; waits up to `wait_s` seconds for the first."""
        end = time.monotonic() + wait_s
        found, wanted = set[int](), {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT}
        while not found and select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
            found |= set(os.read(self._read, 4096)) & wanted
        return found
