"""mgm launch, torchrun and mpirun with the real binary: prefixes, exit codes, a training run on two ranks that is
stopped, killed and started again."""
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from mgm_binary import FULL, MGM, ROOT, metrics, mgm, required, sets
from ranks import near_weights, same_weights, weights

STAGE1 = "configs/tiny/stage1.yaml"
STEPS = 8
# What a launcher around this test would set is not for the launcher under test.
ENV = {name: value for name, value in os.environ.items()
       if not re.match(r"RANK$|WORLD_SIZE$|LOCAL_|GROUP_|MASTER_|TORCHELASTIC_|SLURM_|OMPI_|PMIX_|OMP_NUM", name)}


def launch(*args, code=0, **kwargs):
    return mgm("launch", *args, code=code, env=ENV, **kwargs)


def options(run_dir, **more):
    values = {
        "run.dir": str(run_dir),
        "train.max_steps": STEPS,
        "train.global_batch": 4,
        "train.micro_batch": 2,
        "train.threads": 1,
        "checkpoint.every_steps": 3,
        "log.every_steps": 1,
    }
    values.update({key.replace("__", "."): value for key, value in more.items()})
    return sets(values)


# ---- any command ------------------------------------------------------------------------------------


def test_every_rank_runs_the_command_behind_the_dashes():
    done = launch("--nproc", 2, "--", "config", "check", STAGE1)
    assert sorted(done.stdout.splitlines()) == [f"[0] {STAGE1}: ok", f"[1] {STAGE1}: ok"]
    assert done.stderr == ""


def test_options_behind_the_dashes_are_the_commands():
    done = launch("--nproc", 1, "--", "config", "show", "--plain", STAGE1, "--set", "train.seed=77")
    assert "[0]   seed: 77\n" in done.stdout
    assert launch("--nproc", 1, "--", "train", "--help").stdout.startswith("[0] Train what a config says")


def test_exit_code_is_the_ranks_and_config_errors_do_not_start_again(tmp_path):
    config = tmp_path / "wrong.yaml"
    config.write_text("train:\n  sed: 1\n")
    done = launch("--nproc", 2, "--restarts", 3, "--", "config", "check", config, code=2)
    assert re.search(r"launch: rank [01] \(local rank [01] of host \S+, pid \d+\) ended with exit code 2 \(config\) "
                     r"after [\d.]+s; its last lines:\n    \S+wrong.yaml:2:3: train.sed: unknown key", done.stderr)
    assert "not started again: exit code 2 would come back" in done.stderr


@pytest.mark.parametrize("args,text", [
    (["--nproc", "2"], "command"),
    (["--nproc", "0", "--", "train", "x"], "--nproc is 0"),
    (["--", "train", "x"], "--nproc"),
    (["--nproc", "2", "--min-nproc", "3", "--", "train", "x"], "--min-nproc is 3"),
    (["--nproc", "2", "--nnodes", "2", "--", "train", "x"], "--master"),
    (["--nproc", "2", "--grace", "-1", "--", "train", "x"], "--grace"),
])
def test_mistakes_on_the_command_line(args, text):
    assert text in launch(*args, code=2).stderr


def test_help_has_an_example():
    assert "mgm launch --nproc 8 --restarts 3 -- train configs/" in mgm("launch", "--help").stdout


def test_two_hosts():
    with socket.socket() as s:
        s.bind(("", 0))
        port = s.getsockname()[1]
    args = ["--nnodes", "2", "--master", f"127.0.0.1:{port}", "--nproc", "2", "--", "config", "check", STAGE1]
    other = subprocess.Popen([MGM, "launch", "--node-rank", "1", *args], cwd=ROOT, env=ENV, stdout=subprocess.PIPE,
                             text=True)
    first = launch("--node-rank", 0, *args)
    assert sorted(first.stdout.splitlines()) == [f"[0] {STAGE1}: ok", f"[1] {STAGE1}: ok"]
    assert sorted(other.communicate(timeout=60)[0].splitlines()) == [f"[2] {STAGE1}: ok", f"[3] {STAGE1}: ok"]
    assert other.returncode == 0


