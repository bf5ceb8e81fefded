"""Lines of the batch script around srun, by which a job comes back whose step has failed."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

# Before srun: begins a start in the log; `node_guard` reads it. A `set -e` of the user's set-up would end the
# script at a failure of srun, before the job is requeued.
START_LINE = 'set +e; echo "hpcphotoz: start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST"'


def batch_lines(python: str, srun: Sequence[str], launch: Path) -> list[str]:
    """The lines of the batch script after srun: they requeue a job whose step has failed.

    The script outlives the SIGTERM of the requeue, because only then Slurm accepts nodes to exclude.

    Args:
        python: shell words that start Python.
        srun: options of srun without which they cannot, such as a container; empty: they run without srun.
        launch: folder of the job's logs and pickle.
    """
    if srun:
        python = f"{shlex.join(['srun', '--overlap', '--nodes=1', '--ntasks=1', *srun])} {python}"
    decide = f"{python} -m hpcphotoz.launch.requeue.after_step {shlex.quote(str(launch))} $status"
    return [
        "status=$?",
        f"if [ $status -ne 0 ] && [ $status -ne {os.EX_TEMPFAIL} ]; then",
        "  trap '' TERM",
        # Slurm takes the number of an array's last task for the whole array.
        "  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}",
        "  if exclude=$({ scontrol show job --oneliner $job; "
        f"scontrol show partition --oneliner $SLURM_JOB_PARTITION; }} | {decide}); then",
        # Of the job's kind (--constraint, a type of GPU) too few nodes may be left: it would wait for ever.
        '    if [ -n "$exclude" ] && ! sbatch --test-only --exclude=$exclude "$0" >/dev/null 2>&1; then',
        '      echo "hpcphotoz: without $exclude Slurm has too few nodes for this job: not excluded"',
        "      exclude=",
        "    fi",
        # The decision took seconds: a requeue would bring back a job that was cancelled meanwhile.
        '    case "$(scontrol show job --oneliner $job)" in *" JobState=RUNNING "*)',
        "      scontrol requeue $job &&",
        '        [ -n "$exclude" ] && scontrol update JobId=$job ExcNodeList=$exclude',
        "    esac",
        "  fi",
        "fi",
        "exit $status",
        "",
    ]
