"""mgm replay: a step runs again to the same bits, and where its numbers break is named."""
import json
import re
import shutil
import subprocess

import pytest

from mgm_binary import MGM, ROOT, metrics, mgm, sets

VALUES = {"train.max_steps": 12, "checkpoint.every_steps": 5, "checkpoint.keep": 3, "checkpoint.every_minutes": 0,
          "train.global_batch": 8, "train.micro_batch": 2, "train.threads": 1, "data.workers": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay") / "run"
    mgm("train", "configs/tiny/stage1.yaml", *sets({**VALUES, "run.dir": folder}))
    return folder


@pytest.mark.parametrize("step, again, source", [(8, 3, "step_5"), (11, 1, "step_10"), (3, 3, "the run's first weights")])
def test_a_step_runs_again_to_the_same_bits(run, step, again, source):
    before = (run / "metrics.jsonl").read_bytes()
    text = mgm("replay", run, "--step", step).stderr
    assert f"running {again} steps again from" in text and source in text
    assert f"{again} steps equal to metrics.jsonl to the bit, 0 not" in text
    line = metrics(run)[step - 1]
    assert f"{line['num_targets']:,} targets" in text
    assert len(re.findall(r"micro-batch \d: \d+ tokens, 2 pictures, \d+ targets, samples ", text)) == 4
    assert (run / "metrics.jsonl").read_bytes() == before


def test_groups_are_listed_forward_and_backward(run):
    text = mgm("replay", run, "--step", 6, "--groups").stderr
    for what in ("result of model.layers.0, micro-batch 4: finite, largest",
                 "gradient at the result of model.mm_projector, micro-batch 1: finite, largest",
                 "gradient of the weights of model.mm_projector: largest"):
        assert what in text, text


def test_other_numbers_are_named(run, tmp_path):
    copy = tmp_path / "run"
    mgm("train", "configs/tiny/stage1.yaml", *sets({**VALUES, "run.dir": copy, "train.max_steps": 7}))
    lines = metrics(copy)
    lines[6]["loss"] += 1e-9
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = mgm("replay", copy, "--step", 7, code=1).stderr
    assert re.search(r"step 7: loss [\d.]+ here, [\d.]+ in metrics.jsonl \(relative \S+e-\d+\)", text), text
    assert "1 steps equal to metrics.jsonl to the bit, 1 not" in text


def test_where_a_step_breaks_is_named(tmp_path):
    """A rate that throws numbers out of the range of fp32 after a few steps."""
    broken = tmp_path / "run"
    done = mgm("train", "configs/tiny/stage1.yaml", code=6,
               *sets({**VALUES, "run.dir": broken, "optimizer.lr": 1e6, "schedule.warmup_ratio": 0,
                       "train.rules": [{"preset": "stage2"}]}))
    step = int(re.search(r"step (\d+): loss", done.stderr).group(1))
    text = mgm("replay", broken, "--step", step, code=6).stderr
    assert re.search(r"first not finite: gradient at the result of model.embed_tokens, micro-batch 1: [\d,]+ of [\d,]+ "
                     r"values are not finite; at the result of model.layers.0, micro-batch 1, it still was", text), text
    assert re.search(r"gradient of the weights of \S+: [\d,]+ of [\d,]+ values of this rank are not finite", text), text
    assert "samples " in text


def test_ranks_replay_together(tmp_path):
    shared = tmp_path / "run"
    options = sets({**VALUES, "run.dir": shared, "dist.mode": "zero3"})
    mgm("launch", "--nproc", 2, "--", "train", "configs/tiny/stage1.yaml", *options)
    text = mgm("launch", "--nproc", 2, "--", "replay", shared, "--step", 9).stderr
    assert "4 steps equal to metrics.jsonl to the bit, 0 not" in text
    for rank in (0, 1):
        assert f"rank {rank}, micro-batch 2: " in text


def test_what_cannot_be_replayed_is_refused(run, tmp_path):
    assert "--step 13: the run has steps 1 to 12" in mgm("replay", run, "--step", 13, code=2).stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty / "config.yaml") in mgm("replay", empty, "--step", 1, code=2).stderr


CAN_MOUNT = subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0 if shutil.which("unshare") else False


@pytest.mark.skipif(not CAN_MOUNT, reason="mount namespaces are not permitted here")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_folder_that_can_only_be_read(run, ranks):
    launch = f"{MGM} launch --nproc 2 --" if ranks == 2 else f"{MGM}"
    script = (f"mount --bind {run} {run} && mount -o remount,bind,ro {run} && ! touch {run}/written 2>/dev/null && "
              f"exec {launch} replay {run} --step 6")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=ROOT, text=True, capture_output=True, timeout=120)
    text = done.stderr
    assert "step 6 of 12: running 1 steps again from" in text and "in metrics.jsonl to the bit" not in text, text
    assert re.search(r"[01] steps equal to metrics.jsonl to the bit, [01] not", text), text
    assert done.returncode == (0 if " 0 not" in text else 1)
    for wrong in ("not one folder", "flight record", "Read-only"):
        assert wrong not in text, text


def test_a_replay_that_fails_leaves_nothing_in_the_run_folder(run):
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    done = mgm("launch", "--nproc", 2, "--", "replay", run, "--step", 99, check=False)
    assert done.returncode == 2 and "the run has steps 1 to 12" in done.stderr
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before
