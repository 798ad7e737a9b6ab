"""Ranks of a tiny run as processes over Gloo, without a launcher; and what their runs left, beside another's."""
import contextlib
import fcntl
import os
import random
import re
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from mgm_binary import MGM, ROOT, mgm, sets


def free_port():
    """Below those that the system gives to connections, and nobody listens on it now."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def start(run, world, config="configs/tiny/stage1.yaml", args=(), port=None, **values):
    """One process per rank; returns them. `a__b=1` is the setting a.b."""
    options = {"run.dir": str(run), "train.max_steps": 400, "train.global_batch": 12, "train.micro_batch": 2,
               "train.threads": 1, "log.every_steps": 1, "checkpoint.every_minutes": 0, "checkpoint.at_end": False,
               "dist.mode": "zero2", "data.workers": 1}
    options.update({key.replace("__", "."): value for key, value in values.items()})
    port = port or free_port()
    ranks = []
    for rank in range(world):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank),
               "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
               "OMP_NUM_THREADS": "1"}
        ranks.append(subprocess.Popen([str(MGM), "train", config, *sets(options), *args], cwd=ROOT, env=env,
                                      text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    return ranks


def steps_told(run):
    """Of how many steps the log of rank 0 tells, restarts included."""
    log = run / "logs" / "rank_0.log"
    return len(re.findall(r" step \d+/", log.read_text())) if log.exists() else 0


def wait_for_steps(run, ranks, steps, seconds=120):
    """Returns when steps_told() has come to so many."""
    until = time.time() + seconds
    while time.time() < until:
        if steps_told(run) >= steps:
            return
        if any(rank.poll() is not None for rank in ranks):
            pytest.fail(f"a rank ended: {errors_of(ranks)}")
        time.sleep(0.05)
    pytest.fail("the run did not get going")


def errors_of(ranks):
    """Standard error of every rank, those that still run being killed."""
    for rank in ranks:
        rank.kill()
    return [rank.communicate()[1] for rank in ranks]


def ends(ranks, seconds):
    """Standard error of every rank, all of which must end in time."""
    until = time.time() + seconds
    out = []
    try:
        for rank in ranks:
            out.append(rank.communicate(timeout=max(1, until - time.time()))[1])
    finally:
        for rank in ranks:
            rank.kill()
    return out


def finish(run, world, seconds=240, **values):
    """A run of start() that every rank must end well; returns its folder."""
    ranks = start(run, world, **values)
    errors = ends(ranks, seconds)
    assert [rank.returncode for rank in ranks] == [0] * world, errors
    return run


def bytes_read(run, rank):
    """Of the weights that a rank started from, as its log tells."""
    number, unit = re.search(r"weights: \d+ tensors, ([\d.]+) (\S+) from", (run / f"logs/rank_{rank}.log").read_text()).groups()
    return float(number) * {"KiB": 2**10, "MiB": 2**20}[unit]


@contextlib.contextmanager
def held(path):
    """Who opens the file waits, as on a file server that does not answer: for this lease to end, 45 s at most (fs.lease-break-time)."""
    told = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w") as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            yield
    finally:
        signal.signal(signal.SIGIO, told)


# ---- weights ------------------------------------------------------------------------------------------------
def weights(run, *args):
    """Every weight of a run's newest checkpoint, or of a part of it, as mgm export puts the ranks' shards together."""
    folder = run.parent / f"{run.name}_export"
    mgm("export", run, "--out", folder, "--replace", *args)
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        part = load_file(path)
        assert not tensors.keys() & part.keys()
        tensors.update(part)
    return tensors


def same_weights(got, want):
    assert got.keys() == want.keys() and len(want) > 0
    differ = [name for name in want if got[name].dtype != want[name].dtype or not np.array_equal(got[name], want[name])]
    assert not differ, f"{len(differ)} of {len(want)} weights: {differ[:5]}"


def near_weights(got, want, bound):
    """Relative L2 of every tensor; NaN is never near."""
    assert got.keys() == want.keys() and len(want) > 0
    for name in want:
        a, b = (tensors[name].astype(np.float64) for tensors in (got, want))
        assert a.shape == b.shape, name
        distance, size = np.linalg.norm(a - b), np.linalg.norm(b)
        assert distance <= bound * size, f"{name}: {distance / size:.3e} of its norm"
