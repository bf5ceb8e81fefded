#!/bin/bash
# profile snellius; unverified: never run there by the authors; modules and Python: this profile loads none; network interface of NCCL

# Parameters
#SBATCH --account=cosmo
#SBATCH --chdir='/scratch/a run/launch/code-0123'
#SBATCH --cpus-per-task=18
#SBATCH --gpus-per-node=4
#SBATCH --job-name=hpcphotoz
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='/scratch/a run/launch/%j_0_log.out'
#SBATCH --partition=gpu_a100
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1-00:00:00

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/scratch/a run/launch/%j_%t_log.out' --kill-on-bad-exit=1 --cpus-per-task=18 --wait=0 --export=ALL sh -c 'trap "" USR2; exec "$0" "$@"' PYTHON -u -m submitit.core._submit '/scratch/a run/launch'
