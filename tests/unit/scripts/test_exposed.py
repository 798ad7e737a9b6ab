"""tests/bench/comm/exposed.py on timelines of a few kernels whose answer is worked out by hand."""
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "tests/bench/comm/exposed.py"
sys.path.insert(0, str(SCRIPT.parent))
from exposed import exposed_share, read  # noqa: E402

REDUCE = "ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
GATHER = "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
COMPUTE, OTHER, COMM, COMM2 = 7, 8, 20, 21  # streams


def kernel(begin, end, stream, name="gemm", kind="kernel"):
    return {"ph": "X", "cat": kind, "name": name, "ts": begin, "dur": end - begin, "pid": 0, "tid": stream}


# name: (events, compute, communication, exposed, length of the timeline), in us.
CASES = {
    "no overlap": ([kernel(0, 100, COMPUTE), kernel(100, 130, COMM, GATHER)], 100, 30, 30, 130),
    "hidden": ([kernel(0, 100, COMPUTE), kernel(10, 60, COMM, REDUCE)], 100, 50, 0, 100),
    "partly, its end": ([kernel(0, 100, COMPUTE), kernel(80, 140, COMM, REDUCE)], 100, 60, 40, 140),
    "partly, its begin": ([kernel(30, 100, COMPUTE), kernel(5, 50, COMM, GATHER)], 70, 45, 25, 95),
    # 20-30 and 60-90 of 20-90 are alone; the second compute kernel begins in it, the third behind it.
    "around kernels": ([kernel(0, 20, COMPUTE), kernel(30, 60, COMPUTE), kernel(95, 100, COMPUTE), kernel(20, 90, COMM, GATHER)],
                       55, 70, 40, 100),
    # Either stream hides: together they compute 0-50, and the two kernels of 10-30 count once.
    "two streams of compute": ([kernel(0, 30, COMPUTE), kernel(10, 50, OTHER), kernel(20, 70, COMM, REDUCE)], 50, 50, 20, 70),
    # Two collectives at once are one stretch of communication: 40-100 but for 60-70.
    "two streams of communication": ([kernel(0, 40, COMPUTE), kernel(60, 70, COMPUTE), kernel(30, 80, COMM, REDUCE),
                                      kernel(50, 100, COMM2, GATHER)], 50, 70, 50, 100),
    # A copy to the host beside it hides as a kernel does.
    "copies": ([kernel(0, 10, COMPUTE), kernel(10, 30, COMM, GATHER), kernel(15, 25, OTHER, "Memcpy DtoH", "gpu_memcpy")],
               20, 20, 10, 30),
    "several, in any order": ([kernel(200, 260, COMM, REDUCE), kernel(100, 150, COMM, GATHER), kernel(0, 120, COMPUTE),
                               kernel(210, 230, COMPUTE)], 140, 110, 30 + 40, 260),
    "no communication": ([kernel(5, 25, COMPUTE)], 20, 0, 0, 20),
}
# What a profiler writes beside kernels: no time of the device.
BESIDE = [{"ph": "X", "cat": "cpu_op", "name": "nccl:all_gather", "ts": -500, "dur": 3000, "pid": 1, "tid": 1},
          {"ph": "X", "cat": "gpu_user_annotation", "name": "nccl:_all_gather_base", "ts": -40, "dur": 900, "pid": 0, "tid": COMM},
          {"ph": "M", "name": "process_name", "pid": 0}, {"ph": "s", "cat": "ac2g", "name": "ac2g", "ts": 4, "pid": 0}]


def write(path, events):
    path.write_text(json.dumps({"schemaVersion": 1, "traceEvents": BESIDE + events}))
    return path


@pytest.mark.parametrize("name", CASES)
def test_exposed_of(name, tmp_path):
    events, compute, communication, exposed, total = CASES[name]
    trace = write(tmp_path / "trace.json", events)
    kernels, nccl, compute_spans, communication_spans, length, found = read(trace)
    assert len(kernels) == len(events) and len(nccl) == sum("nccl" in e["name"] for e in events)
    assert sum(end - begin for begin, end in compute_spans) == compute
    assert sum(end - begin for begin, end in communication_spans) == communication
    assert (length, found) == (total, exposed)
    assert exposed_share(trace) == pytest.approx(exposed / total)


def test_report(tmp_path):
    events = CASES["two streams of communication"][0] + [kernel(1100, 2000, COMPUTE)]
    trace = write(tmp_path / "trace.json", [{**e, "ts": 1000 * e["ts"], "dur": 1000 * e["dur"]} for e in events])
    text = subprocess.run([sys.executable, SCRIPT, trace], check=True, capture_output=True, text=True).stdout
    assert text.splitlines() == [
        f"{trace}: 2000.0 ms of timeline",
        "  compute 950.0 ms, communication 70.0 ms, exposed 50.0 ms = 2.50 %, idle 50.00 %",
        "  AllGather          1 kernels,     50.0 ms, mean  50000.0 us",
        "  ReduceScatter      1 kernels,     50.0 ms, mean  50000.0 us"]


def test_a_timeline_without_a_gpu_is_refused(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, write(tmp_path / "cpu.json", [])], capture_output=True, text=True)
    assert done.returncode == 1 and f"{tmp_path}/cpu.json: holds no GPU kernel" in done.stderr
