"""A launcher repeats its command line when it starts a job again: --resume DIR in it must not throw away what the job
has trained since. Told apart from a new launch by what run.json says of the start before."""
import json
import os
import signal
import subprocess

import pytest

from mgm_binary import MGM, ROOT, metrics, mgm
from test_launch import ENV, STAGE1, interrupt, launch, options, ranks_of

STEPS = 8
KEEP = {"checkpoint__every_steps": 1, "checkpoint__keep": 10}


def starts(run):
    return json.loads((run / "run.json").read_text())["starts"]


def copied(whole, run):
    subprocess.run(["cp", "-r", whole, run], check=True)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    mgm("train", STAGE1, *options(run, **KEEP), env=ENV)
    return run


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    run = tmp_path_factory.mktemp("two") / "run"
    launch("--nproc", 2, "--", "train", STAGE1, *options(run, **KEEP))
    return run


def kill_rank_1(launcher, _):
    os.kill(ranks_of(launcher)[1], signal.SIGKILL)


def killed_at(run, text, *args, env=None):
    """One rank that is killed when a line with `text` comes; all it wrote before."""
    process = subprocess.Popen([MGM, "train", STAGE1, *options(run, **KEEP), *args], cwd=ROOT, env={**ENV, **(env or {})},
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for line in process.stderr:
        if text in line:
            process.kill()
            break
    else:
        pytest.fail("it ended by itself")
    process.stderr.read()
    process.wait()


def test_a_restart_goes_on_from_what_this_launch_wrote(two_ranks, tmp_path):
    run = copied(two_ranks, tmp_path / "run")

    code, errors = interrupt(run, "checkpoint at step 5", kill_rank_1, "--restarts", "1",
                             more=["--resume", str(run / "checkpoints" / "step_3")], **KEEP)
    assert code == 0, errors
    first, second = starts(run)[-2:]
    assert first["from_step"] == 3 and first["restart"] == 0, first
    assert second["from_step"] >= 5 and second["restart"] == 1, second
    assert f"going on from what this launch has written ({second['from']})" in errors
    assert (run / "metrics.jsonl").read_bytes() == (two_ranks / "metrics.jsonl").read_bytes()


def test_a_restart_before_the_first_save_takes_the_folder_again(two_ranks, tmp_path):
    """run.dir holds newer checkpoints, but of an earlier launch."""
    run = copied(two_ranks, tmp_path / "run")
    wanted = str(run / "checkpoints" / "step_3")
    code, errors = interrupt(run, "2 ranks (mgm launch)", kill_rank_1, "--restarts", "1", more=["--resume", wanted], **KEEP)
    assert code == 0, errors
    assert starts(run)[-1]["from_step"] == 3 and starts(run)[-1]["from"] == wanted
    assert (run / "metrics.jsonl").read_bytes() == (two_ranks / "metrics.jsonl").read_bytes()


def test_a_restart_of_resume_never(tmp_path):
    run = tmp_path / "run"
    code, errors = interrupt(run, "checkpoint at step 3", kill_rank_1, "--restarts", "1", more=["--resume", "never"], **KEEP)
    assert code == 0, errors
    assert starts(run)[-1]["from_step"] >= 3 and len(metrics(run)) == STEPS


REQUEUES = {
    "batch script": ({"SLURM_JOB_ID": "77"}, {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "1"}),
    "a launcher in it": tuple(
        {"SLURM_JOB_ID": "77", **count, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": run_id}
        for count, run_id in (({}, "a"), ({"SLURM_RESTART_COUNT": "1"}, "b"))),
    "torchrun": tuple({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none",
                       "TORCHELASTIC_RESTART_COUNT": count} for count in "01"),
}


@pytest.mark.parametrize("name", REQUEUES)
def test_a_requeued_job_goes_on(whole, tmp_path, name):
    before, again = REQUEUES[name]
    run = copied(whole, tmp_path / "run")
    resume = ["--resume", run / "checkpoints" / "step_3"]
    killed_at(run, "checkpoint at step 5", *resume, env=before)
    mgm("train", STAGE1, *options(run, **KEEP), *resume, env={**ENV, **again})
    assert [start["from_step"] >= 5 for start in starts(run)[-2:]] == [False, True]
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("again", [{}, {"SLURM_JOB_ID": "78", "SLURM_RESTART_COUNT": "1"}, {"SLURM_JOB_ID": "77"}],
                         ids=["by hand", "another job", "the same job, not requeued"])
def test_another_launch_starts_where_it_is_told_to(whole, tmp_path, again):
    run = copied(whole, tmp_path / "run")
    resume = ["--resume", run / "checkpoints" / "step_3"]
    killed_at(run, "checkpoint at step 5", *resume, env={"SLURM_JOB_ID": "77"})
    mgm("train", STAGE1, *options(run, **KEEP), *resume, env={**ENV, **again})
    assert starts(run)[-1]["from_step"] == 3
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


REPEATED = {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "1"}


def cut_newest(run, shard):
    newest = max((run / "checkpoints").glob("step_?"))
    os.truncate(newest / shard, 100)
    return newest


def went_on_from_the_one_before(run, damaged, errors, as_if_never_damaged):
    older = run / "checkpoints" / f"step_{int(damaged.name.removeprefix('step_')) - 1}"
    assert f"going on from {older} instead" in errors and str(damaged) in errors
    assert starts(run)[-1]["from"] == str(older)
    assert (run / "metrics.jsonl").read_bytes() == (as_if_never_damaged / "metrics.jsonl").read_bytes()
    assert (run / "checkpoints/set_aside" / damaged.name).is_dir()


def test_a_repeated_start_goes_on_from_the_newest_that_is_whole(whole, tmp_path):
    run = copied(whole, tmp_path / "run")
    damaged = cut_newest(run, "rank_0.safetensors")
    done = mgm("train", STAGE1, *options(run, **KEEP), env={**ENV, **REPEATED})
    went_on_from_the_one_before(run, damaged, done.stderr, whole)


def test_so_do_two_ranks_of_which_one_has_the_damage(two_ranks, tmp_path):
    run = copied(two_ranks, tmp_path / "run")
    damaged = cut_newest(run, "rank_1.safetensors")
    done = mgm("launch", "--nproc", 2, "--", "train", STAGE1, *options(run, **KEEP), env={**ENV, **REPEATED})
    went_on_from_the_one_before(run, damaged, done.stderr, two_ranks)


def test_a_start_by_hand_is_told_of_the_damage(whole, tmp_path):
    run = copied(whole, tmp_path / "run")
    newest = cut_newest(run, "rank_0.safetensors")
    error = mgm("train", STAGE1, *options(run, **KEEP), env=ENV, code=4).stderr
    assert str(newest) in error and "going on" not in error
