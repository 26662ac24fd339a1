#!/usr/bin/env bash
# A run that goes on with the machines that are there: one that fails leaves, one that comes joins, and each time
# all carry on from the newest checkpoint. To be started on every machine, with the same arguments:
#   launch/torchrun-elastic.sh HOST0 recipes/gan.toml
# To edit: NODES, the fewest and the most machines; DEVICES, the processes on each. Batches must have a share for
# every process at the most (train.micro_batch_size).
set -euo pipefail
NODES=${NODES:-1:4}
DEVICES=${DEVICES:-8}
host=$1
shift
# An agent of torch 2.13 keeps to the first store that it knew, and would not meet a machine that joins later.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun --nnodes "$NODES" --nproc_per_node "$DEVICES" --max_restarts 100 \
    --rdzv_backend c10d --rdzv_endpoint "$host:${PORT:-29400}" --rdzv_id dtrain \
    -m dtrain run "$@" --once