def test_contradicting_variables_are_named():
    env = {**ENV, "RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    error = mgm("train", STAGE1, code=5, env=env).stderr
    assert error.strip().endswith("error: RANK is 2 but WORLD_SIZE is 2; ranks count from 0")


def test_a_batch_script_without_srun_is_one_rank(tmp_path):
    env = {**ENV, "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2",
           "SLURM_NNODES": "1"}
    done = mgm("train", STAGE1, *options(tmp_path / "run", train__max_steps=1), env=env)
    assert "SLURM_NTASKS is 2 but srun did not start this process" in done.stderr


# ---- training on two ranks --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    run = tmp_path_factory.mktemp("one") / "run"
    mgm("train", STAGE1, *options(run), env=ENV)
    return run


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    run = tmp_path_factory.mktemp("two") / "run"
    launch("--nproc", 2, "--", "train", STAGE1, *options(run))
    return run


def assert_near(run, expected, steps=STEPS):
    """Losses, and the weights they end with: sums in another order, fp32, of which the optimizer's steps see little."""
    lines, others = metrics(run), metrics(expected)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    for a, b in zip(lines, others, strict=True):
        assert a["num_targets"] == b["num_targets"] and abs(a["loss"] - b["loss"]) <= 1e-6 * b["loss"], (a, b)
    near_weights(weights(run), weights(expected), 1e-5)


def test_two_ranks_learn_as_one(one_rank, two_ranks):
    assert_near(two_ranks, one_rank)
    assert {path.name for path in (two_ranks / "logs").iterdir()} == {"rank_0.log", "rank_1.log"}


def test_torchrun(one_rank, tmp_path):
    torchrun = pathlib.Path(sys.executable).parent / "torchrun"
    done = subprocess.run([torchrun, "--standalone", "--nproc-per-node", "2", "--no-python", MGM, "train", STAGE1,
                           *options(tmp_path / "run")], cwd=ROOT, env={**ENV, "OMP_NUM_THREADS": "1"}, text=True,
                          capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 ranks (torchrun)" in done.stderr
    assert_near(tmp_path / "run", one_rank)


@pytest.fixture(scope="session")  # before the runs that others are compared with
def open_mpi():
    if shutil.which("mpirun"):
        return
    missing = "Open MPI is not installed (apt-get install openmpi-bin)"
    assert not required("mpi"), f"MGM_TEST_REQUIRE=mpi, but {missing}"
    pytest.skip(f"NOT RUN: {missing}")


def test_open_mpi(open_mpi, one_rank, tmp_path):
    done = subprocess.run(["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", MGM, "train", STAGE1,
                           *options(tmp_path / "run")], cwd=ROOT, env=ENV, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 ranks (openmpi)" in done.stderr
    assert_near(tmp_path / "run", one_rank)


@pytest.mark.parametrize("require,outcome", [("", "1 skipped"), ("gpu,mpi", "1 error")])
def test_what_is_required_is_not_skipped(tmp_path, require, outcome):
    """Without mpirun, that is with an empty PATH."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", f"{__file__}::test_open_mpi"],
                          cwd=ROOT, env={**ENV, "PATH": str(tmp_path), "MGM_TEST_REQUIRE": require}, text=True,
                          capture_output=True, timeout=60)
    assert done.stdout.splitlines()[-1].startswith(outcome), done.stdout
    assert "Open MPI is not installed" in done.stdout
    assert ("MGM_TEST_REQUIRE=mpi, but" in done.stdout) == (require != "")


# ---- every mode, up to eight ranks ------------------------------------------------------------------
STAGE2 = "configs/tiny/stage2.yaml"
EIGHT = {"model__projector__path": "", "model__llm__num_layers": 2, "train__global_batch": 16, "train__micro_batch": 1,
         "optimizer__clip_norm": 1, "data__workers": 1, "log__tensorboard": False}


def cases(short, full):
    """(ranks, mode, ranks of a shard group)"""
    return [pytest.param(*case, id=f"{case[1]}_{case[0]}" + (f"_by_{case[2]}" if case[2] else ""))
            for case in short + (full if FULL else [])]


def train_as(run, world, mode, shard=0, **more):
    values = options(run, **{**EIGHT, **more}, dist__mode=mode, dist__shard_size=shard, checkpoint__every_steps=0)
    launch("--nproc", world, "--", "train", STAGE2, *values)
    return run


@pytest.fixture(scope="module")
def ten_steps(tmp_path_factory):
    return train_as(tmp_path_factory.mktemp("ten") / "run", 1, "replicate", train__max_steps=10)


@pytest.mark.parametrize("world,mode,shard", cases(
    [(4, "hybrid", 2), (8, "zero3", 0)],
    [(8, "hybrid", 4), (8, "hybrid", 2), (8, "hybrid", 8), (8, "zero2", 0), (8, "zero1", 0), (8, "replicate", 0),
     (4, "zero3", 0)]))
def test_many_ranks_learn_as_one(ten_steps, tmp_path, world, mode, shard):
    assert_near(train_as(tmp_path / "run", world, mode, shard, train__max_steps=10), ten_steps, 10)
    assert len(list((tmp_path / "run/checkpoints/step_10").glob("rank_*.safetensors"))) == world


TEN_OF_24 = {"train__max_steps": 10, "train__global_batch": 24}  # of which three ranks can have parts


@pytest.fixture(scope="module")
def ten_steps_of_24(tmp_path_factory):
    return train_as(tmp_path_factory.mktemp("ten_of_24") / "run", 1, "replicate", **TEN_OF_24)


@pytest.mark.parametrize("world,mode,shard", cases([(3, "zero3", 0)], [(3, "zero2", 0), (2, "zero3", 0)]))
def test_a_batch_of_24_in_two_or_three_parts(ten_steps_of_24, tmp_path, world, mode, shard):
    """Three ranks cut the weights elsewhere than two, four and eight do."""
    assert_near(train_as(tmp_path / "run", world, mode, shard, **TEN_OF_24), ten_steps_of_24, 10)


# P: a record with a picture, t: text only. Two steps of eight; a round is two samples of rank 0, then two of rank 1.
ROUNDS = ["PPtt", "ttPP"] + ["PPPP", "tttt"]


@pytest.fixture
def mixed(tmp_path):
    """Settings of a run that takes the embedded records in the order of ROUNDS, over and over."""
    records = json.loads((ROOT / "data/embedded/stage2_train.json").read_text())
    of_kind = {"P": iter([r for r in records if "image" in r]), "t": iter([r for r in records if "image" not in r])}
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps([next(of_kind[kind]) for kind in "".join(ROUNDS)]))
    return {"data__sources": [{"annotations": str(path), "images": str(ROOT / "data/embedded/images")}],
            "data__shuffle": False, "data__grouping": "none", "train__global_batch": 8, "train__micro_batch": 2}


def test_ranks_without_pictures_learn_as_one(mixed, tmp_path):
    """A rank that skips the encoders in a round still takes part in all that the others do, with an embedding that is
    the head's weight too and blocks that run again in backward. The one rank keeps its activations."""
    values = {**mixed, "train__max_steps": 10, "model__llm__tie_embeddings": True}
    one = train_as(tmp_path / "one", 1, "replicate", **values)
    run = train_as(tmp_path / "run", 2, "zero3", **values, train__recompute=[{"match": "model.layers.*"}])
    assert_near(run, one, 10)
    told = launch("--nproc", 2, "--", "replay", run, "--step", 1).stderr
    pictures = re.findall(r"rank (\d), micro-batch (\d): \d+ tokens, (\d) pictures", told)
    assert sorted(pictures) == [("0", "1", "2"), ("0", "2", "0"), ("1", "1", "0"), ("1", "2", "2")], told
    assert "1 steps equal to metrics.jsonl to the bit, 0 not" in told
    assert [(line["images"], line["text_only"]) for line in metrics(run)] == [(4, 4)] * 10


STRICT = {"train__max_steps": 4, "dist__reduction": "strict", "dist__virtual_shards": 16, "schedule__warmup_ratio": 0}


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    run = train_as(tmp_path_factory.mktemp("strict") / "run", 1, "replicate", **STRICT)
    return run, weights(run)


@pytest.mark.parametrize("world,mode,shard", cases(
    [(2, "zero1", 0), (2, "zero3", 0), (4, "zero2", 0), (4, "hybrid", 2)],
    [(2, "replicate", 0), (2, "zero2", 0), (4, "replicate", 0), (4, "zero1", 0), (4, "zero3", 0), (8, "zero3", 0),
     (8, "hybrid", 4)]))
def test_strict_ranks_end_with_the_bits_of_one(strict, tmp_path, world, mode, shard):
    one, expected = strict
    run = train_as(tmp_path / "run", world, mode, shard, **STRICT)
    assert metrics(run) == metrics(one)
    same_weights(weights(run), expected)
    assert mgm("checkpoint", "diff", run, one).stdout.splitlines()[-1] == "equal"  # moments too


# ---- stopped, killed and started again --------------------------------------------------------------


def interrupt(run, text, act, *launch_options, times=1, more=(), **values):
    """Starts two ranks and calls act(launcher, line) when a line with `text` comes, `times` times, but once until the
    launcher starts them again; (exit code, errors)."""
    process = subprocess.Popen([MGM, "launch", "--nproc", "2", *launch_options, "--", "train", STAGE1,
                                *options(run, **values), *more], cwd=ROOT, env=ENV, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    seen, acted, armed = [], 0, True
    for line in process.stderr:
        seen.append(line)
        armed = armed or line.startswith("restart ")
        if text in line and armed and acted < times:
            acted, armed = acted + 1, False
            act(process, line)
    assert acted == times, "".join(seen)
    return process.wait(timeout=120), "".join(seen)


def ranks_of(launcher):
    children = pathlib.Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(pid) for pid in children]


@pytest.mark.parametrize("sig,code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_stop_signal_saves_on_all_ranks_and_the_run_goes_on(two_ranks, tmp_path, sig, code):
    run = tmp_path / "run"
    got, errors = interrupt(run, "step 4/", lambda launcher, _: launcher.send_signal(sig))
    assert got == code, errors
    steps = len(metrics(run))
    assert 4 <= steps < STEPS and (run / "checkpoints" / f"step_{steps}").is_dir()
    launch("--nproc", 2, "--", "train", STAGE1, *options(run))
    assert (run / "metrics.jsonl").read_bytes() == (two_ranks / "metrics.jsonl").read_bytes()


def test_killed_rank_is_named_and_all_start_again_from_the_newest_checkpoint(two_ranks, tmp_path):
    run = tmp_path / "run"
    victims = []

    def kill(launcher, _):
        victims.append(ranks_of(launcher)[1])
        os.kill(victims[0], signal.SIGKILL)

    code, errors = interrupt(run, "step 5/", kill, "--restarts", "1")
    assert code == 0, errors
    assert f"pid {victims[0]}) was killed by SIGKILL" in errors and "restart 1 of 1" in errors
    # The other rank has its say, with the last thing that is known, before the grace is over.
    assert re.search(r"rank 1 on \S+ has given no sign of life .* at step \d+, phase \w+, last collective: '", errors), errors
    assert "--grace" not in errors
    assert (run / "metrics.jsonl").read_bytes() == (two_ranks / "metrics.jsonl").read_bytes()


def test_a_rank_that_is_lost_twice_is_left_out_and_one_ends_with_the_bits_of_two(tmp_path):
    # So many steps that both kills come long before the end.
    values = {"train__max_steps": 60, "train__micro_batch": 1, "dist__mode": "zero3", "dist__reduction": "strict",
              "dist__virtual_shards": 4}
    never_killed, run = tmp_path / "never_killed", tmp_path / "run"
    launch("--nproc", 2, "--", "train", STAGE1, *options(never_killed, **values))
    victims = []

    def lose_rank_1(launcher, _):
        victims.append(ranks_of(launcher)[1])
        os.kill(victims[-1], signal.SIGKILL)

    # The other one would wait for a sign of life of rank 1: it is not what this is about.
    code, errors = interrupt(run, "checkpoint at step ", lose_rank_1, "--restarts", "3", "--min-nproc", "1", "--grace", "1",
                             times=2, **values)
    assert code == 0, errors
    assert all(f"pid {victim}) was killed by SIGKILL" in errors for victim in victims), errors
    host = socket.gethostname()
    assert f"local rank 1 of {host} failed 2 times and is left out: 1 ranks on {host} from here on" in errors
    starts = json.loads((run / "run.json").read_text())["starts"]
    assert [start["ranks"] for start in starts] == [2, 2, 1] and [start["restart"] for start in starts] == [0, 1, 2]
    assert 0 == starts[0]["from_step"] < starts[1]["from_step"] < starts[2]["from_step"] < 60, starts
    assert (run / "metrics.jsonl").read_bytes() == (never_killed / "metrics.jsonl").read_bytes()
    same_weights(weights(run), weights(never_killed))
    assert mgm("checkpoint", "diff", run, never_killed).stdout.splitlines()[-1] == "equal"  # moments too


def test_killed_launcher_leaves_no_ranks(tmp_path):
    pids = []

    def kill(launcher, _):
        pids.extend(ranks_of(launcher))
        launcher.kill()

    interrupt(tmp_path / "run", "step 2/", kill)
    assert len(pids) == 2
    stats = [pathlib.Path(f"/proc/{pid}/stat") for pid in pids]
    for _ in range(300):  # the kernel's signal is there at once, their end takes as long as it takes
        alive = [stat for stat in stats if stat.exists() and ") Z " not in stat.read_text()]
        if not alive:
            return
        time.sleep(0.1)
    pytest.fail(f"{alive} live on")
