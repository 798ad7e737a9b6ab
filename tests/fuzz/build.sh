#!/usr/bin/env bash
# Builds a libFuzzer target with AddressSanitizer and UndefinedBehaviorSanitizer: NAME_fuzz.cpp becomes
# build/fuzz/NAME_fuzz. What it needs stands in comment lines of the file: "// sources: csrc/..."
# (globs relative to the repository; as many lines as it takes) and "// flags: -l..." (may be absent).
#
#   tests/fuzz/build.sh NAME
#   build/fuzz/NAME_fuzz -max_total_time=900 <scratch folder> tests/fuzz/corpus/NAME
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# = 1 ] || { sed -n '2,7p' "$0"; exit 2; }
name=$1
target=tests/fuzz/${name}_fuzz.cpp
[ -f "$target" ] || { echo "no $target" >&2; exit 2; }
read -ra sources <<<"$(sed -n 's|^// sources: ||p' "$target" | tr '\n' ' ')"
read -ra flags <<<"$(sed -n 's|^// flags: ||p' "$target" | tr '\n' ' ')"
mkdir -p build/fuzz
# The globs in the sources are expanded on purpose.
# shellcheck disable=SC2068
"${CLANGXX:-clang++}" -std=c++20 -g -O1 -march=x86-64-v3 -ffp-contract=off -Icsrc \
  -fsanitize=fuzzer,address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined \
  "$target" ${sources[@]} ${flags[@]} -o "build/fuzz/${name}_fuzz"
echo "build/fuzz/${name}_fuzz"
