"""csrc/text's tokenizer against Hugging Face's slow classes on thousands of random texts, over sentencepiece
models trained here in the manner of Llama, Gemma and Yi: ids, the span of every token, decoding in one go and
token by token, round trips. text_probe.cpp answers for our side."""

import json
import os
import pathlib
import random
import shutil
import subprocess

import pytest
import sentencepiece
import text_oracle
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("MGM_BUILD_DIR", ROOT / "build/release"))
EMBEDDED = ROOT / "data/embedded/tokenizer"
STRINGS = 20000 if os.environ.get("MGM_TEST_FULL") == "1" else 2000  # random texts per tokenizer

WORDS = """the a picture of an apple what is in this how many red blue green there are two three four on under
left right cat dog bicycle house and or not holding man woman answer question shows standing number written
Describe image briefly Provide caption It He She They Yes No""".split()
UNICODE = ["é", "ß", "Ω", "ж", "猫", "です", "한국", "🙂", "👩‍👩‍👧", "ﬁ", "①", "a\u0301", "\u00a0", "\u200b", "\ufeff", "ا",
           "\u3000", "½", "\U0001f1e9\U0001f1ea", "\u2028", "😀😀", "㎞", "…"]
BLANKS = [" ", "  ", "   ", "\n", "\n\n", " \n ", "\t", "\r\n", "\u2581", "\u2581\u2581"]
DIGITS = ["1", "2024", "3.14", "007", "-5", "10,000"]
PUNCTUATION = [".", ",", "?!", ":", "(", ")", "<", ">", "</", "<s", "s>", "'", '"', "\\", "{}", "#", "<0x0A>", "|"]


def corpus():
    """Sentences to train on: the embedded set's texts and random ones."""
    rng = random.Random(5)
    lines = []
    for name in ("stage1_train.json", "stage2_train.json"):
        for record in json.loads((EMBEDDED.parent / name).read_text()):
            lines += [turn["value"].replace("<image>", "") for turn in record["conversations"]]
    for _ in range(3000):
        words = rng.choices(WORDS + DIGITS + UNICODE[:12], k=rng.randint(1, 12))
        lines.append(rng.choice(["", "USER: ", "ASSISTANT: ", "  "]) + " ".join(words) + rng.choice(".!?\n"))
    return lines


def train(folder, name, **options):
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_prefix=str(folder / name), model_type="bpe", byte_fallback=True,
        split_digits=True, minloglevel=2, num_threads=1, character_coverage=0.98,
        **{"vocab_size": 800, "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
           "allow_whitespace_only_pieces": True, **options})
    return str(folder / f"{name}.model")


def special(*contents):
    return [transformers.AddedToken(c, normalized=False, special=True) for c in contents]


