"""`mgm inspect` and `mgm convert` as a user runs them: what they print, bytes in and out, refusals, memory."""
import json
import pathlib
import shutil
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mgm_binary import MGM, ROOT, mgm, peak_anonymous

sys.path.insert(0, str(ROOT / "tests/parity"))
from mgm_oracle import Oracle, Sizes  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Oracle(Sizes(hr=96), seed=11).save(tmp_path_factory.mktemp("oracle") / "model")


def inspected(path, *options):
    return json.loads(mgm("inspect", path, "--json", *options).stdout)


def same_bytes(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


def refused(code, *args, says):
    error = mgm(*args, code=code).stderr
    for part in says:
        assert str(part) in error, f"{part!r} is not in: {error}"


def mixed():
    g = torch.Generator().manual_seed(1)
    out = {"a.weight": torch.randn(40, 30, generator=g), "b.weight": torch.randn(7, generator=g).bfloat16(),
           "c.half": torch.randn(5, 3, generator=g).half(), "position_ids": torch.arange(9).reshape(1, 9),
           "flag": torch.tensor([True, False]), "scalar": torch.tensor(0.5), "empty": torch.empty(0, 4),
           "d.double": torch.randn(3, generator=g).double()}
    out["a.weight"][0, :3] = torch.tensor([float("nan"), -0.0, 1e-45])
    return out


# ---- convert ----------------------------------------------------------------------------------------------
def torch_dir(folder, tensors):
    folder.mkdir()
    names = sorted(tensors)
    index = {"metadata": {}, "weight_map": {}}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"pytorch_model-0000{i + 1}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, folder / file)
        index["weight_map"].update(dict.fromkeys(part, file))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def test_every_format_becomes_the_same_bytes(tmp_path):
    tensors = mixed()
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.bin")
    torch_dir(tmp_path / "sharded", tensors)
    for i, source in enumerate(("a.safetensors", "a.bin", "sharded", "sharded/pytorch_model.bin.index.json")):
        out = tmp_path / f"out{i}"
        mgm("convert", tmp_path / source, "--out", out)
        got = load_file(out / "model.safetensors")
        assert sorted(got) == sorted(tensors)
        assert all(same_bytes(got[name], tensors[name]) for name in tensors)
    # And once more from what was written, in small shards.
    mgm("convert", tmp_path / "out0", "--out", tmp_path / "again", "--max-shard-size", "1KB")
    index = json.loads((tmp_path / "again/model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == sorted(tensors) and len(set(index["weight_map"].values())) > 1
    for name, file in index["weight_map"].items():
        assert same_bytes(load_file(tmp_path / "again" / file)[name], tensors[name])


@pytest.mark.parametrize("name,dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)])
def test_dtypes(tmp_path, name, dtype):
    source = tmp_path / "in"
    source.mkdir()
    tensors = mixed()
    save_file(tensors, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "float64", "x": 1}))
    mgm("convert", source, "--out", tmp_path / "out", "--dtype", name)
    got = load_file(tmp_path / "out/model.safetensors")
    for key, value in tensors.items():
        convertible = value.dtype in (torch.float32, torch.bfloat16, torch.float16)
        assert same_bytes(got[key][1:], (value.to(dtype) if convertible else value)[1:]) if value.dim() else True, key
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config == {"model_type": "llama", "torch_dtype": str(dtype).removeprefix("torch."), "x": 1}


def test_a_model_directory_stays_a_model(model, tmp_path):
    done = mgm("convert", model, "--out", tmp_path / "out", "--max-shard-size", "500KB")
    assert "tokenizer.model" in done.stdout and "no tokenizer" not in done.stderr
    before, after = load_file(model / "model.safetensors"), {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        after.update(load_file(file))
    assert before.keys() == after.keys() and all(same_bytes(before[name], after[name]) for name in before)
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    question = ["--device", "cpu", "--prompt", "What?", "--max-new-tokens", 4]
    assert mgm("chat", tmp_path / "out", *question).stdout == mgm("chat", model, *question).stdout


def test_convert_refusals(model, tmp_path):
    refused(4, "convert", tmp_path / "no", "--out", tmp_path / "out", says=["no such file"])
    refused(2, "convert", model, "--out", model, "--replace", says=["source itself"])
    refused(2, "convert", model, says=["--out"])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.txt").write_text("mine")
    refused(4, "convert", model, "--out", tmp_path / "taken", "--replace", says=["taken"])
    save_file({"big": torch.tensor([1e6])}, tmp_path / "big.safetensors")
    refused(4, "convert", tmp_path / "big.safetensors", "--out", tmp_path / "out", "--dtype", "fp16",
            says=["'big'", "65504", "1e+06"])
    torch.save({"a": torch.ones(2), "p": pathlib.Path("x")}, tmp_path / "code.bin")
    refused(4, "convert", tmp_path / "code.bin", "--out", tmp_path / "out", says=["pathlib"])
    torch.save({"a": torch.ones(2)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    refused(4, "convert", tmp_path / "old.bin", "--out", tmp_path / "out", says=["legacy", "save_file"])
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\3\0\0\0")
    refused(4, "convert", tmp_path / "cut.gguf", "--out", tmp_path / "out", says=["cut.gguf"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change, says", [
    (dict(num_hidden_layers=4), ["missing:", "model.layers.3.self_attn.q_proj.weight"]),
    (dict(num_hidden_layers=1), ["unexpected:", "model.layers.1.self_attn.q_proj.weight"]),
    (dict(intermediate_size=24), ["of another shape:", "model.layers.0.mlp.up_proj.weight"]),
    (dict(num_hidden_layers=2**32 - 1), ["num_hidden_layers", "4294967295"]),
    (dict(model_type="falcon", architectures=["FalconForCausalLM"]), ["falcon", "known: llama"]),
    ("lm_head.weight", ["1 missing:", "lm_head.weight"]),
    ("model.vlm_uni_query_projector.1.weight", ["1 missing:", "model.vlm_uni_query_projector.1.weight"]),
])
def test_what_a_start_would_be_refused_for_is_not_written(model, tmp_path, change, says):
    broken = shutil.copytree(model, tmp_path / "broken")
    if isinstance(change, dict):
        config = json.loads((model / "config.json").read_text())
        (broken / "config.json").write_text(json.dumps({**config, **change}))
    else:
        tensors = load_file(model / "model.safetensors")
        assert change in tensors
        save_file({name: value for name, value in tensors.items() if name != change}, broken / "model.safetensors")
    refused(4, "convert", broken, "--out", tmp_path / "out", says=[*says, broken])
    assert not (tmp_path / "out").exists()
    note, = (note for note in inspected(broken)["notes"] if note.startswith("cannot be loaded"))
    assert all(part in note for part in says), note


@pytest.mark.parametrize("change, says", [
    (dict(), ["missing:", "model.layers.0.self_attn.q_proj.weight"]),
    (dict(tensor="blk.1.attn_v.weight"), ["unexpected:", "model.layers.1.self_attn.v_proj.weight"]),
    (dict(blocks=2**32 - 1), ["num_hidden_layers", "4294967295"]),
    (dict(blocks=0), ["num_hidden_layers"]),
    (dict(rotated=3), ["partial_rotary_factor"]),
])
def test_neither_is_such_a_gguf(tmp_path, change, says):
    file = small_gguf(tmp_path / "a.gguf", **change)
    refused(4, "convert", file, "--out", tmp_path / "out", says=[*says, file])
    assert not (tmp_path / "out").exists()
    note, = inspected(file)["notes"]
    assert note.startswith("cannot be loaded") and all(part in note for part in says), note


def test_memory_is_about_one_tensor(tmp_path):
    """240 MB of weights, tensors of 30 MB."""
    save_file({f"t{i}": torch.ones(7_500_000) for i in range(8)}, tmp_path / "in.safetensors")
    idle = peak_anonymous("inspect", tmp_path / "in.safetensors")
    for dtype in ("auto", "bf16"):
        peak = peak_anonymous("convert", tmp_path / "in.safetensors", "--out", tmp_path / dtype, "--dtype", dtype)
        assert peak < idle + 40e6, f"{peak / 1e6:.0f} MB, {idle / 1e6:.0f} MB without any tensor"
    assert load_file(tmp_path / "bf16/model.safetensors")["t7"].dtype == torch.bfloat16


# ---- towers beside the shards -----------------------------------------------------------------------------
def forward(model_dir, out):
    mgm("forward", model_dir, "--device", "cpu", "--out", out, "--image", ROOT / "data/embedded/images/seal.jpg",
        "--prompt", "What?")
    return load_file(out)["logits"]


def open_clip_rest():
    """What an OpenCLIP checkpoint has besides the trunk: open_clip's own names."""
    import open_clip

    clip = open_clip.CLIP(8, {"layers": 1, "width": 64, "patch_size": 16, "image_size": 32},
                          {"context_length": 7, "vocab_size": 11, "width": 64, "heads": 1, "layers": 1})
    rest = {name: value.detach() for name, value in clip.state_dict().items() if not name.startswith("visual.")}
    assert "token_embedding.weight" in rest and "logit_scale" in rest
    return {**rest, "visual.head.proj.weight": torch.ones(3, 3), "visual.trunk.head.norm.weight": torch.ones(3)}


@pytest.mark.parametrize("kind", ["open_clip_pytorch_model.bin", "training checkpoint", "safetensors", "converted"])
def test_open_clip_checkpoints_and_sharded_clip(model, tmp_path, kind):
    tensors = load_file(model / "model.safetensors")
    clip, convnext, rest = {}, open_clip_rest(), {}
    for name, value in tensors.items():
        if name.startswith("model.vision_tower.vision_tower."):
            clip[name.removeprefix("model.vision_tower.vision_tower.")] = value
        elif name.startswith("model.vision_tower_aux.vision_"):
            convnext["visual.trunk." + name.removeprefix("model.vision_tower_aux.vision_")] = value
        else:
            rest[name] = value
    split, aux = tmp_path / "split", tmp_path / "aux"
    shutil.copytree(model, split)
    config = json.loads((split / "config.json").read_text())
    config.update(mm_vision_tower=str(tmp_path / "clip"), mm_vision_tower_aux=str(aux))
    (split / "config.json").write_text(json.dumps(config))
    save_file(rest, split / "model.safetensors")
    torch_dir(tmp_path / "clip", {**clip, "text_model.final_layer_norm.bias": torch.zeros(3)})
    aux.mkdir()
    if kind == "safetensors":
        save_file(convnext, aux / "open_clip_model.safetensors")
    elif kind == "training checkpoint":
        wrapped = {"epoch": 3, "name": "run", "state_dict": {"module." + n: v for n, v in convnext.items()}}
        torch.save(wrapped, aux / "open_clip_pytorch_model.bin")
    else:
        torch.save(convnext, aux / "open_clip_pytorch_model.bin")
    assert inspected(aux)["kind"] == "OpenCLIP ConvNeXt" and inspected(tmp_path / "clip")["kind"] == "CLIP"
    if kind == "converted":
        for folder in (aux, tmp_path / "clip"):
            mgm("convert", folder, "--out", tmp_path / "new")
            shutil.rmtree(folder)
            (tmp_path / "new").rename(folder)
            assert (folder / ("model.safetensors" if folder != aux else "open_clip_model.safetensors")).exists()
    assert torch.equal(forward(split, tmp_path / "split.safetensors"), forward(model, tmp_path / "whole.safetensors"))


# ---- inspect ----------------------------------------------------------------------------------------------
def test_inspect_a_mini_gemini(model, tmp_path):
    found = inspected(model, "--tensors")
    tensors = load_file(model / "model.safetensors")
    assert found["kind"] == "Mini-Gemini model" and found["format"] == "safetensors"
    assert found["tensors"] == len(tensors) == len(found["list"])
    assert found["parameters"] == sum(t.numel() for t in tensors.values())
    assert found["bytes"] == sum(t.nbytes for t in tensors.values())
    assert found["dtypes"] == {"F32": len(tensors)} and found["files"] == {"model.safetensors": len(tensors)}
    assert "tokenizer.model" in found["tokenizer"] and found["notes"] == []
    parts = {p["name"]: p for p in found["parts"]}
    assert {"language model", "projector", "mining", "vision tower", "HR tower"} <= parts.keys()
    assert all(p["place"] == "inside" for p in parts.values())
    for entry in found["list"]:
        assert entry["shape"] == list(tensors[entry["name"]].shape) and entry["dtype"] == "F32"
    text = mgm("inspect", model, "--tensors").stdout
    assert "Mini-Gemini model" in text and "lm_head.weight F32 [1024, 40] model.safetensors" in text


def test_inspect_names_generations_and_towers_beside(model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    for generation, class_name in (("mgm", "MGMLlamaForCausalLM"), ("mini_gemini", "MiniGeminiLlamaForCausalLM")):
        folder = tmp_path / generation
        folder.mkdir()
        save_file({n: t for n, t in tensors.items() if "vision_tower" not in n}, folder / "model.safetensors")
        (folder / "towers/clip").mkdir(parents=True)
        config.update(architectures=[class_name], mm_vision_tower="towers/clip", mm_vision_tower_aux="towers/none")
        (folder / "config.json").write_text(json.dumps(config))
        found = inspected(folder)
        assert found["generation"] == generation and found["class_name"] == class_name
        places = {p["name"]: p["place"] for p in found["parts"]}
        assert places["vision tower"] == f"beside: {folder / 'towers/clip'}"
        assert places["HR tower"] == "missing: towers/none" and "towers/none" in found["notes"][0]
        assert found["tokenizer"] == []


@pytest.mark.parametrize("suffix", ["", "_gemma"])
def test_convert_writes_todays_names_of_an_old_directory(model, tmp_path, suffix):
    old = tmp_path / "old"
    shutil.copytree(model, old)
    config = json.loads((model / "config.json").read_text())
    named = {"": "LlamaForCausalLM", "_gemma": "GemmaForCausalLM"}[suffix]
    (old / "config.json").write_text(json.dumps(config | {"model_type": "mini_gemini" + suffix, "architectures": ["MiniGemini" + named]}))
    mgm("convert", old, "--out", tmp_path / "new")
    written = json.loads((tmp_path / "new/config.json").read_text())
    assert written == config | {"model_type": "mgm" + suffix, "architectures": ["MGM" + named]}
    # What is of today already is copied byte for byte.
    mgm("convert", model, "--out", tmp_path / "same")
    assert (tmp_path / "same/config.json").read_bytes() == (model / "config.json").read_bytes()


def test_inspect_other_kinds(tmp_path):
    for name, kind in (("model.mm_projector.0.weight", "projector file"), ("visual.trunk.stem.0.weight", "OpenCLIP ConvNeXt"),
                       ("vision_model.embeddings.class_embedding", "CLIP"), ("model.norm.weight", "language model"),
                       ("x", "weights")):
        torch.save({name: torch.ones(2), "epoch": 3}, tmp_path / "a.bin")
        found = inspected(tmp_path / "a.bin")
        assert found["kind"] == kind and found["format"] == "torch" and found["notes"] == ["no tensor: a.bin: epoch"]


def small_gguf(path, architecture="llama", tensor="blk.0.attn_v.weight", blocks=1, rotated=None):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(blocks)
    if rotated:
        writer.add_rope_dimension_count(rotated)
    writer.add_head_count(2)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a", "b", "c"])
    writer.add_tensor("token_embd.weight", np.ones((3, 32), np.float32))
    raw = gguf.quants.quantize(np.ones((4, 32), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor(tensor, raw, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_inspect_gguf(tmp_path):
    found = inspected(small_gguf(tmp_path / "a.gguf"))
    assert found["format"] == "GGUF 3" and found["kind"] == "language model" and found["architecture"] == "llama"
    assert found["dtypes"] == {"F32": 1, "Q8_0": 1} and found["parameters"] == 3 * 32 + 4 * 32
    assert found["config"]["vocab_size"] == 3 and found["config"]["hidden_size"] == 32
    assert found["tokenizer"] == ["tokenizer.ggml.tokens (3)"]
    assert len(found["notes"]) == 1 and "missing:" in found["notes"][0]  # of a block it has one tensor
    assert inspected(tmp_path)["format"] == "GGUF 3"  # the folder with only this file
    strange = inspected(small_gguf(tmp_path / "b.gguf", "mamba"))
    assert strange["architecture"] == "mamba" and "mamba" in strange["notes"][0]
    strange = inspected(small_gguf(tmp_path / "b.gguf", tensor="blk.0.what.weight"))
    assert "blk.0.what.weight" in strange["notes"][0]
    # A name that would clear the screen, and is no text either.
    hostile = tmp_path / "b.gguf"
    hostile.write_bytes(hostile.read_bytes().replace(b"blk.0.what.weight", b"blk.0.\x1b[2\xff.weight"))
    assert "blk.0.\x1b[2\ufffd.weight" in {t["name"] for t in inspected(hostile, "--tensors")["list"]}
    shown = subprocess.run([MGM, "inspect", str(hostile), "--tensors"], capture_output=True, check=True).stdout
    assert rb"blk.0.\x1b[2" in shown and b"\x1b" not in shown
    loud = subprocess.run([MGM, "convert", str(hostile), "--out", str(tmp_path / "out")], capture_output=True).stderr
    assert rb"blk.0.\x1b[2" in loud and b"\x1b" not in loud


def test_inspect_refusals(tmp_path):
    refused(4, "inspect", tmp_path / "no", says=["no such file"])
    refused(4, "inspect", tmp_path, says=[tmp_path, "holds no weights"])
    (tmp_path / "text.safetensors").write_text("hello, this is no file of weights")
    refused(4, "inspect", tmp_path / "text.safetensors", says=["text.safetensors"])
    refused(2, "inspect", says=["path"])


def test_help_has_examples():
    for command in ("inspect", "convert"):
        assert "Example" in mgm(command, "--help").stdout
