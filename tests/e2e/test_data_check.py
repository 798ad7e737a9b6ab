"""`mgm data check` and `mgm data show` on every kind of bad input: exit code, the sample named, nothing lost.

One data set holds all bad samples between good ones, so that a crash, a hang or a sample that hides another
would show; files that cannot be told apart into records come one by one."""

import io
import json
import random
import re
import struct
import zlib

import pytest
from mgm_binary import ROOT, mgm
from PIL import Image


def picture(width, height, kind, seed=1, **options):
    out = io.BytesIO()
    Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(width * height * 3)).save(out, kind, **options)
    return out.getvalue()


def png(width, height, pixels):
    """A PNG with any compressed pixel data: 8-bit grey."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks)


def grey_rows(width, height):
    """The compressed rows of a black picture, made without holding it."""
    packer, row = zlib.compressobj(9), bytes(width + 1)
    return b"".join(packer.compress(row) for _ in range(height)) + packer.flush()


def record(name, image=None, *texts, first="human"):
    speakers = ("human", "gpt") if first == "human" else ("gpt", "human")
    out = {"id": name, "conversations": [{"from": speakers[i % 2], "value": t} for i, t in enumerate(texts)]}
    return {**out, "image": image} if image else out


ASK = ("<image>\nWhat?", "A cat.")
GOOD = {  # odd, but fine
    "a PNG": ("a.png", lambda: picture(40, 30, "PNG")),
    "a JPEG with a PNG name": ("jpeg_inside.png", lambda: picture(40, 30, "JPEG")),
    "one pixel": ("one.png", lambda: picture(1, 1, "PNG")),
    "1 x 5000": ("high.png", lambda: picture(1, 5000, "PNG")),
    "60 MB packed behind the pixels": ("bomb.png", lambda: png(8, 8, grey_rows(1 << 20, 60))),  # unpacked and forgotten
    "5000 x 1": ("wide.jpg", lambda: picture(5000, 1, "JPEG")),
}
BROKEN = {  # what it is: file, content, words of the message
    "PNG cut in half": ("cut.png", lambda: half(picture(60, 60, "PNG")), "broken image"),
    "JPEG cut in half": ("cut.jpg", lambda: half(picture(60, 60, "JPEG")), "broken image"),
    "WebP cut in half": ("cut.webp", lambda: half(picture(60, 60, "WEBP", lossless=True)), "broken image"),
    "empty file": ("empty.jpg", lambda: b"", "broken image"),
    "no picture": ("text.jpg", lambda: b"<html>404</html>", "broken image"),
    "20,000 x 20,000": ("huge.png", lambda: png(20000, 20000, grey_rows(20000, 20000)), "20000 x 20000"),
    "bomb: 60,000 x 60,000 promised": ("claim.png", lambda: png(60000, 60000, grey_rows(8, 8)), "60000 x 60000"),
    "bomb: 300 MB behind the pixels": ("behind.png", lambda: png(8, 8, grey_rows(1 << 20, 300)), "bytes of packed pixels, but 8 x 8 pixels take at most"),
    "missing file": ("gone.png", None, "missing image"),
}


def half(data):
    return data[: len(data) // 2]


TEXTS = {  # what it is: record, kind, words of the message
    "two markers, one image": (record("markers2", "a.png", "<image> <image> Q", "A"), "image marker mismatch",
                               "2 <image> markers in the text, 1 picture"),
    "an image, no marker": (record("markers0", "a.png", "Q", "A"), "image marker mismatch", "0 <image> markers"),
    "a marker, no image": (record("noimage", None, *ASK), "image marker mismatch", "0 pictures"),
    "empty assistant turn": (record("empty", None, "Q", "A", "Q", ""), "unusable conversation", "turn 4 of gpt is empty"),
    "begins with the assistant": (record("first", None, "A", "Q", first="gpt"), "unusable conversation",
                                  "begins with 'gpt'"),
    "does not alternate": (
        {"id": "twice", "conversations": [{"from": "human", "value": "Q"}, {"from": "human", "value": "Q"}]},
        "unusable conversation", "take turns"),
    "50,000 tokens": (record("long", None, "Q", "word " * 50000), "cut by the length limit", "above text.max_length"),
    "no conversations": ({"id": "none"}, "malformed record", "has no 'conversations'"),
    "a wrong type": ({"id": "type", "conversations": "hello"}, "malformed record", "expected a list of turns"),
    "unknown speaker": ({"id": "who", "conversations": [{"from": "bot", "value": "x"}]}, "malformed record", "'bot'"),
}


class Data:
    def __init__(self, folder):
        self.folder, self.config, self.file = folder, folder / "data.yaml", folder / "data.json"
        (folder / "images").mkdir()
        self.config.write_text(f"""extends: {ROOT}/configs/tiny/model.yaml
