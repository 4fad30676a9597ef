#!/usr/bin/env bash
# Installs what the tests need and this machine lacks, builds preset `test` and runs all tests with ctest.
#
#   tests/run.sh [--skip-install] [ARGUMENTS]
#
# ARGUMENTS go to ctest: -L fast, -LE processes, -R shard_plan, --repeat until-fail:20. Environment:
#   FUSEDBUN_TEST_SEED=N              the seed of the random tests; each prints the one it used
#   FUSEDBUN_GOLDEN_DIR=DIR      golden cases other than tests/golden
#
# torchrun imports torch in Python, so its tests need the whole wheel set: 5.9 GB in .venv, downloaded once.
# Leaves with 0 only if some test ran and all passed. Safe to run twice, from any directory.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../deploy/steps.sh"
case "${1:-}" in -h | --help) usage; exit 0 ;; esac

if [ "${1:-}" = --skip-install ]; then
  shift
else
  step "install what is missing (.venv takes 5.9 GB when complete)"
  deploy/install.sh test
fi
step "build preset test"
deploy/build.sh test
step "run the tests"
ctest --preset test --parallel "$(nproc)" "$@"
steps_done
