"""Every decoder architecture against transformers: logits, loss and every gradient of a packed stream, cached
decoding, recomputation."""
import json
import os
import pathlib
import subprocess

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from backbones import BACKBONES, make
from mgm_oracle import relative_l2

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROBE = pathlib.Path(os.environ.get("MGM_BUILD_DIR", ROOT / "build/release")) / "tests/decoder_probe"
TOLERANCE = 1e-5  # relative L2, fp32
SEGMENTS = (23, 1, 13, 37)


def probe(model_dir, ids, offsets, folder, recompute="none", dtype="float32", device="cpu", fails=False):
    save_file({"ids": ids, "offsets": torch.tensor(offsets)}, folder / "in.safetensors")
    out = folder / f"out_{recompute}.safetensors"
    done = subprocess.run([PROBE, model_dir, folder / "in.safetensors", out, recompute, dtype, device],
                          capture_output=True, text=True)
    if fails:
        assert done.returncode == 4, done
        return done.stderr
    assert done.returncode == 0, done.stderr
    return load_file(out)


def stream(vocab, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab, (sum(SEGMENTS),), generator=generator)
    offsets = [0]
    for length in SEGMENTS:
        offsets.append(offsets[-1] + length)
    return ids, offsets


def balance_loss(model, router_logits):
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
    c = model.config
    return c.router_aux_loss_coef * load_balancing_loss_func(router_logits, c.num_local_experts, c.num_experts_per_tok)


def oracle(model, ids, offsets):
    """{logits, loss, grad.*}: every segment on its own"""
    logits, loss, routers = [], 0, []
    for begin, end in zip(offsets, offsets[1:]):
        out = model(input_ids=ids[None, begin:end], use_cache=False)
        logits.append(out.logits[0])
        loss = loss + F.cross_entropy(out.logits[0, :-1].float(), ids[begin + 1:end], reduction="sum")
        routers.append(getattr(out, "router_logits", None))
    if getattr(model.config, "output_router_logits", False):
        layers = tuple(torch.cat(layer) for layer in zip(*routers))
        loss = loss + balance_loss(model, layers) * (len(ids) - len(SEGMENTS))
    model.zero_grad()
    loss.backward()
    out = {"logits": torch.cat(logits).detach(), "loss": loss.detach()[None]}
    for name, p in model.named_parameters():
        out["grad." + name] = torch.zeros_like(p) if p.grad is None else p.grad
    return out


def save(model, folder):
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", BACKBONES)
def test_logits_gradients_and_cache(tmp_path, name):
    model = make(name, seed=1)
    ids, offsets = stream(model.config.vocab_size)
    expected = oracle(model, ids, offsets)
    actual = probe(save(model, tmp_path / "model"), ids, offsets, tmp_path)
    assert actual.keys() - {"cached"} == expected.keys()
    errors = {key: relative_l2(actual[key], want) if want.any() else actual[key].abs().max().item()
              for key, want in expected.items()}
    errors["cached"] = relative_l2(actual["cached"], expected["logits"][:offsets[1]])
    print(f"{name}: logits {errors['logits']:.1e}, cached {errors['cached']:.1e}, largest of "
          f"{len(errors) - 3} gradients {max(e for k, e in errors.items() if k.startswith('grad')):.1e}")
    bad = {key: error for key, error in errors.items() if not error <= TOLERANCE}
    assert not bad, f"relative L2 above {TOLERANCE}: {bad}"


# Sizes that agree with what is taken where num_key_value_heads is absent.
HEADS = {"llama": (6, 6), "mistral": (16, 8), "mixtral": (16, 8), "qwen2": (32, 32), "qwen3": (32, 32), "gemma": (16, 16),
         "gemma2": (8, 4), "phi3": (6, 6)}


@pytest.mark.parametrize("name", HEADS)
def test_absent_fields(tmp_path, name):
    heads, kv_heads = HEADS[name]
    model_dir = save(make(name, num_attention_heads=heads, num_key_value_heads=kv_heads, hidden_size=heads * 6),
                     tmp_path / "model")
    config = json.loads((model_dir / "config.json").read_text())
    for key in ("num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "rope_theta", "hidden_act"):
        config.pop(key, None)
    (model_dir / "config.json").write_text(json.dumps(config))
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, attn_implementation="eager").eval()
    ids, offsets = stream(model.config.vocab_size)
    assert relative_l2(probe(model_dir, ids, offsets, tmp_path)["logits"], oracle(model, ids, offsets)["logits"]) < TOLERANCE


@pytest.mark.parametrize("name", ["mistral", "gemma2", "phi3", "mixtral with router loss"])
def test_recomputation_is_the_same_arithmetic_again(tmp_path, name):
    model = make(name, seed=2)
    ids, offsets = stream(model.config.vocab_size)
    model_dir = save(model, tmp_path / "model")
    runs = {policy: probe(model_dir, ids, offsets, tmp_path, policy) for policy in ("none", "full", "selective")}
    for policy in ("full", "selective"):
        for key, value in runs["none"].items():
            assert torch.equal(runs[policy][key], value), (policy, key)


def test_damage_is_seen(tmp_path):
    """The comparison can fail: one norm weight shows in the logits."""
    model = make("qwen3", seed=3)
    ids, offsets = stream(model.config.vocab_size)
    model_dir = save(model, tmp_path / "model")
    with torch.no_grad():
        model.model.layers[1].self_attn.k_norm.weight[3] += 0.01
    actual = probe(model_dir, ids, offsets, tmp_path)
    assert relative_l2(actual["logits"], oracle(model, ids, offsets)["logits"]) > 10 * TOLERANCE


def test_weights_that_do_not_belong_are_named(tmp_path):
    """A missing weight, one too many, and a configuration that makes weights unused."""
    model = make("qwen2", seed=4)
    ids, offsets = stream(model.config.vocab_size)
    model_dir = save(model, tmp_path / "model")
    weights = load_file(model_dir / "model.safetensors")
    bias = weights.pop("model.layers.1.self_attn.k_proj.bias")
    save_file({**weights, "model.layers.1.self_attn.k_proj.extra": bias}, model_dir / "model.safetensors")
    message = probe(model_dir, ids, offsets, tmp_path, fails=True)
    assert "1 missing:\n  model.layers.1.self_attn.k_proj.bias" in message, message
    assert "1 unexpected:\n  model.layers.1.self_attn.k_proj.extra" in message, message
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps({**config, "model_type": "t5", "architectures": ["T5"]}))
    message = probe(model_dir, ids, offsets, tmp_path, fails=True)
    assert "'t5'" in message and "llama, gemma, mixtral, mistral, gemma2, qwen2, qwen3, phi3" in message, message
