"""Several ranks as processes over Gloo: whatever happens to one ends all, with one sentence and the right code."""
import json
import pathlib
import re
import resource
import shutil
import signal
import socket
import time

import pytest

from mgm_binary import ROOT, metrics, mgm
from ranks import ends, free_port, held, start, wait_for_steps


HOST = re.escape(socket.gethostname())
SILENCE = 15  # the default of dist.timeout_s.silence
# Seconds beyond the limits within which the ranks that are left have ended: a heartbeat, the look at it, the listening and
# the telling may each come a second late, rank 0 waits up to three for the others, and two cores may have much else to do.
SLACK = 10
PLACE = r"step \d+, phase \w+, last collective: '[^']+'"


def blamed(run, *patterns):
    """mgm blame prints one line for each pattern, which it matches as a whole."""
    lines = mgm("blame", str(run)).stdout.splitlines()
    assert len(lines) == len(patterns), lines
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), f"{line}\nis not\n{pattern}"


def logged(run, rank, pattern):
    """The last line of the rank's log, without its time, if it matches."""
    last = (run / "logs" / f"rank_{rank}.log").read_text().splitlines()[-1]
    found = re.search(pattern + "$", last)
    assert found, f"{last}\nis not\n{pattern}"
    return found


def end_within(limit, ranks):
    """Ranks end within so many seconds of the fault, which is now, and the slack."""
    began = time.monotonic()
    for rank in ranks:
        rank.wait(timeout=90)
    seconds = time.monotonic() - began
    assert seconds < limit + SLACK, seconds


@pytest.mark.parametrize("victim", [1, 2])
def test_a_killed_rank_ends_the_job_and_it_alone_is_named(tmp_path, victim):
    run = tmp_path / "run"
    ranks = start(run, 3, dist__timeout_s__silence=4)
    wait_for_steps(run, ranks, 3)
    ranks[victim].send_signal(signal.SIGKILL)
    end_within(4, ranks)
    errors = ends(ranks, 60)
    for rank, process in enumerate(ranks):
        assert process.returncode == (-9 if rank == victim else 5), errors[rank]
        assert "frame #" not in errors[rank], errors[rank]  # c10d's warnings come without stacks
    gone = (rf"rank {victim} on {HOST} has given no sign of life for (\d+) s: killed, or its host or network is gone. "
            f"It was at {PLACE}")
    for rank in {0, 1, 2} - {victim}:
        # As long as the config says, and sooner than by default.
        assert 4 <= int(logged(run, rank, gone)[1]) < 15
    blamed(run, f"found by rank 0 on {HOST}: {gone}", f"rank {victim} left no record: killed, or the host is gone")


def test_the_first_rank_killed_is_named_by_the_others(tmp_path):
    run = tmp_path / "run"
    ranks = start(run, 3)
    wait_for_steps(run, ranks, 3)
    ranks[0].send_signal(signal.SIGKILL)
    end_within(SILENCE, ranks)
    errors = ends(ranks, 60)
    assert [rank.returncode for rank in ranks] == [-9, 5, 5], errors
    for rank in (1, 2):
        gone = ("the store of the ranks does not answer: rank 0, which serves it at 127.0.0.1:\\d+, its host or the network "
                rf"to it is gone. rank {rank} on {HOST} failed at {PLACE}: ")
        assert re.search(gone, errors[rank]), errors[rank]
    blamed(run, "rank 0 left no record: killed, or the host is gone")


@pytest.mark.parametrize("victim", [1, 2])
def test_a_stopped_rank_is_a_hang_and_it_alone_is_named(tmp_path, victim):
    """The others wait in groups of their own, partly for each other."""
    run = tmp_path / "run"
    ranks = start(run, 3, dist__timeout_s__step=4)
    wait_for_steps(run, ranks, 3)
    ranks[victim].send_signal(signal.SIGSTOP)  # heartbeats stop too
    try:
        # 4 s show that it hangs; who does is found by listening for signs of life for a third of the silence.
        end_within(4 + SILENCE / 3, [ranks[3 - victim]])
        # It serves the store, and may wait until the one that is stopped has been silent for as long as a rank may be.
        end_within(SILENCE - (4 + SILENCE / 3), [ranks[0]])
    finally:
        ranks[victim].send_signal(signal.SIGCONT)
    errors = ends(ranks, 60)
    assert [rank.returncode for rank in ranks] == [5, 5, 5], errors
    hang = (rf"step \d+, phase step has lasted \d+ s on rank (\d) \({HOST}\), the limit dist.timeout_s.step is 4 s: "
            rf"rank {victim} on {HOST} has given no sign of life for \d+ s: stopped, or its host or network is gone. "
            f"It was at {PLACE}")
    finders = {logged(run, rank, hang)[1] for rank in {0, 1, 2} - {victim}}
    assert len(finders) == 1  # one has said it for all
    blamed(run, rf"found by rank {finders.pop()} on {HOST}: {hang}")


