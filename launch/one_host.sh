#!/usr/bin/env bash
# Train on all GPUs of one machine: launch/one_host.sh --train_data data/train.bin --val_data data/val.bin --output runs/one ...
# PROCESSES=2 says how many processes where there are no GPUs. A run that breaks off is started again up to RESTARTS times, from its last checkpoint.
set -euo pipefail
exec torchrun --standalone --nproc_per_node "${PROCESSES:-gpu}" --max_restarts "${RESTARTS:-3}" \
  -m llm_course.training --parallel "${PARALLEL:-fsdp}" --resume "$@"
