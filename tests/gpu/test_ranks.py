"""Every dist.mode on GPUs of one host over NCCL beside the same run over Gloo on the CPU, offload beside none,
and kill -9 of a rank followed by a resume. Needs as many GPUs as ranks; skipped loudly elsewhere."""
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from mgm_binary import MGM, ROOT, metrics, sets  # noqa: E402
from ranks import free_port  # noqa: E402

STEPS = 12


def gpus():
    try:
        done = subprocess.run(["nvidia-smi", "-L"], text=True, capture_output=True)
    except FileNotFoundError:
        return 0
    return done.stdout.count("GPU ") if done.returncode == 0 else 0


def need(count):
    if gpus() >= count:
        return
    if os.environ.get("MGM_TEST_REQUIRE") == "gpu":
        pytest.fail(f"{count} GPUs required, {gpus()} found")
    pytest.skip(f"NOT RUN: needs {count} GPUs, this host has {gpus()}")


def start(run, world, config="configs/tiny/stage2.yaml", **values):
    """One process per rank; returns them."""
    options = {"run.dir": str(run), "train.max_steps": STEPS, "train.global_batch": 16, "train.micro_batch": 4,
               "model.projector.path": "", "log.every_steps": 1, "checkpoint.every_minutes": 0,
               "train.threads": 1, "log.tensorboard": False}
    options.update({key.replace("__", "."): value for key, value in values.items()})
    port = free_port()
    ranks = []
    for rank in range(world):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank),
               "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks.append(subprocess.Popen([str(MGM), "train", config, *sets(options)], cwd=ROOT, env=env, text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    return ranks


def train(run, world, **values):
    ranks = start(run, world, **values)
    outputs = [rank.communicate(timeout=400)[0] for rank in ranks]
    for rank, output in zip(ranks, outputs):
        assert rank.returncode == 0, output
    return metrics(run)


def wait_for_checkpoints(run, ranks, count):
    while len(list(run.glob("checkpoints/step_*/manifest.json"))) < count:
        assert all(rank.poll() is None for rank in ranks), [rank.communicate()[0] for rank in ranks]
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
