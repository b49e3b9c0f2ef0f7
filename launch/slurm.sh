#!/usr/bin/env bash
# Train under Slurm: sbatch --nodes 4 launch/slurm.sh --train_data data/train.bin --val_data data/val.bin --output runs/many ...
# One torchrun on each machine starts a process for each of its GPUs. A job that is put back into the queue goes on from its last checkpoint.
#SBATCH --job-name=llm_course
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
exec srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "${PROCESSES:-gpu}" --max_restarts "${RESTARTS:-3}" \
  --rdzv_backend c10d --rdzv_endpoint "$first:${PORT:-29500}" --rdzv_id "$SLURM_JOB_ID" \
  -m llm_course.training --parallel "${PARALLEL:-fsdp}" --resume "$@"
