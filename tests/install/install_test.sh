#!/usr/bin/env bash
# Installs a build into a folder of its own, builds tests/install/project against it as a user would, and runs what
# came out: one process with Fusedbun, one process with ShardedFusedbun, two ranks under `fusedbun launch`. All must
# end at the same validation loss. The same loops with checkpoints are stopped and gone on with.
#
#   install_test.sh BUILD_FOLDER SCRATCH_FOLDER TORCH_FOLDER no|before|after
#
# The last argument says whether the project also has a find_package(Torch) of its own, and where.
set -euo pipefail
build=$1 scratch=$2 torch=$3 own_torch=$4
here=$(cd "$(dirname "$0")" && pwd)
prefix=$scratch/prefix project=$scratch/project-$own_torch

fail() { echo "install_test.sh: $*" >&2; exit 1; }

# Every fusedbun header that an installed header includes is installed too.
check_headers() {
  local header missing
  missing=$(grep -rhoE '#include "fusedbun/[^"]+"' "$prefix/include" | sort -u | cut -d'"' -f2 |
    while read -r header; do [ -e "$prefix/include/$header" ] || echo "$header"; done)
  [ -z "$missing" ] || fail "installed headers include these, which are not installed: $missing"
}

check_two_lines() {
  local changed
  changed=$(diff "$here/project/plain.cpp" "$here/project/sharded.cpp" | grep -c '^>') || true
  [ "$changed" = 2 ] || fail "sharded.cpp differs from plain.cpp in $changed lines, not 2"
  [ "$(wc -l <"$here/project/plain.cpp")" -le 40 ] || fail "plain.cpp has more than 40 lines"
}

# What a loop needs so that it goes on where it was stopped.
check_resumed_lines() {
  local program added
  for program in plain sharded; do
    added=$(diff "$here/project/$program.cpp" "$here/project/${program}_resumed.cpp" | grep -c '^>') || true
    [ "$added" -le 15 ] || fail "${program}_resumed.cpp has $added lines that $program.cpp has not, more than 15"
  done
}

# Stopped after 120 steps and gone on with, a program ends as the one that was not stopped, digit for digit.
check_resumed() {
  local folder=$scratch/resumed-$own_torch whole resumed launch
  rm -rf "$folder" && mkdir -p "$folder/whole" "$folder/stopped"
  for launch in "$project/plain_resumed" "$prefix/bin/fusedbun launch -n 2 -- $project/sharded_resumed"; do
    # shellcheck disable=SC2086
    whole=$(cd "$folder/whole" && $launch | losses | sort -u)
    # shellcheck disable=SC2086
    resumed=$(cd "$folder/stopped" && $launch 120 >/dev/null && $launch | losses | sort -u)
    [ -n "$whole" ] && [ "$whole" = "$resumed" ] ||
      fail "$launch: a loss of $resumed after it was stopped, and of $whole without"
  done
}

build_project() {
  local options=(-DCMAKE_PREFIX_PATH="$prefix;$torch" -DOWN_TORCH="$own_torch" -DCMAKE_BUILD_TYPE=Release)
  if [ "$own_torch" != no ]; then
    "$here/../../deploy/cuda_of_wheels.sh" "$scratch/cuda" "$(realpath "$torch/../../../..")"
    export CUDACXX=$scratch/cuda/bin/nvcc
    options+=(-DCUDA_TOOLKIT_ROOT_DIR="$scratch/cuda" -DTORCH_CUDA_ARCH_LIST=8.0 -Wno-dev)
  fi
  command -v ccache >/dev/null && options+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  cmake -G Ninja -S "$here/project" -B "$project" "${options[@]}"
  cmake --build "$project" --parallel 2
}

losses() { sed -n 's/.*loss \([0-9.e+-]*\)$/\1/p'; }

# The losses on stdin are within 1e-4 of the first, relative (with two ranks the gradients' sum has another order), and
# show that something was learned: untrained, the loss is 3.5.
check_losses() {
  awk -v wanted="$1" '
    NR == 1 { first = $1; if (!(first > 0 && first < 0.5)) bad = 1 }
    { d = ($1 - first) / first; if (!(d < 1e-4 && d > -1e-4)) bad = 1 }
    END { exit bad || NR != wanted }' || fail "the losses do not agree"
}

rm -rf "$prefix"
cmake --install "$build" --prefix "$prefix" >/dev/null
check_headers
check_two_lines
check_resumed_lines
# Assertions of the installed command name files of the project, not of the machine that built it.
grep -qF "core/options.cpp" "$prefix/bin/fusedbun-torch" || fail "no assertion of the installed command names core/options.cpp"
for program in fusedbun fusedbun-torch; do
  ! grep -qF "$(cd "$here/../.." && pwd)/core/" "$prefix/bin/$program" ||
    fail "the installed $program holds the path of the folder that it was built in"
done
build_project
"$prefix/bin/fusedbun" --help >/dev/null || fail "the installed command does not run"
"$prefix/bin/fusedbun" env >/dev/null || fail "the installed command finds no fusedbun-torch"
{
  "$project/plain"
  "$project/sharded"
  "$prefix/bin/fusedbun" launch -n 2 -- "$project/sharded"
} | tee /dev/stderr | losses | check_losses 4
[ "$own_torch" != no ] || check_resumed
