#!/usr/bin/env bash
# From a clone to a trained tiny Mini-Gemini: set-up, build, both stages on the embedded pictures (CPU, two
# cores, about ten minutes), a report in runs/tiny/report.html.
#   scripts/quickstart.sh [--cpu | --cuda]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh "$@"
scripts/build.sh release mgm
mgm=build/release/bin/mgm
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # waiting threads leave the cores to whatever else runs
$mgm train configs/tiny/stage1.yaml
$mgm train configs/tiny/stage2.yaml
$mgm export runs/tiny/stage2 --out runs/tiny/model --replace
$mgm report runs/tiny/model --run runs/tiny/stage1 --run runs/tiny/stage2 \
  --heldin data/embedded/eval_heldin.json --heldout data/embedded/heldout.json \
  --images data/embedded/images --out runs/tiny/report.html --note "A tiny model trained on about ninety pictures memorises \
them; held-out answers are guesses. Its vision encoders are random and frozen: high resolution brings no measured benefit. \
What the run shows is that the pictures are used: with another picture in its place, an answer fails."
