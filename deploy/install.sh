#!/usr/bin/env bash
# Installs what this checkout needs and this machine lacks: Debian packages and .venv, its own Python environment.
#
#   deploy/install.sh cpu        to build and to train on CPUs; LibTorch takes 1.3 GB in .venv
#   deploy/install.sh finetune   that, and the model that finetune.sh fine-tunes, 0.1 GB more
#   deploy/install.sh test       as cpu, and what the tests need: all of torch, nvcc and more, 5.9 GB in .venv
#
# What is there already is left alone: with nothing missing it needs neither root nor network. The lists are
# packages-*.txt (apt) and requirements-*.txt (pip, every version pinned) beside this file.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/steps.sh"
export LC_ALL=C

case "${1:-}" in
  cpu) sets=(cpu) wheels_gb=1.3 space_gb=4 ;;
  finetune) sets=(cpu finetune) wheels_gb=1.4 space_gb=4 ;;
  test) sets=(cpu test) wheels_gb=5.9 space_gb=14 ;;
  -h | --help) usage; exit 0 ;;
  *) usage >&2; exit 64 ;;
esac

# listed KIND: the entries of this set's lists of one kind (packages or requirements).
listed() {
  local set
  for set in "${sets[@]}"; do
    [ ! -e "deploy/$1-$set.txt" ] || grep -v "^#" "deploy/$1-$set.txt"
  done | sort -u
}

missing_packages() {
  comm -23 <(listed packages) <(dpkg-query -W -f='${db:Status-Abbrev}${Package}\n' | sed -n 's/^ii *//p' | sort -u)
}

install_packages() {
  # A machine that has just started updates itself: apt waits for that instead of failing at once.
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600) missing
  command -v dpkg-query >/dev/null ||
    fail 69 "this is not Debian: install the equivalents of $(listed packages | xargs) and pass --skip-install"
  [ "$(. /etc/os-release 2>/dev/null && echo "${ID:-} ${VERSION_ID:-}")" = "debian 12" ] ||
    echo "this is $(. /etc/os-release 2>/dev/null && echo "${PRETTY_NAME:-unknown}"), not the Debian 12 that is tested: packages may be" \
      "missing here or too new" >&2
  mapfile -t missing < <(missing_packages)
  [ ${#missing[@]} -gt 0 ] || { echo "nothing is missing"; return; }
  echo "missing: ${missing[*]}"
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null ||
      fail 77 "installing packages needs root; as root, run: apt-get install -y ${missing[*]}"
    apt=(sudo "${apt[@]}")
  fi
  "${apt[@]}" update -qq
  "${apt[@]}" install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  echo "installed ${#missing[@]} packages"
}

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

missing_wheels() { comm -23 <(listed requirements) <(pip freeze --all 2>/dev/null | sort -u); }

install_wheels() {
  # pip unpacks here: /tmp is often small, and in memory.
  local missing free_gb place unpack=${TMPDIR:-$ROOT/.venv/unpack}
  pip --version >/dev/null 2>&1 || python3 -m venv .venv
  mapfile -t missing < <(missing_wheels)
  [ ${#missing[@]} -gt 0 ] || { echo "nothing is missing"; return; }
  for place in "$ROOT" ${TMPDIR:+"$TMPDIR"}; do
    free_gb=$(df --output=avail -BG "$place" | tail -1 | tr -dc 0-9)
    [ "$free_gb" -ge "$space_gb" ] ||
      fail 74 "$place has $free_gb GB of free space, and downloading and unpacking needs $space_gb GB: make room, or set TMPDIR"
  done
  echo "missing: ${missing[*]}"
  rm -rf .venv/unpack  # of a try that was interrupted
  mkdir -p "$unpack"
  TMPDIR=$unpack pip install --quiet --progress-bar off --no-deps "${missing[@]}"
  rm -rf .venv/unpack
  echo "installed ${#missing[@]} wheels; .venv now takes $(du -sh .venv | cut -f1)"
}

step "Debian packages ($(listed packages | wc -l) in the list)"
install_packages
step "Python environment .venv ($(listed requirements | wc -l) wheels in the list, $wheels_gb GB when complete)"
install_wheels
steps_done
