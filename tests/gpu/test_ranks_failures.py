"""What ends a rank on a GPU ends all of them with its name: a kill, a hang inside NCCL, memory that runs out. Needs
two GPUs; skipped loudly elsewhere."""
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1] / "e2e"), str(pathlib.Path(__file__).resolve().parent)]
import ranks as ranks_of  # noqa: E402
from gpus import need  # noqa: E402
from mgm_binary import ROOT, mgm  # noqa: E402
from ranks import ends, wait_for_steps  # noqa: E402

STEP_LIMIT = 8
SILENCE = 15  # the default of dist.timeout_s.silence
# Seconds beyond both within which the rank that is left has ended. STEP_LIMIT shows the hang and listening for a third of the
# silence who does; heartbeats and looks are a second apart each, and a process with a GPU takes seconds to go.
SLACK = 10


def start(run, **values):
    options = {"config": "configs/tiny/stage2.yaml", "train__device": "cuda", "train__max_steps": 100000,
               "train__global_batch": 16, "train__micro_batch": 4, "model__projector__path": "", "dist__mode": "zero3",
               "log__tensorboard": False}
    return ranks_of.start(run, 2, **{**options, **values})


def log_of(run, rank=0):
    return (run / "logs" / f"rank_{rank}.log").read_text()


def threads_of(pid):
    """Where the threads of a process stand in the kernel."""
    said = ""
    for task in sorted(pathlib.Path(f"/proc/{pid}/task").glob("*")):
        for name in ("comm", "wchan", "syscall", "stack"):
            try:
                said += (task / name).read_text().strip() + " | "
            except OSError as error:
                said += f"{name}: {error.strerror} | "
        said += "\n"
    return said


def test_a_killed_rank_ends_the_other(tmp_path):
    need(2)
    run = tmp_path / "run"
    ranks = start(run)
    wait_for_steps(run, ranks, 3)
    ranks[1].send_signal(signal.SIGKILL)
    errors = ends(ranks, 90)
    assert ranks[0].returncode == 5, errors
    assert re.search(r"rank 1 on \S+ has given no sign of life", log_of(run)), log_of(run)


def test_a_rank_that_hangs_is_named(tmp_path):
    """Rank 0 waits inside NCCL, which does not return by itself."""
    need(2)
    run = tmp_path / "run"
    ranks = start(run, dist__timeout_s__step=STEP_LIMIT)
    wait_for_steps(run, ranks, 3)
    ranks[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        ranks[0].communicate(timeout=90)
        seconds = time.monotonic() - began
        assert ranks[0].returncode == 5
        assert seconds < STEP_LIMIT + SILENCE + SLACK, seconds
    finally:
        ranks[1].send_signal(signal.SIGCONT)
    assert re.search(r"rank 1 on \S+ has", log_of(run)), log_of(run)
    try:  # and when it goes on, nobody is there any more
        ranks[1].communicate(timeout=90)
    except subprocess.TimeoutExpired:
        pytest.fail("rank 1 goes on for ever:\n" + threads_of(ranks[1].pid) + log_of(run, 1))
    finally:
        ranks[1].kill()
    assert ranks[1].returncode == 5
    found = mgm("blame", run).stdout
    assert re.search(r"rank 1\b", found.splitlines()[0]) and not re.search(r"rank 0 has not", found), found


HOG = """
import sys, torch
torch.zeros(1, device="cuda")
print("ready", flush=True)
sys.stdin.readline()
taken = []
for size in (1 << 30, 1 << 26, 1 << 21):
    while True:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            break
print("taken", flush=True)
sys.stdin.readline()
"""


def test_memory_that_runs_out_on_one_rank_is_told_by_both(tmp_path):
    """Another process takes what is left of the second GPU while a step is under way; later samples are longer."""
    need(2)
    words = "A photo of a small red house beside the river . " * 50
    records = [{"id": str(i), "conversations": [{"from": "human", "value": "Say it."},
                                                {"from": "gpt", "value": words if i > 400 else "A house ."}]}
               for i in range(1600)]
    data = tmp_path / "data.json"
    data.write_text(json.dumps(records))
    run = tmp_path / "run"
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "1"}
    hog = subprocess.Popen([sys.executable, "-c", HOG], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    ranks = []
    try:
        assert hog.stdout.readline() == "ready\n"
        ranks = start(run, train__max_steps=100, data__shuffle=False, data__grouping="none", dist__mode="zero2",
                      model__llm__hidden_size=1024, model__llm__intermediate_size=4096, model__llm__num_heads=16,
                      model__llm__num_kv_heads=16, train__micro_batch=8,
                      data__sources=f"[{{annotations: {data}, images: {ROOT / 'data/embedded/images'}}}]")
        wait_for_steps(run, ranks, 3)
        ranks[1].send_signal(signal.SIGSTOP)
        hog.stdin.write("\n")
        hog.stdin.flush()
        assert hog.stdout.readline() == "taken\n"
        ranks[1].send_signal(signal.SIGCONT)
        errors = ends(ranks, 90)
    finally:
        hog.kill()
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [1, 1], errors
    assert re.search(r"error: out of GPU memory: CUDA out of memory\. Tried to allocate", errors[1]), errors
    assert re.search(r"rank 1 on \S+ failed at step \d+.*: out of GPU memory", errors[0]), errors
    for error in errors:
        assert "a smaller train.micro_batch" in error, errors
