"""`mgm train --plan` and the shipped recipes: parameter totals against transformers and timm on the meta device,
hyper-parameters against the reference scripts' table."""
import json
import re
import resource
import shlex

import pytest
import torch
import transformers
import yaml
from timm.models.convnext import ConvNeXt

from mgm_binary import ROOT, mgm, sets

MINING = 6_963_456  # three heads of LayerNorm + Linear: 1024 -> 1024 and twice 2880 -> 1024
CLIP, CONVNEXT_L = 303_507_456, 196_227_264

LLAMA = dict(rms_norm_eps=1e-5, max_position_embeddings=4096, tie_word_embeddings=False)
LLMS = {
    "gemma_2b": transformers.GemmaConfig(
        vocab_size=256000, hidden_size=2048, intermediate_size=16384, num_hidden_layers=18, num_attention_heads=8,
        num_key_value_heads=1, head_dim=256, rms_norm_eps=1e-6, max_position_embeddings=8192),
    "vicuna_7b": transformers.LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        **LLAMA),
    "vicuna_13b": transformers.LlamaConfig(
        vocab_size=32000, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40,
        **LLAMA),
    "llama3_8b": transformers.LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, rope_theta=5e5, **{**LLAMA, "max_position_embeddings": 8192}),
    "mixtral_8x7b": transformers.MixtralConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, rope_theta=1e6, **{**LLAMA, "max_position_embeddings": 32768}),
    "yi_34b": transformers.LlamaConfig(
        vocab_size=64000, hidden_size=7168, intermediate_size=20480, num_hidden_layers=60, num_attention_heads=56,
        num_key_value_heads=8, rope_theta=5e6, **LLAMA),
}

# (recipe, template, lr, samples per device, global batch, maximal length, save steps)
STAGE1 = [
    ("gemma_2b", "gemma", 1e-3, 8, 256, 2048, 24000),
    ("vicuna_7b", "plain", 1e-3, 16, 256, 2048, 24000),
    ("vicuna_7b_nodp", "plain", 1e-3, 16, 256, 2048, 24000),
    ("vicuna_13b", "plain", 1e-3, 8, 256, 2048, 24000),
    ("llama3_8b", "llama_3", 1e-3, 16, 256, 2048, 24000),
    ("mixtral_8x7b", "plain", 1e-3, 8, 256, 2048, 24000),
    ("yi_34b", "plain", 1e-3, 8, 256, 2048, 24000),
]
STAGE2 = [
    ("gemma_2b", "gemma", 2e-5, 8, 128, 2048, 1000),
    ("gemma_2b_hd", "gemma", 2e-5, 4, 128, 4096, 20000),
    ("vicuna_7b", "v1", 2e-5, 8, 128, 2048, 1000),
    ("vicuna_7b_nodp", "v1", 2e-5, 8, 128, 2048, 1000),
    ("vicuna_7b_hd", "v1", 2e-5, 4, 128, 4096, 1000),
    ("vicuna_13b", "v1", 2e-5, 4, 128, 2048, 1000),
    ("vicuna_13b_hd", "v1", 2e-5, 4, 128, 4096, 1000),
    ("llama3_8b", "llama_3", 2e-5, 8, 128, 2048, 1000),
    ("llama3_8b_hd", "llama_3", 2e-5, 4, 128, 4096, 1000),
    ("mixtral_8x7b", "mistral_instruct", 1e-5, 4, 128, 2048, 1000),
    ("mixtral_8x7b_hd", "mistral_instruct", 1e-5, 4, 128, 4096, 1000),
    ("yi_34b", "chatml_direct", 1e-5, 4, 128, 2048, 1000),
    ("yi_34b_hd", "chatml_direct", 1e-5, 4, 128, 4096, 1000),
]
ROWS = [(1, *row) for row in STAGE1] + [(2, *row) for row in STAGE2]
OTHERS = sorted(str(p.relative_to(ROOT)) for folder in ("ablation", "tiny") for p in (ROOT / "configs" / folder).glob("*.yaml")
                if p.name != "model.yaml")


