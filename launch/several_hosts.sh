#!/usr/bin/env bash
# Train on several machines. Type the same line on each of them:
#   HOSTS=4 MEETING=first-host:29500 launch/several_hosts.sh --train_data data/train.bin --val_data data/val.bin --output runs/many ...
# MEETING is an address of one of them that all can reach. Data and --output must lie where all of them see the same files.
set -euo pipefail
exec torchrun --nnodes "${HOSTS:?how many machines?}" --nproc_per_node "${PROCESSES:-gpu}" --max_restarts "${RESTARTS:-3}" \
  --rdzv_backend c10d --rdzv_endpoint "${MEETING:?which address do they meet at, such as first-host:29500?}" --rdzv_id "${RUN:-llm_course}" \
  -m llm_course.training --parallel "${PARALLEL:-fsdp}" --resume "$@"
