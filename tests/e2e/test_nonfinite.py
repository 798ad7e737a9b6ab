"""Two ranks meet numbers that are not finite: the samples of the step are named, no weight changes, the step runs again."""
import json
import math
import re

import pytest

from mgm_binary import ROOT, metrics, mgm
from ranks import ends, start

STEPS = 8
# A rate that throws numbers out of the range of fp32 after a few steps.
VALUES = {"optimizer__lr": 1e6, "schedule__warmup_ratio": 0, "train__rules": [{"preset": "stage2"}], "train__max_steps": STEPS,
          "train__global_batch": 8}
NOT_FINITE = (r"step (\d+): loss (\S+), gradient norm (\S+) \(lr \S+, \d+ targets\)\. Its 8 samples: (.+?)\. "
              r"The weights were not updated by this step")


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_ranks_name_the_samples_of_a_step_that_is_not_finite(tmp_path, on_nonfinite):
    run = tmp_path / "run"
    ranks = start(run, 2, train__on_nonfinite=on_nonfinite, **VALUES)
    errors = ends(ranks, 120)
    log = (run / "logs" / "rank_0.log").read_text()
    stops = on_nonfinite == "stop"
    assert [rank.returncode for rank in ranks] == ([6, 6] if stops else [0, 0]), errors

    told = re.findall(NOT_FINITE + ("; continue from the last checkpoint" if stops else "; going on"), log)
    assert told, log
    first = int(told[0][0])
    assert [int(step) for step, *_ in told] == ([first] if stops else list(range(first, STEPS + 1)))
    known = {record["id"] for record in json.loads((ROOT / "data/embedded/stage1_train.json").read_text())}
    for _, loss, norm, names in told:
        assert not (math.isfinite(float(loss)) and math.isfinite(float(norm)))
        assert len(set(names.split(", ")) & known) == 8, names
    if stops:
        blamed = mgm("blame", run).stdout
        assert re.search(NOT_FINITE, blamed), blamed
        assert [line.get("updated", True) for line in metrics(run)] == [True] * (first - 1)
    else:
        assert [line.get("updated", True) for line in metrics(run)] == [step < first for step in range(1, STEPS + 1)]

    again = mgm("launch", "--nproc", 2, "--", "replay", run, "--step", first, code=6).stderr
    assert f"step {first} of {STEPS}: running {first} steps again" in again
    assert re.search(r"rank [01], first not finite: ", again), again
    replayed = re.findall(r"rank [01], micro-batch \d: .* samples (.+)", again)
    assert set(", ".join(replayed).split(", ")) == set(told[0][3].split(", "))
