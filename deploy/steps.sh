# shellcheck shell=bash
# How the project's scripts speak: numbered steps with their times, and one clear sentence when something fails.
# Sourced by deploy/*.sh, tests/run.sh and .ci/run after `set -euo pipefail`. Changes to the repository's root.

SCRIPT=$(realpath "$0")
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT" || exit

_name=${SCRIPT#"$ROOT"/} _step="" _step_started=0 _step_count=0

# step TEXT...: ends the step before and announces the next.
step() {
  steps_done
  _step="$*" _step_started=$SECONDS _step_count=$((_step_count + 1))
  printf '\n==> %s, step %d: %s\n' "$_name" "$_step_count" "$_step"
}

# steps_done: prints the time of the step that runs. Called once more after the last step.
steps_done() {
  [ -z "$_step" ] || printf '<== %s, step %d took %d s\n' "$_name" "$_step_count" $((SECONDS - _step_started))
  _step=""
}

# fail CODE SENTENCE...: says what is wrong and what mends it, and exits with CODE.
fail() {
  trap - EXIT
  printf '%s: %s\n' "$_name" "${*:2}" >&2
  exit "$1"
}

# usage: prints the comment that opens the calling script.
usage() { sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$SCRIPT"; }

_say_which_step_failed() {
  local code=$?
  [ "$code" = 0 ] || [ -z "$_step" ] ||
    printf '%s: step %d failed with exit code %d: %s\n' "$_name" "$_step_count" "$code" "$_step" >&2
}
trap _say_which_step_failed EXIT
