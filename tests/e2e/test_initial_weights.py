"""What a run starts from: files that do not fit are refused by name, by `mgm train` and `mgm doctor` alike; towers lie in
the shards or beside them; the files beside the weights are held against the config."""
import json
import re
import shutil
import sys
import time

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mgm_binary import ROOT, anonymous_memory, changed, metrics, mgm, sets
from ranks import bytes_read, ends, start

sys.path.insert(0, str(ROOT / "tests/parity"))
from mgm_oracle import Oracle, Sizes  # noqa: E402

CLIP = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, image_size=42, patch_size=14)
LR, AUX = "model.vision_tower.vision_tower.", "model.vision_tower_aux.vision_"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A complete Mini-Gemini model."""
    return Oracle(Sizes(hr=96), seed=11).save(tmp_path_factory.mktemp("oracle") / "model")


def split(model, folder, keep=False):
    """The towers in directories of their own, which config.json names. `keep`: they stay in the shards too."""
    tensors = load_file(model / "model.safetensors")
    changed(model, folder, mm_vision_tower="towers/clip", mm_vision_tower_aux="towers/aux")
    parts = {"clip/model.safetensors": {k.removeprefix(LR): v for k, v in tensors.items() if k.startswith(LR)},
             "aux/open_clip_model.safetensors": {"visual.trunk." + k.removeprefix(AUX): v for k, v in tensors.items() if k.startswith(AUX)}}
    for name, part in parts.items():
        (folder / "towers" / name).parent.mkdir(parents=True)
        save_file(part, folder / "towers" / name)
    if not keep:
        save_file({k: v for k, v in tensors.items() if "vision_tower" not in k}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def parts(model, tmp_path_factory):
    return split(model, tmp_path_factory.mktemp("parts") / "beside")


class Run:
    """A recipe that trains one step of the model of `weights`, keys of the config."""

    def __init__(self, folder, weights, rules="[{preset: stage1}]"):
        self.folder, self.config = folder, folder / "recipe.yaml"
        self.weights = weights
        self.config.write_text(f"""
run: {{dir: {folder}/run}}
model:
  llm: {{arch: auto}}
  vision_tower: {{image_size: 42, patch_size: 14, hidden_size: 24, intermediate_size: 40, num_layers: 3, num_heads: 2}}
  hr_encoder: convnext
  convnext: {{depths: [1, 2, 1, 1], dims: [6, 10, 12, 14]}}
