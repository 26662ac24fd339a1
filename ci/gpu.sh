#!/usr/bin/env bash
# The engines on the GPUs of this machine, over NCCL: agreement, resumes of each by each, a whole run, benchmarks.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
DTRAIN_TEST_GPUS=$(python -c "import torch; print(torch.cuda.device_count())")
export DTRAIN_TEST_GPUS
[ "$DTRAIN_TEST_GPUS" -gt 0 ] || { echo "torch finds no GPU here"; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

echo "== $DTRAIN_TEST_GPUS GPUs: every way to run gives the same numbers, and carries on what another has saved"
python -m pytest -s tests/test_engines.py tests/test_engines_resume.py

echo "== a whole run, and its precisions"
dtrain run recipes/gan.toml train.steps=400 --runs "$folder/runs"
for precision in tf32 bf16 fp16; do
    dtrain run recipes/gan.toml train.steps=40 "train.precision=\"$precision\"" --fresh --runs "$folder/runs"
done

echo "== times"
python benchmarks/step_cost.py
