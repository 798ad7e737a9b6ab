"""Files that torch.save, safetensors and sharded saving write are read to the bit, and what we write they read."""
import collections
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

BUILD = pathlib.Path(os.environ.get("MGM_BUILD_DIR", pathlib.Path(__file__).resolve().parents[2] / "build" / "release"))
PROBE = BUILD / "tests" / "tensor_probe"


def copy(source, out, code=0):
    done = subprocess.run([PROBE, source, out], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done


def assert_same(got, expected):
    assert sorted(got) == sorted(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape, name
        # As bytes: NaN payloads and the sign of zero count.
        a, b = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (got[name], tensor))
        assert torch.equal(a, b), name


def awkward():
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(6, 10, generator=generator)
    base[0, 0], base[0, 1], base[0, 2] = float("nan"), -0.0, 1e-45
    tensors = {
        "view": base[1:4, 2:7],
        "transposed": base.t(),
        "step": base[::2, ::3],
        "shared": base,
        "broadcast": base[:1].expand(4, 10),
        "scalar": torch.tensor(3.25),
        "empty": torch.empty(0, 7),
        "parameter": torch.nn.Parameter(torch.randn(3, generator=generator)),
        "ünïcode/名": torch.randn(2, generator=generator),
        "": torch.randn(1, generator=generator),
    }
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        tensors[str(dtype)] = torch.randn(5, 3, generator=generator).to(dtype)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool):
        tensors[str(dtype)] = torch.randint(0, 2, (4, 3), generator=generator).to(dtype)
    return tensors


def test_torch_files_are_read(tmp_path):
    expected = awkward()
    torch.save(collections.OrderedDict(expected), tmp_path / "in.bin")
    assert copy(tmp_path / "in.bin", tmp_path / "out.safetensors").stdout == ""
    assert_same(safetensors.torch.load_file(tmp_path / "out.safetensors"), expected)
    for protocol in (2, 3, 4, 5):
        torch.save(expected, tmp_path / "in.bin", pickle_protocol=protocol)
        copy(tmp_path / "in.bin", tmp_path / "out.safetensors")
        assert_same(safetensors.torch.load_file(tmp_path / "out.safetensors"), expected)


