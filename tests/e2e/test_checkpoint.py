"""Checkpoints as a user meets them: ls, verify, diff, kills inside saves with one rank and with several, other numbers
of ranks, and an export that needs no memory for the model."""
import os
import pathlib
import random
import shutil
import socket
import subprocess
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from mgm_binary import FULL, MGM, ROOT, mgm, peak_anonymous, sets

STEPS = 6
STAGE1, STAGE2 = "configs/tiny/stage1.yaml", "configs/tiny/stage2.yaml"


def options(run_dir, **more):
    values = {"run.dir": str(run_dir), "train.max_steps": STEPS, "train.global_batch": 12, "train.micro_batch": 1,
              "train.threads": 1, "checkpoint.every_steps": 1, "checkpoint.keep": 10, "log.every_steps": 1}
    values.update({key.replace("__", "."): value for key, value in more.items()})
    return sets(values)


def train(run_dir, config=STAGE1, **more):
    return mgm("train", config, *options(run_dir, **more))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_ranks(world, run_dir, config=STAGE1, **more):
    """`world` processes of one run."""
    port = free_port()
    out = []
    for rank in range(world):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank),
               "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        out.append(subprocess.Popen([str(MGM), "train", config, *options(run_dir, **more)], cwd=ROOT, env=env, text=True,
                                    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    return out


def end_of(ranks, timeout=300):
    """[(exit code, what it printed)]"""
    errors = [None] * len(ranks)

    def drain(i):
        errors[i] = ranks[i].communicate(timeout=timeout)[1]

    threads = [threading.Thread(target=drain, args=(i,)) for i in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [(process.returncode, error) for process, error in zip(ranks, errors)]


def train_ranks(world, run_dir, config=STAGE1, **more):
    for code, error in end_of(start_ranks(world, run_dir, config, **more)):
        assert code == 0, error


def shards(run, step=STEPS):
    folder = pathlib.Path(run) / "checkpoints" / f"step_{step}"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("rank_*.safetensors"))}


def assert_same_run(run, expected):
    assert (run / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    assert shards(run) == shards(expected)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("one") / "run"
    train(run)
    return run


@pytest.fixture(scope="module")
def whole2(tmp_path_factory):
    """An uninterrupted run of two ranks."""
    run = tmp_path_factory.mktemp("two") / "run"
    train_ranks(2, run)
    return run


# ---- ls, verify, diff ---------------------------------------------------------------------------------------
def test_ls(whole2, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole2, run)
    (run / "checkpoints/step_4/rank_1.safetensors").write_bytes(b"cut")
    (run / "checkpoints/step_5/manifest.json").write_text("{}")
    lines = mgm("checkpoint", "ls", run).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["step", *map(str, range(1, STEPS + 1))]
    assert lines[1].split()[3:5] == ["2", "zero2"] and lines[1].endswith("  sizes ok") and "Z" in lines[1]
    # Sizes are all it looks at, and all it speaks of.
    weights = run / "checkpoints/step_2/rank_0.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert mgm("checkpoint", "ls", run).stdout.splitlines()[2].endswith("  sizes ok")
    assert str(weights) in mgm("checkpoint", "verify", run / "checkpoints/step_2", code=4).stderr
    assert "compares every hash" in mgm("checkpoint", "ls", "--help").stdout
    assert "damaged" in lines[4] and "rank_1.safetensors" in lines[4] and "truncated" in lines[4]
    assert "damaged" in lines[5] and "manifest.json" in lines[5]
    assert "no checkpoints" in mgm("checkpoint", "ls", tmp_path, code=4).stderr


def test_verify(whole, tmp_path):
    step = tmp_path / "run/checkpoints/step_3"
    shutil.copytree(whole, tmp_path / "run")
    assert "whole" in mgm("checkpoint", "verify", step).stdout
    content = bytearray((step / "rank_0.safetensors").read_bytes())
    content[-7] ^= 1
    (step / "rank_0.safetensors").write_bytes(content)
    for folder in (step, tmp_path / "run"):
        done = mgm("checkpoint", "verify", folder, code=4)
        assert f"{step}/rank_0.safetensors" in done.stderr and "altered" in done.stderr
    assert done.stdout.count(": whole: ") == STEPS - 1 and done.stdout.count("damaged") == 1
    assert "manifest.json" in mgm("checkpoint", "verify", tmp_path, code=4).stderr


def test_diff(whole, whole2, tmp_path):
    a = whole / "checkpoints"
    same = mgm("checkpoint", "diff", a / "step_3", a / "step_3").stdout
    assert same.splitlines()[-1] == "equal" and " 0 differ" in same
    other = mgm("checkpoint", "diff", a / "step_3", a / "step_4", code=4)
    assert other.stdout.splitlines()[-1] == "different" and "relative L2" in other.stdout
    assert "model.mm_projector.0.weight" in other.stdout and not other.stderr
    # Two ranks add up in another order: nearly the same weights. A run folder is its newest checkpoint.
    ranks = mgm("checkpoint", "diff", whole, whole2, code=4).stdout
    assert "replicate by 1 rank\n" in ranks and "zero2 by 2 ranks\n" in ranks
    assert "other frozen weights" not in ranks
    # Step 1 of a warm-up has rate 0: another configured rate is no other state, and is told.
    train(tmp_path / "other", optimizer__lr=0.1, train__max_steps=1)
    changed = mgm("checkpoint", "diff", a / "step_1", tmp_path / "other").stdout
    assert "config optimizer.lr: 0.002 -> 0.1" in changed and changed.splitlines()[-1] == "equal"
    assert "Exit code" in mgm("checkpoint", "diff", "--help").stdout


# ---- kills inside saves -------------------------------------------------------------------------------------
def kill_in_a_save(processes, victims, run, draw):
    """Kills `victims` at a random moment of a save: some time after a folder step_N.tmp has appeared."""
    folder, wanted = pathlib.Path(run) / "checkpoints", draw.randrange(1, STEPS)
    deadline = time.time() + 120
    while time.time() < deadline and all(process.poll() is None for process in processes):
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if f"step_{wanted}.tmp" in names or any(f"step_{step}" in names for step in range(wanted, STEPS + 1)):
            break
        time.sleep(0.0005)
    time.sleep(draw.choice([0, 0.001, 0.003, 0.01, 0.03]) * draw.random())
    for victim in victims:
        victim.kill()


@pytest.mark.parametrize("seed", range(60 if FULL else 3))
def test_kill_9_inside_a_save(whole, tmp_path, seed):
    run, draw = tmp_path / "run", random.Random(seed)
    for _ in range(2):
        process = subprocess.Popen([str(MGM), "train", STAGE1, *options(run)], cwd=ROOT, stderr=subprocess.DEVNULL)
        kill_in_a_save([process], [process], run, draw)
        process.wait()
    train(run)
    assert_same_run(run, whole)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"step_{k}" for k in range(1, STEPS + 1)]


