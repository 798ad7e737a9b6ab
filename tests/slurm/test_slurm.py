"""scripts/launch_slurm.sh on a SLURM cluster of two nodes that are both this machine (local_cluster.sh): only with
MGM_TEST_FULL=1 or MGM_TEST_SLURM=1, since it takes minutes. Without SLURM it is skipped, loudly;
MGM_TEST_REQUIRE=slurm makes that a failure."""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from mgm_binary import FULL, MGM, ROOT, metrics, required, sets  # noqa: E402

STAGE1 = "configs/tiny/stage1.yaml"
PATH = os.environ["PATH"] + ":/usr/sbin"
READY = os.getuid() == 0 and all(shutil.which(t, path=PATH) for t in ("slurmctld", "slurmd", "sbatch", "munged"))
REQUIRED = required("slurm")
pytestmark = [
    pytest.mark.skipif(not FULL and os.environ.get("MGM_TEST_SLURM") != "1",
                       reason="takes minutes: MGM_TEST_FULL=1 or MGM_TEST_SLURM=1 runs it"),
    pytest.mark.skipif(not READY and not REQUIRED, reason="needs root and apt-get install slurm-wlm munge"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment of a user of the cluster."""
    assert READY, "MGM_TEST_REQUIRE=slurm, but SLURM or root is missing"
    folder = tmp_path_factory.mktemp("slurm")
    server = subprocess.Popen([ROOT / "tests/slurm/local_cluster.sh", folder, "bash", "-c", "echo up; cat"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline() == "up\n"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMP_"))}
    # The nodes' names are known to SLURM alone.
    yield {**clean, "SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1", "PATH": PATH}
    server.stdin.close()
    server.wait(timeout=60)


class Job:
    def __init__(self, env, tmp_path, *args, options=("--nodes=2", "--ntasks-per-node=1")):
        self.env, self.log = env, tmp_path / "job.log"
        done = self.call("sbatch", "--parsable", f"--output={self.log}", *options, ROOT / "scripts/launch_slurm.sh",
                         *args)
        self.id = done.strip()

    def call(self, *args):
        done = subprocess.run([*map(str, args)], env=self.env, cwd=ROOT, text=True, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def show(self, key):
        return re.search(rf"\b{key}=(\S+)", self.call("scontrol", "show", "job", self.id)).group(1)

    def text(self):
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, text, seconds=120):
        for _ in range(10 * seconds):
            if text in self.text():
                return
            time.sleep(0.1)
        pytest.fail(f"no '{text}' in\n{self.text()}")

    def wait(self, seconds=240):
        """State and exit code of the job's last run."""
        for _ in range(5 * seconds):
            state = self.show("JobState")
            if state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
                return state, int(self.show("ExitCode").split(":")[0])
            time.sleep(0.2)
        pytest.fail(f"job {self.id} does not end\n{self.text()}")


@pytest.fixture
def fake(cluster, tmp_path):
    """A job whose ranks run a shell script; F is a folder of theirs."""
    def submit(script, **more):
        program = tmp_path / "mgm"
        program.write_text(f"#!/bin/bash\nF={tmp_path}\n{script}\n")
        program.chmod(0o755)
        return Job({**cluster, "MGM": str(program), **more}, tmp_path, "train", "x.yaml")
    return submit


def test_ranks_are_one_per_task(fake):
    job = fake('echo "rank $SLURM_PROCID of $SLURM_STEP_NUM_TASKS on node $SLURM_NODEID: $*"')
    assert job.wait() == ("COMPLETED", 0)
    assert "0: rank 0 of 2 on node 0: train x.yaml\n" in job.text()
    assert "1: rank 1 of 2 on node 1: train x.yaml\n" in job.text()


@pytest.mark.parametrize("code", [2, 3, 4, 6])
def test_what_would_come_again_ends_the_job_though_other_ranks_say_5(fake, code):
    job = fake(f"echo x >>$F/starts; [ $SLURM_PROCID = 1 ] && exit {code}; sleep 1; exit 5")
    assert job.wait() == ("FAILED", code), job.text()
    assert job.text().count("start 0 of 2 ranks") == 1 and "start 1" not in job.text()


@pytest.mark.parametrize("how", ["exit 1", "exit 5", "kill -9 $$", "kill -SEGV $$"])
def test_what_may_pass_starts_all_again_in_the_same_allocation(fake, how):
    job = fake(f"[ $SLURM_PROCID = 0 ] && exit 0; [ -e $F/once ] && exit 0; touch $F/once; {how}")
    assert job.wait() == ("COMPLETED", 0), job.text()
    assert "starting all ranks again" in job.text() and "requeued 0 times: start 1 of 2 ranks" in job.text()


def test_restarts_are_counted(fake):
    job = fake("exit 5", MGM_RESTARTS="1")
    assert job.wait() == ("FAILED", 5)
    assert job.text().count(": start ") == 2 and "all 1 restarts" in job.text()


def test_a_rank_that_hangs_when_another_failed_is_killed(fake):
    job = fake("[ $SLURM_PROCID = 1 ] && exit 3; exec sleep 300", MGM_WAIT="2")
    assert job.wait() == ("FAILED", 3), job.text()


STOPS = """trap 'echo saving; n=$((n+1)); [ $n = 1 ] || echo TWICE; sleep 1.$SLURM_PROCID; touch $F/saved$SLURM_PROCID; exit {code}' {sig}
[ "${{SLURM_RESTART_COUNT:-0}}" = 1 ] && echo went on && exit 0
echo up; while :; do sleep 0.1; done"""


@pytest.mark.parametrize("sig,code", [("TERM", 143), ("USR1", 138)])
def test_stopped_ranks_put_the_job_back_into_the_queue(fake, sig, code):
    job = fake(STOPS.format(sig=sig, code=code))
    job.wait_for("0: up")
    job.wait_for("1: up")
    job.call("scancel", f"--signal={sig}", job.id)  # as SLURM does before the time limit: the ranks alone
    assert job.wait() == ("COMPLETED", 0), job.text()
    assert "0: saving" in job.text() and "1: saving" in job.text() and "TWICE" not in job.text()
    assert "1: went on" in job.text() and "requeued 1 times" in job.text()


def test_cancelled_job_is_not_requeued(fake, tmp_path):
    job = fake(STOPS.format(sig="TERM", code=143))
    job.wait_for("1: up")
    job.call("scancel", job.id)
    assert job.wait()[0] == "CANCELLED"
    assert "back into the queue" not in job.text() and job.show("Restarts") == "0"
    for rank in (0, 1):  # within KillWait
        for _ in range(50):
            time.sleep(0 if (tmp_path / f"saved{rank}").exists() else 0.1)
        assert (tmp_path / f"saved{rank}").exists(), job.text()


def test_without_a_binary(cluster, tmp_path):
    job = Job({**cluster, "MGM": "/no/such/mgm"}, tmp_path, "train", "x.yaml")
    assert job.wait() == ("FAILED", 2) and "/no/such/mgm is no program" in job.text()


# ---- the real thing: two ranks on two nodes ---------------------------------------------------------


def test_training_is_stopped_by_the_time_limit_and_goes_on(cluster, tmp_path):
    run = tmp_path / "run"
    values = {"run.dir": str(run), "train.max_steps": 5000, "train.global_batch": 4, "train.micro_batch": 2,
              "train.threads": 1, "checkpoint.every_steps": 5000, "log.every_steps": 1}
    job = Job({**cluster, "MGM": str(MGM)}, tmp_path, "train", STAGE1, *sets(values),
              # A minute is the shortest limit; SLURM may signal up to a minute early.
              options=("--nodes=2", "--ntasks-per-node=1", "--time=1", "--signal=TERM@40"))
    job.wait_for("2 ranks (slurm)")
    job.wait_for("back into the queue")
    stopped_at = len(metrics(run))
    assert stopped_at > 0 and f"checkpoint at step {stopped_at}" in job.text()
    job.call("scontrol", "update", f"JobId={job.id}", "TimeLimit=30")
    job.wait_for(f"step {stopped_at + 5}/5000")
    assert f"step_{stopped_at}\n" in job.text() and "resuming from" in job.text()
    job.call("scancel", job.id)
    assert job.wait()[0] == "CANCELLED"
    steps = [line["step"] for line in metrics(run)]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= stopped_at + 5
