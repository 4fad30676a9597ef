#!/usr/bin/env bash
# Every source is as clang-format 14 writes it (other versions write otherwise). Mend with: tests/tidy/format.sh --fix
#
#   tests/tidy/format.sh [--fix] [ROOT]
set -euo pipefail
arguments=(--dry-run -Werror)
if [ "${1:-}" = --fix ]; then
  arguments=(-i)
  shift
fi
cd "${1:-$(dirname "${BASH_SOURCE[0]}")/../..}"
mapfile -d '' files < <(git ls-files -z --cached --others --exclude-standard '*.h' '*.cpp' '*.cu' '*.cuh' '*.inc' '*.proto')
if [ "${#files[@]}" -eq 0 ]; then
  echo "format: no source files in $PWD" >&2
  exit 1
fi
clang-format-14 "${arguments[@]}" "${files[@]}"
echo "format: ${#files[@]} files"
