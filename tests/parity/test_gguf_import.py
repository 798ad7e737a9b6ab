"""A GGUF file as a model: random tiny models of transformers, written as llama.cpp's converter writes them (names by
gguf's own table, rows of heads permuted, 1 + w in Gemma's norms), come back through `mgm convert` to the bit and load
in transformers with the same logits; a real file equals what transformers' own GGUF reader makes of it."""
import json
import os
import pathlib
import subprocess

import gguf
import numpy as np
import pytest
import torch
import transformers
from real_files import smollm2
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("MGM_BUILD_DIR", ROOT / "build" / "release"))
SIZES = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=50, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2)
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}


def config(kind):
    t = transformers
    return {
        "llama": lambda: t.LlamaConfig(**SIZES, rope_theta=5e5, rms_norm_eps=1e-6),
        "llama_tied": lambda: t.LlamaConfig(**SIZES, tie_word_embeddings=True, head_dim=32),
        "llama_bias": lambda: t.LlamaConfig(**SIZES, attention_bias=True),
        "llama31": lambda: t.LlamaConfig(**{**SIZES, "max_position_embeddings": 131072}, rope_theta=5e5, head_dim=64,
                                         rope_scaling=LLAMA3_ROPE),
        "llama_linear": lambda: t.LlamaConfig(**SIZES, rope_scaling={"rope_type": "linear", "factor": 2.0}),
        "mixtral": lambda: t.MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2, sliding_window=None),
        "gemma": lambda: t.GemmaConfig(**SIZES, head_dim=32, hidden_activation="gelu_pytorch_tanh"),
        "gemma2": lambda: t.Gemma2Config(**SIZES, head_dim=32, query_pre_attn_scalar=32, sliding_window=16),
        "gemma2_46": lambda: t.Gemma2Config(**{**SIZES, "num_hidden_layers": 46}, head_dim=32, sliding_window=16),
        "qwen2": lambda: t.Qwen2Config(**SIZES),
        "qwen3": lambda: t.Qwen3Config(**SIZES, head_dim=32),
        "phi3": lambda: t.Phi3Config(**SIZES),
        "phi3old": lambda: t.Phi3Config(**{**SIZES, "num_hidden_layers": 32, "max_position_embeddings": 4096},
                                        sliding_window=2047),
        "phi3long": lambda: t.Phi3Config(**SIZES, original_max_position_embeddings=32, rope_scaling={
            "type": "longrope", "short_factor": [1.0 + i for i in range(8)], "long_factor": [2.0**i for i in range(8)]}),
    }[kind]()


def architecture(kind):
    return "llama" if kind.startswith(("llama", "mixtral")) else kind.removesuffix("long").removesuffix("old")


def redrawn(kind):
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config(kind)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.rand_like(value) + 0.5 if "norm" in name else torch.randn_like(value) * 0.3)
    return model


