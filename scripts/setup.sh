#!/usr/bin/env bash
# Finds or installs everything a build needs: Debian packages and LibTorch 2.11.0 (from its PyPI wheel).
# Idempotent. Needs root only if Debian packages are missing, and then prints the one line to run.
#
#   scripts/setup.sh [--cpu | --cuda] [--oracles]
#     --cpu      LibTorch for the CPU only (1.3 GB); no NVIDIA toolkit needed
#     --cuda     LibTorch with CUDA (4.5 GB); needs nvcc. Default where nvcc is found
#     --oracles  also the pinned Python oracles of the tests (tests/requirements.txt); 5.3 GB in all, with --cpu too
#
#   Torch_DIR=<torch>/share/cmake/Torch   use this LibTorch 2.11.0
#   MGM_DEPS_DIR=<SDK bundle>             libraries from a bundle instead of Debian packages
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

PATH=$PATH:/usr/local/cuda/bin
variant=cpu
command -v nvcc >/dev/null && variant=cuda
oracles=0
for arg in "$@"; do
  case $arg in
    --cpu) variant=cpu ;;
    --cuda) variant=cuda ;;
    --oracles) oracles=1 ;;
    *) sed -n '2,11p' "$0"; exit 2 ;;
  esac
done
if [ "$variant" = cuda ] && ! command -v nvcc >/dev/null; then
  die "--cuda needs nvcc (CUDA toolkit 13); it is not on PATH or in /usr/local/cuda/bin"
fi

# ---- Debian packages ------------------------------------------------------------------------------
tools=(g++ cmake ninja-build git python3 python3-venv ca-certificates)
[ $oracles = 1 ] && tools+=(xz-utils) # the archives of the test pictures
faster=(ccache mold) # builds work without them
libraries=(libyaml-cpp-dev libsentencepiece-dev nlohmann-json3-dev libsimdjson-dev libcli11-dev
  libspdlog-dev libfmt-dev libjpeg-dev libpng-dev libwebp-dev libxxhash-dev libpcre2-dev libutf8proc-dev
  libgtest-dev libbenchmark-dev)
have() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }
if command -v dpkg-query >/dev/null; then
  missing=() slow=()
  for package in "${faster[@]}"; do command -v "$package" >/dev/null || slow+=("$package"); done
  for package in "${tools[@]}"; do
    # A tool installed some other way (a newer cmake, pyenv's python) is as good.
    case $package in
      g++ | cmake | git | python3) command -v "$package" >/dev/null && continue ;;
      ninja-build) command -v ninja >/dev/null && continue ;;
      xz-utils) command -v xz >/dev/null && continue ;;
      python3-venv) python3 -c 'import venv, ensurepip' 2>/dev/null && continue ;;
    esac
    have "$package" || missing+=("$package")
  done
  if [ -z "${MGM_DEPS_DIR:-}" ]; then
    for package in "${libraries[@]}"; do have "$package" || missing+=("$package"); done
  fi
  if [ ${#missing[@]} -gt 0 ] || { [ ${#slow[@]} -gt 0 ] && [ "$(id -u)" = 0 ]; }; then
    install="apt-get install -y --no-install-recommends"
    line="$install ${missing[*]} ${slow[*]}"
    if [ "$(id -u)" = 0 ]; then
      say "installing Debian packages: ${missing[*]} ${slow[*]}"
      export DEBIAN_FRONTEND=noninteractive
      apt-get update -qq || true # what counts is whether the packages come
      [ ${#missing[@]} = 0 ] || $install "${missing[@]}" >/dev/null
      [ ${#slow[@]} = 0 ] || $install "${slow[@]}" >/dev/null || say "without ${slow[*]}: builds take longer"
    else
      say "Debian packages are missing. Run this as root, then scripts/setup.sh again:"
      printf '\n    %s\n\n' "$line"
      exit 1
    fi
  fi
  say "Debian packages: all there that a build needs"
else
  say "not a Debian system: expecting the libraries in MGM_DEPS_DIR (${MGM_DEPS_DIR:-not set})"
fi

# ---- LibTorch ---------------------------------------------------------------------------------------
mkdir -p .deps
venv=$(cd .deps && pwd -P)/venv  # clones may share .deps by a link: one path for all, in binaries and in ccache
is_torch() { grep -qs "^__version__ = '2\.11\.0" "$1/version.py"; }
has_cuda() { [ -e "$1/../nvidia/nccl/include/nccl.h" ] && [ -e "$1/../nvidia/cudnn/lib/libcudnn.so.9" ]; }
make_venv() {
  [ -x "$venv/bin/python" ] || { say "creating $venv"; python3 -m venv "$venv"; }
}
pip_install() { "$venv/bin/python" -m pip install -q "$@"; }
venv_torch() { "$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["platlib"] + "/torch")'; }

torch=
if [ -n "${Torch_DIR:-}" ]; then
  torch=$(cd "$Torch_DIR/../../.." && pwd)
  is_torch "$torch" || die "Torch_DIR names $torch, which is not torch 2.11.0"
elif [ ! -x "$venv/bin/python" ]; then
  found=$(python3 -c 'import importlib.util as u; s = u.find_spec("torch"); print(s.submodule_search_locations[0] if s else "")' 2>/dev/null || true)
  if [ -n "$found" ] && is_torch "$found" && { [ "$variant" = cpu ] || has_cuda "$found"; }; then torch=$found; fi
fi
if [ -z "$torch" ]; then
  make_venv
  torch=$(venv_torch)
  if ! is_torch "$torch" || { [ "$variant" = cuda ] && ! has_cuda "$torch"; }; then
    if [ "$variant" = cuda ]; then
      say "installing torch 2.11.0 with CUDA (4.5 GB) into $venv"
      pip_install torch==2.11.0
    else
      say "installing torch 2.11.0 for the CPU (1.3 GB) into $venv"
      pip_install --no-deps torch==2.11.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85
    fi
  fi
fi
printf '%s\n' "$torch" >.deps/torch_path.tmp
cmp -s .deps/torch_path.tmp .deps/torch_path 2>/dev/null || cp .deps/torch_path.tmp .deps/torch_path
rm .deps/torch_path.tmp
say "LibTorch: $torch ($variant)"

# ---- oracles ----------------------------------------------------------------------------------------
if [ $oracles = 1 ]; then
  make_venv
  if ! cmp -s tests/requirements.txt .deps/requirements.installed; then
    say "installing the test oracles into $venv (torch, transformers, timm, open_clip, ...)"
    pip_install -r tests/requirements.txt
    cp tests/requirements.txt .deps/requirements.installed
  fi
  say "oracles: as pinned in tests/requirements.txt"
fi
printf '%s\n' "$variant" >.deps/variant
