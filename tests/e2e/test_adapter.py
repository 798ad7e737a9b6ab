"""Finetuning with low-rank adapters as a user does it: train, stop, go on, export in PEFT's layout, merge, chat."""
import json
import os
import re
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mgm_binary import ROOT, metrics, mgm, sets
from ranks import ends, same_weights, start, weights
from test_chat_export import APPLE, QUESTION, chat, forward, masters, refused, relative_l2, train

TEXT = "The red bus stands beside 17 apples."
LORA = {"model.adapter.kind": "lora", "model.adapter.rank": 4, "model.adapter.alpha": 8,
        "model.adapter.dropout": 0.1, "optimizer.lr": 1e-2, "schedule.warmup_ratio": 0}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An exported Mini-Gemini that adapters are trained on, and its language model alone."""
    root = tmp_path_factory.mktemp("base")
    train("configs/tiny/stage1.yaml", root / "stage1")
    train("configs/tiny/stage2.yaml", root / "stage2", model__projector__path=root / "stage1/mm_projector.bin")
    mgm("export", root / "stage2", "--out", root / "model")
    mgm("export", root / "stage2", "--out", root / "llm", "--part", "llm")
    return root


@pytest.fixture(scope="module")
def recipe(base):
    path = base / "lora.yaml"
    path.write_text(f"extends: {ROOT}/configs/tiny/stage2.yaml\n"
                    f"model: {{init: pretrained, path: {base}/model, projector: {{path: ''}}}}\n"
                    "train: {rules: [{preset: stage1}, {preset: adapter}], max_steps: 4, global_batch: 4, "
                    "micro_batch: 2}\n")
    return path


def run_lora(recipe, run, **more):
    mgm("train", recipe, *sets({**LORA, "run.dir": run, **{k.replace("__", "."): v for k, v in more.items()}}))
    return run


@pytest.fixture(scope="module")
def lora(base, recipe):
    return run_lora(recipe, base / "lora")


@pytest.fixture(scope="module")
def adapter(base, lora):
    mgm("export", lora, "--out", base / "adapter", "--part", "adapter", "--verify")
    return base / "adapter"


@pytest.fixture(scope="module")
def merged(base, lora):
    mgm("export", lora, "--out", base / "merged", "--merge", "--verify")
    return base / "merged"


def finished(ranks, seconds=200):
    ends(ranks, seconds)
    return ranks


def text_logits(model, tmp_path, *options):
    out = forward(model, tmp_path / "out.safetensors", "--template", "none", "--prompt", TEXT, *options)
    return out["input_ids"], out["logits"]


def non_base(adapter):
    return load_file(adapter / "non_lora_trainables.safetensors")


def test_adapters_and_the_bridge_train_and_nothing_else(base, lora):
    log = (lora / "logs/rank_0.log").read_text()
    row = re.search(r"^llm adapters +([\d,]+) +([\d,]+)$", log, re.M)
    assert row and row[1] == row[2]
    assert re.search(r"^llm blocks +[\d,]+ +frozen$", log, re.M)
    trained = masters(lora, step=4)
    adapters = {name for name in trained if ".lora_" in name}
    assert len(adapters) == 4 * 7 * 2 and all(re.search(r"mm_projector|vlm_uni", n) for n in trained.keys() - adapters)
    assert all(trained[name].any() for name in adapters), "every B has left 0"
    assert metrics(lora)[-1]["loss"] < metrics(lora)[0]["loss"]


def test_the_first_step_is_the_bases(base, recipe, tmp_path):
    """B begins at 0: no adapter changes the first loss."""
    plain = tmp_path / "plain.yaml"
    plain.write_text(recipe.read_text().replace(", {preset: adapter}", ""))
    one = {"run.dir": tmp_path / "plain", "train.max_steps": 1}
    mgm("train", plain, *sets(one))
    run = run_lora(recipe, tmp_path / "lora", train__max_steps=1)
    assert metrics(run)[0]["loss"] == metrics(tmp_path / "plain")[0]["loss"]


def test_goes_on_to_the_bit(recipe, lora, tmp_path):
    """Adapters, their moments, the bridge and the masks of dropout: stopped after step 2 and taken up again."""
    run = run_lora(recipe, tmp_path / "run", checkpoint__every_steps=2)
    whole = masters(run, step=4)
    assert all(torch.equal(whole[name], value) for name, value in masters(lora, step=4).items())
    cut = tmp_path / "cut"
    (cut / "checkpoints").mkdir(parents=True)
    os.rename(run / "checkpoints/step_2", cut / "checkpoints/step_2")
    (cut / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
    run_lora(recipe, cut)
    assert [line["loss"] for line in metrics(cut)] == [line["loss"] for line in metrics(lora)]
    rest = masters(cut, step=4)
    assert rest.keys() == whole.keys() and all(torch.equal(rest[name], whole[name]) for name in whole)


def test_another_adapter_is_not_the_same_run(recipe, lora):
    refused(4, "train", recipe, *sets({**LORA, "run.dir": lora, "model.adapter.alpha": 9, "train.max_steps": 6}),
            says=["model.adapter.alpha: 8 -> 9"])


# ---- PEFT's layout ----------------------------------------------------------------------------------------
def test_peft_loads_what_is_exported(base, adapter, tmp_path):
    """The language model alone with the adapter of the Mini-Gemini, in PEFT."""
    llm = transformers.AutoModelForCausalLM.from_pretrained(base / "llm")
    model = peft.PeftModel.from_pretrained(llm, adapter).eval()
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["r"] == 4 and config["lora_alpha"] == 8 and config["lora_dropout"] == 0.1
    assert sorted(config["target_modules"]) == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj",
                                                "v_proj"]
    ids, actual = text_logits(adapter, tmp_path)
    with torch.no_grad():
        expected = model(ids).logits
        with model.disable_adapter():
            bare = model(ids).logits
    assert relative_l2(actual, expected) <= 1e-5
    assert relative_l2(actual, bare) > 1e-3
    state = peft.get_peft_model_state_dict(model)
    written = load_file(adapter / "adapter_model.safetensors")
    assert state.keys() == written.keys() and all(torch.equal(state[name], written[name]) for name in state)


def test_files_of_an_adapter(base, lora, adapter):
    trained = masters(lora, step=4)
    others = non_base(adapter)
    assert others.keys() == {name for name in trained if ".lora_" not in name}
    assert all(torch.equal(others[name], trained[name]) for name in others)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base / "model")
    shown = mgm("inspect", adapter).stdout
    assert "LoRA adapter" in shown


def test_adapter_alone_on_its_model_and_merged_answer_alike(base, adapter, merged, tmp_path):
    options = ["--image", APPLE, "--prompt", QUESTION]
    alone = forward(adapter, tmp_path / "alone.safetensors", *options)["logits"]
    on_top = forward(base / "model", tmp_path / "top.safetensors", "--adapter", adapter, *options)["logits"]
    folded = forward(merged, tmp_path / "merged.safetensors", *options)["logits"]
    bare = forward(base / "model", tmp_path / "bare.safetensors", *options)["logits"]
    assert torch.equal(alone, on_top)
    assert relative_l2(folded, alone) <= 1e-5 and relative_l2(bare, alone) > 1e-3
    assert chat(adapter, *options, "--max-new-tokens", 5) == chat(merged, *options, "--max-new-tokens", 5)


def test_a_directory_of_pefts_own_on_a_mini_gemini(base, tmp_path):
    llm = transformers.AutoModelForCausalLM.from_pretrained(base / "llm")
    torch.manual_seed(1)
    model = peft.get_peft_model(llm, peft.LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "up_proj"],
                                                     init_lora_weights=False))
    model.save_pretrained(tmp_path / "peft")
    ids, actual = text_logits(base / "model", tmp_path, "--adapter", tmp_path / "peft")
    with torch.no_grad():
        assert relative_l2(actual, model.eval()(ids).logits) <= 1e-5
    refused(4, "chat", tmp_path / "peft", "--prompt", "Hi", says=["config.json", "--adapter"])


def test_an_adapter_is_a_start(base, recipe, adapter, lora, tmp_path):
    """From the exported directory training goes on where the weights were; its rank and alpha are checked."""
    run = run_lora(recipe, tmp_path / "run", model__adapter__path=adapter, train__max_steps=1, optimizer__lr=0)
    after, before = masters(run, step=1), masters(lora, step=4)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    refused(2, "train", recipe, *sets({**LORA, "run.dir": tmp_path / "other", "model.adapter.path": adapter,
                                       "model.adapter.rank": 8}), says=["model.adapter.rank: 8", "has 4"])
    refused(4, "train", recipe, *sets({**LORA, "run.dir": tmp_path / "few", "model.adapter.path": adapter,
                                       "model.adapter.targets": ["*.q_proj"]}),
            says=["unexpected", "model.layers.0.mlp.down_proj.lora_A.weight"])


def test_what_is_frozen_and_not_the_bases_is_exported_too(base, recipe, tmp_path):
    """Of an adapter's directory and of a projector's file: weights that trained in an earlier run, not in this one."""
    rules = '[{preset: stage1}, {preset: adapter}, {match: "model.norm.*"}, {match: "model.vision_tower.*"}]'
    first = run_lora(recipe, tmp_path / "first", train__rules=rules)
    mgm("export", first, "--out", tmp_path / "ad1", "--part", "adapter", "--verify")
    before = non_base(tmp_path / "ad1")
    assert any(name.startswith("model.vision_tower.") for name in before) and "model.norm.weight" in before
    second = run_lora(recipe, tmp_path / "second", model__adapter__path=tmp_path / "ad1", optimizer__lr=0)
    assert "model.norm.weight" not in masters(second, step=4)
    mgm("export", second, "--out", tmp_path / "ad2", "--part", "adapter", "--verify")
    after = non_base(tmp_path / "ad2")
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    train("configs/tiny/stage1.yaml", tmp_path / "stage1", train__max_steps=1,
          train__rules='[{preset: stage1}, {match: "model.vision_tower.*"}]')
    projector = tmp_path / "stage1/mm_projector.bin"
    third = run_lora(recipe, tmp_path / "third", model__projector__path=projector)
    mgm("export", third, "--out", tmp_path / "ad3", "--part", "adapter", "--verify")
    kept, file = non_base(tmp_path / "ad3"), torch.load(projector)
    assert kept.keys() == file.keys()
    assert all(torch.equal(kept[name], file[name]) for name in kept if name.startswith("model.vision_tower"))


def test_a_tower_from_no_directory_is_exported_with_the_adapter(base, recipe, tmp_path):
    run = run_lora(recipe, tmp_path / "run", model__path="", model__llm__path=base / "llm", model__vision_tower__path="",
                   model__convnext__path="", train__rules='[{preset: stage1}, {preset: adapter}, {match: "model.vision_tower*"}]')
    mgm("export", run, "--out", tmp_path / "adapter", "--part", "adapter", "--verify")
    assert any(name.startswith("model.vision_tower_aux.") for name in non_base(tmp_path / "adapter"))


def test_a_model_with_an_adapter_beside_it_is_refused(base, adapter, tmp_path):
    """transformers would apply it."""
    shutil.copytree(base / "model", tmp_path / "both")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, tmp_path / "both")
    says = ["holds a model and an adapter", "--adapter"]
    refused(4, "forward", tmp_path / "both", "--prompt", "Hi", "--out", tmp_path / "out.safetensors", says=says)
    refused(4, "convert", tmp_path / "both", "--out", tmp_path / "out", says=says)
    refused(4, "inspect", tmp_path / "both", says=says)


# ---- merging ----------------------------------------------------------------------------------------------
def test_merged_weights_are_the_base_and_the_product(base, lora, merged, tmp_path):
    before, after, trained = load_file(base / "model/model.safetensors"), load_file(merged / "model.safetensors"), \
        masters(lora, step=4)
    assert before.keys() == after.keys()
    seen = 0
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        if module + ".lora_A.weight" in trained:
            seen += 1
            exact = weight.double() + 2.0 * trained[module + ".lora_B.weight"].double() @ \
                trained[module + ".lora_A.weight"].double()
            assert relative_l2(after[name], exact) <= 1e-6 and relative_l2(weight, exact) > 1e-4
        else:
            assert torch.equal(after[name], trained.get(name, weight)), name
    assert seen == 4 * 7
    # bf16: the fp32 sum rounded once.
    mgm("export", lora, "--out", tmp_path / "bf16", "--merge", "--dtype", "bf16", "--verify")
    rounded = load_file(tmp_path / "bf16/model.safetensors")
    assert all(torch.equal(rounded[name], value.bfloat16()) for name, value in after.items())


def test_merged_language_model_is_what_peft_merges(base, lora, adapter, tmp_path):
    mgm("export", lora, "--out", tmp_path / "llm", "--merge", "--part", "llm", "--verify")
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llm").state_dict()
    llm = transformers.AutoModelForCausalLM.from_pretrained(base / "llm")
    theirs = peft.PeftModel.from_pretrained(llm, adapter).merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(relative_l2(ours[name], theirs[name]) <= 1e-6 for name in ours)


def test_exports_that_make_no_sense(base, lora, tmp_path):
    refused(2, "export", lora, "--out", tmp_path / "x", says=["--merge", "--part adapter"])
    refused(2, "export", lora, "--out", tmp_path / "x", "--merge", "--part", "adapter", says=["leaves it out"])
    refused(2, "export", base / "stage2", "--out", tmp_path / "x", "--merge", says=["no adapters"])
    refused(2, "export", base / "stage2", "--out", tmp_path / "x", "--part", "adapter", says=["no adapters"])
    assert not (tmp_path / "x").exists()


def test_convert_folds_as_export_merges(base, adapter, merged, tmp_path):
    """To the bit, what trained beside the adapters included; and over no input."""
    done = mgm("convert", base / "model", "--adapter", adapter, "--out", tmp_path / "out")
    ours, theirs = load_file(tmp_path / "out/model.safetensors"), load_file(merged / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    others = non_base(adapter)
    assert f"folded into 28 weights, {len(others)} more replaced" in done.stdout
    for taken in (adapter, base / "model"):
        refused(2, "convert", base / "model", "--adapter", adapter, "--out", taken, "--replace",
                says=["--out", "itself"])


def test_convert_folds_into_a_weight_that_trained_too(base, recipe, tmp_path):
    """A rule may train the weight below an adapter: both are in the adapter's directory."""
    both = "model.layers.0.self_attn.q_proj.weight"
    run = run_lora(recipe, tmp_path / "run", train__rules=f"[{{preset: adapter}}, {{preset: stage1}}, {{match: {both}}}]")
    mgm("export", run, "--out", tmp_path / "adapter", "--part", "adapter", "--verify")
    assert both in load_file(tmp_path / "adapter/non_lora_trainables.safetensors")
    mgm("export", run, "--out", tmp_path / "merged", "--merge")
    mgm("convert", base / "model", "--adapter", tmp_path / "adapter", "--out", tmp_path / "out")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "merged"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_convert_folds_into_the_language_model_alone(base, adapter, tmp_path):
    """Of a run from parts: the result is the Mini-Gemini model that `--merge` writes, towers beside it."""
    towers = {"clip": ("model.vision_tower.vision_tower.", ""), "cnx": ("model.vision_tower_aux.vision_", "visual.trunk.")}
    weights = load_file(base / "model/model.safetensors")
    for name, (prefix, new) in towers.items():
        (tmp_path / name).mkdir()
        file = tmp_path / name / ("model.safetensors" if name == "clip" else "open_clip_model.safetensors")
        save_file({new + n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}, file)
    save_file({n: v for n, v in weights.items() if n.startswith(("model.mm_projector", "model.vlm_uni"))}, tmp_path / "mm_projector.safetensors")
    torch.save(load_file(tmp_path / "mm_projector.safetensors"), tmp_path / "mm_projector.bin")
    recipe = tmp_path / "parts.yaml"
    recipe.write_text(f"extends: {ROOT}/configs/tiny/stage2.yaml\n"
                      f"model: {{init: pretrained, llm: {{path: {base}/llm}}, vision_tower: {{path: {tmp_path}/clip}}, "
                      f"convnext: {{path: {tmp_path}/cnx}}, projector: {{path: {tmp_path}/mm_projector.bin}}}}\n"
                      "train: {rules: [{preset: stage1}, {preset: adapter}], max_steps: 2, global_batch: 4, micro_batch: 2}\n")
    run = run_lora(recipe, tmp_path / "run")
    mgm("export", run, "--out", tmp_path / "adapter", "--part", "adapter", "--verify")
    mgm("export", run, "--out", tmp_path / "merged", "--merge")
    done = mgm("convert", base / "llm", "--adapter", tmp_path / "adapter", "--out", tmp_path / "out")
    assert "added: now a Mini-Gemini model" in done.stdout
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "merged"))
    assert ours.keys() == {n for n in theirs if not n.startswith("model.vision_tower")}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ask = ("--image", APPLE, "--prompt", QUESTION, "--max-new-tokens", 8)
    assert chat(tmp_path / "out", *ask) == chat(tmp_path / "merged", *ask) == chat(tmp_path / "adapter", *ask)
    # Without a config.json nothing says what model it would be.
    shutil.copytree(tmp_path / "adapter", tmp_path / "bare", ignore=shutil.ignore_patterns("config.json"))
    refused(4, "convert", base / "llm", "--adapter", tmp_path / "bare", "--out", tmp_path / "x",
            says=["model.mm_projector.0.bias: the model has no such tensor"])
    # Towers that lay in the base's shards are in neither folder.
    refused(4, "convert", base / "llm", "--adapter", adapter, "--out", tmp_path / "x", says=["lies in the model", "trained on"])


