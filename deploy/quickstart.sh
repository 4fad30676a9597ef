#!/usr/bin/env bash
# From a fresh Debian 12 to a fine-tuned model, in steps:
#   1. installs what is missing: Debian packages (root or sudo), and LibTorch in .venv (1.3 GB)
#   2. builds preset `release` into build/release
#   3. pretrains a small byte-level GPT on two ranks of this host, on the licence texts that every Debian has
#   4. fine-tunes it on another kind of text, Python's standard library; the control plane is on in both runs
#
#   deploy/quickstart.sh [--skip-install] [--build-only]
#
#   --skip-install   no step 1: what is missing is there already, or comes from elsewhere (deploy/README.md)
#   --build-only     steps 1 and 2
#
# Asks nothing. Safe to run twice, from any directory: what is done already is left alone, and training starts anew.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

install=yes train=yes
for argument in "$@"; do
  case "$argument" in
    --skip-install) install=no ;;
    --build-only) train=no ;;
    -h | --help) usage; exit 0 ;;
    *) fail 64 "unknown argument '$argument'; see $_name --help" ;;
  esac
done

usage | sed -n '1,5p'
if [ $install = yes ]; then
  step "install what is missing"
  deploy/install.sh cpu
fi
step "build"
deploy/build.sh release
if [ $train = no ]; then
  steps_done
  echo "the command is build/release/launcher/fusedbun"
  exit 0
fi

fusedbun=build/release/launcher/fusedbun
runs=runs/quickstart
rm -rf "$runs"
step "pretrain on licence texts: 2 ranks; watch it from elsewhere with: $fusedbun status --run-dir $runs/pretrain"
$fusedbun launch -n 2 -- train --steps 400 --run-dir $runs/pretrain
step "fine-tune on Python's standard library"
$fusedbun launch -n 2 -- train --init $runs/pretrain/model.safetensors --data /usr/lib/python3*/json \
  --steps 200 --run-dir $runs/finetune
steps_done
echo "
The fine-tuned model is $runs/finetune/model.safetensors (Hugging Face GPT-2 naming); metrics.jsonl lies beside it."
