#!/usr/bin/env bash
# Everything that must pass: form, lint, types, tests. DTRAIN_TEST_LONG=1 runs the long forms of tests.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1                  # a rank has one thread; two were 50 times slower on a busy machine
bash ci/check.sh
if [ "$#" -gt 0 ]; then
    python -m pytest "$@"
    exit
fi
status=0
python -m pytest -m "not alone and not worlds" -n 2 --dist loadfile --durations=15 || status=$?
python -m pytest -m worlds -n 2 --dist loadfile --durations=15 || status=$?
python -m pytest -m alone --durations=40 || status=$?
exit "$status"
