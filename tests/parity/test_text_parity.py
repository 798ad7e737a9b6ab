"""Tokens, prompts and labels against transformers' slow tokenizers and the counting formulas of the
reference, for every kind of tokenizer a template needs."""
import importlib.util
import io
import json
import pathlib
import random
import shutil
import subprocess
import sys

import pytest
import sentencepiece
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))
import text_oracle  # noqa: E402
from mgm_binary import MGM, mgm  # noqa: E402
from text_oracle import ASSISTANT, HEADER, VISION  # noqa: E402

# Apache-2.0 twin of LLaMA's vocabulary: the constants in the formulas of v1 and llama_2 are true of it alone.
MISTRAL = pathlib.Path(importlib.util.find_spec("mistral_common").submodule_search_locations[0]) / "data/tokenizer.model.v1"
EMBEDDED = ROOT / "data/embedded/tokenizer"
QUESTIONS = ["What is in the picture?", "Is it a drawing, a flag or a photo?", "How many  cats\nare there? 12", "Why",
             "Où est le chat ?", "喵 🐈?"]
ANSWERS = ["An apple", "No", "It is a drawing.\nA red one.", "7", "Sur la table.", "桌上 🍎"]


def corpus():
    lines = [turn["value"] for record in json.loads((ROOT / "data/embedded/stage2_train.json").read_text())[:800]
             for turn in record["conversations"]]
    lines += [text_oracle.render(name, ["What is it?", "A cat."]).replace("\n", " ") for name in text_oracle.STYLES]
    return lines + QUESTIONS + ANSWERS + ["ASSISTANT: USER: [INST] [/INST]"] * 50


def published(folder, config):
    folder.mkdir()
    shutil.copy(MISTRAL, folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def train(folder, config, **options):
    """A directory with tokenizer.model in the manner of a published model."""
    folder.mkdir()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, model_type="bpe", vocab_size=900, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.999,
        num_threads=1, minloglevel=2, **options)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory):
    """{kind: (directory, slow tokenizer of transformers)}"""
    root = tmp_path_factory.mktemp("tokenizers")
    llama = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
             "add_bos_token": True, "add_eos_token": False}
    folders = {
        "llama": published(root / "llama", {**llama, "legacy": False}),
        "llama legacy": published(root / "legacy", {**llama, "legacy": True}),
        "small llama": train(root / "small", {**llama, "legacy": True}, unk_id=0, bos_id=1, eos_id=2, pad_id=-1),
        "gemma": train(root / "gemma", {
            "tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>",
            "pad_token": "<pad>", "add_bos_token": True, "add_eos_token": False},
            pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
            add_dummy_prefix=False, user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "\n"]),
        "yi": train(root / "yi", {
            **llama, "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "add_bos_token": False,
            "legacy": True},
            unk_id=0, bos_id=1, eos_id=2, pad_id=-1, bos_piece="<|startoftext|>", eos_piece="<|endoftext|>",
            add_dummy_prefix=False, user_defined_symbols=["<|im_start|>", "<|im_end|>"]),
        "embedded": EMBEDDED,
    }
    out = {}
    for kind, folder in folders.items():
        slow = transformers.GemmaTokenizer if kind == "gemma" else transformers.LlamaTokenizer
        out[kind] = (folder, slow.from_pretrained(folder))
        if kind == "gemma":
            out[kind][1].legacy = False
    return out


KINDS = ["llama", "llama legacy", "small llama", "gemma", "yi", "embedded"]


