#!/bin/bash
# profile jean-zay; unverified: never run there by the authors; the account: give --account PROJECT@v100; --gpus-per-node: IDRIS's examples write --gres=gpu:4; Python: IDRIS has modules pytorch-gpu; this profile loads none: --setup 'module load pytorch-gpu/...' --python python; A100 and H100 nodes

# Parameters
#SBATCH --account=cosmo
#SBATCH --chdir='/scratch/a run/launch/code-0123'
#SBATCH --cpus-per-task=10
#SBATCH --gpus-per-node=4
#SBATCH --hint=nomultithread
#SBATCH --job-name=hpcphotoz
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='/scratch/a run/launch/%j_0_log.out'
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=20:00:00

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/scratch/a run/launch/%j_%t_log.out' --kill-on-bad-exit=1 --cpus-per-task=10 --wait=0 --export=ALL sh -c 'trap "" USR2; exec "$0" "$@"' PYTHON -u -m submitit.core._submit '/scratch/a run/launch'
