"""A queue for tests of submissions: shell scripts that stand in for sbatch, srun and squeue."""

import re
from pathlib import Path

from tests.helpers.launch.runs import Install


class FakeQueue:
    """Gives ids from 11, keeps every script that was submitted, and refuses the one that it is told to.

    Args:
        install: puts a program first in PATH.
        folder: for its files; must exist.
        refuse: number of the submission, from 1, that is refused; 0: none.
    """

    def __init__(self, install: Install, folder: Path, refuse: int = 0) -> None:
        self._folder = folder / "queue"
        self._folder.mkdir()
        install("srun", "exit 1")
        install("scontrol", "exit 1")
        install(
            "sbatch",
            f"""cd '{self._folder}'; n=$(($(ls *.sh 2>/dev/null | wc -l) + 1))
[ $n = {refuse} ] && {{ echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; }}
cat "$1" > $((n + 10)).sh; echo "Submitted batch job $((n + 10))" """,
        )
        self.set_states({})
        install("squeue", f"cat '{self._folder}/states'")

    def set_states(self, states: dict[str, str]) -> None:
        """Let squeue know these jobs."""
        # In the order of `launch.follow.queue`; reason, times and nodes are not known.
        lines = [f"{job}|{job}|{state}|None|N/A|0|0||N/A||\n" for job, state in states.items()]
        (self._folder / "states").write_text("".join(lines))

    @property
    def scripts(self) -> dict[str, str]:
        """The scripts that were submitted, by job."""
        return {path.stem: path.read_text() for path in sorted(self._folder.glob("*.sh"))}

    def option(self, job: str, name: str) -> str | None:
        """The value of an sbatch option of a job; None: it is not given."""
        found = re.search(rf"^#SBATCH --{name}=(.*)$", self.scripts[job], re.MULTILINE)
        return found[1].strip("'") if found else None
