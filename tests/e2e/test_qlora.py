"""Weights in fewer bits as a user meets them: QLoRA trained, stopped, taken up again and exported; chat and forward
of a model that is packed when it is loaded."""
import json
import os
import re
import shutil

import peft
import pytest
import torch
import transformers
from bitsandbytes import functional as bnb
from safetensors.torch import load_file, save_file

from mgm_binary import ROOT, metrics, mgm, sets
from ranks import same_weights, start, weights
from test_adapter import LORA, base, finished, recipe, run_lora, text_logits  # noqa: F401
from test_chat_export import (APPLE, QUESTION, chat, forward, masters, model, oracle, refused,  # noqa: F401
                              relative_l2)

QLORA = {"model__llm__quantize": "nf4", "train__max_steps": 6}
LINEAR = re.compile(r"^model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$")


@pytest.fixture(scope="module")
def qlora(base, recipe):  # noqa: F811
    return run_lora(recipe, base / "qlora", **QLORA)


@pytest.fixture(scope="module")
def adapter(base, qlora):  # noqa: F811
    mgm("export", qlora, "--out", base / "qlora_adapter", "--part", "adapter", "--verify")
    return base / "qlora_adapter"


def dequantised(llm):
    """A language model of transformers with the linears of its blocks in bitsandbytes' NF4 and back."""
    seen = 0
    for name, parameter in llm.named_parameters():
        if LINEAR.match(name):
            seen += 1
            # One block a row: bitsandbytes' kernel for AVX-512 is wrong where blocks go over the ends of rows.
            blocks = parameter.data.reshape(-1, 64)
            packed = bnb.quantize_4bit(blocks, blocksize=64, quant_type="nf4", compress_statistics=True)
            parameter.data = bnb.dequantize_4bit(*packed).view(parameter.shape)
    assert seen == 4 * 7
    return llm


# ---- training ---------------------------------------------------------------------------------------------
def test_adapters_learn_on_packed_blocks(base, recipe, qlora):  # noqa: F811
    trained = masters(qlora, step=6)
    adapters = {name for name in trained if ".lora_" in name}
    assert len(adapters) == 4 * 7 * 2 and all(re.search(r"mm_projector|vlm_uni", n) for n in trained.keys() - adapters)
    assert all(trained[name].any() for name in adapters)
    # As on dense blocks, but not with the same numbers.
    curves = {}
    for quantize in ("none", "nf4"):
        run = run_lora(recipe, base / f"learns_{quantize}", model__llm__quantize=quantize, train__max_steps=40,
                       optimizer__lr=2e-3)
        curves[quantize] = [line["loss"] for line in metrics(run)]
    begin, end = ({name: sum(curve[part]) / 8 for name, curve in curves.items()}
                  for part in (slice(0, 8), slice(-8, None)))
    print(f"mean loss of the first and last 8 of 40 steps: {begin}, {end}")
    assert end["nf4"] < begin["nf4"] - 0.5
    assert curves["nf4"][0] != curves["none"][0] and abs(end["nf4"] - end["none"]) < 0.1 * end["none"]


