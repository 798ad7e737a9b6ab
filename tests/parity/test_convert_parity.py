"""`mgm convert` on vision towers and adapters alone: what transformers, open_clip and peft read on both sides is equal
to the bit, or rounded once; an adapter folded into its model is what peft merges."""
import json
import pathlib
import sys

import open_clip
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from backbones import redraw
from mgm_oracle import relative_l2
from test_adapter_parity import CASES, PREFIX, adapted

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from mgm_binary import mgm  # noqa: E402

DTYPES = {"auto": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def inspected(path):
    return json.loads(mgm("inspect", path, "--json").stdout)


def assert_converted(got, source, dtype=torch.float32):
    """Values of another type than a float keep their bits; `dtype` fp32: all do."""
    assert got.keys() == source.keys()
    for name, value in source.items():
        want = value.to(dtype) if value.is_floating_point() else value
        assert got[name].dtype == want.dtype and torch.equal(got[name], want), name


# ---- towers -----------------------------------------------------------------------------------------------
def clip_directory(folder, whole):
    """A CLIP as published: torch file, config, preprocessor. `whole`: with the text half."""
    sizes = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=3)
    vision = dict(sizes, image_size=28, patch_size=7)
    if whole:
        config = transformers.CLIPConfig(vision_config=vision, text_config=dict(sizes, vocab_size=99),
                                         projection_dim=16)
        model = transformers.CLIPModel(config)
    else:
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision))
    redraw(model, seed=5)
    model.eval().save_pretrained(folder, safe_serialization=False)
    transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28).save_pretrained(folder)
    if whole:  # as older files have it
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"]["torch_dtype"] = "float32"
        (folder / "config.json").write_text(json.dumps(config))
    weights = torch.load(folder / "pytorch_model.bin")
    weights["vision_model.embeddings.position_ids"] = torch.arange(17)[None]  # a buffer that older files hold
    torch.save(weights, folder / "pytorch_model.bin")
    return weights


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("whole", [True, False], ids=["CLIP", "vision half"])
def test_clip(tmp_path, whole, dtype):
    source, out = tmp_path / "clip", tmp_path / "out"
    weights = clip_directory(source, whole)
    done = mgm("convert", source, "--out", out, "--dtype", dtype)
    assert "tokenizer" not in done.stderr  # a tower has none
    assert_converted(load_file(out / "model.safetensors"), weights, DTYPES[dtype])
    assert (out / "preprocessor_config.json").read_bytes() == (source / "preprocessor_config.json").read_bytes()
    assert {p.name for p in out.iterdir()} == {"config.json", "preprocessor_config.json", "model.safetensors"}
    if dtype == "auto":
        assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    tower = transformers.CLIPVisionModel.from_pretrained(out, dtype="auto")
    assert tower.dtype == DTYPES[dtype]
    theirs = transformers.CLIPVisionModel.from_pretrained(source).to(DTYPES[dtype])
    pixels = torch.randn(2, 3, 28, 28).to(tower.dtype)
    with torch.no_grad():
        assert torch.equal(tower(pixels).last_hidden_state, theirs(pixels).last_hidden_state)
    assert inspected(source)["kind"] == inspected(out)["kind"] == "CLIP"


OPEN_CLIP = {"embed_dim": 24, "vision_cfg": {"timm_model_name": "convnext_atto", "timm_model_pretrained": False,
                                             "timm_pool": "", "timm_proj": "linear", "image_size": 64},
             "text_cfg": {"context_length": 9, "vocab_size": 60, "width": 32, "heads": 2, "layers": 1}}


