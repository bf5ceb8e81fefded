#!/bin/bash
# profile generic; unverified: partition, account and the number of GPUs: yours

# Parameters
#SBATCH --account=cosmo
#SBATCH --chdir='/scratch/a run/launch/code-0123'
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=4
#SBATCH --job-name=hpcphotoz
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='/scratch/a run/launch/%j_0_log.out'
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=4:00:00

# setup
set +e; echo "hpcphotoz: start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/scratch/a run/launch/%j_%t_log.out' --kill-on-bad-exit=1 --cpus-per-task=8 --wait=0 --export=ALL sh -c 'trap "" USR2; exec "$0" "$@"' PYTHON -u -m submitit.core._submit '/scratch/a run/launch'


# teardown
status=$?
if [ $status -ne 0 ] && [ $status -ne 75 ]; then
  trap '' TERM
  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}
  if exclude=$({ scontrol show job --oneliner $job; scontrol show partition --oneliner $SLURM_JOB_PARTITION; } | sh -c 'trap "" USR2; exec "$0" "$@"' PYTHON -m hpcphotoz.launch.requeue.after_step '/scratch/a run/launch' $status); then
    if [ -n "$exclude" ] && ! sbatch --test-only --exclude=$exclude "$0" >/dev/null 2>&1; then
      echo "hpcphotoz: without $exclude Slurm has too few nodes for this job: not excluded"
      exclude=
    fi
    case "$(scontrol show job --oneliner $job)" in *" JobState=RUNNING "*)
      scontrol requeue $job &&
        [ -n "$exclude" ] && scontrol update JobId=$job ExcNodeList=$exclude
    esac
  fi
fi
exit $status
