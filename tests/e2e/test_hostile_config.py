"""A config.json with values that no model has, over every subcommand that reads a model directory: an error that names
file, key and value, or an ordinary end; never a crash, a hang or a number taken for another. And what an export keeps
of the directory it began from."""
import copy
import json
import pathlib
import shutil
import sys

import pytest
import torch
import transformers

from mgm_binary import ROOT, changed, mgm, sets

sys.path.insert(0, str(ROOT / "tests/parity"))
from mgm_oracle import Oracle, Sizes  # noqa: E402

HOSTILE = {  # key -> (values, what the message says of the range)
    "num_key_value_heads": ([0, -2, 2**62], "between 1 and"),
    "num_hidden_layers": ([0, 1e12, 2**62], "between 1 and 4096"),
    "num_attention_heads": ([0, -5, 4.9], ""),
    "hidden_size": ([40.7, 0, 1e30], ""),
    "intermediate_size": ([0, -1], "between 1 and"),
    "vocab_size": ([1024.5, -5, 2**62], ""),
    "head_dim": ([-16, 1e30, 10.9], ""),
    "max_position_embeddings": ([0, 2**62], "between 1 and"),
    "rms_norm_eps": ([-1, 7], "between 0 and 1"),
}
OURS = {  # of a Mini-Gemini model alone
    "image_grid": ([0, -1, 2**31], "between 1 and 16"),
    "mm_vision_select_layer": ([1e30, -99999], ""),
    "tokenizer_model_max_length": ([-1], "between 1 and"),
    "mgm.vision_tower.patch_size": ([0, 1e30], ""),
    "mgm.vision_tower.image_size": ([0], "between 1 and"),
    "mgm.vision_tower.num_attention_heads": ([0], "between 1 and"),
    "mgm.vision_tower.num_hidden_layers": ([2**62], "between 1 and 4096"),
    "mgm.convnext.depths": ([[0, 0, 0, 0], [1, 2**40, 1, 1]], "between 1 and 4096"),
    "mgm.hr_size": ([0, 2**40], "between 32 and"),
    "mgm.image_std": ([[-1, 1, 1]], "between 0 and"),
}
CASES = [(key, value, says) for table in (HOSTILE, OURS) for key, (values, says) in table.items() for value in values]
DEEP = '{"model_type": "llama", "x": ' + "[" * 200_000 + "]" * 200_000 + "}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Oracle(Sizes(hr=96), seed=11).save(tmp_path_factory.mktemp("oracle") / "model")


def with_value(model, folder, key, value):
    """The directory again, its other files by name, with one value of its config.json changed."""
    folder.mkdir(exist_ok=True)
    for file in model.iterdir():
        if file.name != "config.json" and not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    config = json.loads((model / "config.json").read_text())
    place = config
    *path, last = key.split(".")
    for step in path:
        place = place[step]
    place[last] = copy.deepcopy(value)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(done, folder, key, says, code=4):
    last = key.split(".")[-1]
    assert done.returncode == code, (done.returncode, done.stderr)
    for part in (folder / "config.json", f"'{last}", says):
        assert str(part) in done.stderr, done.stderr


@pytest.mark.parametrize("key,value,says", CASES, ids=[f"{key}={value}" for key, value, _ in CASES])
def test_what_runs_a_model_refuses(model, tmp_path, key, value, says):
    bad = with_value(model, tmp_path / "model", key, value)
    question = ["--device", "cpu", "--prompt", "Hi"]
    refused(mgm("chat", bad, *question, "--max-new-tokens", 1, check=False, timeout=60), bad, key, says)
    refused(mgm("preprocess", ROOT / "data/embedded/images/apple.png", "--config", bad, "--out", tmp_path / "x",
                check=False, timeout=60), bad, key, says)


@pytest.mark.parametrize("turn", [0, -1])
def test_inspect_notes_it_and_convert_refuses(model, tmp_path, turn):
    bad = with_value(model, tmp_path / "model", "hidden_size", 0)
    config = json.loads((bad / "config.json").read_text())
    for key, (values, _) in HOSTILE.items():
        config[key] = values[turn]
    (bad / "config.json").write_text(json.dumps(config))
    assert f"cannot be loaded: {bad / 'config.json'}" in mgm("inspect", bad, timeout=60).stdout
    done = mgm("convert", bad, "--out", tmp_path / "copy", "--dtype", "bf16", code=4, timeout=60)
    assert str(bad / "config.json") in done.stderr and not (tmp_path / "copy").exists()


