#!/usr/bin/env bash
# Certificates that a server must not take, beside those of deploy/control_certificates.sh: wrong_certificates.sh FOLDER
# FOLDER/{expired,early,stranger}/client.{pem,key}: signed by FOLDER/ca, but out of its time, or with a name that has no role.
set -euo pipefail
cd "$1"
umask 077
printf '[ca]\ndefault_ca=c\n[c]\ndatabase=index.txt\nnew_certs_dir=.\nserial=serial\ndefault_md=sha256\npolicy=p\n' > ca.cnf
printf 'copy_extensions=copy\nunique_subject=no\n[p]\ncommonName=supplied\n' >> ca.cnf
: > index.txt
echo 01 > serial
sign() { # NAME START END
  mkdir -p "$1"
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1/client.key" -subj /CN=test \
    -addext "subjectAltName=URI:fusedbun://test/$1" 2>/dev/null |
    openssl ca -batch -config ca.cnf -cert ca.pem -keyfile ca.key -startdate "$2" -enddate "$3" -in /dev/stdin \
      -out "$1/client.pem" -notext 2>/dev/null
}
sign expired 20200101000000Z 20200201000000Z
sign early 20400101000000Z 20490201000000Z
sign stranger 20200101000000Z 20490201000000Z