image: {{hr_size: 96}}
text: {{tokenizer: data/embedded/tokenizer, max_length: 512}}
data: {{sources: [{{annotations: data/embedded/stage1_train.json, images: data/embedded/images}}], workers: 1}}
train: {{device: cpu, global_batch: 4, micro_batch: 2, max_steps: 1, rules: {rules}}}
checkpoint: {{every_minutes: 0}}
""")

    def __call__(self, command="train", code=0, **more):
        values = {**self.weights, **{key.replace("__", "."): value for key, value in more.items()}}
        return mgm(command, self.config, *sets(values), code=code)

    def refused(self, code, *says, **more):
        """By the run and by the doctor, in the same words."""
        for done in (self(code=code, **more).stderr, self("doctor", code=code, **more)):
            text = done if isinstance(done, str) else done.stdout + done.stderr
            words = " ".join(text.split())  # the doctor indents
            for part in says:
                assert " ".join(str(part).split()) in words, f"{part!r} is not in: {text}"
        assert not (self.folder / "run/metrics.jsonl").exists()

    def tensors(self):
        return torch.load(self.folder / "run/mm_projector.bin", weights_only=True)


@pytest.fixture
def apart(tmp_path, model, parts):
    """The language model alone, with the towers from their directories."""
    llm = tmp_path / "llm"
    shutil.copytree(model, llm)
    tensors = load_file(model / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if not re.search("vision_tower|mm_projector|vlm_uni", k)}, llm / "model.safetensors")
    return Run(tmp_path, {"model.llm.path": llm, "model.vision_tower.path": parts / "towers/clip",
                          "model.convnext.path": parts / "towers/aux"})


# ---- the projector file -----------------------------------------------------------------------------------
def projector(model):
    return {k: v for k, v in load_file(model / "model.safetensors").items() if re.search("mm_projector|vlm_uni", k)}


def renamed(tensors):
    for name in [n for n in tensors if "mm_projector" in n]:
        tensors[name.replace("mm_projector", "proj")] = tensors.pop(name)


FAULTS = {"renamed": (renamed, ["4 missing:", "model.mm_projector.2.bias", "4 unexpected:", "p.bin: model.proj.0.weight"]),
          "lacks one": (lambda t: t.pop("model.mm_projector.2.bias"), ["1 missing:\n  model.mm_projector.2.bias"]),
          "has one more": (lambda t: t.update({"model.extra.weight": torch.ones(3)}), ["1 unexpected:", "p.bin: model.extra.weight"]),
          "language model in it": (lambda t: t.update({"model.norm.weight": torch.ones(40)}), ["1 unexpected:", "p.bin: model.norm.weight"]),
          "empty": (lambda t: t.clear(), ["16 missing:", "model.vlm_uni_val_projector.0.bias", "... and 4 more"]),
          "no mining": (lambda t: [t.pop(n) for n in list(t) if "vlm_uni" in n], ["12 missing:", "model.vlm_uni_query_projector.0.bias",
                        "has to hold the whole projector and the mining heads", "model.projector.path=\"\""]),
          "more of a tower": (lambda t: t.update({LR + "vision_model.embeddings.position_ids": torch.arange(10),
                                                  LR + "vision_model.what": torch.ones(3)}), ["1 unexpected:", "vision_model.what"])}


@pytest.mark.parametrize("name", FAULTS)
def test_a_projector_file_that_does_not_fit(name, apart, model, tmp_path):
    change, says = FAULTS[name]
    tensors = projector(model)
    change(tensors)
    torch.save(tensors, tmp_path / "p.bin")
    apart.refused(4, *says, tmp_path / "p.bin", model__projector__path=tmp_path / "p.bin")


def test_a_projector_file_covers_that_of_a_model_whole(model, tmp_path):
    """What it lost does not come from the model below it: the two were never trained together."""
    tensors = projector(model)
    run = Run(tmp_path, {"model.path": model})
    tower = {k: v + 1 for k, v in load_file(model / "model.safetensors").items() if k.startswith(LR)}
    torch.save({**{k: v + 1 for k, v in tensors.items()}, **tower}, tmp_path / "p.bin")
    run(model__projector__path=tmp_path / "p.bin", optimizer__lr=0)
    found, below = run.tensors(), load_file(model / "model.safetensors")
    assert all(torch.equal(found[n], below[n] + (0 if n.startswith(AUX) else 1)) for n in found)
    shutil.rmtree(tmp_path / "run")
    for lost in ("model.mm_projector.2.bias", sorted(tower)[3]):
        torch.save({k: v for k, v in {**tensors, **tower}.items() if k != lost}, tmp_path / "p.bin")
        run.refused(4, f"1 missing:\n  {lost}", model__projector__path=tmp_path / "p.bin")
    torch.save({}, tmp_path / "p.bin")
    run.refused(4, "16 missing:", model__projector__path=tmp_path / "p.bin")


def test_a_projector_file_that_fits(apart, model, tmp_path):
    torch.save(projector(model), tmp_path / "p.bin")
    done = apart(model__projector__path=tmp_path / "p.bin", optimizer__lr=0)
    assert "drawn from seed" not in done.stdout + done.stderr
    found = apart.tensors()
    assert all(torch.equal(found[name], value) for name, value in load_file(model / "model.safetensors").items() if name in found)


def test_without_a_file_projector_and_mining_are_drawn(apart):
    done = apart()
    assert "16 tensors drawn from seed 42" in done.stdout + done.stderr


def test_a_model_without_mining_wants_no_mining_heads(apart, model, tmp_path):
    """... and takes none: they would be lost."""
    tensors = projector(model)
    torch.save(tensors, tmp_path / "p.bin")
    none = {"model__hr_encoder": "none", "model__projector__path": tmp_path / "p.bin", "image__hr_size": 42}
    apart.refused(4, "12 unexpected:", "model.vlm_uni_aux_projector.0.bias", **none)
    torch.save({k: v for k, v in tensors.items() if "vlm_uni" not in k}, tmp_path / "p.bin")
    done = apart(**none)
    assert "drawn from seed" not in done.stdout + done.stderr


def test_random_weights_with_half_a_projector_file(model, tmp_path):
    """model.init random draws what the file is not for, not what it lost; of a tower it has all or nothing."""
    run = Run(tmp_path, {"model.init": "random", "model.llm.arch": "llama", "model.llm": "{arch: llama, vocab_size: 1024, "
                         "hidden_size: 40, intermediate_size: 52, num_layers: 2, num_heads: 4, num_kv_heads: 2}"})
    tensors = projector(model)
    lost = tensors.pop("model.vlm_uni_val_projector.0.bias")
    torch.save(tensors, tmp_path / "p.bin")
    run.refused(4, "1 missing:\n  model.vlm_uni_val_projector.0.bias", model__projector__path=tmp_path / "p.bin")
    tensors["model.vlm_uni_val_projector.0.bias"] = lost
    tower = {k: v for k, v in load_file(model / "model.safetensors").items() if k.startswith(LR)}
    gone = sorted(tower)[5]
    torch.save({**tensors, **{k: v for k, v in tower.items() if k != gone}}, tmp_path / "p.bin")
    run.refused(4, f"1 missing:\n  {gone}", model__projector__path=tmp_path / "p.bin")
    torch.save(tensors, tmp_path / "p.bin")
    run(model__projector__path=tmp_path / "p.bin")


# ---- model.path and model.llm.path ------------------------------------------------------------------------
def without(model, folder, pattern):
    shutil.copytree(model, folder)
    tensors = load_file(model / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if not re.search(pattern, k)}, folder / "model.safetensors")
    return folder


def test_a_complete_model_has_to_be_complete(model, parts, tmp_path):
    plain = without(model, tmp_path / "plain", "vlm_uni")  # as of LLaVA's kind
    run = Run(tmp_path, {"model.path": plain})
    run.refused(4, "12 missing:", "model.vlm_uni_query_projector.0.bias", "name it as model.llm.path")
    # What the message says: projector and towers from it, the mining heads drawn.
    run.weights = {"model.llm.path": plain, "model.vision_tower.path": parts / "towers/clip", "model.convnext.path": parts / "towers/aux"}
    done = run(optimizer__lr=0)
    assert "12 tensors drawn from seed 42" in done.stdout + done.stderr
    ours, theirs = run.tensors(), load_file(plain / "model.safetensors")
    assert all(torch.equal(ours[n], theirs[n]) for n in ours if n in theirs) and "model.mm_projector.0.weight" in theirs


def test_of_mining_heads_some_are_not_enough(model, parts, tmp_path):
    run = Run(tmp_path, {"model.llm.path": without(model, tmp_path / "some", "vlm_uni_val"),
                         "model.vision_tower.path": parts / "towers/clip", "model.convnext.path": parts / "towers/aux"})
    run.refused(4, "4 missing:", "model.vlm_uni_val_projector.1.weight")


def test_both_kinds_are_listed(apart):
    """One tensor of another name is one missing and one unexpected."""
    file = apart.weights["model.llm.path"] / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_projection.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, file)
    apart.refused(4, "1 missing:\n  model.layers.1.mlp.up_proj.weight", "1 unexpected:\n  model.layers.1.mlp.up_projection.weight")


# ---- towers beside the shards -----------------------------------------------------------------------------
def test_towers_beside_the_shards_train(model, parts, tmp_path):
    found = {}
    for name, weights in {"whole": {"model.path": model}, "named": {"model.path": parts},
                          "written": {"model.path": parts, "model.vision_tower.path": parts / "towers/clip",
                                      "model.convnext.path": "towers/aux"}}.items():
        (tmp_path / name).mkdir()
        run = Run(tmp_path / name, weights, rules="[{preset: stage2}]")
        assert "drawn from seed" not in run().stderr
        found[name] = [line["loss"] for line in metrics(tmp_path / name / "run")]
        report = run("doctor", run__dir=tmp_path / "none").stdout
        assert "every name and shape fits" in report and not re.search("^FAIL", report, re.M), report
    assert found["whole"] == found["named"] == found["written"] and len(found["whole"]) == 1


def test_towers_that_are_nowhere(parts, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(parts, alone)
    shutil.rmtree(alone / "towers/aux")
    Run(tmp_path, {"model.path": alone}).refused(4, alone, "its shards hold no HR vision tower", "'towers/aux'")
    Run(tmp_path, {"model.path": alone, "model.convnext.path": "not/here"}).refused(4, "'not/here'", "model.convnext.path")


# ---- what the files beside the weights say ----------------------------------------------------------------
@pytest.fixture
def clip(apart, parts, tmp_path):
    """Writes the files of the towers' directories, of which every run has its own copy."""
    shutil.copytree(parts / "towers", tmp_path / "towers")
    apart.weights |= {"model.vision_tower.path": tmp_path / "towers/clip", "model.convnext.path": tmp_path / "towers/aux"}

    def write(file, content):
        (tmp_path / "towers" / file).write_text(json.dumps(content))
        return tmp_path / "towers" / file
    return write


