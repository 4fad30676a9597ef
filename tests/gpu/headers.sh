#!/usr/bin/env bash
# Packs the header-only libraries that the build needs into headers.tar.gz, for machines that can install nothing:
# nlohmann-json, CLI11, toml++, xxHash and Gloo's headers, unchanged, with their CMake files and licences, as Debian 12 has them.
#
#   tests/gpu/headers.sh     on a machine where deploy/install.sh has run; the same packages give the same bytes
set -euo pipefail
case "${1:-}" in "") ;; *) sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0"; exit 64 ;; esac
archive=$(cd "$(dirname "$0")" && pwd)/headers.tar.gz
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

mkdir -p "$folder"/{include,share/cmake,licences}
cp -r /usr/include/{nlohmann,CLI,toml++,gloo} "$folder/include"
cp /usr/include/xxhash.h "$folder/include"
rm -r "$folder"/include/gloo/transport/*/  # Gloo's own transports; c10d includes only what is above them
cp -r /usr/share/cmake/{nlohmann_json,CLI11} "$folder/share/cmake"
for package in nlohmann-json3-dev libcli11-dev libtomlplusplus-dev libxxhash-dev libgloo-dev; do
  cp "/usr/share/doc/$package/copyright" "$folder/licences/$package"
  dpkg-query -W -f='${Package} ${Version}\n' "$package" >>"$folder/licences/versions"
done
chmod -R u=rwX,go=rX "$folder"
tar -C "$folder" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - . | gzip -9n >"$archive"
ls -l "$archive"