class Side:
    """A tokenizer on both sides: .hf, and the probe over a folder with its files."""

    def __init__(self, hf, folder):
        self.hf, self.folder, self.process = hf, folder, None

    def ask(self, **request):
        if self.process is None:
            path = BUILD / "tests/text_probe"
            assert path.exists(), f"{path} is missing: build the target text_probe"
            self.process = subprocess.Popen([path, self.folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdin.write((json.dumps(request) + "\n").encode())
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"text_probe died at {request}"
        return json.loads(answer)


@pytest.fixture(scope="session")
def sides(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    llama = train(root, "llama", user_defined_symbols=["USER"], pad_id=-1)
    squeezing = train(root, "squeezing", remove_extra_whitespaces=True, normalization_rule_name="nmt_nfkc",
                      vocab_size=900)
    gemma = train(root, "gemma", add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
                  pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
                  user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "\u2581\u2581"])
    yi = train(root, "yi", add_dummy_prefix=False, bos_piece="<|startoftext|>", eos_piece="<|endoftext|>",
               user_defined_symbols=["<|im_start|>", "<|im_end|>"])
    make = transformers.LlamaTokenizer
    im = {"additional_special_tokens": special("<|im_start|>", "<|im_end|>"), "pad_token": "<unk>",
          "add_bos_token": False}
    turns = {"additional_special_tokens": special("<start_of_turn>", "<end_of_turn>")}
    made = {
        "llama": make(llama, legacy=False, pad_token="<unk>"),
        "llama_legacy": make(llama, legacy=True, pad_token="<unk>"),
        "llama_bare": make(llama, legacy=False, add_bos_token=False, add_prefix_space=False),
        "llama_eos": make(llama, legacy=True, add_eos_token=True),
        # Special tokens beyond the model, one the beginning of another.
        "llama_more": make(llama, legacy=False, pad_token="<pad>",
                           additional_special_tokens=special("<|im_start|>", "<|im_end|>", "<|im_end|>x")),
        # Special tokens that take the white space beside them.
        "llama_strips": make(llama, legacy=False, pad_token="<unk>", additional_special_tokens=[
            transformers.AddedToken("<|end|>", rstrip=True, normalized=False, special=True),
            transformers.AddedToken("<|left|>", lstrip=True, normalized=False, special=True),
            transformers.AddedToken("<|both|>", lstrip=True, rstrip=True, normalized=False, special=True)]),
        "squeezing": make(squeezing, legacy=False),
        "squeezing_legacy": make(squeezing, legacy=True),
        "gemma": transformers.GemmaTokenizer(gemma, **turns),
        "yi": make(yi, bos_token="<|startoftext|>", eos_token="<|endoftext|>", legacy=True, **im),
        "yi_prefix": make(llama, legacy=True, **im),
    }
    sides = {}
    for name, hf in made.items():
        hf.save_pretrained(root / name)
        sides[name] = Side(hf, root / name)
    shutil.copytree(EMBEDDED, root / "embedded")
    sides["embedded"] = Side(make.from_pretrained(root / "embedded"), EMBEDDED)
    yield sides
    for side in sides.values():
        if side.process:
            side.process.stdin.close()
            assert side.process.wait() == 0


NAMES = ["llama", "llama_legacy", "llama_bare", "llama_eos", "llama_more", "llama_strips", "squeezing", "squeezing_legacy", "gemma",
         "yi", "yi_prefix", "embedded"]
FAITHFUL = [name for name in NAMES if not name.startswith("squeezing") and name != "llama_strips"]  # keep the text


def random_text(rng, hf, blanks=tuple(BLANKS), specials=True):
    kinds = [WORDS, WORDS, UNICODE, blanks, blanks, DIGITS, PUNCTUATION]
    if specials:
        kinds.append(hf.all_special_tokens)
    atoms = []
    for _ in range(rng.randint(0, 14)):
        atoms.append(rng.choice(rng.choice(kinds)))
        if rng.random() < 0.4:
            atoms.append(" ")
    if rng.random() < 0.1:
        ranges = [(1, 0xD7FF), (0xE000, 0x10FFFF)]
        atoms.append("".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(4)))
    return "".join(atoms)


@pytest.mark.parametrize("name", NAMES)
def test_ids_of_many_scripts(sides, name):
    """Words of many scripts, code, control characters, very long words."""
    from test_bpe_parity import corpus as lines_of  # which itself takes things from here

    side = sides[name]
    for text in lines_of(STRINGS, 7, side.hf.all_special_tokens):
        assert side.ask(encode=text)["ids"] == side.hf(text).input_ids, text[:200]


@pytest.mark.parametrize("name", NAMES)
def test_ids(sides, name):
    side, rng = sides[name], random.Random(1)
    texts = ["", " ", "  ", "\n", "\u2581", "<s>", "<s> ", " <s>", "</s></s>", "a", " a", "a ", "\0", "x\0y"]
    for text in texts + [random_text(rng, side.hf) for _ in range(STRINGS)]:
        got = side.ask(encode=text)
        expected = side.hf(text).input_ids
        assert got["ids"] == expected, (text, side.hf.convert_ids_to_tokens(got["ids"]),
                                        side.hf.convert_ids_to_tokens(expected))
        at = 0
        for begin, end in got["spans"]:  # in the text, in order
            assert at <= begin <= end <= len(text.encode()), (text, got)
            at = end


@pytest.mark.parametrize("name", [name for name in FAITHFUL if name != "llama_bare"])  # drops a blank before <s>
def test_spans_cover_the_text(sides, name):
    """Nothing of the text lies outside the spans, and a token's span is what the token spells."""
    side, rng = sides[name], random.Random(2)
    for _ in range(STRINGS // 5):
        text = random_text(rng, side.hf, blanks=[" ", "  ", "\n"])
        raw = text.encode()
        got = side.ask(encode=text)
        assert b"".join(raw[begin:end] for begin, end in got["spans"]) == raw, (text, got)
        for token, (begin, end) in zip(got["ids"], got["spans"]):
            piece = side.hf.convert_ids_to_tokens(token).replace("\u2581", " ")
            if begin < end and not piece.startswith("<0x"):
                assert raw[begin:end].decode() in (piece, piece[1:]), (text, piece, begin, end)


@pytest.mark.parametrize("name", NAMES)
def test_decode(sides, name):
    side, rng = sides[name], random.Random(3)
    for i in range(STRINGS):
        if i % 2:
            ids = side.hf(random_text(rng, side.hf)).input_ids
        else:
            ids = [rng.randrange(len(side.hf)) for _ in range(rng.randint(1, 9))]
            if rng.random() < 0.5:
                ids.insert(rng.randint(0, len(ids)), rng.choice(side.hf.all_special_ids))
        for skip in (False, True):
            got = side.ask(decode=ids, skip=skip)
            assert got["text"] == side.hf.decode(ids, skip_special_tokens=skip), (ids, skip)
        assert got["streamed"] == got["text"], ids


@pytest.mark.parametrize("name", FAITHFUL)
def test_round_trip(sides, name):
    side, rng = sides[name], random.Random(4)
    for _ in range(STRINGS):
        text = random_text(rng, side.hf, blanks=[" ", "  ", "\n", "\t"], specials=False).replace("\u2581", "")
        if getattr(side.hf, "legacy", False):
            text = text.lstrip(" ")  # the legacy class loses blanks at the beginning, and so do we
        if any(special in text for special in side.hf.all_special_tokens):
            continue  # pieces that came to stand together as one
        ids = side.ask(encode=text)["ids"]
        assert side.ask(decode=ids, skip=True)["text"] == text


def mgm(*args, stdin=b"", code=0):
    done = subprocess.run([str(BUILD / "bin/mgm"), *map(str, args)], input=stdin, capture_output=True, timeout=120)
    assert done.returncode == code, done.stderr.decode()
    return done.stdout if code == 0 else done.stderr


@pytest.mark.parametrize("name", ["llama", "llama_legacy", "gemma", "embedded"])
def test_tokenize_command(sides, name):
    """One line of ids per line of text, thousands of them, and back."""
    side, rng = sides[name], random.Random(6)
    texts = [random_text(rng, side.hf, blanks=[" ", "  ", "\t", "\u2581"]).replace("\n", "") for _ in range(STRINGS)]
    out = mgm("tokenize", side.folder, stdin=("\n".join(texts) + "\n").encode()).decode()
    ids = [list(map(int, line.split())) for line in out.split("\n")[:-1]]
    assert ids == [side.hf(text).input_ids for text in texts]
    back = mgm("tokenize", side.folder, "--decode", stdin=out.encode()).decode()
    assert back == "".join((side.hf.decode(line) if line else "") + "\n" for line in ids)


def test_invalid_utf8_becomes_replacement_characters(sides):
    raw = [b"a\xff b", b"\xe2\x96", b"\xc0\xafx", b"\xed\xa0\x80", b"\xf0\x9f\x99 ok", b"ok \xf4\x90\x80\x80"]
    out = mgm("tokenize", EMBEDDED, stdin=b"\n".join(raw) + b"\n").decode().splitlines()
    assert [list(map(int, line.split())) for line in out] == [
        sides["embedded"].hf(text.decode(errors="replace")).input_ids for text in raw]


def test_tokenize_command_errors(sides, tmp_path):
    folder = sides["llama"].folder
    assert b"line 2: 'x' is no token id" in mgm("tokenize", folder, "--decode", stdin=b"1 2\n3 x\n", code=3)
    assert b"token id 800 is outside the vocabulary of 800 tokens" in mgm(
        "tokenize", folder, "--decode", stdin=b"800\n", code=3)
    assert b"no tokenizer.model, tokenizer.json, tekken.json, *.tiktoken or *.gguf in this directory" in mgm("tokenize", tmp_path, code=3)
    model = (folder / "tokenizer.model").read_bytes()
    for broken in (b"no model", b"", model[:5000]):
        (tmp_path / "tokenizer.model").write_bytes(broken)
        assert b"tokenizer.model: not a sentencepiece model" in mgm("tokenize", tmp_path, code=3)
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text('{"legacy": false, ')
    assert b"tokenizer_config.json:1:" in mgm("tokenize", tmp_path, code=3)


@pytest.mark.parametrize("template,name", [("v1", "llama"), ("v1", "llama_legacy"), ("llama_2", "llama"),
                                           ("gemma", "gemma"), ("mpt", "yi"), ("plain", "llama")])
def test_labels_begin_where_the_prompt_ends(sides, template, name):
    """What the model is taught to write is what follows the prompt it will be given, and nothing else: also
    the blank before an answer that no piece joins to it (a digit, a rare character)."""
    side, rng = sides[name], random.Random(10)
    for _ in range(200):
        first = rng.choice([WORDS, DIGITS, UNICODE[:12], ['"', "(a)"]])
        answer = " ".join([rng.choice(first), *rng.choices(WORDS + DIGITS, k=rng.randint(0, 4))])
        turns = [["human", "<image>\n" + " ".join(rng.choices(WORDS, k=4)) + "?"], ["gpt", answer]]
        whole = side.ask(template=template, turns=turns, images=1)
        prompt = side.ask(template=template, turns=turns[:1], images=1, prompt=True)["ids"]
        assert whole["ids"][: len(prompt)] == prompt
        assert all(label == text_oracle.IGNORE for label in whole["labels"][: len(prompt)])
        assert text_oracle.IGNORE not in whole["labels"][len(prompt):]