def config_of(kind, **changes):
    """config.json as transformers writes it for the tower alone, or for both halves of a CLIP."""
    vision = transformers.CLIPVisionConfig(**{**CLIP, **changes})
    return json.loads((vision if kind == "vision" else transformers.CLIPConfig(vision_config=vision.to_dict())).to_json_string())


@pytest.mark.parametrize("kind", ["vision", "both halves"])
def test_a_clips_own_config(kind, apart, clip):
    file = clip("clip/config.json", config_of(kind))
    assert not re.search("^FAIL", apart("doctor").stdout, re.M)
    for key, value, theirs in (("num_heads", 4, "2"), ("norm_eps", 0.1, r"1.0e-05"), ("image_size", 56, "42"), ("num_layers", 4, "3")):
        apart.refused(2, f"model.vision_tower.{key}: is {value}, but {file} has {theirs}; write that",
                      **{f"model__vision_tower__{key}": value})
    apart.refused(2, "model.vision_tower.num_heads: is 4", "model.vision_tower.norm_eps: is 0.1", model__vision_tower__num_heads=4,
                  model__vision_tower__norm_eps=0.1)
    file = clip("clip/config.json", config_of(kind, hidden_act="gelu"))
    apart.refused(2, f"model.vision_tower.path: {file} has hidden_act gelu, but the tower is computed with quick_gelu")
    clip("clip/config.json", config_of(kind))
    apart()


