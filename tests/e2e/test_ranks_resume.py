"""Nothing is lost: kill -9 of one rank or of all at any moment, saves included, and the same line goes on to the same
bits; so does a strict run that changes its number of ranks and its mode on the way."""
import random
import signal
import time

import pytest

from mgm_binary import FULL, metrics, mgm
from ranks import ends, start, steps_told, wait_for_steps

STEPS = 24
MODES = ["replicate", "zero1", "zero2", "zero3"]


def options(mode):
    return {"train__max_steps": STEPS, "checkpoint__every_steps": 3, "checkpoint__keep": 2, "checkpoint__at_end": True,
            "dist__mode": mode}


def finish(run, world, **values):
    ranks = start(run, world, **values)
    errors = ends(ranks, 180)
    assert [rank.returncode for rank in ranks] == [0] * world, errors
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs of two ranks, by mode."""
    runs = {}

    def get(mode):
        if mode not in runs:
            runs[mode] = finish(tmp_path_factory.mktemp(mode) / "run", 2, **options(mode))
        return runs[mode]

    return get


def same_run(a, b):
    assert metrics(a) == metrics(b)
    text = mgm("checkpoint", "diff", a, b).stdout
    assert "equal" in text, text


def newest_step(run):
    """Of the published checkpoints; 0 without any."""
    names = [path.parent.name.removeprefix("step_") for path in run.glob("checkpoints/step_*/manifest.json")]
    return max((int(name) for name in names if name.isdigit()), default=0)


@pytest.mark.parametrize("moment", range(100 if FULL else 4))
def test_kill_9_at_any_moment_and_the_same_line_again(whole, tmp_path, moment):
    seeded = random.Random(moment)
    mode = MODES[moment % len(MODES)]
    reference = whole(mode)
    run = tmp_path / "run"
    for _ in range(seeded.choice([1, 1, 2])):  # some runs die twice
        told, left = steps_told(run), STEPS - newest_step(run)
        ranks = start(run, 2, **options(mode))
        # A step takes some 0.1 s; every third one is followed by a save that is written behind the next.
        wait_for_steps(run, ranks, told + min(seeded.randrange(1, 10), left))
        time.sleep(seeded.uniform(0, 0.4))
        victims = seeded.choice([[0], [1], [0, 1]])
        for victim in victims:
            ranks[victim].send_signal(signal.SIGKILL)
        time.sleep(seeded.uniform(0, 0.5))
        for rank in ranks:  # as a launcher does with the others
            rank.kill()
        ends(ranks, 30)
    finish(run, 2, **options(mode))
    same_run(reference, run)


def test_strict_runs_go_on_with_other_ranks_and_modes(tmp_path):
    """2, 4, 1 and 3 ranks, a mode each, against one rank that was never stopped: the same bits."""
    strict = {"train__max_steps": STEPS, "train__micro_batch": 1, "checkpoint__at_end": True, "checkpoint__keep": 2,
              "dist__reduction": "strict", "dist__virtual_shards": 12}
    one = finish(tmp_path / "one", 1, dist__mode="replicate", **strict)
    run = tmp_path / "run"
    for world, mode, stop in [(2, "zero3", 4), (4, "zero1", 9), (1, "replicate", 14)]:
        ranks = start(run, world, dist__mode=mode, **strict)
        wait_for_steps(run, ranks, stop)
        ranks[-1].send_signal(signal.SIGTERM)
        errors = ends(ranks, 120)
        assert [rank.returncode for rank in ranks] == [143] * world, errors
        assert len(metrics(run)) < STEPS
    finish(run, 3, dist__mode="zero2", **strict)
    same_run(one, run)
