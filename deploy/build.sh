#!/usr/bin/env bash
# Configures and builds one preset of CMakePresets.json, with as many jobs as cores and memory allow.
#
#   deploy/build.sh PRESET [-DNAME=VALUE ...]     the result lies in build/PRESET
#
# CMAKE_BUILD_PARALLEL_LEVEL, when set, is the number of jobs.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/steps.sh"
[ $# -ge 1 ] || { usage >&2; exit 64; }
case "$1" in -h | --help) usage; exit 0 ;; esac
command -v cmake >/dev/null || fail 69 "cmake is missing; run: deploy/install.sh cpu"
[ -e .venv ] || fail 69 "there is no LibTorch in .venv; run: deploy/install.sh cpu"

# Memory that this shell may still take, in GB: what the host has free, or less where a cgroup says so.
memory_gb() {
  local free limit
  free=$(awk '/^MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo)
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
  [ "$limit" = max ] || free=$((limit >> 30 < free ? limit >> 30 : free))
  echo "$free"
}

# A file that includes LibTorch takes the compiler about 1.5 GB.
jobs_allowed() {
  local cores by_memory
  cores=$(nproc) by_memory=$(($(memory_gb) * 2 / 3))
  echo $((by_memory < 1 ? 1 : by_memory < cores ? by_memory : cores))
}

preset=$1 jobs=${CMAKE_BUILD_PARALLEL_LEVEL:-$(jobs_allowed)}
step "configure build/$preset"
cmake --preset "$preset" "${@:2}"
step "build it with $jobs jobs"
cmake --build "build/$preset" --parallel "$jobs"
steps_done