@pytest.mark.parametrize("seed", range(40 if FULL else 2))
def test_kill_9_of_one_rank_and_of_all_inside_a_save(whole2, tmp_path, seed):
    run, draw = tmp_path / "run", random.Random(1000 + seed)
    ranks = start_ranks(2, run)
    victims = ranks if seed % 2 == 0 else [ranks[draw.randrange(2)]]
    kill_in_a_save(ranks, victims, run, draw)
    if len(victims) == 1:  # the other one ends too, or is ended by whoever launched it
        time.sleep(1)
        for rank in ranks:
            rank.kill()
    end_of(ranks)
    train_ranks(2, run)
    assert_same_run(run, whole2)


def test_other_numbers_of_ranks_go_on(tmp_path):
    """Steps 1, 2, 3 and 4 by 2, 4, 1 and 3 ranks, in other modes; strict sums make all of it one run, to the bit."""
    strict = {"dist__reduction": "strict", "dist__virtual_shards": 12, "train__max_steps": 4}
    expected = tmp_path / "expected"
    train(expected, **strict)
    run = None
    for step, (world, mode) in enumerate([(2, "zero2"), (4, "zero3"), (1, "zero2"), (3, "zero1")], 1):
        last, run = run, tmp_path / f"run{step}"
        if last:  # as if it had been killed behind the step before
            shutil.copytree(last, run)
            for later in range(step, 5):
                shutil.rmtree(run / f"checkpoints/step_{later}")
        train_ranks(world, run, dist__mode=mode, **strict)
    assert (run / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    assert mgm("checkpoint", "diff", run, expected).stdout.splitlines()[-1] == "equal"


def test_saves_in_the_background_change_nothing(whole, tmp_path):
    done = train(tmp_path / "run", checkpoint__async=False)
    assert_same_run(tmp_path / "run", whole)
    assert "checkpoint at step 3: " in done.stderr and "training held" in done.stderr


# ---- saves by minutes ---------------------------------------------------------------------------------------
def saved(run):
    """Steps of the published checkpoints."""
    names = [path.parent.name.removeprefix("step_") for path in run.glob("checkpoints/step_*/manifest.json")]
    return sorted(int(name) for name in names if name.isdigit())


def test_saves_by_minutes_come_when_so_many_have_gone(tmp_path):
    """0.6 s apart at least, of all ranks, in a run that ends by no other save than that of its signal."""
    run, minutes, count, begin = tmp_path / "run", 0.01, 3, time.monotonic()
    ranks = start_ranks(2, run, checkpoint__every_steps=0, checkpoint__every_minutes=minutes, train__max_steps=4000)
    while len(saved(run)) < count and all(rank.poll() is None for rank in ranks) and time.monotonic() < begin + 120:
        time.sleep(0.005)
    steps = saved(run)
    gone = time.monotonic() - begin
    for rank in ranks:
        rank.terminate()
    assert [code for code, _ in end_of(ranks)] == [143, 143]
    assert len(steps) >= count and gone >= len(steps) * 60 * minutes, (steps, gone)
    assert set(shards(run, steps[0])) == {"rank_0.safetensors", "rank_1.safetensors"}
    assert "whole" in mgm("checkpoint", "verify", run / f"checkpoints/step_{steps[0]}").stdout


def test_minutes_as_short_as_a_step_and_longer_than_the_run(tmp_path):
    for minutes, expected in ((1e-7, list(range(1, STEPS + 1))), (1e6, [STEPS]), (0, [STEPS])):
        run = tmp_path / f"run_{minutes}"
        train(run, checkpoint__every_steps=0, checkpoint__every_minutes=minutes, train__global_batch=2)
        assert saved(run) == expected, minutes


def test_stage1_of_several_ranks_leaves_a_projector_file(whole, whole2):
    one = torch.load(whole / "mm_projector.bin", weights_only=True)
    two = torch.load(whole2 / "mm_projector.bin", weights_only=True)
    assert one.keys() == two.keys() and len(one) > 20
    for name, value in one.items():
        assert two[name].shape == value.shape and two[name].dtype == value.dtype
        assert torch.linalg.norm((two[name] - value).double()) <= 1e-5 * torch.linalg.norm(value.double()), name
        if "vision_tower" in name:
            assert torch.equal(two[name], value), name  # frozen


# ---- export -------------------------------------------------------------------------------------------------
LARGE = {"model__llm__hidden_size": 1024, "model__llm__intermediate_size": 3072, "model__llm__num_layers": 6,
         "model__llm__num_heads": 16, "model__llm__num_kv_heads": 16}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A run of 350 MB of fp32 weights whose language model trains."""
    run = tmp_path_factory.mktemp("large") / "run"
    mgm("train", STAGE2, *options(run, model__projector__path="", train__max_steps=1, train__global_batch=1, **LARGE))
    return run


@pytest.fixture(scope="module")
def libraries(whole, tmp_path_factory):
    """Anonymous memory of an export of next to nothing: what loading the libraries costs."""
    return peak_anonymous("export", whole, "--out", tmp_path_factory.mktemp("small") / "model")


def check_memory(peak, libraries, model, what):
    sizes = [path.stat().st_size for path in model.glob("*.safetensors")]
    print(f"{what}: {sum(sizes) / 1e6:.0f} MB in {len(sizes)} files, the largest {max(sizes) / 1e6:.0f} MB; peak anonymous "
          f"{peak / 1e6:.0f} MB, {libraries / 1e6:.0f} MB of it before anything is read")
    # The largest weight of 12.6 MB, pieces under conversion, and bookkeeping; the model has 342 MB in fp32.
    assert peak - libraries <= 40e6
    return sizes


def test_export_needs_no_memory_for_the_model(large, libraries, tmp_path):
    out = tmp_path / "model"
    peak = peak_anonymous("export", large, "--out", out)
    sizes = check_memory(peak, libraries, out, "one file")
    assert len(sizes) == 1 and sizes[0] > 300e6 and peak <= 1.2 * max(sizes)


def test_export_to_shards_of_bf16_needs_none(large, libraries, tmp_path):
    out = tmp_path / "model"
    peak = peak_anonymous("export", large, "--out", out, "--dtype", "bf16", "--max-shard-size", "90MB")
    sizes = check_memory(peak, libraries, out, "bf16 shards")
    assert len(sizes) == 2 and max(sizes) <= 90e6


def test_export_of_frozen_weights_needs_none_either(large, libraries, tmp_path):
    """Frozen weights come from the mapped files of another directory."""
    mgm("export", large, "--out", tmp_path / "base")
    run, out = tmp_path / "run", tmp_path / "model"
    mgm("train", STAGE1, *options(run, train__max_steps=1, train__global_batch=1, model__init="pretrained",
                                  model__path=str(tmp_path / "base"), **LARGE))
    peak = peak_anonymous("export", run, "--out", out, "--max-shard-size", "150MB")
    assert len(check_memory(peak, libraries, out, "frozen")) == 3
    before, after = ({name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}
                     for folder in (tmp_path / "base", out))
    same = [name for name in before if not name.startswith(("model.mm_projector", "model.vlm_uni"))]
    assert before.keys() == after.keys() and len(same) > 100
    assert all(before[name].equal(after[name]) for name in same)
