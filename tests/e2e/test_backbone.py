"""A language model named by its directory alone (`model.llm.arch: auto`), from the plan to the export."""
import json
import re
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file

from mgm_binary import ROOT, metrics, mgm, sets

sys.path.insert(0, str(ROOT / "tests/parity"))
from real_files import smollm2  # noqa: E402

SIZES = dict(vocab_size=1024, hidden_size=40, intermediate_size=52, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, rope_theta=50000.0)
CONFIGS = {"qwen3": lambda: transformers.Qwen3Config(**SIZES, tie_word_embeddings=True),
           "gemma2": lambda: transformers.Gemma2Config(**SIZES, sliding_window=64, query_pre_attn_scalar=24),
           "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=32)}


@pytest.fixture(scope="module")
def dirs(tmp_path_factory):
    """name -> a Hugging Face directory, a tiny CLIP among them."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(3)
    for name, config in CONFIGS.items():
        transformers.AutoModelForCausalLM.from_config(config()).save_pretrained(root / name)
    clip = transformers.CLIPVisionConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2,
                                         image_size=42, patch_size=14)
    transformers.CLIPVisionModel(clip).save_pretrained(root / "clip")
    return root


def recipe(tmp_path, llm, more=""):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""
run: {{dir: {tmp_path}/run}}
model:
  llm: {{arch: auto, path: {llm}{more}}}
  vision_tower: {{path: {llm.parent}/clip, image_size: 42, patch_size: 14, hidden_size: 24, intermediate_size: 40, num_layers: 3, num_heads: 2}}
  hr_encoder: none
image: {{hr_size: 42}}
text: {{tokenizer: data/embedded/tokenizer, max_length: 512}}
data: {{sources: [{{annotations: data/embedded/stage1_train.json, images: data/embedded/images}}], workers: 1}}
train: {{device: cpu, global_batch: 4, micro_batch: 2, max_steps: 2, rules: [{{preset: stage1}}]}}
checkpoint: {{every_minutes: 0}}
""")
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_a_directory_is_all_it_takes(name, dirs, tmp_path):
    config = recipe(tmp_path, dirs / name)
    expected = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).parameters())
    plan = mgm("train", config, "--plan").stdout
    counts = re.findall(r"^llm .*? +([\d,]+) +(?:[\d,]+|frozen)$", plan, re.M)
    assert sum(int(count.replace(",", "")) for count in counts) == expected
    mgm("train", config)
    written = (tmp_path / "run/config.yaml").read_text()
    assert f"arch: {name}" in written and "hidden_size: 40" in written
    mgm("export", tmp_path / "run", "--out", tmp_path / "llm", "--part", "llm")
    before, after = load_file(dirs / name / "model.safetensors"), load_file(tmp_path / "llm/model.safetensors")
    assert sorted(before) == sorted(after)
    assert all(torch.equal(before[key], after[key]) for key in before)  # frozen in stage 1
    theirs, ours = (transformers.AutoConfig.from_pretrained(d) for d in (dirs / name, tmp_path / "llm"))
    for field in ("model_type", "head_dim", "rope_theta", "tie_word_embeddings", "sliding_window", "rms_norm_eps"):
        assert getattr(ours, field, None) == getattr(theirs, field, None), field


def test_the_pages_own_backbone(tmp_path):
    """The files of docs/backbones.md as they stand there, with a directory in the place it names."""
    page = (ROOT / "docs/backbones.md").read_text()
    for block in re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S):
        for name, text in re.findall(r"^# (configs/mine/\S+\.yaml)\n(.*?)(?=^# configs|\Z)", block, re.M | re.S):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
    assert sorted(path.name for path in (tmp_path / "configs/mine").iterdir()) == ["chat.yaml", "stage1.yaml", "stage2.yaml"]
    (path,) = set(re.findall(r"arch: auto, path: (\S+)}", page))
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**{**SIZES, "max_position_embeddings": 4096})).save_pretrained(tmp_path / path)
    for stage in (1, 2):
        plan = mgm("train", f"configs/mine/stage{stage}.yaml", "--plan", "--world", 8, "--gpu-memory", "80GiB", cwd=tmp_path).stdout
        assert "fits" in plan, plan
    turn = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    text = mgm("render", "--template", "configs/mine/chat.yaml:my_format", cwd=tmp_path, input=json.dumps(turn)).stdout
    assert "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n" in text, text


