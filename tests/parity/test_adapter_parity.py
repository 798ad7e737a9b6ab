"""Low-rank adapters against PEFT: directories that PEFT has saved give the same logits and the same gradients of A
and B, for every kind of decoder."""
import json
import pathlib
import subprocess
import sys

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from backbones import make
from mgm_oracle import relative_l2
from test_backbone_parity import PROBE, TOLERANCE, save, stream

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from mgm_binary import mgm  # noqa: E402

PREFIX = "base_model.model."
TIED = "a tied embedding of its own"
CASES = {
    "llama": dict(base="llama", target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                                                "down_proj"]),
    "two targets, rslora": dict(base="llama", target_modules=["q_proj", "down_proj"], use_rslora=True, r=9),
    "a regular expression": dict(base="qwen3", target_modules=r"model\.layers\.1\..*_proj"),
    "some layers": dict(base="gemma2", target_modules=["v_proj", "up_proj"], layers_to_transform=[0]),
    "fused projections": dict(base="phi3", target_modules=["qkv_proj", "gate_up_proj", "o_proj", "down_proj"]),
    "experts": dict(base="mixtral", target_modules=["q_proj", "w1", "w2", "w3"]),
    "a module of its own": dict(base="llama", target_modules=["k_proj"], modules_to_save=["lm_head"]),
    TIED: dict(base="llama tied, exact gelu", target_modules=["k_proj"],
               modules_to_save=["embed_tokens"], ensure_weight_tying=True),
}


