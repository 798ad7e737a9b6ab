"""Several ranks as processes over Gloo: whatever happens to one ends all, with one sentence and the right code."""
import json
import pathlib
import re
import resource
import signal
import time

import pytest

from mgm_binary import ROOT, metrics, mgm
from ranks import ends, free_port, start, wait_for_steps


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_rank_ends_the_job_and_is_named(tmp_path, victim):
    run = tmp_path / "run"
    ranks = start(run, 3)
    wait_for_steps(run, ranks, 3)
    ranks[victim].send_signal(signal.SIGKILL)
    errors = ends(ranks, 60)
    for rank, process in enumerate(ranks):
        assert process.returncode == (-9 if rank == victim else 5), errors[rank]
        assert "frame #" not in errors[rank], errors[rank]  # c10d's warnings come without stacks
    logs = "".join((run / "logs" / f"rank_{r}.log").read_text() for r in range(3) if r != victim)
    if victim == 0:
        assert "has not answered" in logs or "failed" in logs
    else:
        assert re.search(rf"rank {victim} on \S+ has given no sign of life", logs), logs
    found = mgm("blame", str(run)).stdout
    assert f"rank {victim} left no record" in found or f"rank {victim}" in found.splitlines()[0]


def test_a_stopped_rank_is_a_hang_with_a_name(tmp_path):
    run = tmp_path / "run"
    ranks = start(run, 2, dist__timeout_s__step=4)
    wait_for_steps(run, ranks, 3)
    ranks[1].send_signal(signal.SIGSTOP)  # heartbeats stop too
    try:
        until = time.time() + 60
        while ranks[0].poll() is None and time.time() < until:
            time.sleep(0.1)
        assert ranks[0].returncode == 5
    finally:
        ranks[1].send_signal(signal.SIGCONT)
    ends(ranks, 60)
    log = (run / "logs" / "rank_0.log").read_text()
    assert re.search(r"rank 1 on \S+ has", log), log


def test_a_second_job_on_the_same_port_is_refused_and_leaves_the_first_alone(tmp_path):
    port = free_port()
    first = start(tmp_path / "first", 2, port=port, train__max_steps=30, checkpoint__at_end=True)
    wait_for_steps(tmp_path / "first", first, 1)
    errors = ends(start(tmp_path / "second", 2, port=port), 60)
    assert re.search(rf"127.0.0.1:{port}: .*address already in use", errors[0]), errors
    assert f"rank 1 of this run has already reported at 127.0.0.1:{port}: another job has the same" in errors[1]
    assert ends(first, 120) and [rank.returncode for rank in first] == [0, 0]
    assert len(metrics(tmp_path / "first")) == 30


def test_a_bad_sample_on_one_rank_ends_all_with_its_name(tmp_path):
    records = json.loads((ROOT / "data/embedded/stage1_train.json").read_text())
    records[5]["image"] = "not_there.png"
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(records))
    run = tmp_path / "run"
    source = json.dumps([{"annotations": str(bad), "images": str(ROOT / "data/embedded/images")}])
    ranks = start(run, 3, data__sources=source)
    errors = ends(ranks, 90)
    assert [rank.returncode for rank in ranks] == [3, 3, 3], errors
    assert sum("not_there.png" in error for error in errors) >= 1
    assert "not_there.png" in mgm("blame", str(run)).stdout.splitlines()[0]


def test_a_batch_that_ranks_cannot_share_is_refused_before_weights_are_made(tmp_path):
    run = tmp_path / "run"
    ranks = start(run, 2, train__micro_batch=12)
    errors = ends(ranks, 60)
    assert [rank.returncode for rank in ranks] == [2, 2], errors
    # A rank that meets it second is silent on its console: the first rank says it for all.
    for text in [errors[0]] + [(run / f"logs/rank_{rank}.log").read_text() for rank in range(2)]:
        assert "train.global_batch 12 does not divide into 2 ranks with train.micro_batch 12; nearest global batches: 24" in text
        assert "weights:" not in text


def test_a_rank_without_memory_ends_all_with_what_it_wanted(tmp_path):
    run = tmp_path / "run"
    ranks = start(run, 2)
    wait_for_steps(run, ranks, 3)
    held = int(re.search(r"VmData:\s+(\d+)", pathlib.Path(f"/proc/{ranks[1].pid}/status").read_text())[1]) * 1024
    resource.prlimit(ranks[1].pid, resource.RLIMIT_DATA, (held // 2, held // 2))
    errors = ends(ranks, 60)
    assert [rank.returncode for rank in ranks] == [1, 1], errors
    assert re.search(r"rank 1 on \S+ failed at step \d+, phase step, last collective: '.+': .*can't allocate memory: "
                     r"you tried to allocate \d+ bytes", errors[0]), errors
    assert re.search(r"rank 1 on \S+ failed", mgm("blame", str(run)).stdout)


def test_sigterm_to_one_rank_saves_and_stops_all(tmp_path):
    run = tmp_path / "run"
    ranks = start(run, 2)
    wait_for_steps(run, ranks, 3)
    ranks[1].send_signal(signal.SIGTERM)
    errors = ends(ranks, 60)
    assert [rank.returncode for rank in ranks] == [143, 143], errors
    steps = [line["step"] for line in metrics(run)]
    assert [int(p.name[5:]) for p in (run / "checkpoints").iterdir()] == [steps[-1]]


def test_preemption_notice_saves_and_goes_on_later(tmp_path):
    run = tmp_path / "run"
    ranks = start(run, 2, train__max_steps=30)
    wait_for_steps(run, ranks, 3)
    ranks[0].send_signal(signal.SIGUSR1)
    errors = ends(ranks, 60)
    assert [rank.returncode for rank in ranks] == [138, 138], errors
    ranks = start(run, 2, train__max_steps=30)
    errors = ends(ranks, 120)
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    assert [line["step"] for line in metrics(run)] == list(range(1, 31))


def test_a_new_start_puts_the_records_of_the_failure_before_away(tmp_path):
    """A record of an attempt that is over must not be taken for one of the next."""
    run = tmp_path / "run"
    ranks = start(run, 2, checkpoint__every_steps=1)
    wait_for_steps(run, ranks, 3)
    ranks[1].send_signal(signal.SIGKILL)
    ends(ranks, 60)
    assert [path.name for path in (run / "flight").iterdir()] == ["rank_0.json"]
    first = mgm("blame", str(run)).stdout
    assert "started again" not in first
    again = start(run, 2, checkpoint__every_steps=1)
    wait_for_steps(run, again, 6)
    assert not (run / "flight").exists()
    told = mgm("blame", str(run)).stdout
    assert told == "The run has been started again since, and no rank has failed; before that:\n" + first
    again[1].send_signal(signal.SIGTERM)
    errors = ends(again, 60)
    assert [rank.returncode for rank in again] == [143, 143], errors
    assert not (run / "flight").exists() and (run / "flight_before" / "rank_0.json").exists()