def test_a_gguf_file_is_all_it_takes(dirs, tmp_path):
    """A real file, vocabulary and all, trains as the directory that `mgm convert` makes of it, and is exported whole."""
    gguf = smollm2()
    mgm("convert", gguf, "--out", tmp_path / "directory")
    found = {}
    for llm in (gguf, tmp_path / "directory"):
        config = recipe(tmp_path, dirs / "any")  # its towers
        values = {"model.llm.path": llm, "text.tokenizer": llm, "text.template": "mpt", "train.rules": '[{preset: stage2}]',
                  "run.dir": tmp_path / llm.name}
        assert "text:" in config.read_text()
        mgm("train", config, *sets(values))
        found[llm] = metrics(tmp_path / llm.name)
    assert found[gguf] == found[tmp_path / "directory"] and len(found[gguf]) == 2
    named = {"model.llm": f"{{arch: llama, path: {gguf}, vocab_size: 49152, hidden_size: 576, intermediate_size: 1536, num_layers: 30, "
             "num_heads: 9, num_kv_heads: 3, norm_eps: 1e-5, rope_theta: 10000, tie_embeddings: true, max_positions: 8192}",
             "text.tokenizer": gguf, "text.template": "mpt", "run.dir": tmp_path / "named"}
    error = mgm("train", recipe(tmp_path, dirs / "any"), *sets(named), "--plan", code=2).stderr
    assert f"model.llm.rope_theta: is 10000, but {gguf} has 100000" in error and "norm_eps" not in error, error
    mgm("export", tmp_path / gguf.name, "--out", tmp_path / "llm", "--part", "llm")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    assert model.config.model_type == "llama" and model.num_parameters() == 134_515_008
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "llm")) == 49_152


def test_the_same_command_goes_on(dirs, tmp_path):
    """The resolved config is what a run remembers: the second start is no other run."""
    config = recipe(tmp_path, dirs / "qwen3")
    mgm("train", config)
    again = mgm("train", config)
    assert "another configuration" not in again.stdout + again.stderr
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2


def test_what_contradicts_the_directory_is_named(dirs, tmp_path):
    config = recipe(tmp_path, dirs / "qwen3", more=", hidden_size: 64, rope_theta: 10000, num_layers: 3")
    error = mgm("train", config, "--plan", code=2).stderr
    assert "model.llm.hidden_size: is 64, but the config of model.llm.path has 40; leave it out" in error
    assert "model.llm.rope_theta: is 10000, but the config of model.llm.path has 50000" in error
    assert "num_layers" not in error  # says the same
    assert f"{config}:" in error


def test_a_named_arch_is_held_against_the_directory(dirs, tmp_path):
    """Nothing of this shows in the weights' shapes."""
    config = recipe(tmp_path, dirs / "mistral")
    mgm("train", config, "--set", "train.max_steps=1")
    same = [("run.dir", tmp_path / "named"), ("model.llm", f"{{arch: mistral, path: {dirs / 'mistral'}, vocab_size: 1024, hidden_size: 40, "
            "intermediate_size: 52, num_layers: 3, num_heads: 4, num_kv_heads: 2, head_dim: 16, max_positions: 700, norm_eps: 1e-6, "
            "rope_theta: 50000, sliding_window: 32, activation: gelu}")]
    mgm("train", config, *sets(dict(same)), "--set", "train.max_steps=1", "--set", "text.max_length=256")
    for key, value, theirs in (("rope_theta", 10000, 50000), ("norm_eps", 0.01, "1.0e-06"), ("sliding_window", 0, 32), ("arch", "llama", "mistral")):
        error = mgm("train", config, *sets(dict(same)), "--set", f"model.llm.{key}={value}", code=2).stderr
        assert f"model.llm.{key}: is {value}, but {dirs / 'mistral'}/config.json has {theirs}; write that, or take model.llm.arch: auto" in error, error
    (tmp_path / "mistral").mkdir()
    (tmp_path / "mistral/config.json").write_text('{"a":')
    assert "config.json" in mgm("train", config, *sets(dict(same)), "--set", f"model.llm.path={tmp_path / 'mistral'}", check=False).stderr