def test_towers_that_lie_beside_the_base(base, recipe, tmp_path):
    """As published: shards without towers, folders that config.json names. The adapter's directory names them too."""
    beside = tmp_path / "beside"
    shutil.copytree(base / "model", beside)
    weights = load_file(beside / "model.safetensors")
    parts = {"clip/model.safetensors": ("model.vision_tower.vision_tower.", ""),
             "cnx/open_clip_model.safetensors": ("model.vision_tower_aux.vision_", "visual.trunk.")}
    for file, (prefix, new) in parts.items():
        (beside / file).parent.mkdir()
        save_file({new + n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}, beside / file)
    save_file({n: v for n, v in weights.items() if "vision_tower" not in n}, beside / "model.safetensors")
    config = json.loads((beside / "config.json").read_text())
    (beside / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "clip", "mm_vision_tower_aux": "cnx"}))
    run = run_lora(recipe, tmp_path / "run", model__path=beside)
    mgm("export", run, "--out", tmp_path / "adapter", "--part", "adapter", "--verify")
    assert chat(tmp_path / "adapter", "--image", APPLE, "--prompt", QUESTION, "--max-new-tokens", 2)
    done = mgm("convert", beside, "--out", tmp_path / "moved")
    assert all(f"a vision tower that lies in {beside / name}" in done.stderr for name in ("clip", "cnx"))


