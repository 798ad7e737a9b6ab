"""data/embedded as shipped: small, licensed, well formed, held-out pictures unseen, no answer in the question."""

import collections
import json
import pathlib

import pytest
import sentencepiece
from PIL import Image

EMBEDDED = pathlib.Path(__file__).resolve().parents[3] / "data/embedded"
FILES = ["stage1_train", "stage1_heldout", "stage2_train", "heldout", "eval_heldin"]
LICENCES = {"Public domain", "CC0"}


def read(name):
    return json.loads((EMBEDDED / f"{name}.json").read_text(encoding="utf-8"))


def pictures_of(record):
    images = record.get("image", [])
    return [images] if isinstance(images, str) else images


def used(*names):
    return {picture for name in names for record in read(name) for picture in pictures_of(record)}


def turns():
    for name in FILES:
        for record in read(name):
            yield from (turn["value"] for turn in record["conversations"])


def test_size():
    total = sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file())
    assert total <= 2_000_000


def test_every_picture_is_used_and_opens():
    there = {path.name for path in (EMBEDDED / "images").iterdir()}
    assert there == used(*FILES)
    for name in there:
        with Image.open(EMBEDDED / "images" / name) as image:
            image.convert("RGB")


def test_every_licence_is_listed():
    rows = [line.strip("|").split("|") for line in (EMBEDDED / "LICENSES.md").read_text().splitlines()
            if line.startswith("|") and line.count("|") == 6]
    listed = {row[0].strip(): [cell.strip() for cell in row] for row in rows[2:]}
    assert set(listed) == {path.name for path in (EMBEDDED / "images").iterdir()}
    for name, (_, source, path, author, licence) in listed.items():
        assert licence in LICENCES and source and path and author, name


@pytest.mark.parametrize("name", FILES)
def test_records_are_well_formed(name):
    records = read(name)
    assert len({record["id"] for record in records}) == len(records) > 0
    for record in records:
        texts = [turn["value"] for turn in record["conversations"]]
        assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"] * (len(texts) // 2)
        assert all(text.strip() for text in texts)
        assert texts[0].count("<image>") == len(pictures_of(record))
        assert not any("<image>" in text for text in texts[1:])


def test_held_out_pictures_are_never_trained_on():
    trained, held_out = used("stage1_train", "stage2_train", "eval_heldin"), used("stage1_heldout", "heldout")
    assert trained and held_out and not trained & held_out


def test_an_answer_cannot_come_from_the_question_alone():
    """Every question about one picture is asked of several, and no answer fits them all."""
    answers = collections.defaultdict(collections.Counter)
    for record in read("stage2_train"):
        if len(pictures_of(record)) == 1:
            texts = [turn["value"].replace("<image>", "").strip() for turn in record["conversations"]]
            for question, answer in zip(texts[::2], texts[1::2]):
                answers[question][answer] += 1
    assert len(answers) > 3
    for question, counts in answers.items():
        assert len(counts) > 1, question
    # Nor does the likeliest answer to each question come near the accuracy a run reports.
    best = sum(max(counts.values()) for counts in answers.values())
    assert best / sum(sum(counts.values()) for counts in answers.values()) < 0.7


def test_held_in_questions_were_trained():
    """Held-in accuracy is about memorising: every evaluated pair occurs in training."""
    pairs = set()
    for record in read("stage2_train"):
        texts = [turn["value"].replace("<image>", "").strip() for turn in record["conversations"]]
        pairs |= {(*pictures_of(record), q, a) for q, a in zip(texts[::2], texts[1::2])}
    for record in read("eval_heldin"):
        question, answer = (turn["value"].replace("<image>", "").strip() for turn in record["conversations"])
        assert (*pictures_of(record), question, answer) in pairs, record["id"]


def test_the_tokenizer_spells_every_text():
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(EMBEDDED / "tokenizer/tokenizer.model"))
    assert tokenizer.vocab_size() == 1024
    for text in {text.replace("<image>", "") for text in turns()}:
        ids = tokenizer.encode(text)
        assert tokenizer.unk_id() not in ids, text
        assert tokenizer.decode(ids) == text
