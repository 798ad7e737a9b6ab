"""Files that a command reads: outputs never take their place, and what is no regular file is refused at once."""
import json
import os
import shutil
import socket
import sys

import pytest

from mgm_binary import ROOT, mgm

sys.path.insert(0, str(ROOT / "tests/parity"))
from mgm_oracle import Oracle, Sizes  # noqa: E402

IMAGES = ROOT / "data/embedded/images"
APPLE, BUS = IMAGES / "apple.png", IMAGES / "bus_red.webp"
QUESTION = {"id": "a", "image": "apple.png",
            "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "An apple."}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Oracle(Sizes(hr=96), seed=11).save(tmp_path_factory.mktemp("inputs") / "model")


def refused(code, *args, says, timeout=60):
    done = mgm(*args, code=code, timeout=timeout)
    for part in says:
        assert str(part) in done.stderr, f"{part!r} is not in: {done.stderr}"
    return done


# ---- outputs over inputs ----------------------------------------------------------------------------------
def other_names(path, folder):
    """The file itself, a link to it and a second name of it."""
    (folder / "link").symlink_to(path)
    os.link(path, folder / "second")
    return path, folder / "link", folder / "second"


def test_chat_does_not_write_over_its_questions(model, tmp_path):
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"id": 1, "prompt": "What?", "image": "%s"}\n' % APPLE)
    before = questions.read_text()
    for option in ("--out", "--stats"):
        for out in other_names(questions, tmp_path):
            refused(2, "chat", model, "--batch", questions, option, out, says=[option, out, "is the same file", questions])
        (tmp_path / "link").unlink(), (tmp_path / "second").unlink()
    assert questions.read_text() == before
    refused(2, "chat", model, "--batch", questions, "--out", model / "config.json", says=["--out", "config.json"])
    refused(2, "chat", model, "--batch", questions, "--out", tmp_path / "x", "--stats", tmp_path / "." / "x",
            says=["--stats", "same file", "--out"])
    shutil.copy(questions, tmp_path / "y.tmp")  # where --stats y is first written to
    refused(2, "chat", model, "--batch", tmp_path / "y.tmp", "--stats", tmp_path / "y", says=["y.tmp"])


def test_chat_leaves_the_answers_of_another_day_until_it_has_its_own(model, tmp_path):
    questions, out = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    questions.write_text('{"id": 1, "prompt": "What?"}\n')
    out.write_text("of another day")
    refused(4, "chat", tmp_path / "no_model", "--batch", questions, "--out", out, says=["no_model"])
    assert out.read_text() == "of another day"
    mgm("chat", model, "--device", "cpu", "--batch", questions, "--out", out, "--max-new-tokens", 2)
    assert json.loads(out.read_text())["id"] == 1


def test_report_does_not_write_over_what_it_reads(model, tmp_path):
    heldin = tmp_path / "heldin.json"
    heldin.write_text(json.dumps([QUESTION]))
    shutil.copy(APPLE, tmp_path)
    paths = ["--heldin", heldin, "--images", tmp_path]
    for out in (*other_names(heldin, tmp_path), tmp_path / "apple.png", model / "config.json"):
        refused(2, "report", model, *paths, "--out", out, says=["--out", out, "same file"])
    assert json.loads(heldin.read_text()) == [QUESTION] and (tmp_path / "apple.png").read_bytes() == APPLE.read_bytes()


def test_report_asks_nothing_if_it_cannot_write(tmp_path):
    heldin = tmp_path / "heldin.json"
    heldin.write_text(json.dumps([QUESTION]))
    paths = ["--heldin", heldin, "--images", IMAGES]  # and a model that is not there
    refused(1, "report", tmp_path / "none", *paths, "--out", tmp_path / "no" / "r.html", says=["--out", "cannot be written"])
    refused(2, "report", tmp_path / "none", *paths, "--out", tmp_path, says=["--out", "is a folder"])