@pytest.mark.parametrize("key", ["num_key_value_heads", "vocab_size"])
def test_forward_refuses_as_chat_does(model, tmp_path, key):
    bad = with_value(model, tmp_path / "model", key, 0)
    refused(mgm("forward", bad, "--device", "cpu", "--prompt", "Hi", "--out", tmp_path / "x.safetensors", check=False), bad,
            key, "between 1 and")


@pytest.mark.parametrize("key,value,says", [case for case in CASES if case[0] in HOSTILE],
                         ids=[f"{key}={value}" for key, value, _ in CASES if key in HOSTILE])
def test_a_plan_refuses(model, tmp_path, key, value, says):
    bad = with_value(model, tmp_path / "model", key, value)
    plan = ["train", recipe(tmp_path, bad), "--plan"]
    # At model.llm.path of the recipe, so as an error of the config.
    refused(mgm(*plan, check=False, timeout=60), bad, key, says, code=2)


def test_brackets_alone_are_no_stack_overflow(model, tmp_path):
    bad = with_value(model, tmp_path / "model", "hidden_size", 40)
    (bad / "config.json").write_text(DEEP)
    for args in (["chat", bad, "--prompt", "Hi", "--device", "cpu"], ["inspect", bad], ["convert", bad, "--out", tmp_path / "out", "--dtype", "bf16"]):
        done = mgm(*args, check=False, timeout=60)
        assert done.returncode in (0, 4), (args, done.returncode, done.stderr)
        assert done.returncode == 0 or "nest deeper" in done.stderr


def test_a_whole_number_may_have_a_point(model, tmp_path):
    same = with_value(model, tmp_path / "model", "hidden_size", 40.0)
    question = ["--device", "cpu", "--prompt", "What?", "--max-new-tokens", 4]
    assert mgm("chat", same, *question).stdout == mgm("chat", model, *question).stdout


# ---- training ---------------------------------------------------------------------------------------------
def recipe(tmp_path, llm, text="tokenizer: data/embedded/tokenizer"):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""
run: {{dir: {tmp_path}/run}}
model:
  llm: {{arch: auto, path: {llm}}}
  vision_tower: {{path: {tmp_path}/clip, image_size: 42, patch_size: 14, hidden_size: 24, intermediate_size: 40, num_layers: 3, num_heads: 2}}
  hr_encoder: none
image: {{hr_size: 42}}
text: {{{text}, max_length: 512}}
data: {{sources: [{{annotations: data/embedded/stage1_train.json, images: data/embedded/images}}], workers: 1}}
train: {{device: cpu, global_batch: 4, micro_batch: 2, max_steps: 1, rules: [{{preset: stage1}}]}}
checkpoint: {{every_minutes: 0}}
""")
    return path


@pytest.fixture
def base(tmp_path):
    """A tiny language model's directory and a CLIP beside it."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(vocab_size=1024, hidden_size=40, intermediate_size=52, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "llm")
    (tmp_path / "llm/generation_config.json").unlink(missing_ok=True)
    clip = transformers.CLIPVisionConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2,
                                         image_size=42, patch_size=14)
    transformers.CLIPVisionModel(clip).save_pretrained(tmp_path / "clip")
    return tmp_path / "llm"