def test_fields_a_clips_config_leaves_out_have_the_defaults_of_transformers(apart, clip):
    defaults = transformers.CLIPVisionConfig()
    file = clip("clip/config.json", {"model_type": "clip_vision_model"})
    apart.refused(2, *(f"model.vision_tower.{ours}: is {CLIP[theirs]}, but {file} has {getattr(defaults, theirs)}" for ours, theirs in
                       {"hidden_size": "hidden_size", "intermediate_size": "intermediate_size", "num_layers": "num_hidden_layers",
                        "num_heads": "num_attention_heads", "image_size": "image_size", "patch_size": "patch_size"}.items()))
    del (content := config_of("vision"))["layer_norm_eps"]
    del content["hidden_act"]
    clip("clip/config.json", content)
    apart("doctor")


def test_another_kind_of_tower(apart, clip):
    clip("clip/config.json", json.loads(transformers.SiglipVisionConfig(**CLIP).to_json_string()))
    apart.refused(2, "model_type siglip_vision_model", "is no CLIP")


def test_a_preprocessor(apart, clip):
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    content = json.loads(processor.to_json_string())
    clip("clip/preprocessor_config.json", content)
    apart("doctor")
    clip("clip/preprocessor_config.json", {**content, "crop_size": 42, "image_mean": [float(torch.tensor(v)) for v in content["image_mean"]]})
    apart("doctor")
    file = clip("clip/preprocessor_config.json", {**content, "image_mean": [0.5, 0.5, 0.5], "crop_size": 56})
    apart.refused(2, "image.mean: is [0.48145466, 0.4578275, 0.40821073], but ", f"{file} has [0.5, 0.5, 0.5]",
                  f"model.vision_tower.image_size: is 42, but {file} has 56")
    apart.refused(2, "image.std: is [1, 1, 1], but ", image__std="[1,1,1]")


def test_an_openclip_config(apart, clip):
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    content = {"model_cfg": {"embed_dim": 768, "vision_cfg": {"timm_model_name": "convnext_tiny", "image_size": 320}, "text_cfg": {}},
               "preprocess_cfg": {"mean": mean, "std": std}}
    clip("aux/open_clip_config.json", content)
    apart("doctor")
    file = clip("aux/open_clip_config.json", {**content, "preprocess_cfg": {"mean": mean, "std": [0.5, 0.5, 0.5]}})
    apart.refused(2, f"{file} has [0.5, 0.5, 0.5]", "image.std: is ")
    content["model_cfg"]["vision_cfg"]["timm_model_name"] = "convnext_xxlarge"
    clip("aux/open_clip_config.json", content)
    apart.refused(2, "model.convnext.norm_eps: is 1.0e-06", "has 1.0e-05", "model.convnext.dims: is [6, 10, 12, 14]")


@pytest.mark.parametrize("key,value,theirs", [("vision_tower__select_layer", -1, "-2"), ("vision_tower__num_heads", 4, "2"),
                                              ("vision_tower__norm_eps", 0.1, "1.0e-05"), ("convnext__norm_eps", 0.1, "1.0e-06")])
