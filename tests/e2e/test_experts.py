"""Experts dealt to ranks (dist.expert_parallel), as a user runs them: killed and resumed, with other ranks and other
deals, exported, planned, rehearsed, refused."""
import json
import signal

import pytest

import ranks as ranks_of
from mgm_binary import ROOT, metrics, mgm, sets
from ranks import bytes_read, ends, near_weights, same_weights, start, wait_for_steps, weights

STEPS = 12
CONFIG = "configs/tiny/stage2.yaml"
MIXTRAL = {"model__llm__arch": "mixtral", "model__llm__num_experts": 4, "model__llm__num_layers": 2,
           "model__llm__router_aux_loss": 0.02, "model__projector__path": "", "train__max_steps": STEPS,
           "checkpoint__every_steps": 2, "checkpoint__keep": 2, "checkpoint__at_end": True}
DOTTED = {**{key.replace("__", "."): value for key, value in MIXTRAL.items()}, "train.global_batch": 12,
          "train.micro_batch": 1}


def finish(run, world, **values):
    return ranks_of.finish(run, world, config=CONFIG, **{**MIXTRAL, **values})


def same_run(a, b):
    assert metrics(a) == metrics(b)
    text = mgm("checkpoint", "diff", a, b).stdout
    assert "equal" in text, text


@pytest.mark.parametrize("mode", ["zero2", "zero3"])
def test_killed_and_resumed_to_the_same_bits(tmp_path, mode):
    values = {"dist__mode": mode, "dist__expert_parallel": 2, "train__micro_batch": 1}
    whole = finish(tmp_path / "whole", 4, **values)
    run = tmp_path / "run"
    ranks = start(run, 4, CONFIG, **{**MIXTRAL, **values})
    wait_for_steps(run, ranks, 6)
    ranks[1].send_signal(signal.SIGKILL)
    for rank in ranks:
        rank.kill()
    ends(ranks, 30)
    same_run(whole, finish(run, 4, **values))


def test_other_ranks_and_other_deals_go_on_to_the_same_bits(tmp_path):
    """Strict: 4 ranks with all experts dealt, then 2 with half each, then 1, against one rank; and the export."""
    strict = {**MIXTRAL, "dist__reduction": "strict", "dist__virtual_shards": 12, "train__micro_batch": 1}
    one = finish(tmp_path / "one", 1, dist__mode="replicate", **strict)
    run = tmp_path / "run"
    for world, experts, mode, stop in [(4, 4, "zero3", 3), (2, 2, "zero1", 6), (4, 2, "zero2", 9)]:
        ranks = start(run, world, CONFIG, dist__mode=mode, dist__expert_parallel=experts, **strict)
        wait_for_steps(run, ranks, stop)
        ranks[-1].send_signal(signal.SIGTERM)
        errors = ends(ranks, 120)
        assert [rank.returncode for rank in ranks] == [143] * world, errors
        assert len(metrics(run)) < STEPS
    finish(run, 2, dist__mode="zero3", dist__expert_parallel=2, **strict)
    same_run(one, run)
    expected = weights(one)
    same_weights(weights(run), expected)
    assert sum(".experts." in name for name in expected) == 2 * 4 * 3


def test_a_rank_reads_only_its_experts(tmp_path):
    """From a checkpoint in the published layout: half of the experts' bytes are left out by each rank of two."""
    first = finish(tmp_path / "first", 1, **{"train__max_steps": 2})
    mgm("export", first, "--out", tmp_path / "model")
    pretrained = {"model__init": "pretrained", "model__path": tmp_path / "model", "train__max_steps": 1}
    read = {}
    for experts in (1, 2):
        run = finish(tmp_path / f"from_{experts}", 2, dist__mode="replicate", dist__expert_parallel=experts, **pretrained)
        read[experts] = bytes_read(run, 1)
    # 2 blocks of 4 experts of three matrices in fp32, of which a rank now leaves half.
    assert read[1] - read[2] == pytest.approx(2 * 2 * 3 * 128 * 352 * 4, rel=0.05), read
    assert metrics(tmp_path / "from_1")[0]["loss"] == pytest.approx(metrics(tmp_path / "from_2")[0]["loss"], rel=1e-6)
    near_weights(weights(tmp_path / "from_2"), weights(tmp_path / "from_1"), 1e-5)


def test_plan_and_rehearsal_know_it(tmp_path):
    model = {**DOTTED, "dist.expert_parallel": 2, "run.dir": tmp_path / "run"}
    plan = ["train", CONFIG, "--plan", "--json", "--world", "4"]
    dealt = json.loads(mgm(*plan, *sets(model), cwd=ROOT).stdout)
    whole = json.loads(mgm(*plan, *sets({**model, "dist.expert_parallel": 1}), cwd=ROOT).stdout)
    modes = [{m["mode"]: m for m in (p[0] if isinstance(p, list) else p)["modes"] if not m["offload"]}
             for p in (dealt, whole)]
    assert modes[0]["replicate"]["traffic"]["all-to-all, experts"]["collectives"] > 0
    assert modes[1]["replicate"]["traffic"]["all-to-all, experts"]["collectives"] == 0
    weights = [m["replicate"]["memory"]["parameters"] for m in modes]
    assert weights[0] < weights[1]
    text = mgm("train", CONFIG, "--rehearse", "--world", "4", *sets(model), cwd=ROOT).stdout
    assert "exchange" in text and "all 4 ranks issue the same" in text, text


def test_what_cannot_be_dealt_is_refused(tmp_path):
    bad = mgm("train", CONFIG, "--rehearse", "--world", "6", *sets({**DOTTED, "dist.expert_parallel": 4}), cwd=ROOT,
              code=2).stderr
    assert "dist.expert_parallel: 4 ranks do not divide the world of 6 ranks; these do: 1, 2, 3, 6" in bad, bad
    some = {**DOTTED, "dist.expert_parallel": 2, "train.rules": "[{match: '*.experts.1.*'}]", "run.dir": tmp_path / "run"}
    ranks = start(tmp_path / "run", 2, CONFIG, **{key.replace(".", "__"): value for key, value in some.items()})
    errors = ends(ranks, 60)
    assert [rank.returncode for rank in ranks] == [2, 2], errors
    assert "train some experts of model.layers.0.experts and not others" in errors[0] + errors[1], errors