def test_rules_see_the_sizes_read(dirs, tmp_path):
    error = mgm("train", recipe(tmp_path, dirs / "qwen3"), "--plan", "--set", "text.max_length=4096", code=2).stderr
    assert "4096 is above model.llm.max_positions 1024" in error


def test_the_activation_is_the_trainers_to_choose(dirs, tmp_path):
    mgm("train", recipe(tmp_path, dirs / "gemma2", more=", activation: gelu"), "--set", "train.max_steps=1")
    assert re.search(r"activation: gelu\s", (tmp_path / "run/config.yaml").read_text())


def test_refusals(dirs, tmp_path):
    missing = mgm("train", recipe(tmp_path, tmp_path / "nothing"), "--plan", code=2).stderr
    assert "model.llm.path" in missing and "no such file or folder" in missing
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "rwkv"}))
    error = mgm("train", recipe(tmp_path, other), "--plan", code=2).stderr
    assert "rwkv" in error and "qwen3" in error and "other/config.json" in error
    none = mgm("train", ROOT / "configs/tiny/stage2.yaml", "--plan", "--set", "model.llm.arch=auto", code=2).stderr
    assert "model.llm.path" in none


SCRATCH = {"model.vision_tower.path": '""', "train.rules": '[{preset: stage1}, {match: "model.vision_tower.*"}]'}


def test_a_tower_can_train_from_scratch(dirs, tmp_path):
    """Without a path it is drawn from the seed; stage 2 finds what stage 1 made of it in the projector file."""
    config, towers = recipe(tmp_path, dirs / "qwen3"), []
    for seed in (1, 1, 2):
        run = tmp_path / f"run{len(towers)}"
        mgm("train", config, *sets({**SCRATCH, "run.dir": run, "train.seed": seed, "optimizer.lr": 0}))
        towers.append({name: value for name, value in torch.load(run / "mm_projector.bin").items() if "vision_tower" in name})
    first, again, other = towers
    patches = "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight"
    assert first[patches].std() > 0.01
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first[patches], other[patches])
    # A seed of its own, so that only the file can bring the first run's tower.
    mgm("train", config, *sets({**SCRATCH, "run.dir": tmp_path / "stage2", "train.seed": 3, "optimizer.lr": 0,
                                "model.projector.path": tmp_path / "run0/mm_projector.bin"}))
    loaded = torch.load(tmp_path / "stage2/mm_projector.bin")
    assert all(torch.equal(loaded[name], first[name]) for name in first)


@pytest.mark.parametrize("rules", ["[{preset: stage1}]",
                                   "[{preset: stage1}, {preset: optimize_vision_tower}]"])
def test_a_frozen_tower_needs_its_weights(rules, dirs, tmp_path):
    config = recipe(tmp_path, dirs / "qwen3")
    error = mgm("train", config, *sets({**SCRATCH, "train.rules": rules}), code=2).stderr
    assert "model.vision_tower.path: is empty, so the tower is drawn from train.seed" in error
    assert 'train all of it: train.rules: [{match: "model.vision_tower.*"}]' in error


def test_config_commands_open_no_weights(tmp_path):
    config = recipe(tmp_path, tmp_path / "nothing")
    mgm("config", "check", config)
    assert "arch: auto" in mgm("config", "show", config).stdout