def test_a_complete_models_config(key, value, theirs, model, tmp_path):
    run = Run(tmp_path, {"model.path": model})
    run.refused(2, f"model.{key.replace('__', '.')}: is {value}, but {model}/config.json has {theirs}", **{f"model__{key}": value})


def test_a_complete_models_normalisation(model, parts, tmp_path):
    run = Run(tmp_path, {"model.path": model})
    run.refused(2, "image.mean: is [0.5, 0.5, 0.5], but ", f"{model}/config.json has [0.48145466", image__mean="[0.5,0.5,0.5]")
    published = json.loads((model / "config.json").read_text())
    del published["mgm"]  # as published: of select_layer it speaks all the same
    shutil.copytree(model, tmp_path / "published")
    (tmp_path / "published/config.json").write_text(json.dumps(published))
    run.weights = {"model.path": tmp_path / "published"}
    run.refused(2, "model.vision_tower.select_layer: is -1, but ", model__vision_tower__select_layer=-1)
    run()


def test_towers_beside_a_model_are_held_against_their_own_config(parts, tmp_path):
    folder = tmp_path / "beside"
    shutil.copytree(parts, folder)
    (folder / "towers/clip/config.json").write_text(json.dumps(config_of("vision", hidden_act="gelu")))
    Run(tmp_path, {"model.path": folder}).refused(2, folder / "towers/clip/config.json", "hidden_act gelu")
    chat = ("chat", folder, "--device", "cpu", "--prompt", "Hi", "--max-new-tokens", 2)
    error = mgm(*chat, code=4).stderr
    assert f"{folder}/config.json: does not go with its towers" in error and "hidden_act gelu" in error
    (folder / "towers/clip/config.json").write_text(json.dumps(config_of("both halves")))
    mgm(*chat)


# ---- what a rank reads and holds --------------------------------------------------------------------------
def llama(folder, width, layers):
    config = transformers.LlamaConfig(vocab_size=1024, hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=layers,
                                      num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def held(ranks, run):
    """The most anonymous memory of any rank before it has its weights, and of each until it ended; sampled."""
    begin, whole = 0, [0] * len(ranks)
    logs = [run / f"logs/rank_{rank}.log" for rank in range(len(ranks))]
    while any(rank.poll() is None for rank in ranks):
        for i, rank in enumerate(ranks):
            now = anonymous_memory(rank)
            whole[i] = max(whole[i], now)
            if not (logs[i].exists() and "drawn from seed" in logs[i].read_text()):  # the last that a start says of weights
                begin = max(begin, now)
        time.sleep(0.001)
    return begin, whole


def test_a_rank_of_zero3_reads_and_holds_its_part(parts, tmp_path):
    """A start, and a step of stage 1, with a frozen language model of 206 MB in 16 blocks."""
    llm = llama(tmp_path / "llm", 512, 16)
    size = (llm / "model.safetensors").stat().st_size
    recipe = Run(tmp_path, {"model.llm.path": llm, "model.vision_tower.path": parts / "towers/clip",
                            "model.convnext.path": parts / "towers/aux"})
    read, begin, whole = {}, {}, {}
    for world, mode in ((1, "replicate"), (4, "zero3")):
        run = tmp_path / mode
        ranks = start(run, world, recipe.config, **recipe.weights, **{
            "train.max_steps": 1, "train.global_batch": 4, "train.micro_batch": 1, "dist.mode": mode,
            "train.recompute": '[{match: "model.layers.*", policy: full}]'})
        begin[mode], whole[mode] = held(ranks, run)
        errors = ends(ranks, 60)
        assert [rank.returncode for rank in ranks] == [0] * world, errors
        read[mode] = [bytes_read(run, rank) for rank in range(world)]
    print(f"{size / 1e6:.0f} MB; read, held before and after the start: " + "; ".join(
        f"{mode}: {[round(n / 1e6) for n in read[mode]]}, {begin[mode] / 1e6:.0f}, {[round(n / 1e6) for n in whole[mode]]}" for mode in read))
    assert all(n == pytest.approx(read["replicate"][0] / 4, rel=0.02) for n in read["zero3"]), read
    # Beside what any process holds, a quarter of the model instead of all of it: 0.75 of it less.
    assert begin["replicate"] - begin["zero3"] > 0.6 * size, (begin, size)
    # In a step, less of a difference by the block in use, that gathered ahead and Gloo's copies of both: 13 MB each.
    assert all(whole["replicate"][0] - n > 0.4 * size for n in whole["zero3"]), (whole, size)
