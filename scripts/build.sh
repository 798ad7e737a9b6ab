#!/usr/bin/env bash
# Builds mgm: scripts/build.sh [preset] [targets...]. Presets: release (default), dev, asan, cuda, cpu.
# The binary is build/<preset>/bin/mgm. Target `all` has the tests too, and takes half as long again.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
[ $# -gt 0 ] && shift
options=()
# A LibTorch without CUDA cannot be linked against by CUDA code, whatever nvcc says.
if [ "$preset" = release ] || [ "$preset" = dev ]; then
  [ "$(cat .deps/variant 2>/dev/null || echo cpu)" = cpu ] && options+=(-DMGM_CUDA=OFF)
fi
[ -n "${MGM_DEPS_DIR:-}" ] && options+=("-DMGM_DEPS_DIR=$MGM_DEPS_DIR")
cmake --preset "$preset" "${options[@]}" >"/tmp/mgm_configure.$$" || { cat "/tmp/mgm_configure.$$"; exit 1; }
rm -f "/tmp/mgm_configure.$$"
cmake --build "build/$preset" --parallel "${MGM_JOBS:-$(nproc)}" --target "${@:-mgm}"
