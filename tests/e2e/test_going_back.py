"""--resume of an older checkpoint: what lies behind it is set aside before a line of metrics is cut, and a kill at any
moment in between leaves a run that goes on, with every metrics line once."""
import os
import shutil
import signal
import subprocess

import pytest

from mgm_binary import FULL, MGM, ROOT, metrics, mgm
from test_checkpoint import STAGE1, STEPS, assert_same_run, options, shards, train, whole  # noqa: F401 (a fixture)

BACK = 3

# Ends the process by SIGKILL before the n-th call that changes what a start finds: a rename, or the cut of a file.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static void count(void) {
  static int calls = 0;
  const char* at = getenv("KILL_AT");
  if (at && ++calls == atoi(at)) kill(getpid(), SIGKILL);
}
int rename(const char* from, const char* to) {
  count();
  return ((int (*)(const char*, const char*))dlsym(RTLD_NEXT, "rename"))(from, to);
}
int ftruncate(int fd, off_t size) {
  count();
  return ((int (*)(int, off_t))dlsym(RTLD_NEXT, "ftruncate"))(fd, size);
}
int ftruncate64(int fd, off_t size) {
  count();
  return ((int (*)(int, off_t))dlsym(RTLD_NEXT, "ftruncate64"))(fd, size);
}
"""
# config.yaml, the copy of the metrics, steps 6 to 4, the cut, run.json, and two of the first save.
CALLS = 9


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    if not shutil.which("cc"):
        pytest.skip("no C compiler for the library that kills")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.c", "-ldl"], check=True)
    return folder / "shim.so"


def back_to(run, step=BACK, **kwargs):
    return mgm("train", STAGE1, *options(run), "--resume", run / "checkpoints" / f"step_{step}", **kwargs)


def steps_in(folder):
    return sorted(path.name for path in folder.glob("step_?"))


def test_newer_checkpoints_are_set_aside_and_can_be_taken_back(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    aside = run / "checkpoints" / "set_aside"
    process = subprocess.Popen([MGM, "train", STAGE1, *options(run, checkpoint__every_steps=0), "--resume",
                                str(run / "checkpoints" / f"step_{BACK}")], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    told = ""
    for line in process.stderr:
        told += line
        if f"step {BACK + 1}/" in line:
            process.kill()
    process.wait()
    assert "goes back to step 3: step_6, step_5, step_4 and a copy of metrics.jsonl moved to " + str(aside) in told, told
    assert "MiB" in told and "To take this back" in told
    assert steps_in(run / "checkpoints") == ["step_1", "step_2", "step_3"] and steps_in(aside) == ["step_4", "step_5", "step_6"]
    # Nothing takes them for checkpoints of the run.
    lines = mgm("checkpoint", "ls", run).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["step", "1", "2", "3", "and"]
    assert lines[-1] == f"and 3 in {aside}, set aside when the run went back: step 4, 5, 6"
    assert mgm("checkpoint", "verify", run).stdout.count("whole") == 3
    assert "was set aside" in mgm("train", STAGE1, *options(run), "--resume", aside / "step_5", code=4).stderr
    # Back again, as the log says.
    for path in aside.glob("step_*"):
        path.rename(run / "checkpoints" / path.name)
    (aside / "metrics.jsonl").rename(run / "metrics.jsonl")
    assert "complete at step 6 of 6" in train(run).stderr
    assert_same_run(run, whole)
    for step in range(1, STEPS + 1):
        assert shards(run, step) == shards(whole, step)


def test_only_the_last_ones_stay(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    aside = run / "checkpoints" / "set_aside"
    back_to(run, 2)
    assert steps_in(aside) == ["step_3", "step_4", "step_5", "step_6"]
    (aside / "metrics.jsonl").write_text("another history\n")
    done = back_to(run, 5)
    assert "removed what was set aside there before" in done.stderr
    assert steps_in(aside) == ["step_6"] and steps_in(run / "checkpoints") == steps_in(whole / "checkpoints")
    assert_same_run(run, whole)
    train(run)  # nothing goes back: nothing moves
    assert steps_in(aside) == ["step_6"]


def test_a_refused_start_moves_nothing(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    lines = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(lines[:100])
    assert "has 100 bytes" in back_to(run, code=4).stderr
    assert steps_in(run / "checkpoints") == steps_in(whole / "checkpoints") and not (run / "checkpoints/set_aside").exists()


@pytest.mark.parametrize("call", range(1, CALLS + 1) if FULL else [3, 4, 5, 6, 7])
def test_a_kill_on_the_way_back_loses_no_line(whole, shim, tmp_path, call):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    done = subprocess.run([MGM, "train", STAGE1, *options(run), "--resume", run / "checkpoints" / f"step_{BACK}"], cwd=ROOT,
                          env={**os.environ, "LD_PRELOAD": str(shim), "KILL_AT": str(call)}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    again, auto = tmp_path / "again", tmp_path / "auto"
    shutil.copytree(run, again)
    shutil.copytree(run, auto)
    left, aside = steps_in(run / "checkpoints"), steps_in(run / "checkpoints" / "set_aside")
    assert len(metrics(run)) >= int(left[-1][5:]), "metrics are cut behind a checkpoint that still counts"
    if call <= 7:  # nothing is lost, and nothing is there twice
        assert sorted(left + aside) == steps_in(whole / "checkpoints")
    train(auto)
    assert_same_run(auto, whole)
    back_to(again)
    assert_same_run(again, whole)
    # The second attempt ends the move that the first began.
    if call <= 7:
        assert steps_in(again / "checkpoints" / "set_aside") == ["step_4", "step_5", "step_6"]
        assert (again / "checkpoints/set_aside/metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
