"""Every dist.mode on GPUs of one host over NCCL beside the same run over Gloo on the CPU, offload beside none,
and kill -9 of a rank followed by a resume. Needs as many GPUs as ranks; skipped loudly elsewhere."""
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1] / "e2e"), str(pathlib.Path(__file__).resolve().parent)]
import ranks as ranks_of  # noqa: E402
from gpus import need  # noqa: E402
from mgm_binary import ROOT, metrics  # noqa: E402
from ranks import ends, errors_of  # noqa: E402

STEPS = 12


def start(run, world, **values):
    options = {"config": "configs/tiny/stage2.yaml", "train__max_steps": STEPS, "train__global_batch": 16,
               "train__micro_batch": 4, "model__projector__path": "", "checkpoint__at_end": True, "log__tensorboard": False}
    return ranks_of.start(run, world, **{**options, **values})


def train(run, world, **values):
    ranks = start(run, world, **values)
    for rank, error in zip(ranks, ends(ranks, 400)):
        assert rank.returncode == 0, error
    return metrics(run)


def wait_for_checkpoints(run, ranks, count):
    while len(list(run.glob("checkpoints/step_*/manifest.json"))) < count:
        assert all(rank.poll() is None for rank in ranks), errors_of(ranks)
        time.sleep(0.01)


def assert_near(got, want, loss, norm):
    assert [line["step"] for line in got] == [line["step"] for line in want]
    for mine, theirs in zip(got, want):
        assert mine["num_targets"] == theirs["num_targets"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=loss), mine["step"]
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=norm), mine["step"]


@pytest.fixture(scope="module")
def gloo(tmp_path_factory):
    need(2)
    return train(tmp_path_factory.mktemp("gloo") / "run", 2, train__device="cpu", dist__mode="zero2")


MODES = {"replicate": {}, "zero1": {}, "zero2": {}, "zero3": {}, "hybrid": {"dist__shard_size": 2},
         "offload": {"dist__mode": "zero2", "dist__offload": "optimizer"},
         "bf16_reduce": {"dist__mode": "zero3", "dist__reduce_dtype": "bfloat16"}}


@pytest.mark.parametrize("mode", MODES)
def test_nccl_equals_gloo(mode, gloo, tmp_path):
    need(2)
    values = {"dist__mode": mode, **MODES[mode]}
    if mode not in ("offload", "bf16_reduce"):
        exact = train(tmp_path / "fp32", 2, train__device="cuda", train__dtype="float32", **values)
        # fp32 on both sides; matrix products add up in another order.
        assert_near(exact, gloo, loss=2e-5, norm=1e-3)
    half = train(tmp_path / "bf16", 2, train__device="cuda", train__dtype="bfloat16", **values)
    # bf16 weights and activations, 8 bits of mantissa: losses agree to about 2^-8.
    assert_near(half, gloo, loss=5e-3, norm=8e-2)


# ---- experts dealt to ranks ------------------------------------------------------------------------------

EXPERT_STEPS = 6
MIXTRAL = {"model__llm__arch": "mixtral", "model__llm__num_experts": 4, "model__llm__experts_per_token": 1,
           "model__llm__num_layers": 2, "model__llm__router_aux_loss": 0.02, "dist__expert_parallel": 2,
           "train__max_steps": EXPERT_STEPS, "optimizer__lr": 1e-4, "data__shuffle": False, "data__grouping": "none"}
EXPERT_MODES = {"zero2": {}, "zero3": {},
                "strict": {"dist__mode": "zero2", "dist__reduction": "strict", "dist__virtual_shards": 4}}


def uneven_data(path):
    """In turn a global batch whose first micro-batch alone, the first rank's, has pictures, and one that has no other
    micro-batch: then the other ranks compute one token, which visits one expert, so one rank and no other."""
    records = json.loads((ROOT / "data/embedded/stage2_train.json").read_text())
    pictures = [record for record in records if "image" in record]
    texts = [record for record in records if "image" not in record]
    path.write_text(json.dumps(pictures[:4] + texts[:16]))
    return f"[{{annotations: {path}, images: data/embedded/images}}]"


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    return uneven_data(tmp_path_factory.mktemp("data") / "data.json")


