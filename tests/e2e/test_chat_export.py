"""What follows training, as a user does it: export, chat, preprocess; answers and logits against the PyTorch
composition of tests/parity and against transformers."""
import json
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mgm_binary import ROOT, changed, mgm, peak_anonymous, sets

sys.path.insert(0, str(ROOT / "tests/parity"))
from mgm_oracle import IMAGE, MEAN, STD, TOKENIZER, Oracle, Sizes, preprocess, relative_l2  # noqa: E402
from text_oracle import render  # noqa: E402

IMAGES = ROOT / "data/embedded/images"
APPLE, BUS, SEAL = IMAGES / "apple.png", IMAGES / "bus_red.webp", IMAGES / "seal.jpg"
QUESTION = "What is in the picture?"
CUT = " [cut at the token limit]"


@pytest.fixture(scope="module", autouse=True)
def exact():
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    yield
    torch.set_grad_enabled(True)


@pytest.fixture(scope="module")
def oracle():
    return Oracle(Sizes(hr=96), seed=11)


@pytest.fixture(scope="module")
def model(oracle, tmp_path_factory):
    return oracle.save(tmp_path_factory.mktemp("oracle") / "model")


def chat(model_dir, *options, **more):
    return mgm("chat", model_dir, "--device", "cpu", *options, **more).stdout


# ---- chat -------------------------------------------------------------------------------------------------
class PythonChat:
    """Greedy answers of the oracle without any cache, prompts of the counting formulas."""

    def __init__(self, oracle):
        self.oracle = oracle
        self.tokenizer = transformers.LlamaTokenizer.from_pretrained(TOKENIZER)

    def ids(self, text):
        pieces = [self.tokenizer(piece).input_ids for piece in text.split("<image>")]
        ids = pieces[0]
        for piece in pieces[1:]:
            ids = ids + [IMAGE] + piece[1:]  # one BOS
        return ids

    def answer(self, messages, images, tokens):
        ids, out = self.ids(render("v1", [*messages, None])), []
        pictures = [self.oracle.picture(path) for path in images]
        while len(out) < tokens:
            logits = self.oracle.run(ids + out, pictures)["logits"][0, -1]
            out.append(int(logits.argmax()))
            if out[-1] == self.tokenizer.eos_token_id:
                return self.tokenizer.decode(out[:-1], skip_special_tokens=True).strip()
        return self.tokenizer.decode(out, skip_special_tokens=True).strip() + CUT


@pytest.mark.parametrize("images", [[], [APPLE], [BUS, SEAL, APPLE]], ids=["text", "one picture", "three pictures"])
def test_answer_is_the_oracles(oracle, model, images):
    options = [part for path in images for part in ("--image", path)]
    expected = PythonChat(oracle).answer(["<image>\n" * len(images) + QUESTION], images, 10)
    for _ in range(2):  # greedy twice: the same text
        assert chat(model, *options, "--prompt", QUESTION, "--max-new-tokens", 10).strip() == expected


def test_turns_from_stdin(oracle, model):
    lines = chat(model, "--image", SEAL, "--max-new-tokens", 7, input=f"{QUESTION}\n\nWhere is it?\n").splitlines()
    python = PythonChat(oracle)
    first = python.answer(["<image>\n" + QUESTION], [SEAL], 7)
    assert lines[0].strip() == first
    history = ["<image>\n" + QUESTION, first.removesuffix(CUT), "Where is it?"]
    assert lines[1].strip() == python.answer(history, [SEAL], 7)
    assert len(lines) == 2


def test_pictures_and_new_conversations_from_stdin(oracle, model):
    script = f"{QUESTION}\n/new\n/image {APPLE}\n{QUESTION}\n/new\n{QUESTION}\n"
    lines = chat(model, "--max-new-tokens", 7, input=script).splitlines()
    python = PythonChat(oracle)
    bare = python.answer([QUESTION], [], 7)
    assert [line.strip() for line in lines] == [bare, python.answer(["<image>\n" + QUESTION], [APPLE], 7), bare]


