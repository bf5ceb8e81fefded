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

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/scratch/a run/launch/%j_%t_log.out' --kill-on-bad-exit=1 --cpus-per-task=8 --wait=0 --export=ALL sh -c 'trap "" USR2; exec "$0" "$@"' PYTHON -u -m submitit.core._submit '/scratch/a run/launch'
