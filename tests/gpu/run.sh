#!/usr/bin/env bash
# Builds the GPU path and checks and measures it on this machine's GPU, in at most six minutes on 16 cores.
#
#   tests/gpu/run.sh              results in $OUT, or in build/gpu/results where that is not set: gpu-CARD.json and build.log
#   tests/gpu/run.sh --rehearse   the same on the CPU, to try the checks themselves
#
# Needs torch 2.11 or later for a `python3` on the PATH or in .venv, nvcc of CUDA 13, cmake, ninja, g++; no network. A copy without
# .git says in $FUSEDBUN_COMMIT what it is a copy of.
# Exit code: 0 if no stage failed, 1 if one did, 69 without torch. The stages: README.md beside this file.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case "${1:-}" in "" | --rehearse) ;; *) sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0"; exit 64 ;; esac
for python in "$here/../../.venv/bin/python" $(type -aP python3) /opt/*/.venv/bin/python3; do
  [ -x "$python" ] || continue
  # Found, not imported: importing takes seconds.
  "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' || continue
  exec "$python" "$here/stages.py" "$@"
done
echo "tests/gpu/run.sh: no python3 on the PATH has torch, nor has .venv; run: deploy/install.sh test" >&2
exit 69