def test_a_seed_fixes_what_is_sampled(model):
    def ask(*options):
        return chat(model, "--image", BUS, "--prompt", QUESTION, "--max-new-tokens", 12, *options)

    warm = ask("--temperature", 1.5, "--seed", 1)
    assert warm == ask("--temperature", 1.5, "--seed", 1)
    assert warm != ask("--temperature", 1.5, "--seed", 2)
    assert ask("--temperature", 1.5, "--top-p", 0) == ask()  # the likeliest token alone is greedy
    assert ask("--temperature", 1.5, "--top-k", 1) == ask()
    assert ask("--temperature", 1.5, "--top-k", 3, "--seed", 1) != warm


def test_repetition_penalty_is_that_of_transformers(oracle, model):
    """Greedy; the prompt's tokens count. A text prompt, so that transformers knows its ids too."""
    prompt = "The bus stands beside the bus beside the bus"
    ids = transformers.LlamaTokenizer.from_pretrained(TOKENIZER)(prompt, return_tensors="pt").input_ids
    plain, penalised = (oracle.llm.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
                                            eos_token_id=2, pad_token_id=0, repetition_penalty=penalty)[0, ids.shape[1]:]
                        for penalty in (1.0, 3.0))
    assert not torch.equal(plain, penalised)
    tokenizer = transformers.LlamaTokenizer.from_pretrained(TOKENIZER)
    for ids, options in ((plain, []), (penalised, ["--repetition-penalty", 3.0])):
        answer = chat(model, "--template", f"{ROOT}/tests/e2e/bare.yaml:bare", "--prompt", prompt, "--max-new-tokens", 12,
                      *options)
        assert answer.strip().removesuffix(CUT) == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_answer_cut_by_the_limit_says_so(model):
    assert chat(model, "--prompt", QUESTION, "--max-new-tokens", 1).endswith(CUT + "\n")


def test_empty_answer_is_left_out_of_the_conversation(model, tmp_path):
    """Two turns later it would be refused as training data is: an answer without text."""
    first = forward(model, tmp_path / "out.safetensors", "--prompt", QUESTION)["logits"][0, -1].argmax()

    def end_at_once(tensors):
        head = tensors["lm_head.weight"]
        head[[2, int(first)]] = head[[int(first), 2]]

    silent = with_tensors(model, tmp_path / "silent", end_at_once)
    done = mgm("chat", silent, "--device", "cpu", input=f"{QUESTION}\n{QUESTION}\n")
    assert done.stdout == "\n\n" and done.stderr.count("the answer is empty") == 2


# ---- errors -----------------------------------------------------------------------------------------------
def with_tensors(model, folder, change):
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def refused(code, *args, says, **more):
    error = mgm(*args, code=code, **more).stderr
    for part in says:
        assert str(part) in error, f"{part!r} is not in: {error}"


