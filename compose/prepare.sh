#!/bin/sh
# Before anything else starts: volumes belong to who writes to them; an authority for Baton and another
# for etcd, so that no certificate of one says anything in the other; a directory of certificates for
# each member. Harmless when repeated.
set -eu
umask 077
[ -e /ca/baton/ca.pem ] || baton ca init /ca/baton --cluster compose
[ -e /ca/etcd/ca.pem ] || baton ca init /ca/etcd --cluster compose-etcd

issue() { # authority role name directory owner [host]
  [ -e "$4/cert.pem" ] || baton ca issue "/ca/$1" "$2" "$3" --out "$4" ${6:+--host "$6"}
  chown -R "$5:$5" "$4"
}
for name in etcd1 etcd2 etcd3; do
  chown 10001:10001 "/data/$name"
  chmod 0700 "/data/$name"
  # Members of etcd show one certificate as servers and as clients of each other.
  issue etcd coordinator "$name" "/of/$name" 10001 "$name"
done
for name in c1 c2 c3; do
  issue baton coordinator "$name" "/of/$name" 10001 "$name"
  issue etcd operator "$name" "/of/$name/etcd" 10001
  chown 10001:10001 "/of/$name"
done
for name in nas1 nas2 nas3; do
  issue baton worker "$name" "/of/$name" 0 "$name"
done
issue baton operator operator /of/operator 10001
