#!/usr/bin/env bash
# Builds the GPU path and checks and measures it on this machine's GPU, in at most five minutes on 16 cores.
#
#   tests/gpu/run.sh              results in $OUT, or in build/gpu where that is not set
#   tests/gpu/run.sh --rehearse   the same on the CPU, to try the checks themselves
#
# Needs torch 2.11 or later for a `python3` on the PATH or in .venv, nvcc of CUDA 13, cmake, ninja, g++; no network.
# Exit code: 0 if every stage held, 1 if one did not, 69 without torch. The stages: README.md beside this file.
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