def adapted(folder, name, seed=0, **changes):
    """(PEFT model with every adapter redrawn, the base's directory, the adapter's directory)"""
    options = {**CASES[name], **changes}
    base = make(options.pop("base"), seed=seed + 1)
    base_dir = save(base, folder / "base")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "lora_dropout": 0.1, "task_type": "CAUSAL_LM", **options})
    model = peft.get_peft_model(base, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter_name, p in model.named_parameters():
        if p.requires_grad:
            with torch.no_grad():
                p.normal_(0, p.shape[1] ** -0.5, generator=generator)
    model.save_pretrained(folder / "adapter")
    return model.eval(), base_dir, folder / "adapter"


def probe(base, adapter, ids, offsets, folder, fails=False):
    save_file({"ids": ids, "offsets": torch.tensor(offsets)}, folder / "in.safetensors")
    done = subprocess.run([PROBE, base, folder / "in.safetensors", folder / "out.safetensors", "none", "float32", "cpu",
                           adapter], capture_output=True, text=True)
    if fails:
        assert done.returncode == 4, done
        return done.stderr
    assert done.returncode == 0, done.stderr
    return load_file(folder / "out.safetensors")


def oracle(model, ids, offsets):
    logits, loss = [], 0
    for begin, end in zip(offsets, offsets[1:]):
        out = model(input_ids=ids[None, begin:end], use_cache=False).logits[0]
        logits.append(out)
        loss = loss + F.cross_entropy(out[:-1].float(), ids[begin + 1:end], reduction="sum")
    model.zero_grad()
    loss.backward()
    grads = {name.removeprefix(PREFIX).replace(".default", ""): p.grad for name, p in model.named_parameters()
             if ".lora_" in name}
    assert grads and all(g is not None for g in grads.values())
    return {"logits": torch.cat(logits).detach(), **{"grad." + name: g for name, g in grads.items()}}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_of_what_peft_saved(tmp_path, name):
    model, base, adapter = adapted(tmp_path, name)
    ids, offsets = stream(model.config.vocab_size)
    expected, actual = oracle(model, ids, offsets), probe(base, adapter, ids, offsets, tmp_path)
    ours = {key for key in actual if ".lora_" in key}
    assert ours == expected.keys() - {"logits"}
    errors = {key: relative_l2(actual[key], want) if want.any() else actual[key].abs().max().item()
              for key, want in expected.items()}
    print(f"{name}: logits {errors['logits']:.1e}, largest of {len(ours)} gradients "
          f"{max(e for k, e in errors.items() if k != 'logits'):.1e}")
    bad = {key: error for key, error in errors.items() if not error <= TOLERANCE}
    assert not bad, f"relative L2 above {TOLERANCE}: {bad}"
    # Cached decoding runs the adapters too.
    assert relative_l2(actual["cached"], expected["logits"][:offsets[1]]) <= TOLERANCE
    # And the comparison can fail: without the adapters it does.
    with model.disable_adapter():
        begin, end = offsets[:2]
        assert relative_l2(actual["logits"][begin:end], model(input_ids=ids[None, begin:end]).logits[0]) > 1e-2


def test_torch_files_and_old_names(tmp_path):
    """adapter_model.bin, with the adapter's name in every key, as peft 0.2 wrote it."""
    model, base, adapter = adapted(tmp_path, "llama")
    ids, offsets = stream(model.config.vocab_size)
    new = probe(base, adapter, ids, offsets, tmp_path)
    weights = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({key.replace(".weight", ".default.weight"): value for key, value in weights.items()},
               adapter / "adapter_model.bin")
    old = probe(base, adapter, ids, offsets, tmp_path)
    assert torch.equal(old["logits"], new["logits"])


@pytest.mark.parametrize("change,says", [
    (dict(use_dora=True), "use_dora"), (dict(bias="all"), "bias 'all'"), (dict(peft_type="IA3"), "IA3"),
    (dict(use_qalora=True), "use_qalora"), (dict(layer_replication=[[0, 2], [0, 1]]), "layer_replication"),
    (dict(alora_invocation_tokens=[1, 2]), "alora_invocation_tokens"), (dict(target_parameters=["w"]), "target_parameters"),
    (dict(trainable_token_indices=[3]), "trainable_token_indices"), (dict(init_lora_weights="pissa_niter_4"), "pissa_niter_4"),
    (dict(init_lora_weights="lora_ga"), "lora_ga"), (dict(use_more={"n": 2}), 'use_more is {"n":2}'),
    (dict(modules_to_save=["lm_head"]), 'modules_to_save has "lm_head"'),
    (dict(rank_pattern={"q_proj": 2}), "rank_pattern"), (dict(r=0), "r 0"), (dict(r=None), "'r' is missing")])
def test_other_adapters_are_refused(tmp_path, change, says):
    _, base, adapter = adapted(tmp_path, "llama")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    ids, offsets = stream(64)
    message = probe(base, adapter, ids, offsets, tmp_path, fails=True)
    assert says in message and "adapter_config.json" in message


def test_a_missing_half_is_named(tmp_path):
    _, base, adapter = adapted(tmp_path, "llama")
    weights = load_file(adapter / "adapter_model.safetensors")
    del weights[PREFIX + "model.layers.0.mlp.up_proj.lora_B.weight"]
    save_file(weights, adapter / "adapter_model.safetensors")
    ids, offsets = stream(64)
    message = probe(base, adapter, ids, offsets, tmp_path, fails=True)
    assert "1 missing:\n  model.layers.0.mlp.up_proj.lora_B.weight" in message


# ---- embeddings that the model ties to its head ---------------------------------------------------------------------
def test_an_embedding_that_peft_unties_is_refused(tmp_path):
    """PEFT replaces the embedding and leaves the head: another function than with both."""
    model, base, adapter = adapted(tmp_path, TIED, ensure_weight_tying=False)
    assert not torch.equal(model.base_model.model.lm_head.weight, model.get_input_embeddings().weight)
    ids, offsets = stream(64)
    assert "without the head" in probe(base, adapter, ids, offsets, tmp_path, fails=True)
    assert "without the head" in mgm("convert", base, "--adapter", adapter, "--out", tmp_path / "out", code=4).stderr
    assert not (tmp_path / "out").exists()


def test_what_folding_unties_is_not_written(tmp_path):
    """The config ties, the file has an equal head as well, and the adapter another one."""
    _, base, adapter = adapted(tmp_path, TIED, modules_to_save=["lm_head"], ensure_weight_tying=False)
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    says = mgm("convert", base, "--adapter", adapter, "--out", tmp_path / "out", code=4).stderr
    assert "lm_head.weight: differs from model.embed_tokens.weight, but the model's config ties the two" in says
    assert not (tmp_path / "out").exists()