def test_goes_on_to_the_bit(recipe, qlora, tmp_path):  # noqa: F811
    run = run_lora(recipe, tmp_path / "run", checkpoint__every_steps=3, **QLORA)
    cut = tmp_path / "cut"
    (cut / "checkpoints").mkdir(parents=True)
    os.rename(run / "checkpoints/step_3", cut / "checkpoints/step_3")
    (cut / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
    run_lora(recipe, cut, **QLORA)
    assert [line["loss"] for line in metrics(cut)] == [line["loss"] for line in metrics(qlora)]
    rest, whole = masters(cut, step=6), masters(qlora, step=6)
    assert rest.keys() == whole.keys() and all(torch.equal(rest[name], whole[name]) for name in whole)
    refused(4, "train", recipe, *sets({**LORA, "run.dir": cut, "train.max_steps": 6, "model.llm.quantize": "int8"}),
            says=["model.llm.quantize: nf4 -> int8"])


def test_another_base_is_noticed(base, recipe, tmp_path):  # noqa: F811
    """Packed weights are hashed as those they were made from."""
    shutil.copytree(base / "model", tmp_path / "model")
    options = {**QLORA, "model__path": tmp_path / "model", "checkpoint__every_steps": 1}
    run = run_lora(recipe, tmp_path / "run", **{**options, "train__max_steps": 1})
    weights = load_file(tmp_path / "model/model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][5, 7] += 1e-3
    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    values = {key.replace("__", "."): value for key, value in options.items()}
    refused(4, "train", recipe, *sets({**LORA, "run.dir": run, **values}), "--accept-changes",
            says=["the frozen weights of model.layers.2 are not those"])
    refused(4, "export", run, "--out", tmp_path / "out", "--part", "adapter",
            says=["the frozen weights of model.layers.2 are not those"])


@pytest.mark.parametrize("mode", ["zero1", "zero2"])
def test_two_ranks_equal_one(recipe, tmp_path, mode):  # noqa: F811
    runs, left = [], []
    for where, world in (("replicate", 1), (mode, 2)):
        run = tmp_path / f"{where}_{world}"
        values = {**LORA, "model.llm.quantize": "nf4", "dist.mode": where, "dist.reduction": "strict",
                  "dist.virtual_shards": 2, "train.max_steps": 2, "train.global_batch": 4, "train.micro_batch": 1,
                  "checkpoint.at_end": True}
        assert not any(ranks.poll() for ranks in finished(start(run, world, recipe, **values)))
        runs.append([(line["loss"], line["grad_norm"]) for line in metrics(run)])
        left.append(weights(run, "--part", "adapter"))
    assert runs[0] == runs[1] and len(runs[0]) == 2
    same_weights(left[1], left[0])
    told = mgm("checkpoint", "diff", tmp_path / "replicate_1", tmp_path / f"{mode}_2").stdout
    assert told.splitlines()[-1] == "equal", told


def test_from_random_weights_and_without_adapters(tmp_path):
    """Stage 1 on a packed language model: gradients pass through it to the projector."""
    values = {"model.llm.quantize": "int8", "run.dir": tmp_path / "run", "train.max_steps": 2,
              "train.global_batch": 4, "train.micro_batch": 4}
    mgm("train", "configs/tiny/stage1.yaml", *sets(values))
    assert len(metrics(tmp_path / "run")) == 2 and (tmp_path / "run/mm_projector.bin").exists()
    mgm("export", tmp_path / "run", "--out", tmp_path / "model", "--verify")


# ---- what comes out ---------------------------------------------------------------------------------------
def test_peft_loads_it_on_the_dequantised_base(base, adapter, tmp_path):  # noqa: F811
    for quantize, prepare in (("nf4", dequantised), ("none", lambda llm: llm)):
        llm = prepare(transformers.AutoModelForCausalLM.from_pretrained(base / "llm"))
        adapted = peft.PeftModel.from_pretrained(llm, adapter).eval()
        ids, actual = text_logits(adapter, tmp_path, "--quantize", quantize)
        with torch.no_grad():
            expected = adapted(ids).logits
            with adapted.disable_adapter():
                bare = adapted(ids).logits
        # A maximum's code may differ where bitsandbytes' map does in the last bit.
        assert relative_l2(actual, expected) <= (1e-5 if quantize == "none" else 2e-2), quantize
        assert relative_l2(actual, bare) > 5e-2
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base / "model")


def test_merging_goes_into_the_weights_that_were_packed(base, qlora, tmp_path):  # noqa: F811
    mgm("export", qlora, "--out", tmp_path / "merged", "--merge", "--verify")
    before, after = load_file(base / "model/model.safetensors"), load_file(tmp_path / "merged/model.safetensors")
    trained = masters(qlora, step=6)
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        expected = trained.get(name, weight).double()
        if LINEAR.match(name):
            expected = expected + 2.0 * trained[module + ".lora_B.weight"].double() @ \
                trained[module + ".lora_A.weight"].double()
        assert relative_l2(after[name], expected) <= 1e-6, name


# ---- inference --------------------------------------------------------------------------------------------
def test_logits_of_packed_models(base, tmp_path):  # noqa: F811
    ids, dense = text_logits(base / "model", tmp_path)
    _, nf4 = text_logits(base / "model", tmp_path, "--quantize", "nf4")
    _, int8 = text_logits(base / "model", tmp_path, "--quantize", "int8")
    errors = relative_l2(nf4, dense), relative_l2(int8, dense)
    print(f"relative L2 of the logits: nf4 {errors[0]:.3f}, int8 {errors[1]:.4f}")
    assert 0.02 < errors[0] < 0.5 and 1e-4 < errors[1] < 0.05

    llm = transformers.AutoModelForCausalLM.from_pretrained(base / "llm")
    for name, parameter in llm.named_parameters():
        if LINEAR.match(name):
            scale = parameter.data.abs().amax(1, keepdim=True) / 127
            parameter.data = (parameter.data / scale).round() * scale
    with torch.no_grad():
        assert relative_l2(int8, llm(ids).logits) <= 1e-3
        again = dequantised(transformers.AutoModelForCausalLM.from_pretrained(base / "llm"))
        assert relative_l2(nf4, again(ids).logits) <= 2e-2


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_answers_of_packed_models(model, tmp_path, quantize):  # noqa: F811
    options = ["--image", APPLE, "--prompt", QUESTION, "--max-new-tokens", 5, "--quantize", quantize]
    done = mgm("chat", model, "--device", "cpu", *options)
    assert done.stdout.strip() and re.search(r"of them packed to", done.stderr)
    assert chat(model, *options) == done.stdout
    assert chat(model, *options, "--dtype", "bf16").strip()
    asked = ["--image", APPLE, "--prompt", QUESTION]
    packed = forward(model, tmp_path / "out.safetensors", *asked, "--quantize", quantize)
    whole = forward(model, tmp_path / "out.safetensors", *asked)
    assert torch.equal(packed["visual_tokens"], whole["visual_tokens"]), "towers and projector stay as they are"
    assert not torch.equal(packed["logits"], whole["logits"])


# ---- configuration ----------------------------------------------------------------------------------------
def test_what_packed_weights_cannot_do(recipe):  # noqa: F811
    nf4 = {**LORA, "model.llm.quantize": "nf4"}
    for mode in ("zero3", "hybrid"):
        refused(2, "train", recipe, "--plan", *sets({**nf4, "dist.mode": mode}),
                says=["dist.mode", "use replicate, zero1 or zero2"])
    refused(2, "train", recipe, "--plan", *sets(nf4), "--set", "train.rules=[{preset: stage2}]",
            says=["model.llm.quantize", "packs 28 weights that train.rules train", "preset: adapter"])
    refused(2, "train", "configs/tiny/stage2.yaml", "--plan", "--set", "model.llm.quantize=nf4",
            "--set", "model.projector.path=", says=["packed weights stay frozen: set model.adapter.kind: lora"])


def test_plan_knows_the_bytes():
    """Of a 7B model: 3.1 GiB in place of 12.1 for the blocks, and no mode that cuts weights."""
    plans = {}
    for name in ("lora", "qlora"):
        recipe_ = ROOT / f"configs/adapter/vicuna_7b_{name}.yaml"
        assert not mgm("config", "check", recipe_).stderr
        plans[name] = json.loads(mgm("train", recipe_, "--plan", "--world", 2, "--json").stdout)[0]["modes"]
    memory = {name: {mode["mode"]: mode["memory"] for mode in modes} for name, modes in plans.items()}
    blocks = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    saved = memory["lora"]["zero2"]["parameters"] - memory["qlora"]["zero2"]["parameters"]
    assert saved == pytest.approx(blocks * (2 - 4.127 / 8), rel=1e-3)
    assert "zero3" in memory["lora"] and set(memory["qlora"]) == {"replicate", "zero1", "zero2"}
    assert memory["qlora"]["zero2"]["working"] >= 2 * 4096 * 11008
