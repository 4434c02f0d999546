#!/bin/bash
# Pretraining on several machines of a SLURM cluster, from the repository root:
#     sbatch docs/slurm_pretrain.sh --config_env configs/env.yml --config_exp configs/VOCSegmentation_supervised_saliency_model.yml
# Options of sbatch before the file's name override those below; on CPUs: --gpus-per-node=0 --ntasks-per-node=1.
# The repository, root_dir and db_root are on a file system that all machines see.
#SBATCH --job-name=maskcontrast
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE

# one task a process; each finds its place in the job and joins; none outlives the first to end by 10 minutes
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --wait=600 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec .venv/bin/python pretrain/main.py "$@"' _ "$@"
code=$?

# 300 s before the time is up every process gets SIGTERM, finishes its step, saves and exits with 75: go on later
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
