#!/usr/bin/env bash
# Fetches the pictures of the image parity test: the test suites of Pillow, torchvision, libpng, giflib and
# libjpeg-turbo, from Debian's source packages (64 MB in all, about 840 pictures). Idempotent; needs
# apt-get but no root, and leaves the host's own package lists alone.
#
#   scripts/fetch_test_images.sh
#     MGM_TEST_DATA=<folder>       where they go (default .deps/test_images)
#     MGM_DEBIAN_MIRROR=<URL>      default http://deb.debian.org/debian
set -euo pipefail
cd "$(dirname "$0")/.."
out=${MGM_TEST_DATA:-.deps/test_images}
mirror=${MGM_DEBIAN_MIRROR:-http://deb.debian.org/debian}
say() { printf 'fetch_test_images: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }

# Source package, its tarball, SHA-256. The tarballs are upstream's and do not change with Debian's
# security updates.
packages='
pillow          pillow_9.4.0.orig.tar.xz          0a58ccfbd002838b32e21773bfdaa954a2de08d1f04b87b63d14e751fec3264d
pytorch-vision  pytorch-vision_0.14.1.orig.tar.gz ced67e1cf1f97e168cdf271851a4d0b6d382ab7936e7bcbb39aaa87239c324b6
libpng1.6       libpng1.6_1.6.39.orig.tar.gz      a00e9d2f2f664186e4202db9299397f851aea71b36a35e74910b8820e380d441
giflib          giflib_5.2.1.orig.tar.gz          31da5562f44c5f15d63340a09a4fd62b48c45620cd302f77a6d9acf0077879bd
libjpeg-turbo   libjpeg-turbo_2.1.5.orig.tar.gz   254f3642b04e309fee775123133c6464181addc150499561020312ec61c1bf7c
'

if printf '%s' "$packages" | cmp -s - "$out/.complete"; then
  say "all there, in $out"
  exit 0
fi
command -v apt-get >/dev/null || die "apt-get not found: run this on Debian or Ubuntu and copy $out"
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work"/state/lists/partial "$work"/cache/archives/partial "$work"/download
# [trusted=yes]: Ubuntu lacks Debian's keys, and every file is checked against its SHA-256 below.
echo "deb-src [trusted=yes] $mirror bookworm main" >"$work/sources.list"
apt=(apt-get -q -o "Dir::State=$work/state" -o "Dir::Cache=$work/cache" -o Dir::Etc::SourceParts=/dev/null
  -o "Dir::Etc::SourceList=$work/sources.list" -o APT::Sandbox::User= -o Acquire::Retries=3)
say "reading the list of source packages from $mirror"
"${apt[@]}" update >"$work/log" 2>&1 || { cat "$work/log" >&2; die "$mirror cannot be read"; }

while read -r package tarball sha256; do
  [ -n "$package" ] || continue
  say "$package: $tarball"
  (cd "$work/download" && "${apt[@]}" source --download-only --tar-only "$package" >"$work/log" 2>&1) ||
    { cat "$work/log" >&2; die "$package could not be downloaded"; }
  (cd "$work/download" && echo "$sha256  $tarball" | sha256sum --check --quiet) ||
    die "$tarball is not the pinned file (SHA-256 $sha256)"
  rm -rf "${out:?}/$package"
  mkdir -p "$out/$package"
  tar --list --file "$work/download/$tarball" |
    grep -iE '[.](png|apng|jpe?g|mpo|webp|gif|bmp|tiff?|ppm)$' >"$work/pictures"
  tar --extract --file "$work/download/$tarball" --directory "$out/$package" --no-same-owner \
    --files-from "$work/pictures"
  rm "$work/download/$tarball"
done <<<"$packages"
printf '%s' "$packages" >"$out/.complete"
say "$(find "$out" -type f | wc -l) files in $out"
