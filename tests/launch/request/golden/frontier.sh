#!/bin/bash
# profile frontier; unverified: never run there by the authors; hpcphotoz itself on ROCm; the account: give --account PROJECT; modules: OLCF loads PrgEnv-gnu, amd-mixed of the ROCm version of your torch, and craype-accel-amd-gfx90a; add them by --setup; RCCL's plug-in aws-ofi-rccl: built by the user; its folder goes into LD_LIBRARY_PATH by --setup; longest job: depends on the number of nodes, not read

# Parameters
#SBATCH --account=cosmo
#SBATCH --chdir='/scratch/a run/launch/code-0123'
#SBATCH --cpus-per-task=7
#SBATCH --gpus-per-node=8
#SBATCH --job-name=hpcphotoz
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output='/scratch/a run/launch/%j_0_log.out'
#SBATCH --partition=batch
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=2:00:00

# setup
export NCCL_SOCKET_IFNAME="hsn0"
export MIOPEN_USER_DB_PATH="/tmp/miopen-$USER-$SLURM_JOB_ID"
export MIOPEN_CUSTOM_CACHE_DIR="/tmp/miopen-$USER-$SLURM_JOB_ID"
set +e; echo "hpcphotoz: start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/scratch/a run/launch/%j_%t_log.out' --kill-on-bad-exit=1 --cpus-per-task=7 --wait=0 --export=ALL --gpus-per-task=1 --gpu-bind=closest sh -c 'trap "" USR2; exec "$0" "$@"' PYTHON -u -m submitit.core._submit '/scratch/a run/launch'


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
