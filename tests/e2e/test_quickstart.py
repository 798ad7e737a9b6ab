"""The main job as scripts/quickstart.sh runs it: both stages on the embedded pictures, and what its report says. Minutes
long, so only with MGM_TEST_FULL=1."""
import os
import re
import shlex

import pytest

from mgm_binary import FULL, ROOT, metrics, mgm, sets

pytestmark = pytest.mark.skipif(not FULL, reason="NOT RUN: the main job takes ten minutes; MGM_TEST_FULL=1 runs it")


def test_it_memorises_what_it_says_it_does(tmp_path):
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    runs = {stage: tmp_path / stage for stage in ("stage1", "stage2")}
    mgm("train", "configs/tiny/stage1.yaml", *sets({"run.dir": runs["stage1"]}), timeout=3600)
    mgm("train", "configs/tiny/stage2.yaml", timeout=3600,
        *sets({"run.dir": runs["stage2"], "model.projector.path": runs["stage1"] / "mm_projector.bin"}))
    losses = [line["loss"] for line in metrics(runs["stage1"])]
    assert sum(losses[-20:]) / 20 < 0.8 * sum(losses[:5]) / 5
    mgm("export", runs["stage2"], "--out", tmp_path / "model")
    # The report's own line of the script, with these folders.
    script = (ROOT / "scripts/quickstart.sh").read_text().replace("\\\n", "")
    (line,) = re.findall(r"^\$mgm (report (?:.|\n)*)", script, re.M)  # the last of it
    words = [word.replace("runs/tiny", str(tmp_path)) for word in shlex.split(line)]
    said = mgm(*words, timeout=3600).stdout
    (heldin,) = re.findall(r"Held-in pictures +([\d.]+) % +([\d.]+) % +([\d.]+) %", said)
    trained, exchanged, _ = map(float, heldin)
    assert trained >= 95 and exchanged < trained - 30, said
    assert "memorises" in said and (tmp_path / "report.html").stat().st_size > 100_000