def open_clip_directory(folder, training):
    """An OpenCLIP ConvNeXt as published, or as its training leaves it: wrapped, beside the optimizer's state."""
    folder.mkdir()
    config = {"model_cfg": OPEN_CLIP, "preprocess_cfg": {"mean": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = open_clip.CLIP(**OPEN_CLIP)
    redraw(model, seed=6)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    content = weights
    if training:
        moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}
        content = {"epoch": 3, "name": "run", "state_dict": {"module." + n: v for n, v in weights.items()},
                   "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3, "params": [0]}]}}
    torch.save(content, folder / "open_clip_pytorch_model.bin")
    return weights


@pytest.mark.parametrize("training,dtype", [(False, "auto"), (False, "bf16"), (True, "auto"), (True, "fp16")])
def test_open_clip(tmp_path, training, dtype):
    source, out = tmp_path / "convnext", tmp_path / "out"
    weights = open_clip_directory(source, training)
    done = mgm("convert", source, "--out", out, "--dtype", dtype)
    assert "tokenizer" not in done.stderr
    assert ("2 tensors outside the training checkpoint's state_dict" in done.stderr) == training
    assert {p.name for p in out.iterdir()} == {"open_clip_config.json", "open_clip_model.safetensors"}
    assert (out / "open_clip_config.json").read_bytes() == (source / "open_clip_config.json").read_bytes()
    assert_converted(load_file(out / "open_clip_model.safetensors"), weights, DTYPES[dtype])
    model = open_clip.create_model(f"local-dir:{out}")  # strict: every name is there
    assert_converted(model.state_dict(), {n: v.to(DTYPES[dtype]).float() if v.is_floating_point() else v
                                          for n, v in weights.items()})
    for folder in (source, out):
        found = inspected(folder)
        assert found["kind"] == "OpenCLIP ConvNeXt" and found["architecture"] == "convnext_atto"
    # Known as what convert writes, and so replaced.
    mgm("convert", source, "--out", out, "--replace")


# ---- adapters ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["llama", "experts", "a module of its own"])
def test_adapter_directory(tmp_path, name):
    model, base, adapter = adapted(tmp_path, name)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    weights = load_file(adapter / "adapter_model.safetensors")
    others = {"model.mm_projector.0.weight": torch.randn(5, 3).bfloat16()}  # as LLaVA leaves what trained beside
    torch.save({PREFIX + n: v for n, v in others.items()}, adapter / "non_lora_trainables.bin")
    for dtype, type_ in DTYPES.items():
        out = tmp_path / dtype
        done = mgm("convert", adapter, "--out", out, "--dtype", dtype)
        assert "tokenizer" not in done.stderr
        assert_converted(load_file(out / "adapter_model.safetensors"), weights, type_)
        assert_converted(load_file(out / "non_lora_trainables.safetensors"), others,
                         torch.bfloat16 if dtype == "auto" else type_)
        assert (out / "adapter_config.json").read_bytes() == (adapter / "adapter_config.json").read_bytes()
    ids = torch.arange(12)[None]
    llm = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    loaded = peft.PeftModel.from_pretrained(llm, tmp_path / "auto")
    with torch.no_grad():
        assert relative_l2(loaded.eval()(ids).logits, model(ids).logits) <= 1e-6
    found = inspected(tmp_path / "auto")
    assert found["kind"] == "LoRA adapter" and found["config"]["r"] == 4
    assert {"name": "base model", "tensors": 0, "place": f"beside: {base}"} in found["parts"]


def test_old_adapter_files_become_what_peft_reads(tmp_path):
    """adapter_model.bin of peft 0.2, whose names peft 0.18 no longer takes."""
    _, _, adapter = adapted(tmp_path, "llama")
    weights = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({n.replace(".weight", ".default.weight"): v for n, v in weights.items()}, adapter / "adapter_model.bin")
    mgm("convert", adapter, "--out", tmp_path / "out")
    assert_converted(load_file(tmp_path / "out/adapter_model.safetensors"), weights)
    mgm("convert", adapter, "--out", tmp_path / "out", "--replace", "--dtype", "bf16")
    assert_converted(load_file(tmp_path / "out/adapter_model.safetensors"), weights, torch.bfloat16)


@pytest.mark.parametrize("name", [name for name in CASES if "regular" not in name])
def test_folded_adapters_are_what_peft_merges(tmp_path, name):
    model, base, adapter = adapted(tmp_path, name)
    done = mgm("convert", base, "--adapter", adapter, "--out", tmp_path / "out")
    merged = model.merge_and_unload()
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    got, want, before = ours.state_dict(), merged.state_dict(), \
        transformers.AutoModelForCausalLM.from_pretrained(base).state_dict()
    assert got.keys() == want.keys() == before.keys()
    changed = [n for n in want if not torch.equal(want[n], before[n])]
    replaced = {"lm_head.weight", "model.embed_tokens.weight"}  # modules_to_save, tied or not
    assert f"{len(set(changed) - replaced)} weights" in done.stdout
    for n in want:
        assert relative_l2(got[n], want[n]) <= 1e-6 if n in changed else torch.equal(got[n], want[n]), n
    # Another type is rounded once, from the fp32 sum.
    mgm("convert", base, "--adapter", adapter, "--out", tmp_path / "bf16", "--dtype", "bf16")
    assert_converted(load_file(tmp_path / "bf16/model.safetensors"), load_file(tmp_path / "out/model.safetensors"),
                     torch.bfloat16)


def test_an_adapter_of_the_head(tmp_path):
    """Beside it PEFT saves the head itself, under the name of what it wraps."""
    _, base, _ = adapted(tmp_path, "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert not model.config.tie_word_embeddings
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"],
                                                       init_lora_weights=False, task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "head")
    assert any("lm_head.base_layer" in n for n in load_file(tmp_path / "head/adapter_model.safetensors"))
    mgm("convert", base, "--adapter", tmp_path / "head", "--out", tmp_path / "out")
    got, want = load_file(tmp_path / "out/model.safetensors"), model.merge_and_unload().state_dict()
    assert got.keys() == want.keys() and all(relative_l2(got[n], want[n]) <= 1e-6 for n in want)


def test_adapters_that_do_not_fit(tmp_path):
    _, base, adapter = adapted(tmp_path, "llama")
    _, other, _ = adapted(tmp_path / "other", "experts")

    def refused(code, source, on, *says):
        error = mgm("convert", source, "--adapter", on, "--out", tmp_path / "out", code=code).stderr
        assert all(text in error for text in says), error
        assert not (tmp_path / "out").exists()

    whole = load_file(adapter / "adapter_model.safetensors")
    save_file({n: v for n, v in whole.items() if ".layers.1." not in n}, adapter / "adapter_model.safetensors")
    refused(4, base, adapter, "target_modules names 7 linears", "model.layers.1.mlp.down_proj the first")
    config_file = adapter / "adapter_config.json"
    config = json.loads(config_file.read_text())
    names = sorted(n.removeprefix(PREFIX).removesuffix(".lora_A.weight") for n in whole if n.endswith("lora_A.weight"))
    config_file.write_text(json.dumps({**config, "target_modules": names}))  # each by its whole name
    refused(4, base, adapter, "target_modules names 7 linears", "model.layers.1.mlp.down_proj the first")
    config_file.write_text(json.dumps(config))
    save_file(whole, adapter / "adapter_model.safetensors")
    refused(4, other, adapter, "does not belong to", "mlp.down_proj.weight: the model has no such tensor")
    refused(2, adapter, adapter, "is an adapter itself")
    refused(4, base, base, "holds no adapter")
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file({n: v for n, v in weights.items() if n != name.format("B")}, file)
    refused(4, base, adapter, "model.layers.0.self_attn.q_proj.lora_B.weight: is missing")
    save_file({**weights, name.format("A"): weights[name.format("A")][:3].contiguous()}, file)
    refused(4, base, adapter, "model.layers.0.self_attn.q_proj: A is [3, ", "r 4")
    save_file({**weights, "base_model.model.lm_head.weight": torch.ones(2, 2)}, file)
    refused(4, base, adapter, "lm_head.weight: is [2, 2], the model's is")
    save_file({**weights, name.format("A"): weights[name.format("A")] * float("nan")}, file)
    refused(4, base, adapter, "folded into 'model.layers.0.self_attn.q_proj.weight' it gives NaN")
    save_file(weights, file)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    refused(4, base, adapter, "use_dora")
    assert "use_dora" in inspected(adapter)["notes"][0]