def edit(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def test_an_end_token_that_the_tokenizer_lacks_stops_a_start(base, tmp_path):
    error = mgm("train", recipe(tmp_path, base), *sets({"text.template": "llama_3"}), code=2).stderr
    assert "text.template" in error and "'<|eot_id|>'" in error and "no token of data/embedded/tokenizer" in error


def test_the_language_models_chat_template_counts_where_the_tokenizer_is_elsewhere(base, tmp_path):
    (base / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}")
    config = recipe(tmp_path, base)
    said = f"{base}: its chat template (chat_template.jinja) differs from the format 'vicuna_v1'"
    assert said in mgm("train", config).stderr
    assert said in " ".join(mgm("doctor", config).stdout.split())


def test_an_export_has_the_small_files_of_its_backbone(base, tmp_path):
    edit(base, eos_token_id=[2, 7], bos_token_id=1)
    for name in ("chat_template.jinja", "LICENSE.txt", "NOTICE"):
        (base / name).write_text(f"the {name}\n")
    (base / "training.py").write_text("print()")
    mgm("train", recipe(tmp_path, base))
    for part in ("all", "llm"):
        out = tmp_path / f"export_{part}"
        mgm("export", tmp_path / "run", "--out", out, "--part", part)
        made = transformers.GenerationConfig.from_pretrained(out)
        assert made.eos_token_id == [2, 7] and made.bos_token_id == 1
        for name in ("chat_template.jinja", "LICENSE.txt", "NOTICE"):
            assert (out / name).read_text() == f"the {name}\n"
        assert not (out / "training.py").exists()
    # One that is there is copied as it is.
    own = json.dumps({"eos_token_id": [2, 9], "temperature": 0.3, "do_sample": True})
    (base / "generation_config.json").write_text(own)
    mgm("export", tmp_path / "run", "--out", tmp_path / "again")
    assert (tmp_path / "again/generation_config.json").read_text() == own


def test_a_template_of_the_users_goes_into_the_export(base, tmp_path):
    table = tmp_path / "mine.yaml"
    table.write_text('mine:\n  begin: "§ \\"x\\"\\n"\n  user_begin: "Q: "\n  user_end: "\\n"\n  assistant_begin: "A: "\n'
                     '  assistant_end: "</s>"\n')
    mgm("train", recipe(tmp_path, base), *sets({"text.template": f"{table}:mine"}))
    mgm("export", tmp_path / "run", "--out", tmp_path / "model")
    question = ["--device", "cpu", "--prompt", "What?", "--max-new-tokens", 4]
    expected = mgm("chat", tmp_path / "model", *question, "--template", f"{table}:mine").stdout
    assert mgm("chat", tmp_path / "model", *question).stdout == expected
    error = mgm("train", recipe(tmp_path, base), *sets({"text.template": f"{table}:other"}), code=2).stderr
    assert f"no template 'other' in {table}. Known: mine; or FILE.yaml:NAME" in error
    table.unlink()
    assert mgm("chat", tmp_path / "model", *question).stdout == expected
    row = json.loads((tmp_path / "model/config.json").read_text())["mgm"]["template"]["mine"]
    assert row["begin"] == '§ "x"\n' and row["assistant_end"] == "</s>" and row["captions"] is False
    # A directory that has the name alone says what to do.
    old = changed(tmp_path / "model", tmp_path / "old", mgm={
        **json.loads((tmp_path / "model/config.json").read_text())["mgm"], "template": f"{table}:mine"})
    error = mgm("chat", old, *question, code=4).stderr
    assert str(table) in error and "--template" in error


# ---- messages ---------------------------------------------------------------------------------------------
def test_invalid_utf8_is_counted(model, tmp_path):
    bad = b"a\xff\xfeb"
    options = ["--device", "cpu", "--max-new-tokens", 1]
    assert "--prompt: invalid UTF-8: 2 parts" in mgm("chat", model, *options, "--prompt", bad.decode(errors="surrogateescape")).stderr
    lines = tmp_path / "lines"
    lines.write_bytes(bad + b"\nfine\n")
    with lines.open() as stdin:
        error = mgm("chat", model, *options, stdin=stdin).stderr
    assert error.count("standard input: invalid UTF-8: 2 parts") == 1
    assert "--prompt: invalid UTF-8: 2 parts" in mgm("forward", model, "--device", "cpu", "--out", tmp_path / "x", "--prompt",
                                                     bad.decode(errors="surrogateescape")).stderr


def test_a_git_lfs_pointer_is_called_one(model, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model/model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 135\n")
    error = mgm("chat", tmp_path / "model", "--prompt", "Hi", "--device", "cpu", code=4).stderr
    assert "model.safetensors: is a git-lfs pointer" in error and "git lfs pull" in error


def test_a_folder_in_place_of_the_projector(base, tmp_path):
    error = mgm("train", recipe(tmp_path, base), *sets({"model.projector.path": tmp_path}), code=2).stderr
    assert "model.projector.path" in error and str(pathlib.Path(tmp_path) / "mm_projector.bin") in error
