"""Storage that fails under a run of several ranks: shards cut, lost or of two saves, a disk that fills up, a folder
that turns read-only. Each is named (a damaged shard in every rank's log), ends all ranks, and costs nothing older."""
import json
import re
import shutil
import socket
import subprocess
import time

import pytest

from mgm_binary import metrics, mgm
from ranks import ends, finish, start, wait_for_steps

WORLD, STEPS = 2, 6
RUN = {"checkpoint__every_steps": 2, "checkpoint__keep": 2, "train__max_steps": STEPS}


def codes(ranks):
    return [rank.returncode for rank in ranks]


def told(run, errors):
    """What each rank has said: on the console only the one that found it, in its log file every rank."""
    return [error + (run / "logs" / f"rank_{rank}.log").read_text() for rank, error in enumerate(errors)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    ranks = start(run, WORLD, **RUN)
    errors = ends(ranks, 120)
    assert codes(ranks) == [0, 0], errors
    return run


def mounted(folder):
    """A file system of its own there, 40 MB; then without it."""
    folder.mkdir(parents=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"NOT RUN: cannot mount a file system: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder, how):
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    yield from mounted(tmp_path / "disk")


@pytest.fixture
def checkpoints(tmp_path):
    """The folder of a run's checkpoints: logs and metrics lie elsewhere and tell how its saves fail."""
    yield from mounted(tmp_path / "run" / "checkpoints")


def went_on_from(run):
    """What the last start of the run began with."""
    return json.loads((run / "run.json").read_text())["starts"][-1]["from"]


def cut(folder):
    path = folder / "rank_1.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def lose(folder):
    (folder / "rank_1.safetensors").unlink()


def mix(folder):
    shutil.copy(folder.parent / "step_2" / "rank_1.safetensors", folder / "rank_1.safetensors")


@pytest.mark.parametrize("damage", [cut, lose, mix])
def test_a_damaged_shard_is_named_and_an_older_checkpoint_offered(whole, tmp_path, damage):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    damage(run / "checkpoints" / "step_4")
    ranks = start(run, WORLD, **{**RUN, "train__max_steps": STEPS + 2})
    errors = ends(ranks, 60)
    assert "rank_1.safetensors" in "".join(errors)
    for text in told(run, errors):
        assert "rank_1.safetensors" in text and f"--resume {run}/checkpoints/step_2" in text, text
    assert codes(ranks) == [4, 4]


def test_a_full_disk_ends_the_run_on_all_ranks_and_it_goes_on_when_there_is_room(disk):
    run, ballast = disk / "run", disk / "ballast"
    ranks = start(run, WORLD, **{**RUN, "train__max_steps": 4000})
    wait_for_steps(run, ranks, 5)
    subprocess.run(["sh", "-c", f"cat /dev/zero > {ballast}"], stderr=subprocess.DEVNULL)
    errors = ends(ranks, 60)
    assert all(code == 1 for code in codes(ranks)), errors
    # The log files lie on the same full disk.
    assert "No space left on device" in "".join(errors) and str(run) in "".join(errors), errors
    kept = [path for path in (run / "checkpoints").glob("step_*") if path.suffix != ".tmp"]
    assert kept, errors
    mgm("checkpoint", "verify", run)  # all of them
    ballast.unlink()
    done = len(metrics(run))
    ranks = start(run, WORLD, **{**RUN, "train__max_steps": 4000})
    time.sleep(1)
    wait_for_steps(run, ranks, done + 4)
    for rank in ranks:
        rank.terminate()
    errors = ends(ranks, 60)
    assert codes(ranks) == [143, 143], errors
    assert went_on_from(run) == str(max(kept, key=lambda path: int(path.name.removeprefix("step_"))))
    steps = [line["step"] for line in metrics(run)]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= done


def test_a_read_only_folder_is_refused_before_the_first_step(whole, disk):
    run = disk / "run"
    shutil.copytree(whole, run)
    remount(disk, "ro")
    ranks = start(run, WORLD, **{**RUN, "train__max_steps": STEPS + 2})
    errors = "".join(ends(ranks, 60))
    assert "Read-only file system" in errors and str(run) in errors, errors
    assert all(code == 1 for code in codes(ranks))


@pytest.mark.parametrize("spoilt,mended,reason", [
    ("size={}", "size=40m", "No space left on device"), ("ro", "rw", "Read-only file system")], ids=["full", "read_only"])
def test_every_rank_tells_whose_save_failed_where_and_the_run_goes_on_from_the_one_before(
        whole, checkpoints, spoilt, mended, reason):
    """The run has come to step 2, and the save of step 4 fails: there is room for half of it, or the folder has turned
    read-only."""
    run = checkpoints.parent
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("checkpoints"), dirs_exist_ok=True)
    older = shutil.copytree(whole / "checkpoints/step_2", checkpoints / "step_2")
    used = sum(path.stat().st_size for path in older.iterdir())
    remount(checkpoints, spoilt.format(used * 3 // 2))

    ranks = start(run, WORLD, **RUN)
    errors = ends(ranks, 120)
    assert codes(ranks) == [1, 1], errors
    assert [path.name for path in checkpoints.iterdir()] == ["step_2"]
    mgm("checkpoint", "verify", older)
    logs = told(run, errors)
    told_why = [re.findall(r"cannot save the checkpoint of step 4: .*$", text, re.M) for text in logs]
    assert all(told_why) and len({text for texts in told_why for text in texts}) == 1, logs  # every rank the same

    remount(checkpoints, mended)
    finish(run, WORLD, **RUN)
    assert went_on_from(run) == str(older)
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert mgm("checkpoint", "diff", run, whole).stdout.splitlines()[-1] == "equal"

    where = rf": rank \d+ on {socket.gethostname()}: {checkpoints}/step_4\.tmp.*: {reason}"
    assert re.search(where, told_why[0][0]), logs
