#!/usr/bin/env bash
# Makes a folder that looks like a CUDA toolkit out of the CUDA wheels of a Python environment, for find_package(Torch).
#
#   deploy/cuda_of_wheels.sh FOLDER [ENVIRONMENT]     ENVIRONMENT is .venv by default; it needs nvidia-cuda-nvcc
#
# The CMake package of a CUDA torch wheel insists on a CUDA toolkit, even to use LibTorch on CPUs. The wheels hold one,
# but in other folders and without the links (libcudart.so) that linkers look for. Then:
#   CUDACXX=FOLDER/bin/nvcc cmake -DCUDA_TOOLKIT_ROOT_DIR=FOLDER -DCMAKE_PREFIX_PATH=.../site-packages/torch ...
set -euo pipefail
case "${1:-}" in "" | -*) sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0" >&2; exit 64 ;; esac
folder=$1 environment=${2:-$(dirname "$0")/../.venv}
wheels=$(echo "$environment"/lib/python3*/site-packages/nvidia/cu13)
[ -x "$wheels/bin/nvcc" ] ||
  { echo "$0: no nvcc in $wheels; run: deploy/install.sh test" >&2; exit 69; }
wheels=$(realpath "$wheels")

mkdir -p "$folder/lib"
for part in bin include nvvm; do ln -sfn "$wheels/$part" "$folder/$part"; done
ln -sfn lib "$folder/lib64"
ln -sf "$wheels"/lib/* "$folder/lib/"
for library in "$wheels"/lib/*.so.*; do
  name=$(basename "$library")
  ln -sf "$library" "$folder/lib/${name%%.so.*}.so"
done
