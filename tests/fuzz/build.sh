#!/usr/bin/env bash
# Builds fuzz targets: tests/fuzz/NAME_fuzz.cpp becomes build/fuzz/NAME_fuzz, by clang++ with libFuzzer, AddressSanitizer and
# UndefinedBehaviorSanitizer. Beside csrc/base, which all have, they need what stands in comment lines of the file:
# "// sources: csrc/..." (globs relative to the repository; as many lines as it takes) and "// flags: -l..." (may be absent).
#
#   tests/fuzz/build.sh [--replay] NAME...
#     --replay   with $CXX (default g++) and without all that, build/fuzz/NAME_replay: runs on the files it is given, once each
#   build/fuzz/NAME_fuzz -max_total_time=900 <scratch folder> tests/fuzz/corpus/NAME
set -euo pipefail
cd "$(dirname "$0")/../.."
kind=fuzz
if [ "${1:-}" = --replay ]; then kind=replay; shift; fi
[ $# -gt 0 ] || { sed -n '2,9p' "$0"; exit 2; }
common=(-std=c++20 -march=x86-64-v3 -ffp-contract=off -Icsrc -DSPDLOG_COMPILED_LIB -DSPDLOG_FMT_EXTERNAL)
if [ $kind = fuzz ]; then
  compiler=${CLANGXX:-clang++} also=()
  common+=(-g -O1 "-fsanitize=fuzzer,address,undefined" -fno-sanitize=vptr -fno-sanitize-recover=undefined)
else
  compiler=${CXX:-g++} also=(tests/fuzz/replay_main.cpp)
  common+=(-O0)
fi
object() { echo "build/fuzz/$kind/${1//\//.}.o"; }
mkdir -p build/fuzz/$kind
declare -A sources flags
for name in "$@"; do
  target=tests/fuzz/${name}_fuzz.cpp
  [ -f "$target" ] || { echo "no $target" >&2; exit 2; }
  # The globs in the sources are expanded on purpose.
  # shellcheck disable=SC2046
  sources[$name]=$(printf '%s\n' "$target" "${also[@]}" csrc/base/*.cpp $(sed -n 's|^// sources: ||p' "$target") | sort -u)
  flags[$name]=$(sed -n 's|^// flags: ||p' "$target" | tr '\n' ' ')
done
launcher=$(command -v ccache || true) running=0
for source in $(printf '%s\n' "${sources[@]}" | sort -u); do
  if [ $running = "$(nproc)" ]; then
    wait -n # its failure ends this script
    running=$((running - 1))
  fi
  $launcher "$compiler" "${common[@]}" -c "$source" -o "$(object "$source")" &
  running=$((running + 1))
done
for (( ; running > 0; --running)); do wait -n; done
for name in "$@"; do
  objects=()
  for source in ${sources[$name]}; do objects+=("$(object "$source")"); done
  read -ra libraries <<<"${flags[$name]}"
  "$compiler" "${common[@]}" "${objects[@]}" "${libraries[@]}" -lspdlog -lfmt -lxxhash -pthread -o "build/fuzz/${name}_$kind"
  echo "build/fuzz/${name}_$kind"
done