def test_model_directories_that_are_none(model, tmp_path):
    refused(4, "chat", tmp_path / "nothing", says=["nothing", "config.json"])
    (tmp_path / "config.json").write_text("{")
    refused(4, "chat", tmp_path, says=["config.json", "JSON"])
    llm = changed(model, tmp_path / "llm", mm_vision_tower=None)
    refused(4, "chat", llm, says=["language model"])
    bare = changed(model, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    refused(4, "chat", bare, says=[bare])
    wide = changed(model, tmp_path / "wide", hidden_size=48)
    refused(4, "chat", wide, says=["model.embed_tokens.weight", "[1024, 40]", "[1024, 48]"])
    rope = changed(model, tmp_path / "rope", rope_scaling={"type": "yarn", "factor": 2})
    refused(4, "chat", rope, says=["rope_scaling", "yarn"])
    geometry = changed(model, tmp_path / "geometry", image_grid=5)
    refused(4, "chat", geometry, says=["config.json", "grid"])


def test_weights_that_do_not_fit_are_all_named(model, tmp_path):
    def damage(tensors):
        tensors["model.norm.weight"][3] = float("nan")

    refused(4, "chat", with_tensors(model, tmp_path / "nan", damage), says=["model.norm.weight", "1 NaN"])

    def lose(tensors):
        del tensors["model.mm_projector.0.bias"]
        tensors["model.surplus"] = torch.zeros(2)

    lost = with_tensors(model, tmp_path / "lost", lose)
    refused(4, "chat", lost, says=["model.mm_projector.0.bias", "model.surplus"])


def test_tokenizer_larger_than_the_embedding(oracle, tmp_path):
    small = Oracle(Sizes(hr=96, vocab=1000), seed=1).save(tmp_path / "small")
    refused(4, "chat", small, "--prompt", "Hi", says=["1024", "1000"])


def test_questions_that_cannot_be_asked(model, tmp_path):
    refused(3, "chat", model, "--prompt", "<image> What?", says=["1 <image> marker", "0 image"])
    refused(3, "chat", model, "--image", tmp_path / "no.png", "--prompt", "What?", says=["no.png"])
    half = tmp_path / "half.png"
    half.write_bytes(APPLE.read_bytes()[:900])
    refused(3, "chat", model, "--image", half, "--prompt", "What?", says=["half.png"])
    refused(3, "chat", model, "--prompt", "word " * 3000, says=["tokens", "2048"])
    refused(3, "chat", model, input="/image /no/such/picture.png\nWhat?\n", says=["/no/such/picture.png"])


def test_options_that_do_not_exist(model):
    refused(2, "chat", model, "--template", "vicuna_v7", "--prompt", "Hi", says=["vicuna_v7", "v1"])
    refused(2, "chat", model, "--top-p", 1.5, "--prompt", "Hi", says=["top-p"])
    refused(2, "chat", model, "--top-k", -1, "--prompt", "Hi", says=["top-k"])
    refused(2, "chat", model, "--repetition-penalty", 0, "--prompt", "Hi", says=["repetition-penalty"])
    refused(2, "chat", model, "--temperature", 1e-9, "--prompt", "Hi", says=["temperature", "0.0001"])
    assert "change nothing" in mgm("chat", model, "--device", "cpu", "--top-k", 5, "--prompt", "Hi", "--max-new-tokens",
                                   1).stderr
    refused(2, "chat", model, "--max-new-tokens", 0, "--prompt", "Hi", says=["max-new-tokens"])
    refused(2, "export", says=["run"])
    refused(2, "forward", model, "--prompt", "Hi", says=["--out"])


def test_help_has_examples():
    for command in ("chat", "export", "forward", "preprocess"):
        assert "Example" in mgm(command, "--help").stdout


def test_output_that_cannot_be_written(model):
    refused(1, "forward", model, "--device", "cpu", "--prompt", "Hi", "--out", "/proc/no/out.safetensors",
            says=["/proc/no"])


# ---- published layout -------------------------------------------------------------------------------------
def forward(model_dir, out, *options):
    mgm("forward", model_dir, "--device", "cpu", "--out", out, *options)
    return load_file(out)


def test_towers_in_their_own_directories_and_sharded_weights(model, tmp_path):
    """config.json names the towers; the shards hold the rest."""
    tensors = load_file(model / "model.safetensors")
    clip, convnext, rest = {}, {}, {}
    for name, value in tensors.items():
        if name.startswith("model.vision_tower.vision_tower."):
            clip[name.removeprefix("model.vision_tower.vision_tower.")] = value
        elif name.startswith("model.vision_tower_aux.vision_"):
            convnext["visual.trunk." + name.removeprefix("model.vision_tower_aux.vision_")] = value
        else:
            rest[name] = value
    clip["text_model.final_layer_norm.bias"] = torch.zeros(3)  # the half of CLIP that nobody needs
    split = changed(model, tmp_path / "split", mm_vision_tower="towers/clip", mm_vision_tower_aux="towers/convnext")
    (split / "model.safetensors").unlink()
    for folder, part, file in (("clip", clip, "model.safetensors"),
                               ("convnext", convnext, "open_clip_model.safetensors")):
        (split / "towers" / folder).mkdir(parents=True)
        save_file(part, split / "towers" / folder / file)
    names = sorted(rest)
    index = {"metadata": {}, "weight_map": {}}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({name: rest[name] for name in part}, split / file)
        index["weight_map"].update(dict.fromkeys(part, file))
    (split / "model.safetensors.index.json").write_text(json.dumps(index))
    options = ["--image", SEAL, "--prompt", QUESTION]
    whole = forward(model, tmp_path / "whole.safetensors", *options)
    parts = forward(split, tmp_path / "parts.safetensors", *options)
    assert torch.equal(whole["logits"], parts["logits"])
    shutil.rmtree(split / "towers/convnext")
    refused(4, "chat", split, "--prompt", "Hi", says=["towers/convnext", "HR vision tower"])


def test_config_without_our_own_key(model, tmp_path):
    """As published: sizes follow from the towers' names. No weights are needed to prepare pictures."""
    published = tmp_path / "published"
    published.mkdir()
    config = json.loads((model / "config.json").read_text())
    del config["mgm"]
    config.update(model_type="mini_gemini", mm_vision_tower="model_zoo/OpenAI/clip-vit-large-patch14-336",
                  mm_vision_tower_aux="model_zoo/OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup",
                  image_size_aux=768)
    (published / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out.safetensors"
    mgm("preprocess", BUS, "--config", published, "--out", out)
    assert {name: list(x.shape) for name, x in load_file(out).items()} == {"hr": [3, 768, 768], "lr": [1, 3, 336, 336]}


# ---- preprocess -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name,size", [("odd", (61, 97)), ("wide", (301, 5)), ("two pixels", (1, 2)),
                                       ("square", (64, 64))])
