#!/usr/bin/env bash
# Set-up, Python oracles, build, every test. This is what CI runs.
#   scripts/test.sh [--cpu | --cuda] [--full]
#     --full  also the long ones: AddressSanitizer build, fuzzers, every kill point
set -euo pipefail
cd "$(dirname "$0")/.."
full=0
setup_args=()
for arg in "$@"; do
  case $arg in
    --full) full=1 ;;
    --cpu | --cuda) setup_args+=("$arg") ;;
    *) sed -n '2,4p' "$0"; exit 2 ;;
  esac
done
[ $full = 0 ] || command -v clang++ >/dev/null || { echo "test.sh --full builds fuzzers with clang++: apt-get install clang" >&2; exit 1; }
scripts/setup.sh --oracles "${setup_args[@]}"
scripts/fetch_test_images.sh
scripts/fetch_models.sh
scripts/fetch_tokenizers.sh
scripts/build.sh release all
export MGM_TEST_FULL=$full
ctest --test-dir build/release --output-on-failure --parallel "$(nproc)"
if [ $full = 1 ]; then
  scripts/build.sh asan all
  ASAN_OPTIONS=detect_odr_violation=0:detect_container_overflow=0:alloc_dealloc_mismatch=0:detect_leaks=0 \
    ctest --test-dir build/asan --output-on-failure --parallel "$(nproc)" -L 'unit|config|grad'
  for fuzzer in image json yaml checkpoint gguf tokenizer config jinja; do
    tests/fuzz/build.sh "$fuzzer"
    mkdir -p "build/fuzz/corpus/$fuzzer" # new inputs go to the first folder, crashes beside it
    "build/fuzz/${fuzzer}_fuzz" -max_total_time="${MGM_FUZZ_SECONDS:-300}" -artifact_prefix=build/fuzz/ \
      "build/fuzz/corpus/$fuzzer" "tests/fuzz/corpus/$fuzzer"
  done
fi
