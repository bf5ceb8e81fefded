#!/bin/bash

# Parameters
#SBATCH --account=cosmo
#SBATCH --chdir='/scratch/a run/launch/code-0123'
#SBATCH --cpus-per-task=2
#SBATCH --job-name=hpcphotoz
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/scratch/a run/launch/%j_0_log.out'
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60

# setup
module load conda
eval "$("${CONDA_EXE:-conda}" shell.bash hook)"
conda activate '/envs/photo z' || exit 1

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/scratch/a run/launch/%j_%t_log.out' --kill-on-bad-exit=1 --cpus-per-task=2 --wait=0 --export=ALL sh -c 'trap "" USR2; exec "$0" "$@"' python -u -m submitit.core._submit '/scratch/a run/launch'
