#!/usr/bin/env bash
# Packs files and folders into one gzipped tar and cuts it into parts, for hosts that take files of limited size. The
# same content gives the same parts.
#
#   scripts/pack_parts.sh PREFIX PATH...      PREFIX.part00, PREFIX.part01, ... and PREFIX.sha256
#     MGM_PART_MIB=<n>                        size of a part (default 55)
#
# On the other host, in the folder of the parts:
#   sha256sum -c NAME.sha256 && cat NAME.part?? | tar -xz -C TARGET
set -euo pipefail
[ $# -ge 2 ] || { sed -n '5,9p' "$0"; exit 2; }
prefix=$1
shift
size=$((${MGM_PART_MIB:-55} * 1024 * 1024))
mkdir -p "$(dirname "$prefix")"
rm -f "$prefix".part?? "$prefix.sha256"
inputs=()
for path in "$@"; do
  [ -e "$path" ] || { echo "pack_parts: $path is not there" >&2; exit 1; }
  inputs+=(-C "$(cd "$(dirname "$path")" && pwd)" "$(basename "$path")")
done
tar -c --format=gnu --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX "${inputs[@]}" | gzip -n |
  split -b "$size" -d -a 2 - "$prefix.part"
(cd "$(dirname "$prefix")" && sha256sum "$(basename "$prefix")".part?? >"$(basename "$prefix").sha256")
du -m --apparent-size "$prefix".part??
