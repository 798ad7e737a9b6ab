"""`mgm doctor` as a job of two ranks on GPUs: right sums and the rate of the link, and two ranks that share a GPU. Needs two
GPUs; skipped loudly elsewhere."""
import os
import pathlib
import re
import socket
import subprocess
import sys

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1] / "e2e"), str(pathlib.Path(__file__).resolve().parent)]
from gpus import need  # noqa: E402
from mgm_binary import MGM, ROOT, sets  # noqa: E402
from ranks import free_port  # noqa: E402

HOST = re.escape(socket.gethostname())


def doctor(folder, **env):
    """Exit codes of both ranks and the list that rank 0 prints."""
    options = sets({"run.dir": str(folder / "run"), "train.device": "cuda", "train.global_batch": 16, "train.micro_batch": 4,
                    "dist.mode": "zero2", "data.workers": 1})
    port, ranks = free_port(), []
    for rank in range(2):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        ranks.append(subprocess.Popen([str(MGM), "doctor", "configs/tiny/stage1.yaml", "--wait", "60", *options], cwd=ROOT,
                                      env={**os.environ, **place, **env}, text=True, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE))
    try:
        out = [rank.communicate(timeout=180) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert out[1][0] == "", out  # one list
    return [rank.returncode for rank in ranks], out[0][0], out


def test_two_gpus_are_healthy(tmp_path):
    need(2)
    codes, report, out = doctor(tmp_path)
    assert codes == [0, 0], out
    assert not re.search(r"^FAIL", report, re.M), report
    assert re.search(r"^ok +ranks +all agree on .*the CUDA driver, NCCL\b", report, re.M), report
    # Over Gloo of both, over NCCL of both, and over NCCL again for the shards.
    assert re.search(r"^ok +links +right sums, gathers and exchanges in 3 groups$", report, re.M), report
    rates = re.search(r"^(ok|warn) +links +(\S+) to (\S+) GB/s from rank to rank \(GPUs of one host, expected 15\); slowest: "
                      r"rank [01]\b", report, re.M)
    assert rates, report
    # No GPU of today is on a slower bus than 16 lanes of PCIe 3 through the host's memory. Below 15 is a warning.
    assert 1 < float(rates[2]) <= float(rates[3]), report
    assert (rates[1] == "ok") == (float(rates[2]) >= 15), report


def test_two_ranks_on_one_gpu_are_named(tmp_path):
    need(2)
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    codes, report, out = doctor(tmp_path, CUDA_VISIBLE_DEVICES=first)
    assert codes == [5, 5], out
    assert re.search(rf"^FAIL +ranks +rank 0 on {HOST} and rank 1 on {HOST} are on one GPU: GPU-[0-9a-f]{{32}}", report,
                     re.M), report
    # NCCL would wait for itself.
    assert re.search(r"^warn +links +not tried, because of the failures above", report, re.M), report