@pytest.mark.parametrize("grid,with_global,aspect", [(1, False, "pad"), (2, True, "pad"), (1, False, "square")])
def test_preprocess(model, tmp_path, name, size, grid, with_global, aspect):
    noise = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = tmp_path / "picture.png"
    Image.fromarray(noise).save(picture)
    sizes = Sizes(hr=192, grid=grid, with_global=with_global)
    mine = changed(model, tmp_path / "model", image_grid=grid, image_global=with_global, image_aspect_ratio=aspect,
                   mgm={**json.loads((model / "config.json").read_text())["mgm"], "hr_size": 192})
    out, png = tmp_path / "out.safetensors", tmp_path / "canvas.png"
    mgm("preprocess", picture, "--config", mine, "--out", out, "--png", png)
    actual = load_file(out)
    hr, lr = preprocess(picture, sizes, aspect)
    assert actual["hr"].dtype == torch.float32 and actual["lr"].dtype == torch.float32
    # The same bytes in; normalised in float32 by another order of operations.
    assert (actual["hr"] - hr).abs().max() <= 2e-6
    assert actual["lr"].shape == lr.shape and (actual["lr"] - lr).abs().max() <= 5e-6
    canvas = torch.from_numpy(np.asarray(Image.open(png).convert("RGB")).copy()).permute(2, 0, 1)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    assert torch.equal(canvas, ((hr * std + mean) * 255).round().to(torch.uint8))


