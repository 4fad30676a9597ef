#!/usr/bin/env bash
# Builds and runs under a sanitizer what stands over LibTorch: the sharded step, the optimizer's LibTorch part, Gloo.
#
#   tests/sanitize.sh asan-torch | tsan-torch [ARGUMENTS]
#
# ARGUMENTS go to ctest: -R bucket_local_test. Only the target sanitized_tests is built, and of it only what -R names is run;
# CMAKE_BUILD_PARALLEL_LEVEL is the number of jobs. LibTorch itself is built without sanitizers: tests/README.md says what is
# still seen. Leaves with 0 only if some test ran and none had a finding.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../deploy/steps.sh"
case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  asan-torch | tsan-torch) preset=$1; shift ;;
  *) usage >&2; exit 64 ;;
esac

step "configure build/$preset"
cmake --preset "$preset"
step "build target sanitized_tests"
cmake --build --preset "$preset" --parallel "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"
step "run its tests"
# One at a time: a test under the thread sanitizer has more threads than this machine has cores.
ctest --test-dir "build/$preset" --output-on-failure --no-tests=error -L sanitized "$@"
steps_done
