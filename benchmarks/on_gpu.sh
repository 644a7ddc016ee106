#!/usr/bin/env bash
# `python -m pvc.benchmarks.on_gpu` in a checkout where the package is not installed, and nothing is to be.
#
#     benchmarks/on_gpu.sh --out on-gpu
#
# A link named `pvc` makes a package of the checkout for the time of the run. PYTHON: the interpreter.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
link=$(mktemp -d)
trap 'rm -rf "$link"' EXIT
ln -s "$checkout" "$link/pvc"

PYTHONPATH="$link${PYTHONPATH:+:$PYTHONPATH}" "${PYTHON:-python3}" -m pvc.benchmarks.on_gpu "$@"
