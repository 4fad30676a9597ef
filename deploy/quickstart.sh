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
# Asks nothing. Safe to run twice, from any directory: what is done already is left alone, and training gets
# a run folder of its own.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

# say_path: the line after which the shell finds the command.
say_path() { printf '\n    export PATH=%q:$PATH\n' "$ROOT/build/release/launcher"; }

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
  echo "the command is build/release/launcher/fusedbun; to type only its name:"
  say_path
  exit 0
fi

fusedbun=build/release/launcher/fusedbun
runs=runs/quickstart-$(date +%Y%m%d-%H%M%S)
english=$runs/english python=$runs/python
stdlib=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')

step "pretrain on licence texts; from elsewhere, $fusedbun status --run-dir $english"
$fusedbun launch -n 2 -- train --steps 300 --run-dir $english
step "fine-tune on $stdlib; from elsewhere, $fusedbun status --run-dir $python"
$fusedbun launch -n 2 -- train --steps 200 --run-dir $python --data "$stdlib" --init $english/model.safetensors
steps_done
echo "
The fine-tuned model is $python/model.safetensors (Hugging Face GPT-2 naming); metrics.jsonl lies beside it.
To type fusedbun instead of $fusedbun, in this shell:"
say_path