def test_state_dict_of_a_module_and_nested_dicts(tmp_path):
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    module[2].weight = torch.nn.Parameter(module[2].weight.t())
    torch.save({"state_dict": module.state_dict(), "epoch": 3, "note": "x", "lrs": [1.0, 2.0]}, tmp_path / "in.pt")
    done = copy(tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert sorted(line.split(": ")[-1] for line in done.stdout.splitlines()) == ["epoch", "lrs", "note"]
    expected = {f"state_dict.{name}": value for name, value in module.state_dict().items()}
    assert_same(safetensors.torch.load_file(tmp_path / "out.safetensors"), expected)


def test_torch_reads_what_we_write(tmp_path):
    expected = {name: tensor.detach().contiguous().clone() for name, tensor in awkward().items()}
    safetensors.torch.save_file(expected, tmp_path / "in.safetensors", metadata={"format": "pt"})
    copy(tmp_path / "in.safetensors", tmp_path / "out.bin")
    for mmap in (False, True):
        assert_same(torch.load(tmp_path / "out.bin", weights_only=True, mmap=mmap), expected)
    copy(tmp_path / "out.bin", tmp_path / "again.safetensors")
    assert_same(safetensors.torch.load_file(tmp_path / "again.safetensors"), expected)


def test_safetensors_with_more_types(tmp_path):
    expected = {str(t): torch.arange(6).reshape(2, 3).to(t) for t in (torch.float8_e4m3fn, torch.float8_e5m2)}
    safetensors.torch.save_file(expected, tmp_path / "in.safetensors")
    copy(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert_same(safetensors.torch.load_file(tmp_path / "out.safetensors"), expected)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_sharded_directories(tmp_path, kind):
    expected = {name: tensor.detach().contiguous().clone() for name, tensor in awkward().items() if name}
    names = sorted(expected)
    index = {"metadata": {"total_size": sum(t.nbytes for t in expected.values())}, "weight_map": {}}
    for shard in range(3):
        part = {name: expected[name] for name in names[shard::3]}
        if kind == "safetensors":
            file = f"model-{shard + 1:05d}-of-00003.safetensors"
            safetensors.torch.save_file(part, tmp_path / file)
        else:
            file = f"pytorch_model-{shard + 1:05d}-of-00003.bin"
            torch.save(part, tmp_path / file)
        index["weight_map"].update(dict.fromkeys(part, file))
    stem = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    (tmp_path / f"{stem}.index.json").write_text(json.dumps(index))
    for place in (tmp_path, tmp_path / f"{stem}.index.json"):
        copy(place, tmp_path / "out.safetensors")
        assert_same(safetensors.torch.load_file(tmp_path / "out.safetensors"), expected)


def test_tensors_without_alignment(tmp_path):
    before = torch.utils.serialization.config.save.storage_alignment
    torch.utils.serialization.config.save.storage_alignment = 1
    try:
        torch.save(awkward(), tmp_path / "in.bin")
        torch.save({"whole": torch.arange(12.).reshape(3, 4), "long": torch.arange(5)}, tmp_path / "whole.bin")
    finally:
        torch.utils.serialization.config.save.storage_alignment = before
    copy(tmp_path / "whole.bin", tmp_path / "out.safetensors")
    assert_same(safetensors.torch.load_file(tmp_path / "out.safetensors"), torch.load(tmp_path / "whole.bin"))


def test_lazily_negated_tensors_are_refused(tmp_path):
    """Their bytes have the other sign."""
    torch.save({"a": torch.tensor([1 + 2j, 3 - 4j]).conj().imag}, tmp_path / "in.bin")
    assert "resolve_neg()" in copy(tmp_path / "in.bin", tmp_path / "out.safetensors", code=4).stderr


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_buffers_nobody_needs_are_not_held_against_the_index(tmp_path, kind):
    """transformers leaves them out too: one that the index lacks, and one that the shard lacks."""
    buffer, lost = "model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq"
    save = safetensors.torch.save_file if kind == "safetensors" else torch.save
    stem = "model" if kind == "safetensors" else "pytorch_model"
    index = {}
    for i in (1, 2):
        file = f"{stem}-0000{i}-of-00002.{kind}"
        index[f"w{i}"] = file
        save({f"w{i}": torch.full((3,), float(i)), **({buffer: torch.ones(2)} if i == 1 else {})}, tmp_path / file)
    index[lost] = file
    (tmp_path / f"{stem}.{kind}.index.json").write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": index}))
    copy(tmp_path, tmp_path / "out.safetensors")
    got = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert {"w1", "w2"} <= got.keys() and lost not in got
    index["w2"] = index["w1"]
    (tmp_path / f"{stem}.{kind}.index.json").write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": index}))
    assert "index and shards disagree" in copy(tmp_path, tmp_path / "out.safetensors", code=4).stderr


def test_what_runs_code_or_is_old_is_refused(tmp_path):
    torch.save({"a": torch.ones(2), "config": pathlib.Path("x")}, tmp_path / "code.bin")
    assert "pathlib" in copy(tmp_path / "code.bin", tmp_path / "out.safetensors", code=4).stderr
    torch.save({"a": torch.ones(2)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    message = copy(tmp_path / "old.bin", tmp_path / "out.safetensors", code=4).stderr
    assert str(tmp_path / "old.bin") in message and "legacy" in message
    assert not (tmp_path / "out.safetensors").exists()
    # The way out that the message names is one.
    command = message[message.index('python -c "') + len('python -c "'):message.rindex('"')]
    subprocess.run([sys.executable, "-c", command], check=True, cwd=tmp_path, timeout=300)
    copy(tmp_path / "model.safetensors", tmp_path / "out.safetensors")
    assert_same(safetensors.torch.load_file(tmp_path / "out.safetensors"), {"a": torch.ones(2)})


def test_tensorboard_reads_the_events_of_a_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root = pathlib.Path(__file__).resolve().parents[2]
    subprocess.run([BUILD / "bin" / "mgm", "train", root / "configs/tiny/stage1.yaml", "--set", f"run.dir={tmp_path}/run",
                    "--set", "train.max_steps=5", "--set", "train.global_batch=2", "--set", "train.micro_batch=2",
                    "--set", "train.threads=1", "--set", "log.every_steps=1"],
                   check=True, capture_output=True, timeout=600, cwd=root)
    files = list((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert len(files) == 1
    events = EventAccumulator(str(files[0].parent))
    events.Reload()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    tags = {tag.split("/")[-1]: tag for tag in events.Tags()["scalars"]}
    for key in ("loss", "lr", "grad_norm"):
        scalars = events.Scalars(tags[key])
        assert [s.step for s in scalars] == [row["step"] for row in rows]
        assert [s.value for s in scalars] == [float(np.float32(row[key])) for row in rows]
