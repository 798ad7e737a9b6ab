"""A step whose every sample is a hole (data.on_error: skip) teaches nothing: it changes no weight and no moment, is told
and counted, and is one line of metrics.jsonl like any other."""
import json
import shutil

import pytest
from safetensors.torch import load_file

from mgm_binary import ROOT, metrics, mgm, sets
from ranks import ends, start

STAGE1 = "configs/tiny/stage1.yaml"
STEPS, EMPTY, BATCH = 6, 3, 4


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The pictures of the third batch are not there."""
    records = json.loads((ROOT / "data/embedded/stage1_train.json").read_text())
    for record in records[(EMPTY - 1) * BATCH:EMPTY * BATCH]:
        record["image"] = "not_there.png"
    path = tmp_path_factory.mktemp("data") / "holes.json"
    path.write_text(json.dumps(records))
    return json.dumps([{"annotations": str(path), "images": str(ROOT / "data/embedded/images")}])


def values(source, **more):
    out = {"data.sources": source, "data.on_error": "skip", "data.shuffle": False, "train.max_steps": STEPS,
           "train.global_batch": BATCH, "train.micro_batch": 1, "train.threads": 1, "checkpoint.every_steps": 1,
           "checkpoint.keep": 10, "checkpoint.at_end": True, "log.every_steps": 1, "optimizer.weight_decay": 0.1,
           "schedule.warmup_ratio": 0, "data.workers": 1, "checkpoint.every_minutes": 0, "dist.reduction": "strict",
           "dist.virtual_shards": 4}
    out.update(more)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory, source):
    folder = tmp_path_factory.mktemp("one") / "run"
    done = mgm("train", STAGE1, *sets({**values(source), "run.dir": folder}))
    (folder / "told.txt").write_text(done.stderr)
    return folder


def state(run, step, rank=0):
    return load_file(run / "checkpoints" / f"step_{step}" / f"rank_{rank}.safetensors")


def test_it_changes_neither_weights_nor_moments(run):
    before, after, later = (state(run, EMPTY + k) for k in (-1, 0, 1))
    assert before.keys() == after.keys() and any(name.startswith("exp_avg_sq.") for name in before)
    assert all(before[name].equal(after[name]) for name in before)
    assert not any(after[name].equal(later[name]) for name in before)


def test_it_is_a_line_of_metrics_and_is_told(run):
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    empty = lines[EMPTY - 1]
    assert (empty["loss"], empty["grad_norm"], empty["num_targets"], empty["holes"], empty["updated"]) == (None, 0, 0, BATCH, False)
    assert empty["lr"] > lines[EMPTY]["lr"] > 0  # the schedule goes on
    assert all(line["loss"] > 0 and "updated" not in line for line in lines if line is not empty)
    told = (run / "told.txt").read_text()
    assert f"step {EMPTY}: no supervised token in its 0 samples and {BATCH} holes: no weight was updated" in told
    assert f"step {EMPTY}/{STEPS}" in told and "loss -  " in told and "nan" not in told
    assert "1 step had no supervised token and changed no weight" in told and "4 samples skipped" in told


def test_it_runs_again_to_the_same_bits(run, tmp_path):
    cut = tmp_path / "run"
    shutil.copytree(run, cut)
    for step in range(EMPTY, STEPS + 1):  # as if it had been killed behind the step before
        shutil.rmtree(cut / "checkpoints" / f"step_{step}")
    values_of = json.loads((run / "run.json").read_text())["starts"][0]["argv"]
    mgm(*[word.replace(f"run.dir={run}", f"run.dir={cut}") for word in values_of[1:]])
    assert (cut / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert mgm("checkpoint", "diff", cut, run).stdout.splitlines()[-1] == "equal"
    for step in (EMPTY, EMPTY + 2):
        assert "to the bit, 0 not" in mgm("replay", run, "--step", step).stderr


@pytest.mark.parametrize("mode", ["replicate", "zero1", "zero2", "zero3"])
def test_all_ranks_agree(run, source, tmp_path, mode):
    settings = {key.replace(".", "__"): value for key, value in values(source).items()}
    ranks = start(tmp_path / "run", 2, **{**settings, "dist__mode": mode})
    errors = ends(ranks, 120)
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert mgm("checkpoint", "diff", tmp_path / "run", run).stdout.splitlines()[-1] == "equal"


def test_fast_sums_and_means_of_micro_batches(source, tmp_path):
    for number, more in enumerate(({"dist.reduction": "fast"}, {"dist.reduction": "fast", "train.loss_norm": "micro_batch"})):
        run = tmp_path / str(number)
        mgm("train", STAGE1, *sets({**values(source, **more), "run.dir": run}))
        before, after = state(run, EMPTY - 1), state(run, EMPTY)
        assert all(before[name].equal(after[name]) for name in before)
        assert metrics(run)[EMPTY - 1]["loss"] is None
