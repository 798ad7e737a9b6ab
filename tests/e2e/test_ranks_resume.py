"""Nothing is lost: kill -9 of one rank or of all at any moment, saves included, and the same line goes on to the same
bits; so does a strict run that changes its number of ranks and its mode on the way."""
import random
import signal
import time

import pytest

from mgm_binary import FULL, metrics, mgm
from ranks import ends, finish, start, steps_told, wait_for_steps

STEPS = 24
WORLDS = {"replicate": 2, "zero1": 2, "zero2": 2, "zero3": 2, "hybrid": 4}
MODES = list(WORLDS)


def options(mode):
    return {"train__max_steps": STEPS, "checkpoint__every_steps": 3, "checkpoint__keep": 2, "checkpoint__at_end": True,
            "dist__mode": mode, **({"dist__shard_size": 2, "train__micro_batch": 3} if mode == "hybrid" else {})}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs, by mode."""
    runs = {}

    def get(mode):
        if mode not in runs:
            runs[mode] = finish(tmp_path_factory.mktemp(mode) / "run", WORLDS[mode], **options(mode))
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


@pytest.mark.parametrize("moment", range(100 if FULL else len(MODES)))
def test_kill_9_at_any_moment_and_the_same_line_again(whole, tmp_path, moment):
    seeded = random.Random(moment)
    mode = MODES[moment % len(MODES)]
    world = WORLDS[mode]
    reference = whole(mode)
    run = tmp_path / "run"
    for _ in range(seeded.choice([1, 1, 2])):  # some runs die twice
        told, left = steps_told(run), STEPS - newest_step(run)
        ranks = start(run, world, **options(mode))
        # A step takes some 0.1 s; every third one is followed by a save that is written behind the next.
        wait_for_steps(run, ranks, told + min(seeded.randrange(1, 10), left))
        time.sleep(seeded.uniform(0, 0.4))
        victims = seeded.choice([[0], [world - 1], list(range(world))])
        for victim in victims:
            ranks[victim].send_signal(signal.SIGKILL)
        time.sleep(seeded.uniform(0, 0.5))
        for rank in ranks:  # as a launcher does with the others
            rank.kill()
        ends(ranks, 30)
    finish(run, world, **options(mode))
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