def llm_of(recipe):
    return re.sub("_(hd|nodp)$", "", recipe)


def plan(config, *options):
    """{part: (parameters, trained)} and the text"""
    text = mgm("train", config, "--plan", *options).stdout
    parts = {}
    for line in text.split("\n\n")[0].splitlines()[1:]:
        name, count, trained = re.fullmatch(r"(\S.*?) +([\d,]+) +([\d,]+|frozen)", line).groups()
        parts[name] = (int(count.replace(",", "")), 0 if trained == "frozen" else int(trained.replace(",", "")))
    return parts, text


def count(make):
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


@pytest.mark.parametrize("config,total", [("configs/stage1/vicuna_7b.yaml", 7_266_093_504),
                                          ("configs/stage2/vicuna_7b_hd.yaml", 7_266_093_504),
                                          ("configs/stage1/vicuna_13b.yaml", 13_554_030_016),
                                          ("configs/stage2/vicuna_13b.yaml", 13_554_030_016)])
def test_published_totals_in_less_than_a_second(config, total):
    """Of processor time: the test machine may be busy. And without the memory that 26 GB of weights would take."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    parts, _ = plan(config)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert parts["total"][0] == total
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("name", LLMS)
def test_parameters_equal_transformers_and_timm(name):
    parts, _ = plan(f"configs/stage1/{name}.yaml")
    width = LLMS[name].hidden_size
    # The class of transformers that the config belongs to, its head tied where the config says so.
    llm = count(lambda: transformers.AutoModelForCausalLM.from_config(LLMS[name]))
    projector = (1024 + 1) * width + (width + 1) * width
    assert sum(parts[p][0] for p in parts if p.startswith("llm ")) == llm
    assert parts["LR encoder (clip)"][0] == CLIP
    assert parts["HR encoder (convnext)"][0] == CONVNEXT_L
    assert parts["patch info mining"] == (MINING, MINING)
    assert parts["projector"] == (projector, projector)
    assert parts["total"] == (llm + CLIP + CONVNEXT_L + MINING + projector, MINING + projector)


def test_the_towers_counts_are_those_of_transformers_and_timm():
    clip = transformers.CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                                         num_attention_heads=16, image_size=336, patch_size=14)
    assert count(lambda: transformers.CLIPVisionModel(clip)) == CLIP
    # Stem and stages: what open_clip calls head and the norm before it are not of Mini-Gemini.
    convnext = ConvNeXt(depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536), num_classes=0)
    stages = [p.numel() for n, p in convnext.named_parameters() if n.startswith(("stem.", "stages."))]
    assert sum(stages) == CONVNEXT_L


@pytest.mark.parametrize("stage,recipe,template,lr,micro,batch,length,save", ROWS,
                         ids=[f"stage{r[0]} {r[1]}" for r in ROWS])
def test_recipe_is_the_reference_script(stage, recipe, template, lr, micro, batch, length, save):
    config = f"configs/stage{stage}/{recipe}.yaml"
    mgm("config", "check", config)
    shown = yaml.safe_load(mgm("config", "show", config, "--plain").stdout)
    train, image, optimizer = shown["train"], shown["image"], shown["optimizer"]
    assert (shown["text"]["template"], optimizer["lr"], train["micro_batch"], train["global_batch"],
            shown["text"]["max_length"], shown["checkpoint"]["every_steps"]) == (template, lr, micro, batch, length, save)
    hd = recipe.endswith("_hd")
    assert (image["hr_size"], image["grid"], image["global"]) == ((1536, 2, True) if hd else (768, 1, False))
    assert image["aspect"] == ("square" if stage == 1 else "pad")
    assert shown["data"]["grouping"] == ("none" if stage == 1 else "modality_length")
    assert (optimizer["betas"], optimizer["weight_decay"], optimizer["clip_norm"]) == ([0.9, 0.999], 0, 0)
    assert (shown["schedule"]["kind"], shown["schedule"]["warmup_ratio"], train["epochs"]) == ("cosine", 0.03, 1)
    assert shown["model"]["convnext"]["drop_path"] == (0 if recipe.endswith("nodp") else 0.1)
    llm, theirs = shown["model"]["llm"], LLMS[llm_of(recipe)]
    assert (llm["rope_theta"], llm["norm_eps"], llm["max_positions"]) == (
        theirs.rope_theta, theirs.rms_norm_eps, theirs.max_position_embeddings)
    doubled = [rule["match"] for rule in train["rules"] if rule["lr_scale"] == 2]
    assert doubled == (["model.mm_projector.*", "model.vlm_uni_*"] if lr == 1e-5 else [])

    samples = {1: 1_270_000, 2: 1_420_000}[stage]
    steps = -(-samples // batch)
    warm_up = -(-steps * 3 // 100)  # HF rounds up
    parts, text = plan(config)
    assert f"steps: {steps:,} ({warm_up:,} warm-up) over {samples:,} samples" in text
    assert f"{2880 if hd else 576} visual tokens" in text
    assert f"batch: {batch} samples a step = {batch // micro} x {micro}" in text
    frozen = CLIP + CONVNEXT_L + (0 if stage == 2 else sum(parts[p][0] for p in parts if p.startswith("llm ")))
    assert parts["total"][1] == parts["total"][0] - frozen


@pytest.mark.parametrize("config", OTHERS)
def test_other_configs_can_be_planned(config):
    mgm("config", "check", config)
    assert "steps: " in plan(config)[1]


def test_plan_touches_nothing(tmp_path):
    plan(ROOT / "configs/tiny/stage1.yaml", "--set", f"run.dir={tmp_path}/run")
    assert not (tmp_path / "run").exists()


# ---- machines --------------------------------------------------------------------------------------------------------
def plans(config, *options):
    return json.loads(mgm("train", config, "--plan", "--json", *options).stdout)


def test_every_mode_with_and_without_offload():
    (plan,) = plans("configs/stage2/vicuna_7b.yaml", "--world", 16, "--gpus-per-node", 8, "--gpu-memory", "80GiB")
    assert (plan["world"], plan["micro_batches"], plan["global_batch"]) == (16, 1, 128)
    assert plan["gpu_memory"] == 80 * 2**30
    names = [(m["mode"], m["shard_size"], m["offload"]) for m in plan["modes"]]
    modes = [("replicate", 1), ("zero1", 16), ("zero2", 16), ("zero3", 16), ("hybrid", 8)]
    assert names == [(*m, offload) for offload in (False, True) for m in modes]
    for mode in plan["modes"]:
        memory = mode["memory"]
        parts = ("parameters", "master", "moments", "gradients", "gathered", "buckets", "activations_kept", "working",
                 "batch", "workspaces")
        assert memory["peak_allocated"] == pytest.approx(sum(memory[p] for p in parts), rel=1e-12)
        assert mode["fits"] == (memory["total"] <= plan["gpu_memory"])
        assert (memory["host"] > 0) == mode["offload"]
        exposed = sum(v["exposed_s"] for v in mode["traffic"].values())
        assert mode["exposed_s"] == pytest.approx(exposed)
        assert mode["step_s"] == pytest.approx(mode["compute_s"] + mode["optimizer_s"] + exposed)
    best = plan["modes"][plan["cheapest"]]
    assert best["fits"] and not best["offload"]
    assert all(best["step_s"] <= 1.005 * m["step_s"] for m in plan["modes"] if m["fits"])


def test_options_reach_the_plan():
    (base,) = plans("configs/stage2/vicuna_7b.yaml", "--world", 16)
    (other,) = plans("configs/stage2/vicuna_7b.yaml", "--world", 16, "--gpu-memory", "141GB", "--link", 300, "--network",
                     12.5, "--flops", 220, "--tokens", 1024, "--images", 0)
    assert (other["gpu_memory"], other["link"], other["network"], other["flops"]) == (141e9, 300e9, 12.5e9, 220e12)
    assert other["memory_shape"] == {"samples": 8, "tokens": 8192, "images": 0, "targets": 8192, "longest": 1024}
    assert base["memory_shape"]["tokens"] == 8 * 2048 and base["time_shape"]["tokens"] == 8 * (576 + 320)
    text = mgm("train", "configs/stage2/vicuna_7b.yaml", "--plan", "--world", 16).stdout
    assert "16 ranks on 2 nodes of 8" in text and "cheapest that fits: " in text


def test_what_helps_is_said():
    text = mgm("train", "configs/stage2/yi_34b.yaml", "--plan", "--world", 4, "--set", "train.micro_batch=16").stdout
    assert "no mode fits 80.00 GiB; each of these would help:\n" in text
    assert re.search(r"^  \d+ ranks: zero3.* takes [\d.]+ GiB$", text, re.M)


def test_a_number_without_a_unit_is_named():
    done = mgm("train", "configs/tiny/stage1.yaml", "--plan", "--gpu-memory", "80", code=2)
    assert "--gpu-memory: 80 bytes; give a unit, as in 80GiB" in done.stderr


@pytest.mark.parametrize("world, values, words", [
    (8, {"dist.mode": "hybrid", "dist.shard_size": 3}, "dist.shard_size: 3 does not divide the world of 8 ranks; these do: 1, 2, 4, 8"),
    (3, {"dist.reduction": "strict"}, "dist.virtual_shards: 8 leaves cannot be dealt to 3 ranks evenly")])
def test_what_a_run_would_refuse_is_not_planned(world, values, words):
    done = mgm("train", "configs/stage2/vicuna_7b.yaml", "--plan", "--world", world, *sets(values), code=2)
    assert words in done.stderr and not done.stdout


def test_planning_page_is_what_the_binary_prints():
    page = (ROOT / "docs" / "planning.md").read_text()
    found = re.findall(r"<!-- (mgm train .*?) -->\n((?:\|.*\n)+)", page)
    assert len(found) == 5
    for command, table in found:
        assert mgm(*shlex.split(command)[1:]).stdout == table, f"docs/planning.md is stale; run: {command}"


# ---- rehearsal -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["replicate", "zero1", "zero2", "zero3", "hybrid"])
def test_rehearsal_by_the_data_plan(mode):
    """Also without a run folder, weights or a second process."""
    text = mgm("train", "configs/tiny/stage2.yaml", "--rehearse", "--world", 8, "--gpus-per-node", 4, "--set",
               f"dist.mode={mode}", "--set", "train.micro_batch=1").stdout
    assert "step 1 of the data plan" in text
    assert re.search(r"^all 8 ranks issue the same [\d,]+ collectives in the same order$", text, re.M)
    assert ("hybrid, 2 groups of 4" in text) == (mode == "hybrid")


def test_rehearsal_of_hundreds_of_ranks_without_data():
    text = mgm("train", "configs/stage1/vicuna_7b.yaml", "--rehearse", "--world", "64,512", "--set", "dist.mode=zero3",
               "--set", "train.global_batch=8192").stdout
    for world in (64, 512):
        assert re.search(rf"^all {world} ranks issue the same [\d,]+ collectives in the same order$", text, re.M)
    assert re.search(r"^text only on every rank +1 +512 +", text, re.M)


def test_rehearsal_refuses_what_training_would():
    done = mgm("train", "configs/stage2/vicuna_7b.yaml", "--rehearse", "--world", 64, code=2)
    assert ("train.global_batch 128 does not divide into 64 ranks with train.micro_batch 8; nearest global batches: "
            "512\n") in done.stderr
