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
# A preset may be told where LibTorch is instead: -DFUSEDBUN_PYTHON_ENV=DIR.
[ -e .venv ] || [[ " ${*:2}" == *" -DFUSEDBUN_PYTHON_ENV"[:=]* ]] || fail 69 "there is no LibTorch in .venv; run: deploy/install.sh cpu"

# Memory that this shell may still take, in GB: what the host has free, or less where a cgroup says so.
memory_gb() {
  local free limit
  free=$(awk '/^MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo)
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
  [ "$limit" = max ] || free=$((limit >> 30 < free ? limit >> 30 : free))
  echo "$free"
}

# Cores of the affinity mask, or as many as the cgroup's quota of time is worth (docker --cpus, limits of Kubernetes) if that is less.
cores_paid() {
  local cores quota=max period=100000 paid
  cores=$(nproc)
  if [ -r /sys/fs/cgroup/cpu.max ]; then
    read -r quota period < /sys/fs/cgroup/cpu.max
  elif [ -r /sys/fs/cgroup/cpu/cpu.cfs_quota_us ]; then
    quota=$(cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us) period=$(cat /sys/fs/cgroup/cpu/cpu.cfs_period_us)
  fi
  if [ "$quota" != max ] && [ "$quota" -gt 0 ]; then
    paid=$(((quota + period - 1) / period))
    cores=$((paid < cores ? paid : cores))
  fi
  echo "$cores"
}

# A file that includes LibTorch takes the compiler about 1.5 GB.
jobs_allowed() {
  local cores by_memory
  cores=$(cores_paid) by_memory=$(($(memory_gb) * 2 / 3))
  echo $((by_memory < 1 ? 1 : by_memory < cores ? by_memory : cores))
}

preset=$1 jobs=${CMAKE_BUILD_PARALLEL_LEVEL:-$(jobs_allowed)}
step "configure build/$preset"
cmake --preset "$preset" "${@:2}"
step "build it with $jobs jobs"
cmake --build "build/$preset" --parallel "$jobs"
steps_done