def test_the_first_rank_stopped_says_so_when_it_goes_on(tmp_path):
    run = tmp_path / "run"
    ranks = start(run, 3, dist__timeout_s__silence=4)
    wait_for_steps(run, ranks, 3)
    ranks[0].send_signal(signal.SIGSTOP)
    try:
        end_within(4, ranks[1:])
    finally:
        ranks[0].send_signal(signal.SIGCONT)
    errors = ends(ranks, 60)
    assert [rank.returncode for rank in ranks] == [5, 5, 5], errors
    for rank in (1, 2):
        lost = logged(run, rank, rf"rank {rank} on {HOST} \(step \d+\): the store of the ranks has not answered for (\d+) s: "
                      r"rank 0, which serves it at 127.0.0.1:\d+, its host or the network to it is gone")
        assert 4 <= int(lost[1]) < 15
        assert lost[0] in errors[rank]  # rank 0 cannot say it
    own = rf"rank 0 on {HOST} has stood still for \d+ s: stopped, or its host was"
    assert re.search(own, errors[0]), errors[0]
    blamed(run, rf"rank 0 on {HOST} failed at step \d+, phase step: {own}")


@pytest.mark.parametrize("victim,file,missing,waiting,last", [
    (0, ".lock", "name of a probe", "ranks 1, 2 wait", "program, config and place: verdict"),
    (1, "logs/rank_1.log", "data, tokenizer and weights", "rank 0 waits", "program, config and place: verdict")])
def test_a_rank_that_hangs_at_the_start_is_named_by_all(tmp_path, victim, file, missing, waiting, last):
    """Its file system holds it; it gives signs of life."""
    run = tmp_path / "run"
    with held(run / file):
        ranks = start(run, 3, dist__timeout_s__start=6)
        errors = ends(ranks, 40)
    assert [rank.returncode for rank in ranks] == [5, 5, 5], errors
    hang = (rf"step 0, phase start has lasted \d+ s on rank (\d) \({HOST}\), the limit dist.timeout_s.start is 6 s: "
            rf"rank {victim} on {HOST} has not entered '{missing}' of the start, which {waiting} in; "
            rf"it was at step 0, phase start, and had entered '{last}' of the start last")
    # The one sentence, in the log of every rank: but for that of the rank that is held at its log.
    logs = [run / "logs" / f"rank_{rank}.log" for rank in range(3)]
    said = [error + (log.read_text() if log.exists() else "") for error, log in zip(errors, logs, strict=True)]
    found = [re.search(hang, text) for rank, text in enumerate(said) if file != f"logs/rank_{rank}.log"]
    assert all(found), said
    assert len({match[0] for match in found}) == 1  # one has said it for all
    blamed(run, rf"found by rank {found[0][1]} on {HOST}: {hang}")


@pytest.mark.parametrize("text,problem", [
    ('{"rank": 0, "wor', ":1:17: not valid JSON: invalid string: missing closing quote; last read: '\"wor'; expected string literal"),
    ('{"rank": 0}', ": not a flight record: the key 'world' is missing"),
    ('{"rank": 0, "world": 1000000000}', ": not a flight record: rank 0 of a world of 1000000000; a world has 1 to 1048576 ranks"),
    ('{"rank": 1, "world": 1}', ": not a flight record: rank 1 of a world of 1; a world has 1 to 1048576 ranks"),
])
def test_a_damaged_flight_record_is_named_once(tmp_path, text, problem):
    record = tmp_path / "flight" / "rank_0.json"
    record.parent.mkdir()
    record.write_text(text)
    assert mgm("blame", str(tmp_path), code=3, timeout=10).stderr.strip() == f"error: {record}{problem}"


def test_a_flight_record_under_another_ranks_name_is_refused(tmp_path):
    run = tmp_path / "run"
    ranks = start(run, 2, dist__timeout_s__silence=3)
    wait_for_steps(run, ranks, 1)
    ranks[1].send_signal(signal.SIGKILL)
    ends(ranks, 60)
    copy = run / "flight" / "rank_1.json"
    shutil.copy(run / "flight" / "rank_0.json", copy)
    assert mgm("blame", str(run), code=3).stderr.strip() == (
        f"error: {copy}: is the record of rank 0, which belongs into rank_0.json")


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
    cause = rf"{re.escape(str(bad))}: record 5 \(id 'grapes'\): missing image: \S+not_there.png: no such file .*"
    line = re.fullmatch(rf"rank (\d) on {HOST} failed at step (\d+), phase step: {cause}\n", mgm("blame", str(run)).stdout)
    assert line, mgm("blame", str(run)).stdout
    victim, step = int(line[1]), line[2]
    logged(run, victim, cause)
    for rank in {0, 1, 2} - {victim}:  # rank, host, step, last collective and cause
        logged(run, rank, rf"rank {victim} on {HOST} failed at step {step}, phase step, last collective: '[^']+': {cause}")


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