@pytest.fixture(scope="module")
def gloo_experts(uneven, tmp_path_factory):
    need(2)
    return train(tmp_path_factory.mktemp("gloo") / "run", 2, train__device="cpu", dist__mode="zero2", data__sources=uneven,
                 **MIXTRAL)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("mode", EXPERT_MODES)
def test_dealt_experts_over_nccl_equal_gloo(mode, world, uneven, gloo_experts, tmp_path):
    need(world)
    values = {**MIXTRAL, "train__device": "cuda", "data__sources": uneven, "dist__mode": mode, **EXPERT_MODES[mode]}
    exact = train(tmp_path / "fp32", world, train__dtype="float32", **values)
    # As above until a token that stands between two experts takes the other one: some tokens of a step at most.
    assert_near(exact[:1], gloo_experts[:1], loss=2e-5, norm=1e-3)
    assert_near(exact, gloo_experts, loss=1e-3, norm=2e-2)
    half = train(tmp_path / "bf16", world, train__dtype="bfloat16", **values)
    # bf16 rounds what the router chooses by to 2^-8, so that some tokens take another expert: twice what bf16 does to
    # this run on the CPU.
    assert_near(half, gloo_experts, loss=2e-2, norm=8e-2)


def test_dealt_experts_repeat_to_the_bit(uneven, tmp_path):
    need(2)
    values = {**MIXTRAL, "train__device": "cuda", "train__dtype": "bfloat16", "train__deterministic": True,
              "data__sources": uneven}
    assert train(tmp_path / "one", 2, **values) == train(tmp_path / "two", 2, **values)


# ---- bits ------------------------------------------------------------------------------------------------

def test_modes_are_bit_equal_where_nothing_is_rounded(tmp_path):
    """Gathering moves bits; with deterministic kernels and one order of sums on two ranks, modes differ in no bit."""
    need(2)
    runs = {mode: train(tmp_path / mode, 2, train__device="cuda", train__deterministic=True, dist__mode=mode)
            for mode in ("zero2", "zero3")}
    assert runs["zero2"] == runs["zero3"]


@pytest.mark.parametrize("mode", ["zero2", "zero3"])
def test_kill_and_resume_is_bit_equal(mode, tmp_path):
    need(2)
    values = {"train__device": "cuda", "train__deterministic": True, "dist__mode": mode,
              "checkpoint__every_steps": 3, "train__max_steps": 40}
    whole = train(tmp_path / "whole", 2, **values)
    run = tmp_path / "run"
    ranks = start(run, 2, **values)
    wait_for_checkpoints(run, ranks, 2)
    ranks[1].send_signal(signal.SIGKILL)
    time.sleep(1)
    ranks[0].send_signal(signal.SIGKILL)
    for rank in ranks:
        rank.wait()
    train(run, 2, **values)
    assert metrics(run) == whole


@pytest.mark.parametrize("world, layers", [(2, 4), (4, 8)])
def test_kill_and_resume_at_full_width_is_bit_equal(world, layers, tmp_path):
    """Some layers of the 7B language model over `zero3`: one rank is killed between two checkpoints."""
    need(world)
    data = tmp_path / "data.json"
    subprocess.run([sys.executable, str(ROOT / "tests/bench/make_step_data.py"), "--no-images", "--stage", "2",
                    "--text-tokens", "512", "--records", "64", "--out", str(data)], check=True)
    values = {"config": "configs/stage2/vicuna_7b.yaml", "train__device": "cuda", "train__deterministic": True,
              "dist__mode": "zero3", "model__init": "random", "model__llm__num_layers": layers, "model__hr_encoder": "none",
              "image__hr_size": 336, "text__tokenizer": "data/embedded/tokenizer",
              "data__sources": f"[{{annotations: {data}, images: data/embedded/images}}]", "train__max_steps": 24,
              "checkpoint__every_steps": 8, "checkpoint__keep": 1, "checkpoint__at_end": False}
    whole = train(tmp_path / "whole", world, **values)
    shutil.rmtree(tmp_path / "whole" / "checkpoints")  # 13 GB with four layers
    run = tmp_path / "run"
    ranks = start(run, world, **values)
    wait_for_checkpoints(run, ranks, 1)
    ranks[random.randrange(world)].send_signal(signal.SIGKILL)
    for rank in ranks:
        rank.communicate(timeout=120)  # the others end by themselves
    train(run, world, **values)
    assert metrics(run) == whole
