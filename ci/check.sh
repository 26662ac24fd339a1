#!/usr/bin/env bash
# Form, lint and types: what CI runs first, in seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff format --check .
ruff check .
mypy
