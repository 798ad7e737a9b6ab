#!/usr/bin/env python3
"""Exposed communication from the timeline of a run.

    mgm train CONFIG --set log.profile_first=10 --set log.profile_steps=2     # on every rank
    tests/bench/comm/exposed.py RUN_DIR/trace_rank_0.json ...

Communication is exposed while an NCCL kernel runs and nothing else does: no other kernel, no copy. Open the same file in Perfetto or
chrome://tracing to see where.
"""
import argparse
import json
import re


def union(intervals):
    """Disjoint intervals that cover the same points."""
    out = []
    for begin, end in sorted(intervals):
        if out and begin <= out[-1][1]:
            out[-1][1] = max(out[-1][1], end)
        else:
            out.append([begin, end])
    return out


def length(intervals):
    return sum(end - begin for begin, end in intervals)


def overlap(a, b):
    """Length of the intersection of two unions."""
    total, j = 0, 0
    for begin, end in a:
        while j < len(b) and b[j][1] <= begin:
            j += 1
        k = j
        while k < len(b) and b[k][0] < end:
            total += min(end, b[k][1]) - max(begin, b[k][0])
            k += 1
    return total


def span(events):
    return union((e["ts"], e["ts"] + e["dur"]) for e in events)


def read(path):
    """Kernels of the timeline, those of NCCL among them, its length and the exposed part of it, in us."""
    trace = json.load(open(path))["traceEvents"]
    kernels = [e for e in trace if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and "dur" in e]
    if not kernels:
        raise SystemExit(f"{path}: holds no GPU kernel")
    nccl = [e for e in kernels if "nccl" in e["name"].lower()]
    compute = span(e for e in kernels if "nccl" not in e["name"].lower())
    total = max(e["ts"] + e["dur"] for e in kernels) - min(e["ts"] for e in kernels)
    communication = span(nccl)
    return kernels, nccl, compute, communication, total, length(communication) - overlap(communication, compute)


def exposed_share(path):
    *_, total, exposed = read(path)
    return exposed / total


def report(path):
    kernels, nccl, compute, communication, total, exposed = read(path)
    busy = length(span(kernels))
    print(f"{path}: {total / 1e3:.1f} ms of timeline")
    print(f"  compute {length(compute) / 1e3:.1f} ms, communication {length(communication) / 1e3:.1f} ms, "
          f"exposed {exposed / 1e3:.1f} ms = {100 * exposed / total:.2f} %, idle {100 * (total - busy) / total:.2f} %")
    kinds = {}
    for e in nccl:
        kind = re.search(r"nccl\w*?_?(AllGather|ReduceScatter|AllReduce|Broadcast|SendRecv)", e["name"])
        kinds.setdefault(kind.group(1) if kind else e["name"][:40], []).append(e["dur"])
    for kind, durations in sorted(kinds.items()):
        print(f"  {kind:14} {len(durations):5} kernels, {sum(durations) / 1e3:8.1f} ms, mean {sum(durations) / len(durations):8.1f} us")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("traces", nargs="+")
    for name in parser.parse_args().traces:
        report(name)