def test_export_does_not_replace_what_the_run_reads(base, lora, adapter, recipe, tmp_path):
    before = (base / "model/model.safetensors").stat()
    refused(2, "export", lora, "--out", base / "model", "--merge", "--replace",
            says=["model.path", base / "model", "itself"])
    refused(2, "export", lora, "--out", f"{base}/llm/../model/", "--merge", "--replace", says=["model.path", "itself"])
    after = (base / "model/model.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    run = run_lora(recipe, tmp_path / "run", model__adapter__path=adapter, train__max_steps=1)
    refused(2, "export", run, "--out", adapter, "--part", "adapter", "--replace", says=["model.adapter.path", adapter])
    assert mgm("export", lora, "--out", tmp_path / "other", "--merge").returncode == 0


# ---- configuration ----------------------------------------------------------------------------------------
def test_targets_that_name_nothing(recipe):
    refused(2, "train", recipe, "--plan", *sets({**LORA, "model.adapter.targets": ["*.q_proj", "*.qproj"]}),
            says=["model.adapter.targets[1]",
                  "the nearest names are 'model.layers.0.self_attn.q_proj' and the like, 4 of them"])


def test_plan_counts_adapters(recipe):
    plan = mgm("train", recipe, *sets(LORA), "--plan").stdout
    assert re.search(r"^llm adapters +([\d,]+) +\1$", plan, re.M)


def test_two_ranks_zero3_equal_one(recipe, tmp_path):
    """Strict sums: the same bits, with adapters that train beside frozen weights in one group."""
    runs, left = [], []
    for mode, world in (("replicate", 1), ("zero3", 2)):
        run = tmp_path / f"{mode}_{world}"
        values = {**LORA, "dist.mode": mode, "dist.reduction": "strict", "dist.virtual_shards": 2,
                  "train.max_steps": 3, "train.global_batch": 4, "train.micro_batch": 1, "checkpoint.at_end": True}
        assert not any(ranks.poll() for ranks in finished(start(run, world, recipe, **values)))
        runs.append([(line["loss"], line["grad_norm"]) for line in metrics(run)])
        left.append(weights(run, "--part", "adapter"))
    assert runs[0] == runs[1] and len(runs[0]) == 3
    same_weights(left[1], left[0])
    told = mgm("checkpoint", "diff", tmp_path / "replicate_1", tmp_path / "zero3_2").stdout
    assert told.splitlines()[-1] == "equal", told
