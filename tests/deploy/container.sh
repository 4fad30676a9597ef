#!/usr/bin/env bash
# Builds a container file of deploy/container by buildah and trains in the image.
#
#   tests/deploy/container.sh [Containerfile|Containerfile.cuda]
#
# No registry is asked: docker.io/library/debian:bookworm-slim is a debootstrap of this machine's Debian mirror, with its certificates and
# pip's configuration. Everything is kept in a temporary folder: some 10 GB, for .cuda 40. Needs root, buildah and debootstrap. In the image, as its
# user 1000 and by its entry point: `version`, `env`, and ten steps of two ranks, whose model and exit code are looked at.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../deploy/steps.sh"
case "${1:-}" in -h | --help) usage; exit 0 ;; esac
file=${1:-Containerfile}
[ -f "deploy/container/$file" ] || fail 64 "deploy/container has no $file"
[ "$(id -u)" = 0 ] || fail 77 "needs root"
for program in buildah debootstrap; do
  command -v $program >/dev/null || fail 69 "there is no $program: apt-get install buildah debootstrap"
done

work=$(mktemp -d -p /var/tmp fusedbun-container-XXXXXX)
storage=(--root "$work/storage" --runroot "$work/run" --storage-driver overlay)
cleanup() {
  buildah "${storage[@]}" rm --all >/dev/null 2>&1 || true
  umount "$work/storage/overlay" 2>/dev/null || true
  rm -rf --one-file-system "$work"
}
trap 'code=$?; cleanup; exit $code' EXIT
# die CODE SENTENCE...: as fail, and cleans up.
die() {
  printf '%s: %s\n' "$_name" "${*:2}" >&2
  exit "$1"
}

step "the base image, from this machine's Debian mirror"
mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -1)
mirror=${mirror:-$(awk '$1 == "deb" { print $2; exit }' /etc/apt/sources.list)}
debootstrap --variant=minbase --include=ca-certificates bookworm "$work/base" "$mirror" >"$work/debootstrap.log" 2>&1 ||
  die 74 "debootstrap: $(tail -1 "$work/debootstrap.log")"
for path in /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/apt.conf.d /etc/pip.conf; do
  rm -rf "$work/base$path"
  [ ! -e $path ] || cp -a $path "$work/base$path"
done
# Under a name that Debian's own certificates do not take.
cp -L /etc/ssl/certs/ca-certificates.crt "$work/base/etc/ssl/this-machine.crt"
container=$(buildah "${storage[@]}" from scratch)
buildah "${storage[@]}" add --quiet "$container" "$work/base" /
buildah "${storage[@]}" config --env PIP_CERT=/etc/ssl/this-machine.crt "$container"
buildah "${storage[@]}" commit --quiet --rm "$container" docker.io/library/debian:bookworm-slim
rm -rf "$work/base"

step "buildah build -f deploy/container/$file"
buildah "${storage[@]}" build --isolation chroot --network host --pull-never -f "deploy/container/$file" -t fusedbun .

step "what is in it"
container=$(buildah "${storage[@]}" from --pull-never fusedbun)
entry=$(buildah "${storage[@]}" inspect --type image --format '{{.OCIv1.Config.Entrypoint}} as {{.OCIv1.Config.User}}' fusedbun)
[ "$entry" = "[fusedbun] as 1000" ] || die 1 "the entry point is '$entry', expected '[fusedbun] as 1000'"
in_image() { buildah "${storage[@]}" run --isolation chroot "$container" -- "$@"; }
in_image fusedbun version
in_image fusedbun env
in_image sh -c 'for i in $(seq 200); do echo "The quick brown fox jumps over the lazy dog."; done >/tmp/text.txt'
in_image fusedbun launch -n 2 -- train --data /tmp/text.txt --steps 10 --batch 4 --layers 1 --heads 2 --width 32 --context 32 \
  --metrics-port 0 --run-dir /tmp/run
in_image sh -c 'test -s /tmp/run/model.safetensors'
in_image sh -c 'mpirun --version | head -1 && python3 --version'
steps_done
echo "$_name: $file builds and trains"