run: {{dir: {folder}/run}}
text: {{template: v1, tokenizer: {ROOT}/data/embedded/tokenizer}}
data:
  sources: [{{annotations: {self.file}, images: {folder}/images}}]
""")

    def write(self, records):
        self.file.write_text(records if isinstance(records, str) else json.dumps(records, indent=1))

    def check(self, *args, code):
        return mgm("data", "check", self.config, *args, code=code, timeout=120)


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


@pytest.fixture(scope="module")
def all_bad(tmp_path_factory):
    """(data, records, [(index, kind or words, words)]): every bad sample between good ones."""
    data = Data(tmp_path_factory.mktemp("data"))
    records, expected = [], []
    for name, make in GOOD.values():
        (data.folder / "images" / name).write_bytes(make())
        records.append(record(name, name, *ASK))
    for name, make, words in BROKEN.values():
        if make:
            (data.folder / "images" / name).write_bytes(make())
        expected.append((len(records), name, words))
        records += [record(name, name, *ASK), record("good", "a.png", *ASK)]
    for bad, kind, words in TEXTS.values():
        expected.append((len(records), bad["id"], words))
        records += [bad, record("good", None, "Q", "A")]
    data.write(records)
    return data, records, expected


def test_every_defect_is_listed(all_bad):
    data, records, expected = all_bad
    for workers in (1, 2):
        done = data.check("--json", "--set", f"data.workers={workers}", code=3)
        report = json.loads(done.stdout)
        assert report["records"] == len(records)
        assert report["with_images"] + report["text_only"] == len(records) - len(expected)
        defects = report["defects"]
        assert [d["index"] for d in defects] == [index for index, _, _ in expected]
        kinds = {bad["id"]: kind for bad, kind, _ in TEXTS.values()}
        for defect, (_, name, words) in zip(defects, expected):
            if defect["kind"] != "malformed record":
                assert defect["id"] == name
            assert words in f"{defect['kind']}: {defect['message']}", defect
            assert defect["kind"] == kinds.get(name, defect["kind"])


def test_the_text_names_file_and_sample(all_bad):
    data, records, expected = all_bad
    lines = data.check(code=3).stdout.splitlines()
    for line, (index, name, words) in zip(lines, expected):
        assert line.startswith(f"{data.file}"), line
        assert f"record {index}" in line and words in line, line
        assert name in line or "malformed" not in line
    assert f"defects                {len(expected):>14}" in lines, lines
    good = len(records) - len(expected)
    text = "\n".join(lines)
    assert f"records                {len(records):>14}" in text
    assert sum(int(line.split()[-1]) for line in lines if line.startswith(("  with pictures", "  text only"))) == good


def test_training_stops_at_a_bad_sample_or_skips_it(all_bad):
    data, records, expected = all_bad
    settings = ["--set", "train.max_steps=2", "--set", "train.global_batch=16", "--set", "train.micro_batch=16",
                "--set", "train.rules=[{preset: stage2}]"]
    stop = mgm("train", data.config, *settings, code=3)
    assert f"{data.file}" in stop.stderr and "record" in stop.stderr, stop.stderr
    (said,) = [line[len("error: "):] for line in stop.stderr.splitlines() if line.startswith("error: ")]
    logged = [path.read_text().count(said) for path in (data.folder / "run").rglob("*.log")]
    assert stop.stderr.count(said) == 1 and logged == [1], (stop.stderr, logged)
    skip = mgm("train", data.config, *settings, "--set", "data.on_error=skip", code=0)
    lines = [json.loads(line) for line in (data.folder / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    # Two batches of 16 places: nothing moves up, and every hole is a bad sample that is named.
    holes, kept = sum(line["holes"] for line in lines), sum(line["samples"] for line in lines)
    assert holes + kept == 32 and holes > 5
    output = skip.stdout + skip.stderr
    assert f"data: bad samples skipped: {holes} in all, {holes} different" in output, output
    named = [index for index, _, _ in expected if re.search(rf"skipped \S+: record {index}\b|: record {index}: ", output)]
    assert len(named) == holes, output


@pytest.mark.parametrize("text,words", [
    ("", ":1:1: the file is empty; expected a JSON array of records"),
    ("{}", ":1:1: expected '[', the start of a JSON array"),
    ('[{"id": 1, "conversations": [{"from": "human", "value": "Q"}, {"from": "g', ":1:74: record 0: not valid JSON"),
    ('[{"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},\n', "the file ends after 1 records without the closing ']'; it was cut"),
    ("\x1f\x8b\x08 gzip", "expected '['"),
])
def test_files_that_are_no_arrays(data, text, words):
    data.write(text)
    stderr = data.check(code=3).stderr
    assert words in stderr and f"error: {data.file}:" in stderr, stderr


def test_no_record_at_all(data):
    data.write("[]")
    assert "error: data.sources hold no records: nothing to look at" in data.check(code=3).stderr
    trained = mgm("train", data.config, "--set", "train.rules=[{preset: stage2}]", code=3)
    assert "error: data.sources hold no records: there is nothing to train on" in trained.stderr, trained.stderr


def test_missing_folders_and_files(data):
    data.write([record("x", "a.png", *ASK)])
    (data.folder / "images").rmdir()
    done = data.check(code=3)
    assert f"the image folder {data.folder}/images of {data.file} does not exist" in done.stderr
    data.file.unlink()
    assert f"{data.file}: cannot open" in data.check(code=3).stderr


def test_tokenizer_of_another_vocabulary_size(data):
    data.write([record("x", None, "Q", "A")])
    done = data.check("--set", "model.llm.vocab_size=1000", code=2)
    assert "text.tokenizer has 1024 tokens, model.llm.vocab_size is 1000" in done.stderr
    done = data.check("--set", "model.llm.vocab_size=32000", code=0)
    assert "is it the tokenizer of this language model?" in done.stderr + done.stdout


def test_show(all_bad):
    data, records, expected = all_bad
    out = mgm("data", "show", data.config, "--index", 0).stdout
    assert f"{data.file}: record 0, index 0, id 'a.png'" in out
    assert "A cat.</s>" in out and "40 x 30" in out
    for index, _, words in expected:
        assert words in mgm("data", "show", data.config, "--index", index, code=3).stderr
    page = data.folder / "page.html"
    mgm("data", "show", data.config, "--index", 0, "--html", page)
    html = page.read_text()
    assert html.count("data:image/jpeg;base64,") == 1 and "http" not in html
    assert f"{len(records)} samples" in mgm("data", "show", data.config, "--index", len(records), code=2).stderr
    assert mgm("data", "show", data.config, "--index", -1, code=2).stderr


@pytest.mark.parametrize("config", ["stage1", "stage2"])
def test_the_embedded_data_have_no_defect(config):
    report = json.loads(mgm("data", "check", f"configs/tiny/{config}.yaml", "--json").stdout)
    assert report["defects"] == [] and report["records"] > 50