def test_report_says_where_no_pictures_could_be_exchanged(model, tmp_path):
    heldin, heldout, page = tmp_path / "in.json", tmp_path / "out.json", tmp_path / "r.html"
    text = {"id": "t", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    heldin.write_text(json.dumps([QUESTION, dict(QUESTION, id="b")]))
    heldout.write_text(json.dumps([text]))
    report = ["report", model, "--device", "cpu", "--heldin", heldin, "--images", IMAGES, "--out", page]
    done = mgm(*report, "--heldout", heldout)
    says = ["Held-in pictures: pictures were not exchanged, since the questions are about one picture alone",
            "Held-out pictures: pictures were not exchanged, since the questions are about no picture"]
    assert all(line in done.stdout.splitlines() and line in page.read_text() for line in says)
    heldin.write_text(json.dumps([QUESTION, dict(QUESTION, id="b", image="bus_red.webp")]))
    assert "not exchanged" not in mgm(*report).stdout + page.read_text()


def test_preprocess_and_forward(model, tmp_path):
    picture = tmp_path / "apple.png"
    shutil.copy(APPLE, picture)
    for option, more in (("--out", []), ("--png", ["--out", tmp_path / "o.safetensors"])):
        refused(2, "preprocess", picture, "--config", model, *more, option, picture, says=[option, "same file"])
    refused(2, "preprocess", picture, "--config", model, "--out", tmp_path / "o", "--png", tmp_path / "o", says=["--png"])
    weights = next(model.glob("*.safetensors"))
    before = weights.stat()
    refused(2, "forward", model, "--prompt", "Hi", "--out", weights, says=["--out", weights])
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert picture.read_bytes() == APPLE.read_bytes()


def test_show_does_not_write_over_annotations(tmp_path):
    annotations = tmp_path / "a.json"
    annotations.write_text(json.dumps([QUESTION]))
    shutil.copy(APPLE, tmp_path)
    source = json.dumps([{"annotations": str(annotations), "images": str(tmp_path)}])
    show = ["data", "show", "configs/tiny/stage2.yaml", "--set", f"data.sources={source}", "--index", 0]
    refused(2, *show, "--html", annotations, says=["--html", "same file", annotations])
    refused(2, *show, "--html", tmp_path / "apple.png", says=["--html", "apple.png"])
    mgm(*show, "--html", tmp_path / "sample.html")


def test_convert_does_not_replace_the_folder_of_its_source(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    weights = next(folder.glob("*.safetensors"))
    refused(2, "convert", weights, "--out", folder, "--replace", says=["--out", "folder of the source"])
    assert weights.exists()


# ---- what is no regular file ------------------------------------------------------------------------------
@pytest.fixture(params=["pipe", "socket", "device", "folder"])
def odd(request, tmp_path):
    """(makes an odd file of a name, what it is called)"""
    kind = request.param

    def make(path):
        if path.exists():
            path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            here = os.getcwd()
            os.chdir(path.parent)  # names of sockets are short
            try:
                socket.socket(socket.AF_UNIX).bind(path.name)
            finally:
                os.chdir(here)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        return path
    return make, f"is a {kind}, expected a regular file"


def test_odd_pictures(odd, tmp_path):
    make, says = odd
    annotations = tmp_path / "a.json"
    annotations.write_text(json.dumps([dict(QUESTION, image="odd.png")]))
    picture = make(tmp_path / "odd.png")
    source = json.dumps([{"annotations": str(annotations), "images": str(tmp_path)}])
    done = mgm("data", "check", "configs/tiny/stage2.yaml", "--set", f"data.sources={source}", code=3, timeout=60)
    assert f"{picture}: {says}" in done.stdout
    refused(3, "preprocess", picture, "--config", "configs/tiny/stage2.yaml", "--out", tmp_path / "o", says=[says])


def test_odd_annotations_and_configs(odd, tmp_path):
    make, says = odd
    annotations = make(tmp_path / "a.json")
    source = json.dumps([{"annotations": str(annotations), "images": str(IMAGES)}])
    refused(3, "data", "check", "configs/tiny/stage2.yaml", "--set", f"data.sources={source}", says=[annotations, says])
    config = make(tmp_path / "c.yaml")
    refused(2, "config", "check", config, says=[config, says.split(",")[0]])


def test_odd_weights(odd, model, tmp_path):
    make, says = odd
    if "folder" not in says:  # a folder is a model directory there
        for name in ("w.safetensors", "w.gguf", "w.bin"):
            path = make(tmp_path / name)
            refused(4, "inspect", path, says=[path, says])
            refused(4, "convert", path, "--out", tmp_path / "out", says=[path, says])
    path = make(tmp_path / "model.safetensors.index.json")
    refused(4, "inspect", tmp_path, says=[path, says])


def test_odd_tokenizers_and_configs_of_models(odd, model, tmp_path):
    make, says = odd
    for name in ("tokenizer.json", "tokenizer.model"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        refused(3, "tokenize", make(folder / name).parent, says=[name, says])
    folder = shutil.copytree(model, tmp_path / "model")
    config = make(folder / "config.json")
    refused(4, "chat", folder, "--prompt", "Hi", says=[f"{config}: {says}"])
    refused(4, "train", "configs/tiny/stage2.yaml", "--set", f"model.path={folder}", "--set", "model.init=pretrained",
            "--set", "model.projector.path=''", "--set", f"run.dir={tmp_path / 'run'}", says=[f"{config}: {says}"])


def test_questions_still_come_from_a_pipe(model):
    assert mgm("tokenize", "data/embedded/tokenizer", input="What is it?\n").stdout.strip()
    assert mgm("chat", model, "--device", "cpu", "--max-new-tokens", 2, input="What is it?\n").stdout


# ---- JSON, in words ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("text,says", [
    ("[1,\n2,]", "standard input:2:3: not valid JSON: unexpected ']'; expected '[', '{', or a literal"),
    ("[1e999]", "standard input:1:2: the number 1e999 is beyond what a 64-bit float holds (1.8e308)"),
    ("5", "standard input: expected a LLaVA record or its conversations array, got number"),
    ("{}", "got an object without 'conversations'"),
    ('{"conversations": 3}', "got 'conversations' that is number"),
    ("[3]", "standard input: turn 1: expected an object, got number"),
    ('[{"from": "human", "value": 3}]', "standard input: turn 1: 'value' must be a text, got number"),
    ('[{"from": "human", "value": ""}, {"value": "x"}]', "standard input: turn 2: 'from' is missing"),
])
def test_render_says_what_is_wrong(text, says):
    error = mgm("render", "--template", "v1", input=text, code=3).stderr
    assert says in error and "json.exception" not in error, error


def test_json_mistakes_of_other_files(model, tmp_path):
    def says(code, *args):
        error = mgm(*args, code=code).stderr
        assert "json.exception" not in error, error
        return error
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"id": 1, "prompt": "a"}\n{"id": 2 "prompt": "b"}\n')
    assert f"{questions}:2:17: not valid JSON: unexpected string literal" in says(3, "chat", model, "--batch", questions)
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": "x", "grad_norm": 1}\n')
    report = ["report", model, "--run", run, "--heldin", questions, "--images", IMAGES, "--out", tmp_path / "r.html"]
    assert "metrics.jsonl:1: no line of metrics: expected number, got string" in says(3, *report)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": 3}}')
    assert "not a shard index: unexpected type: number" in says(4, "inspect", tmp_path)
    index.write_text('{"x": 3}')
    assert "not a shard index: the key 'weight_map' is missing" in says(4, "inspect", tmp_path)
    weights = tmp_path / "w.safetensors"
    weights.write_bytes((9).to_bytes(8, "little") + b'{"a": tru')
    assert "the safetensors header is not valid JSON: byte" in says(4, "inspect", weights)
    for name, error in (("w.gguf", "no GGUF file: it does not begin with 'GGUF'"), ("w.bin", "not a zip archive as torch.save writes it")):
        damaged = tmp_path / name
        for content in (b"", bytes(100)):
            damaged.write_bytes(content)
            assert error in says(4, "inspect", damaged)
            if name == "w.gguf":
                assert error in says(4, "convert", damaged, "--out", tmp_path / "converted")
                assert error in says(4, "tokenize", damaged)
    damaged = tmp_path / "w.gguf"
    damaged.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 135\n")
    assert "is a git-lfs pointer" in says(4, "inspect", damaged)


def test_image_without_a_file(model):
    error = mgm("chat", model, "--device", "cpu", input="/image\n", code=3).stderr
    assert "/image FILE: the file of the picture is missing" in error
    assert "/image FILE" in mgm("chat", model, "--device", "cpu", input="/image  \n", code=3).stderr