def random_texts(seed, count):
    draw = random.Random(seed)
    words = ["apple", "cat", " ", "  ", "\n", "\t", "é", "喵", "🐈", "<s>", "</s>", "<unk>", "<eos>", "USER:", "ASSISTANT: ",
             "Is", "it", "12", ".", "?", "<|im_end|>", "<start_of_turn>", "▁", "'", "ß", "\u200d", "𝔘"]
    return ["".join(draw.choice(words) for _ in range(draw.randint(0, 12))) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_single_lines(tokenizers, kind):
    folder, slow = tokenizers[kind]
    lines = [text.replace("\n", " ") for text in random_texts(1, 2000)] + QUESTIONS[:2] + ["", " ", "  a  b "]
    lines = [line for line in lines if "\n" not in line]
    done = mgm("tokenize", folder, input="\n".join(lines) + "\n").stdout.split("\n")[: len(lines)]
    for line, ids in zip(lines, done):
        assert [int(i) for i in ids.split()] == slow(line).input_ids, repr(line)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_gives_the_text_back(tokenizers, kind):
    folder, slow = tokenizers[kind]
    lines = [" ".join(QUESTIONS[:2]), "An apple", "Où est le chat ?", "喵 🐈", "a  b   c"]
    ids = [slow(line, add_special_tokens=False).input_ids for line in lines]
    text = mgm("tokenize", folder, "--decode", input="\n".join(" ".join(map(str, row)) for row in ids) + "\n").stdout
    assert text.split("\n")[: len(lines)] == lines


def render(name, turns, *options):
    record = [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(turns) if v is not None]
    return mgm("render", "--template", name, *options, input=json.dumps(record)).stdout


# One user turn with an image; what the published models were given.
PROMPTS = {
    "v1": f"{ASSISTANT} USER: <image>\nQ ASSISTANT:",
    "vicuna_v1": f"{ASSISTANT} USER: <image>\nQ ASSISTANT:",
    "gemma": "<start_of_turn>user\n<image>\nQ<end_of_turn>\n<start_of_turn>model\n",
    "llama_3": f"{HEADER.format('system')}{VISION}<|eot_id|>{HEADER.format('user')}<image>\nQ<|eot_id|>"
               f"{HEADER.format('system')}",
    "mistral_instruct": "[INST] <image>\nQ [/INST]",
    "chatml_direct": "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nQ<|im_end|>"
                     "<|im_start|>assistant\n",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_published_prompts(name):
    assert render(name, ["<image>\nQ"]) == PROMPTS[name]


@pytest.mark.parametrize("name", text_oracle.STYLES)
def test_rendered_text(name):
    for turns in (["<image>\nQ"], ["Q", "A", "Q2"], ["Q", "A", "Q2\nmore", "A2", "Q3"]):
        assert render(name, turns) == text_oracle.render(name, turns + [None]), turns
    for turns in (["<image>\nQ", "A"], ["Q", "A", "Q2", "A2"]):
        assert render(name, turns) == text_oracle.render(name, turns), turns


def conversations(count, image):
    draw = random.Random(7)
    out = []
    for _ in range(count):
        turns = []
        for _ in range(draw.randint(1, 4)):
            turns += [draw.choice(QUESTIONS), draw.choice(ANSWERS)]
        if image:
            turns[0] = "<image>\n" + turns[0]
        out.append(turns)
    return out


CASES = [("v1", "llama"), ("v1", "llama legacy"), ("llama_2", "llama"), ("llama_2", "llama legacy"),
         ("mistral_instruct", "llama"), ("gemma", "gemma"), ("mpt", "yi"), ("chatml_direct", "yi")]


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("name,kind", CASES)
def test_labels_equal_the_counting_formulas(tokenizers, name, kind, image):
    folder, slow = tokenizers[kind]
    for turns in conversations(8, image):
        ours = json.loads(render(name, turns, "--tokenizer", folder))
        ids, labels = text_oracle.labels(name, text_oracle.render(name, turns), slow)
        assert ours["ids"] == ids, turns
        assert ours["labels"] == labels, turns


@pytest.mark.parametrize("kind", KINDS)
def test_plain(tokenizers, kind):
    folder, slow = tokenizers[kind]
    for caption in ANSWERS:
        ours = json.loads(render("plain", ["<image>\nDescribe the picture.", caption], "--tokenizer", folder))
        ids, labels = text_oracle.plain(caption, slow)
        assert (ours["ids"], ours["labels"]) == (ids, labels), caption


@pytest.mark.parametrize("kind", ["llama", "yi"])
@pytest.mark.parametrize("markers", [0, 1, 2, 3])
def test_images_in_a_prompt(tokenizers, kind, markers):
    """With and without a BOS: one marker per image, text pieces tokenised on their own."""
    folder, slow = tokenizers[kind]
    question = "<image>\n" * markers + "What is in the picture?"
    ours = json.loads(render("v1", [question], "--tokenizer", folder))
    assert ours["ids"] == text_oracle.tokenize(text_oracle.render("v1", [question, None]), slow)
    assert ours["images"] == markers


BAD = {
    "starts with the assistant": ([("gpt", "A"), ("human", "Q")], "begins with 'gpt'"),
    "does not alternate": ([("human", "Q"), ("human", "Q")], "take turns"),
    "empty answer": ([("human", "Q"), ("gpt", ""), ("human", "Q"), ("gpt", "A")], "empty"),
    "no turn": ([], "conversation is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_conversations(name):
    turns, word = BAD[name]
    record = json.dumps([{"from": who, "value": text} for who, text in turns])
    done = subprocess.run([MGM, "render", "--template", "v1"], input=record, text=True, capture_output=True)
    assert done.returncode == 3 and done.stderr.startswith("error: ") and word in done.stderr, done.stderr