def test_preprocess_of_one_pixel(model, tmp_path):
    Image.new("RGB", (1, 1), (200, 3, 77)).save(tmp_path / "dot.png")
    mgm("preprocess", tmp_path / "dot.png", "--config", model, "--out", tmp_path / "out.safetensors")
    colour = (torch.tensor([200, 3, 77]) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    for tensor in load_file(tmp_path / "out.safetensors").values():
        assert (tensor - colour[:, None, None]).abs().max() <= 2e-6


def test_preprocess_by_run_config(tmp_path):
    out = tmp_path / "out.safetensors"
    mgm("preprocess", APPLE, "--config", "configs/stage2/vicuna_7b_hd.yaml", "--out", out)
    actual = load_file(out)
    hr, lr = preprocess(APPLE, Sizes(image=336, hr=1536, grid=2, with_global=True))
    assert (actual["hr"] - hr).abs().max() <= 2e-6 and (actual["lr"] - lr).abs().max() <= 5e-6
    assert list(lr.shape) == [5, 3, 336, 336]


def test_preprocess_refusals(tmp_path):
    config = "configs/tiny/stage1.yaml"
    refused(3, "preprocess", tmp_path / "no.png", "--config", config, "--out", tmp_path / "x", says=["no.png"])
    (tmp_path / "text.png").write_text("no picture")
    refused(3, "preprocess", tmp_path / "text.png", "--config", config, "--out", tmp_path / "x", says=["text.png"])
    refused(2, "preprocess", APPLE, "--config", config, "--out", tmp_path / "x", "--depth", 3, says=["--depth"])
    assert not (tmp_path / "x").exists()


# ---- export -----------------------------------------------------------------------------------------------
def train(config, run, **more):
    values = {"run.dir": run, "train.max_steps": 3, "train.global_batch": 4, "train.micro_batch": 4}
    values.update({key.replace("__", "."): value for key, value in more.items()})
    mgm("train", config, *sets({key: str(value) if isinstance(value, pathlib.Path) else value
                                for key, value in values.items()}))
    return run


@pytest.fixture(scope="module")
def stage1(tmp_path_factory):
    return train("configs/tiny/stage1.yaml", tmp_path_factory.mktemp("runs") / "stage1")


@pytest.fixture(scope="module")
def stage2(stage1):
    return train("configs/tiny/stage2.yaml", stage1.parent / "stage2",
                 model__projector__path=stage1 / "mm_projector.bin", checkpoint__every_steps=2)


@pytest.fixture(scope="module")
def exported(stage2):
    mgm("export", stage2, "--out", stage2.parent / "model")
    return stage2.parent / "model"


def masters(run, step=3):
    """The trained fp32 weights of a checkpoint of one rank, cut out of its flat groups."""
    folder, out = run / "checkpoints" / f"step_{step}", {}
    layout = json.loads((folder / "state.json").read_text())["layout"]
    with safe_open(folder / "rank_0.safetensors", "pt") as file:
        for group in layout["groups"]:
            assert group["ranges"] == [[0, group["numel"]]]
            flat = file.get_tensor("master." + group["name"])
            for segment in group["segments"]:
                begin, shape = segment["offset"], segment["shape"]
                out[segment["name"]] = flat[begin:begin + int(np.prod(shape))].reshape(shape)
    return out


def test_export_holds_masters_and_frozen_towers(stage1, stage2, exported):
    out = load_file(exported / "model.safetensors")
    trained = masters(stage2)
    assert trained and all(torch.equal(out[name], value) for name, value in trained.items())
    frozen = torch.load(stage1 / "mm_projector.bin", weights_only=True)
    towers = {name for name in out if name not in trained}
    assert towers == {name for name in frozen if "vision_tower" in name}
    assert all(torch.equal(out[name], frozen[name].float()) for name in towers)
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["MGMLlamaForCausalLM"] and config["mgm"]["template"] == "v1"
    assert config["optimize_vision_tower_aux"] is False and config["torch_dtype"] == "float32"
    for file in TOKENIZER.iterdir():
        assert (exported / file.name).read_bytes() == file.read_bytes()


def test_export_of_a_checkpoint(stage2, tmp_path):
    mgm("export", stage2 / "checkpoints/step_2", "--out", tmp_path / "model")
    out = load_file(tmp_path / "model/model.safetensors")
    assert all(torch.equal(out[name], value) for name, value in masters(stage2, step=2).items())


def test_bf16_export_rounds_the_masters(stage2, tmp_path):
    mgm("export", stage2, "--out", tmp_path / "model", "--dtype", "bf16")
    out = load_file(tmp_path / "model/model.safetensors")
    assert all(torch.equal(out[name], value.bfloat16()) for name, value in masters(stage2).items())
    assert json.loads((tmp_path / "model/config.json").read_text())["torch_dtype"] == "bfloat16"
    for dtype in ("fp32", "bf16"):
        assert chat(tmp_path / "model", "--dtype", dtype, "--image", APPLE, "--prompt", QUESTION, "--max-new-tokens", 2)


def test_fp16_export(stage2, tmp_path):
    mgm("export", stage2, "--out", tmp_path / "model", "--dtype", "fp16", "--verify")
    out = load_file(tmp_path / "model/model.safetensors")
    assert all(torch.equal(out[name], value.half()) for name, value in masters(stage2).items())
    assert all(value.dtype == torch.float16 for value in out.values())
    assert json.loads((tmp_path / "model/config.json").read_text())["torch_dtype"] == "float16"
    assert chat(tmp_path / "model", "--dtype", "fp32", "--image", APPLE, "--prompt", QUESTION, "--max-new-tokens", 2)


def test_fp16_export_refuses_what_would_be_infinite(stage1, tmp_path):
    run = train("configs/tiny/stage2.yaml", tmp_path / "run", model__projector__path=stage1 / "mm_projector.bin",
                optimizer__lr=1e6, schedule__warmup_ratio=0, train__max_steps=1)
    assert max(value.abs().max() for value in masters(run, step=1).values()) > 65504
    done = mgm("export", run, "--out", tmp_path / "model", "--dtype", "fp16", code=4)
    name, value = re.search(r"tensor '(\S+)' has values beyond fp16's 65504 \(such as (\S+)\)", done.stderr).groups()
    assert abs(float(value)) > 65504
    assert (masters(run, step=1)[name].double() / float(value) - 1).abs().min() < 1e-4  # one of them
    assert not (tmp_path / "model").exists()
    mgm("export", run, "--out", tmp_path / "model", "--dtype", "bf16")


@pytest.mark.parametrize("part", ["all", "llm"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_verify_compares_logits(stage2, tmp_path, part, dtype):
    done = mgm("export", stage2, "--out", tmp_path / "model", "--part", part, "--dtype", dtype, "--verify")
    found = re.search(r"verified: (\d+) x (\d+) logits, max abs difference (\S+), relative L2 (\S+)", done.stdout)
    rows, vocab, largest, relative = (float(x) for x in found.groups())
    assert rows > (30 if part == "all" else 5) and vocab == 1024
    if dtype == "fp32":
        assert relative <= 1e-6
    else:
        assert 1e-5 < relative < 0.05 and largest > 0


def test_a_refused_verify_leaves_what_was_there(stage1, tmp_path):
    """Weights that training blew up until every logit is 0, which anything as broken would equal."""
    run = train("configs/tiny/stage2.yaml", tmp_path / "run", model__projector__path=stage1 / "mm_projector.bin",
                optimizer__lr=1e6, schedule__warmup_ratio=0, train__max_steps=1)
    refused = ("export", run, "--out", tmp_path / "model", "--dtype", "bf16", "--verify")
    assert "the logits of the run's own weights are all zero" in mgm(*refused, code=4).stderr
    assert not list(tmp_path.glob("model*"))
    mgm("export", run, "--out", tmp_path / "model")
    files = lambda: {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}
    before = files()
    assert "it is not kept" in mgm(*refused, "--replace", code=4).stderr
    assert files() == before and [p.name for p in tmp_path.glob("model*")] == ["model"]


def test_exported_model_answers(exported):
    answers = {chat(exported, "--image", APPLE, "--prompt", QUESTION, "--max-new-tokens", 5) for _ in range(2)}
    assert len(answers) == 1


def test_exported_model_is_a_start(exported, tmp_path):
    """The published layout in again: one step from the exported weights, without a seed's help."""
    def first_loss(seed):
        run = train("configs/tiny/stage2.yaml", tmp_path / f"run{seed}", model__init="pretrained", model__path=exported,
                    model__projector__path="", train__max_steps=1)
        return json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["loss"], run

    loss, run = first_loss(1)
    mgm("export", run, "--out", tmp_path / "again")
    # The first step of a warm-up has rate 0: the weights are still those that were exported.
    before, after = load_file(exported / "model.safetensors"), load_file(tmp_path / "again/model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert 0 < loss < 20


@pytest.mark.parametrize("source", ["stage1", "stage2"])
def test_language_model_export_loads_in_transformers(source, request, tmp_path):
    run = request.getfixturevalue(source)
    mgm("export", run, "--out", tmp_path / "llm", "--part", "llm")
    mgm("export", run, "--out", tmp_path / "model")
    llm, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llm", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert llm.dtype == torch.float32
    actual = forward(tmp_path / "model", tmp_path / "out.safetensors", "--template", "none", "--prompt",
                     "The red bus stands beside 17 apples.")
    expected = llm(actual["input_ids"]).logits
    assert relative_l2(actual["logits"], expected) <= 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "llm", use_fast=False)
    assert tokenizer("The red bus stands beside 17 apples.").input_ids == actual["input_ids"][0].tolist()


def test_trained_towers_are_marked(stage1, tmp_path):
    """The reference takes a tower from the shards only if config.json says that it was trained."""
    config = tmp_path / "towers.yaml"
    config.write_text(f"extends: {ROOT}/configs/tiny/stage1.yaml\ntrain:\n  rules:\n    - preset: stage1\n"
                      "    - match: model.vision_tower_aux.*\n")
    run = train(config, tmp_path / "run", train__max_steps=1)
    mgm("export", run, "--out", tmp_path / "model")
    written = json.loads((tmp_path / "model/config.json").read_text())
    assert written["optimize_vision_tower_aux"] is True and written["optimize_vision_tower"] is False


def test_export_refusals(stage2, tmp_path):
    refused(4, "export", tmp_path, "--out", tmp_path / "model", says=[tmp_path, "checkpoint"])
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    for options in ([], ["--replace"]):
        refused(4, "export", stage2, "--out", taken, *options, says=[taken])
    assert (taken / "thesis.txt").read_text() == "mine"
    refused(1, "export", stage2, "--out", "/proc/no/model", says=["/proc/no"])
    model = tmp_path / "model"
    mgm("export", stage2 / "checkpoints/step_2", "--out", model)
    old = (model / "model.safetensors").read_bytes()
    refused(4, "export", stage2, "--out", model, says=[model, "--replace"])
    assert (model / "model.safetensors").read_bytes() == old
    mgm("export", stage2, "--out", model, "--replace")
    assert (model / "model.safetensors").read_bytes() != old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "taken"]


def test_damaged_checkpoint_is_not_exported(stage2, tmp_path):
    shutil.copytree(stage2 / "checkpoints/step_3", tmp_path / "step_3")
    victim = tmp_path / "step_3/rank_0.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    refused(4, "export", tmp_path / "step_3", "--out", tmp_path / "model", says=["rank_0.safetensors"])
    assert not (tmp_path / "model").exists()


def test_loading_copies_no_weights(model, tmp_path):
    """235 MB of weights in their own type stay pages of the file; as bf16 they are copied, half as large."""
    big = Oracle(Sizes(hr=96, width=512, mlp=4096, layers=8), seed=1).save(tmp_path / "big")
    size = (big / "model.safetensors").stat().st_size
    assert size > 230e6
    options = ["--device", "cpu", "--prompt", "a", "--max-new-tokens", "1"]
    idle = peak_anonymous("chat", model, *options)
    peak = peak_anonymous("chat", big, *options)
    assert peak < idle + 0.3 * size, f"{peak / 1e6:.0f} MB, {idle / 1e6:.0f} MB with a small model"
    assert peak_anonymous("chat", big, "--dtype", "bf16", *options) > idle + 0.45 * size  # the measurement sees copies
