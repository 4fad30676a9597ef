#!/usr/bin/env bash
# Certificates for the control plane of one job: an authority of its own, a server, and one client for each role.
#
#   deploy/control_certificates.sh FOLDER [--host NAME_OR_IP]... [--days N]
#
# FOLDER is what `fusedbun train --control-credentials` takes; FOLDER/admin, FOLDER/operator and FOLDER/viewer are what
# clients take (--credentials); copy only those to other people. --host names the addresses that clients call; localhost and
# 127.0.0.1 are always among them. The owner of FOLDER/ca.key can make more clients; it is not needed while jobs run.
# Run again, the authority stays and everything else is made anew: a running job uses it within seconds. The server's files are
# links into a hidden folder beside them.
set -euo pipefail

folder=
days=30
names=(DNS:localhost IP:127.0.0.1)
while [ $# -gt 0 ]; do
  case "$1" in
    --host)
      if [[ "$2" =~ ^[0-9.]+$ || "$2" == *:* ]]; then names+=("IP:$2"); else names+=("DNS:$2"); fi
      shift 2 ;;
    --days) days=$2; shift 2 ;;
    -h | --help) sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 0 ;;
    -*) echo "control_certificates.sh: unknown option $1" >&2; exit 64 ;;
    *) folder=$1; shift ;;
  esac
done
if [ -z "$folder" ]; then
  echo "control_certificates.sh: say where: control_certificates.sh FOLDER" >&2
  exit 64
fi
umask 077
mkdir -p "$folder"
cd "$folder"
# In names of certificates and in `roles` a space or a comma would begin something else.
job=$(basename "$PWD" | tr -c 'A-Za-z0-9._~\n-' _)

# openssl tells on standard error how it gets on; people see that where it fails.
quietly() {
  "$@" 2> .openssl-errors || { cat .openssl-errors >&2; return 1; }
}
trap 'rm -f .openssl-errors' EXIT

new_key() {
  quietly openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"
}

# sign NAME SUBJECT_ALTERNATIVE_NAMES USAGE: NAME.key and NAME.pem, each in place at once
sign() {
  new_key "$1.key.new"
  openssl req -new -key "$1.key.new" -subj "/CN=fusedbun control plane" |
    quietly openssl x509 -req -CA ca.pem -CAkey ca.key -days "$days" -set_serial "0x$(openssl rand -hex 8)" -out "$1.pem.new" \
      -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=%s\nbasicConstraints=CA:FALSE\n' "$2" "$3")
  mv "$1.key.new" "$1.key"
  mv "$1.pem.new" "$1.pem"
}

# point NAME TARGET: NAME becomes a link to TARGET, whatever it was
point() {
  ln -sfn "$2" "$1.new"
  mv -T "$1.new" "$1"
}

if [ ! -f ca.key ]; then
  new_key ca.key
  openssl req -x509 -new -key ca.key -days 3650 -subj "/CN=fusedbun control plane of $job" -out ca.pem \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
fi
# A running server reads the key and its certificate one after the other, and must never see the old one of one and the new one of
# the other: they are links through one link, which changes at once.
new=.server-$(date +%Y%m%d-%H%M%S)-$$
mkdir "$new"
sign "$new/server" "$(IFS=,; echo "${names[*]}")" serverAuth
point .server "$new"
point server.key .server/server.key
point server.pem .server/server.pem
for old in .server-*; do
  if [ "$old" != "$new" ]; then rm -r "$old"; fi
done
echo "# role     name: the subject alternative name of a client's certificate" > roles.new
for role in admin operator viewer; do
  mkdir -p "$role"
  sign "$role/client" "URI:fusedbun://$job/$role" clientAuth
  cp ca.pem "$role/ca.pem"
  printf '%-10s fusedbun://%s/%s\n' "$role" "$job" "$role" >> roles.new
done
if [ -f roles ]; then rm roles.new; else mv roles.new roles; fi
echo "control plane: credentials of $job in $PWD, valid for $days days"
