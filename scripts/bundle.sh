#!/usr/bin/env bash
# Packs a build into a relocatable folder: the stripped binaries with the libraries they need besides torch and
# the C library. Copy it to another host (same or newer glibc) with any torch 2.11.0, and run bin/mgm there.
#   scripts/bundle.sh [--build DIR] [--out DIR] [--tests] [--sdk]
#     --build DIR   default build/release        --out DIR   default dist/mgm
#     --tests       also the test binaries (bin/test_*)
#     --sdk         also headers and link libraries of the dependencies: cmake -DMGM_DEPS_DIR=DIR builds
#                   with them on a host that lacks our Debian packages
# On the other host torch is found in MGM_TORCH (the folder named torch), or through python3.
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/release out=dist/mgm tests=0 sdk=0
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=$2; shift ;;
    --out) out=$2; shift ;;
    --tests) tests=1 ;;
    --sdk) sdk=1 ;;
    *) sed -n '2,9p' "$0"; exit 2 ;;
  esac
  shift
done
[ -x "$build/bin/mgm" ] || { echo "bundle: $build/bin/mgm is not there; run scripts/build.sh first" >&2; exit 1; }
rm -rf "$out"
mkdir -p "$out/bin" "$out/lib" "$out/libexec"
wheels=$(dirname "$(readlink -f "$(cat .deps/torch_path)")")

# Libraries of a binary that are neither torch's, nor the wheels' beside it, nor the C library's.
libraries_of() {
  ldd "$1" | awk '$3 ~ /^\// {print $3}' | grep -vE '/(libc|libm|libdl|librt|libpthread|libutil|libgomp|ld-linux[^/]*)\.so' |
    while read -r library; do
      case $(readlink -f "$library") in
        "$wheels"/* | /usr/local/cuda*) ;;
        *) echo "$library" ;;
      esac
    done
}
binaries=("$build/bin/mgm")
if [ $tests = 1 ]; then
  for test in "$build"/tests/test_* "$build"/tests/*_probe; do [ -x "$test" ] && binaries+=("$test"); done
fi
for binary in "${binaries[@]}"; do
  name=$(basename "$binary")
  strip -o "$out/libexec/$name" "$binary"
  libraries_of "$binary" | while read -r library; do cp -Ln "$library" "$out/lib/"; done
  cat >"$out/bin/$name" <<'WRAPPER'
#!/usr/bin/env bash
# Runs the program of the same name in ../libexec with ../lib and torch's own libraries.
here=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
torch=${MGM_TORCH:-$(python3 -c 'import importlib.util as u; s = u.find_spec("torch"); print(s.submodule_search_locations[0] if s else "")' 2>/dev/null)}
if ! grep -qs "^__version__ = '2\.11\.0" "$torch/version.py"; then
  echo "mgm needs torch 2.11.0: set MGM_TORCH to its folder (found: '${torch:-none}')" >&2
  exit 1
fi
export LD_LIBRARY_PATH=$torch/lib:$here/lib:$torch/../nvidia/cu13/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec "$here/libexec/$(basename "$0")" "$@"
WRAPPER
  chmod +x "$out/bin/$name"
done
strip --strip-unneeded "$out"/lib/*.so* 2>/dev/null || true

if [ $sdk = 1 ]; then
  mkdir -p "$out/include"
  for header in yaml-cpp nlohmann CLI fmt spdlog webp gtest; do cp -rL "/usr/include/$header" "$out/include/"; done
  for header in simdjson.h sentencepiece_processor.h jpeglib.h jmorecfg.h jerror.h png.h pngconf.h pnglibconf.h \
    xxhash.h xxh3.h zlib.h zconf.h pcre2.h utf8proc.h; do
    cp -L "/usr/include/$header" "$out/include/" 2>/dev/null || true
  done
  cp -L "/usr/include/$(uname -m)-linux-gnu/jconfig.h" "$out/include/"
  for library in yaml-cpp simdjson fmt spdlog sentencepiece jpeg png webp webpdemux xxhash pcre2-8 utf8proc gtest gtest_main; do
    file=$(find /usr/lib -name "lib$library.so" | head -1)
    if [ -n "$file" ]; then
      target=$(basename "$(readlink -f "$file")")
      soname=$(objdump -p "$file" | awk '/SONAME/ {print $2}')
      cp -L "$file" "$out/lib/${soname:-$target}"
      ln -sf "${soname:-$target}" "$out/lib/lib$library.so"
    else
      cp "$(find /usr/lib -name "lib$library.a" | head -1)" "$out/lib/"
    fi
  done
fi
size=$(du -sm "$out" | cut -f1)
echo "bundle: $out, $size MiB"
if [ "$size" -ge 60 ]; then
  echo "bundle: more than 60 MiB" >&2
  exit 1
fi