def permuted(weights, heads):
    """As LlamaModel.permute of convert_hf_to_gguf.py."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def write_metadata(writer, c, kind):
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_bos_token_id(c.bos_token_id)
    writer.add_eos_token_id(c.eos_token_id)
    writer.add_pad_token_id(c.pad_token_id)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    if kind.startswith(("llama", "mixtral", "phi3")):
        writer.add_rope_dimension_count(head_dim)
    if head_dim * c.num_attention_heads != c.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if kind == "mixtral":
        writer.add_expert_count(c.num_local_experts)
        writer.add_expert_used_count(c.num_experts_per_tok)
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
        writer.add_final_logit_softcapping(c.final_logit_softcapping)
        writer.add_sliding_window(c.sliding_window)
    if kind == "phi3":
        writer.add_sliding_window(0)  # what the converter writes for none
    if kind == "llama_linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(2.0)


def write_gguf(model, kind, path, drop=(), rename=None, rope=None, keys=()):
    """`keys`: numbers and texts of the architecture's metadata besides the usual"""
    c, arch = model.config, architecture(kind)
    writer = gguf.GGUFWriter(path, arch)
    write_metadata(writer, c, kind)
    for key, value in dict(keys).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{arch}.rope.{key}", value)
    names = gguf.get_tensor_name_map(next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch), c.num_hidden_layers)
    experts = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings or name in drop:
            continue
        array = value.numpy()
        if arch == "llama" and name.endswith(("q_proj.weight", "q_proj.bias")):
            array = permuted(array, c.num_attention_heads)
        if arch == "llama" and name.endswith(("k_proj.weight", "k_proj.bias")):
            array = permuted(array, c.num_key_value_heads)
        if kind.startswith("gemma") and name.endswith("norm.weight"):
            array = array + np.float32(1)
        stem, suffix = name.rsplit(".", 1)
        if ".experts." in stem:
            before, after = stem.split(".experts.")
            number, which = after.split(".")
            experts.setdefault(f"{before}.experts.{which}", {})[int(number)] = array
            continue
        theirs = names.get_name(stem)
        assert theirs, name
        writer.add_tensor((rename or {}).get(theirs, theirs) + "." + suffix, array)
    for stem, parts in experts.items():
        layer = stem.split(".")[2]
        part = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}[stem[-2:]]
        writer.add_tensor(f"blk.{layer}.{part}.weight", np.stack([parts[i] for i in sorted(parts)]))
    if kind == "phi3long":
        for which in ("long", "short"):
            writer.add_tensor(f"rope_factors_{which}.weight", np.float32(c.rope_scaling[f"{which}_factor"]))
    if kind == "llama31":
        plain = 1 / c.rope_theta ** (np.arange(0, c.head_dim, 2) / c.head_dim)
        factors = plain / model.model.rotary_emb.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", np.float32(factors) if rope is None else rope)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def convert(source, out, *options, code=0):
    done = subprocess.run([BUILD / "bin/mgm", "convert", source, "--out", out, *options], capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == code, done.stderr
    return done


KINDS = ["llama", "llama_tied", "llama_bias", "llama31", "llama_linear", "mixtral", "gemma", "gemma2", "qwen2", "qwen3",
         "phi3"]


@pytest.mark.parametrize("kind", KINDS)
def test_models_come_back(tmp_path, kind):
    model = redrawn(kind)
    convert(write_gguf(model, kind, tmp_path / "a.gguf"), tmp_path / "model")
    got = load_file(tmp_path / "model/model.safetensors")
    expected = {n: v for n, v in model.state_dict().items()
                if not (n == "lm_head.weight" and model.config.tie_word_embeddings)}
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        if kind.startswith("gemma") and name.endswith("norm.weight"):
            value = (value + 1) - 1  # what adding in fp32 has rounded is gone
        assert torch.equal(got[name], value), name
    ids = torch.tensor([[1, 17, 3, 49, 8, 8, 20, 5]] * 2)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        ours, theirs = again(ids).logits, model(ids).logits
    assert (ours - theirs).norm() <= 1e-6 * theirs.norm()
    for field in ("hidden_size", "rms_norm_eps", "rope_theta", "num_key_value_heads", "vocab_size", "bos_token_id",
                  "eos_token_id", "pad_token_id", "tie_word_embeddings", "max_position_embeddings"):
        assert getattr(again.config, field) == getattr(model.config, field), field
    assert type(again) is type(model) and getattr(again.config, "rope_scaling", None) == getattr(model.config, "rope_scaling", None)
    generation = json.loads((tmp_path / "model/generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


LINEAR4 = {"rope_type": "linear", "factor": 4.0}
LONG = {"scaling.original_context_length": 32}


@pytest.mark.parametrize("kind, keys, expected", [
    ("llama", {"scaling.factor": 4.0}, LINEAR4),
    ("llama", {"scale_linear": 4.0}, LINEAR4),
    ("llama", {"scale_linear": 2.0, "scaling.factor": 4.0, "scaling.type": "linear"}, LINEAR4),
    ("llama", {"scale_linear": 2.0, "scaling.factor": 0.0}, None),
    ("llama", {"scaling.factor": 4.0, "scaling.type": "none"}, None),
    ("llama", {"scaling.attn_factor": 1.0}, None),
    ("llama", {"scaling.attn_factor": 1.5}, "llama.rope.scaling.attn_factor' is 1.5"),
    ("llama_linear", {"scaling.attn_factor": 1.5}, "llama.rope.scaling.attn_factor' is 1.5"),
    ("llama31", {"scaling.factor": 4.0}, "llama.rope.scaling.factor' is 4"),
    ("phi3long", {**LONG, "scaling.factor": 4.0}, "phi3.rope.scaling.factor' is 4"),
    # sqrt(1 + ln 4 / ln 32): what transformers takes without being told
    ("phi3long", {**LONG, "scaling.attn_factor": 1.4**0.5}, "as it is"),
    ("phi3long", {**LONG, "scaling.attn_factor": 1.25}, 1.25),
    ("phi3long", LONG, 1.0),
])
def test_rope_is_that_of_llama_cpp(tmp_path, kind, keys, expected):
    model = redrawn(kind)
    path = write_gguf(model, kind, tmp_path / "a.gguf", keys=keys)
    refused = isinstance(expected, str) and expected != "as it is"
    done = convert(path, tmp_path / "model", code=4 if refused else 0)
    if refused:
        assert expected in done.stderr
        return
    got = json.loads((tmp_path / "model/config.json").read_text())["rope_scaling"]
    if kind == "phi3long":
        usual = model.config.rope_scaling
        assert got == (usual if expected == "as it is" else {**usual, "attention_factor": expected})
    else:
        assert got == expected


def test_gemma2_of_46_layers_scales_by_its_width(tmp_path):
    path = write_gguf(redrawn("gemma2_46"), "gemma2", tmp_path / "a.gguf")
    convert(path, tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text())["query_pre_attn_scalar"] == 64 // 4


def test_phi3_of_before_the_windows_key(tmp_path):
    """llama.cpp's own rule for files of Phi-3-mini-4k and -medium-4k that have no phi3.attention.sliding_window."""
    convert(write_gguf(redrawn("phi3old"), "phi3old", tmp_path / "a.gguf"), tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text())["sliding_window"] == 2047


def test_refusals_say_why(tmp_path):
    model = redrawn("llama")
    odd = write_gguf(model, "llama", tmp_path / "odd.gguf", rename={"blk.1.ffn_up": "blk.1.ffn_across"})
    assert "blk.1.ffn_across.weight" in convert(odd, tmp_path / "model", code=4).stderr
    rope = write_gguf(redrawn("llama31"), "llama31", tmp_path / "rope.gguf", rope=np.linspace(1, 9, 32, dtype=np.float32))
    assert "rope_freqs.weight" in convert(rope, tmp_path / "model", code=4).stderr
    writer = gguf.GGUFWriter(tmp_path / "mamba.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused = convert(tmp_path / "mamba.gguf", tmp_path / "model", code=4).stderr
    assert "mamba" in refused and "llama" in refused
    whole = (tmp_path / "odd.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-100])
    assert "cut" in convert(tmp_path / "cut.gguf", tmp_path / "model", code=4).stderr
    assert not (tmp_path / "model").exists()


def test_a_real_model_is_what_transformers_reads(tmp_path):
    file = smollm2()
    convert(file, tmp_path / "model", "--max-shard-size", "200MB")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    expected, got = theirs.state_dict(), ours.state_dict()
    assert sorted(got) == sorted(expected) and len(list((tmp_path / "model").glob("model-*.safetensors"))) >= 3
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    ids = torch.tensor([[1, 4093, 198, 2683, 359, 253, 5356, 3365]])
    with torch.no_grad():
        assert (ours(ids).logits - theirs(ids).logits).norm() <= 1e-6 * theirs(ids).logits.norm()
    assert ours.config.tie_word_embeddings and ours.config.rope_theta == 1e5 and ours.config.rms_norm_eps == 1e-5
