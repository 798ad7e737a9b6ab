#!/usr/bin/env bash
# From a clone to a trained tiny Mini-Gemini: set-up, build, both stages on the embedded pictures (CPU, two
# cores, about ten minutes), a report in runs/tiny/report.html.
#   scripts/quickstart.sh [--cpu | --cuda]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh "$@"
scripts/build.sh release mgm
mgm=build/release/bin/mgm
$mgm train configs/tiny/stage1.yaml
$mgm train configs/tiny/stage2.yaml
$mgm report configs/tiny/stage2.yaml --out runs/tiny/report.html
