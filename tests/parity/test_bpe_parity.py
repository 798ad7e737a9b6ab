"""csrc/text's byte-pair tokenizers against `tokenizers`, for tokenizer.json files with the configurations of GPT-2,
LLaMA-3, Qwen2, SmolLM2, Llama and Gemma (trained here on the corpus). Ids, spans and decoding on a multilingual corpus made from a seed: 1,000 lines,
with MGM_TEST_FULL=1 20,000. Real files come from packages; MGM_TOKENIZERS names a folder of more of them
(scripts/fetch_tokenizers.sh)."""

import json
import os
import pathlib
import random
import struct
import subprocess

import pytest
import tokenizers
from real_files import fetched
from test_tokenizer_parity import BUILD, Side, mgm
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LINES = 20000 if os.environ.get("MGM_TEST_FULL") == "1" else 1000

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

SCRIPTS = {  # code points that every Unicode table since 2018 knows
    "latin": [range(0x41, 0x5B), range(0x61, 0x7B), range(0xC0, 0x180)],
    "greek": [range(0x3B1, 0x3C9)],
    "cyrillic": [range(0x410, 0x450)],
    "hebrew": [range(0x5D0, 0x5EB)],
    "arabic": [range(0x621, 0x63B), range(0x641, 0x653)],
    "devanagari": [range(0x905, 0x93A), range(0x93E, 0x94D)],
    "thai": [range(0xE01, 0xE3B), range(0xE40, 0xE4E)],
    "hangul": [range(0xAC00, 0xD7A4)],
    "jamo": [range(0x1100, 0x1113), range(0x1161, 0x1176), range(0x11A8, 0x11C3)],
    "kana": [range(0x3041, 0x3097), range(0x30A1, 0x30FB)],
    "cjk": [range(0x4E00, 0x9FA6)],
    "cjk_b": [range(0x20000, 0x2A6D7)],
    "emoji": [range(0x1F300, 0x1F650), range(0x1F680, 0x1F6C6), range(0x2600, 0x2700)],
    "digits": [range(0x30, 0x3A), range(0x660, 0x66A), range(0x966, 0x970), range(0x2460, 0x2474), [0xB2, 0xBD]],
}
COMBINING = [chr(c) for c in (0x300, 0x301, 0x308, 0x323, 0x327, 0x338, 0x345, 0x5B0, 0x64B, 0x3099, 0x20D0)]
SPACES = [" ", " ", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "\u00a0", "\u3000", "\u2003", "\u2028",
          "\x0b", "\x0c", "\x85", "\u180e", "\u200b", "\ufeff", " " * 17, "\n" * 5]
CODE = ["for (int i = 0; i < n; ++i) {", "def f(x):\n\treturn x**2", "a->b::c<T>&&", "#include <vector>", "</div>",
        "SELECT * FROM t WHERE a='b';", "\\u0041\\n", "http://a.b/c?d=e&f=%20", "{\"k\": [1, 2.5e-3]}", "//", "!=="]
WORDS = """the of and to in is that it was for on are as with his they at be this have from or one had by word but
not what all were we when your can said there use an each which she do how their if will up other about out many
then them these so some her would make like him into time has look two more write go see number no way could
people my than first water been call who oil its now find long down day did get come made may part don't I'm it's
you're we've he'll she'd O'Neill DON'T rock'n'roll""".split()
CONTROL = [chr(c) for c in (0, 1, 7, 8, 0x1B, 0x1C, 0x1F, 0x7F, 0x80, 0x9F, 0xAD, 0x200E, 0x202E, 0xFFFD, 0xFFFF)]


def script_word(rng, name, longest=9):
    return "".join(chr(rng.choice(rng.choice(SCRIPTS[name]))) for _ in range(rng.randint(1, longest)))


def atom(rng, specials):
    kind = rng.random()
    if kind < 0.30:
        return rng.choice(WORDS)
    if kind < 0.52:
        return script_word(rng, rng.choice(list(SCRIPTS)))
    if kind < 0.60:
        return script_word(rng, rng.choice(["latin", "greek", "hangul", "kana"]), 3) + rng.choice(COMBINING) * rng.randint(1, 3)
    if kind < 0.66:
        return str(rng.randint(0, 10 ** rng.randint(1, 12))) + rng.choice(["", ".", ",000", "%", "e-5"])
    if kind < 0.74:
        return rng.choice(CODE)
    if kind < 0.80:
        return "".join(rng.choice("!?.,;:'\"-_()[]{}<>/\\|@#$%^&*+=~`¿¡«»“”…—·、。") for _ in range(rng.randint(1, 6)))
    if kind < 0.84:
        return "\U0001f469\u200d\U0001f469\u200d\U0001f467" + rng.choice(["", "\ufe0f", "\U0001f3fd"])
    if kind < 0.88:
        return rng.choice(CONTROL)
    if kind < 0.93:
        return rng.choice(["\u2581", "\u2581a", "ﬁ", "ſ", "İ", "ß", "Å", "Ω", "K", "가", "각", "'S", "'ſ", "½", "Ⅳ"])
    if kind < 0.97 and specials:
        return rng.choice(["", " ", "  ", "\n"]) + rng.choice(specials) + rng.choice(["", " ", "\t ", "s"])
    return script_word(rng, rng.choice(["latin", "cjk", "thai"]), 60)


def line_of(rng, specials=()):
    atoms = []
    for _ in range(rng.randint(0, 16)):
        atoms.append(atom(rng, specials))
        if rng.random() < 0.7:
            atoms.append(rng.choice(SPACES))
    return "".join(atoms)


def corpus(lines, seed, specials=()):
    rng = random.Random(seed)
    out = ["", " ", "  ", "\n", "\0", "a", " a", "a ", "é", "e\u0301", "\u0301", "가", "\u1100\u1161\u11a8"]
    out += [line_of(rng, specials) for _ in range(lines - len(out) - 4)]
    # Very long words, of one character and of many.
    out += ["a" * 20000, "ab" * 9000, script_word(rng, "latin", 5) * 3000, " " * 7000 + "x"]
    return out


def trained(tokenizer, special, vocab_size=3000, alphabet=True, **options):
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [], **options)
    # Without the long words, whose merges would say nothing of language.
    tokenizer.train_from_iterator([line for line in corpus(3000, 77) if len(line) < 2000], trainer)
    return tokenizer


def gpt2():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.post_processor = processors.ByteLevel(trim_offsets=True)
    t.decoder = decoders.ByteLevel()
    return trained(t, ["<|endoftext|>"])


def gpt2_prefix():
    t = gpt2()
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return t


def llama3():
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    trained(t, [])
    t.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in (
        "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")])
    bos = ("<|begin_of_text|>", t.token_to_id("<|begin_of_text|>"))
    t.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{bos[0]} $A", pair=f"{bos[0]} $A {bos[0]} $B", special_tokens=[bos])])
    return t


def qwen2():
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    t.decoder = decoders.ByteLevel()
    trained(t, [])
    t.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    t.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("É!", normalized=True)])
    return t


def smollm2():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    return trained(t, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])


BYTES = [f"<0x{b:02X}>" for b in range(256)]


def llama():
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained(t, ["<unk>", "<s>", "</s>", *BYTES], alphabet=False, limit_alphabet=300, max_token_length=8)
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    return without_added(t, BYTES)


def llama_metaspace():
    """Llama 2 as newer conversions write it (legacy: false), BOS and EOS."""
    t = llama()
    t.normalizer = None
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    t.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B",
                                                     special_tokens=[("<s>", 1), ("</s>", 2)])
    return t


def metaspace_split():
    t = llama()
    t.normalizer = None
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    t.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return t


def gemma():
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Replace(" ", "▁")
    t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trained(t, ["<pad>", "<eos>", "<bos>", "<unk>", *BYTES], alphabet=False, limit_alphabet=300, max_token_length=8)
    t.post_processor = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A <bos> $B",
                                                     special_tokens=[("<bos>", 2)])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    t = without_added(t, BYTES)
    t.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("<start_of_turn>", normalized=False, special=True)])
    return t


def everything():
    """What is left of the components, in one file."""
    t = Tokenizer(models.BPE(unk_token="[UNK]", continuing_subword_prefix="##", end_of_word_suffix="</w>"))
    t.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.Digits(),
        pre_tokenizers.Split("e", "merged_with_next"), pre_tokenizers.Split(Regex(r"[aeiou]\w"), "removed", invert=False)])
    trained(t, ["[UNK]"], alphabet=False, continuing_subword_prefix="##", end_of_word_suffix="</w>", limit_alphabet=200)
    t.add_tokens([AddedToken("left", lstrip=True), AddedToken("right", rstrip=True, normalized=False),
                  AddedToken("word", single_word=True, normalized=False), AddedToken("<mid dle>", lstrip=True, rstrip=True)])
    return t


def words():
    t = Tokenizer(models.BPE(unk_token="[UNK]", fuse_unk=False))
    t.normalizer = normalizers.NFD()
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    return trained(t, ["[UNK]"], alphabet=False, limit_alphabet=100)


def without_added(t, contents):
    """The tokenizer with these in the vocabulary only, as the byte tokens of real files are."""
    d = json.loads(t.to_str())
    d["added_tokens"] = [a for a in d["added_tokens"] if a["content"] not in contents]
    return Tokenizer.from_str(json.dumps(d))


MADE = [gpt2, gpt2_prefix, llama3, qwen2, smollm2, llama, llama_metaspace, metaspace_split, gemma, everything, words]


class HfSide(Side):
    def __init__(self, tokenizer, folder):
        super().__init__(tokenizer, folder)
        self.specials = [t.content for t in tokenizer.get_added_tokens_decoder().values()]


@pytest.fixture(scope="session")
def sides(tmp_path_factory):
    root = tmp_path_factory.mktemp("bpe")
    made = {}

    def get(make):
        if make.__name__ not in made:
            folder = root / make.__name__
            folder.mkdir()
            hf = make()
            hf.save(str(folder / "tokenizer.json"))
            made[make.__name__] = HfSide(hf, folder)
        return made[make.__name__]

    yield get
    for side in made.values():
        close(side)


def close(side):
    if side.process:
        side.process.stdin.close()
        assert side.process.wait() == 0


def check_spans(text, got):
    at = 0
    for begin, end in got["spans"]:
        assert at <= begin <= end <= len(text.encode()), (text, got)
        at = end


def check_ids(side, lines, expected):
    for text, want in zip(lines, expected, strict=True):
        got = side.ask(encode=text)
        assert "ids" in got, (text[:200], got)
        assert got["ids"] == want, (text[:200], first_difference(got["ids"], want))
        check_spans(text, got)


def first_difference(a, b):
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return at, a[max(0, at - 3): at + 8], b[max(0, at - 3): at + 8]


@pytest.mark.parametrize("make", MADE)
def test_ids(sides, make):
    side = sides(make)
    lines = corpus(LINES, 1, side.specials)
    check_ids(side, lines, [side.hf.encode(line).ids for line in lines])


@pytest.mark.parametrize("make", MADE)
def test_decode(sides, make):
    side, rng = sides(make), random.Random(3)
    vocab = sorted(side.hf.get_vocab().values())
    lines = corpus(LINES // 2, 2, side.specials)[:-4]
    for i, line in enumerate(lines):
        ids = side.hf.encode(line).ids if i % 2 else [rng.choice(vocab) for _ in range(rng.randint(1, 9))]
        for skip in (False, True):
            got = side.ask(decode=ids[:300], skip=skip)
            assert got["text"] == side.hf.decode(ids[:300], skip_special_tokens=skip), (ids, skip)
        if make is not everything and make is not words:  # without a decoder tokens are joined by blanks
            assert got["streamed"] == got["text"], ids


@pytest.mark.parametrize("make", [gpt2, llama3, smollm2, gemma])
def test_spans_tile_the_text(sides, make):
    side = sides(make)
    for text in corpus(LINES // 5, 4)[:-4]:
        raw, got = text.encode(), side.ask(encode=text)
        assert b"".join(raw[begin:end] for begin, end in got["spans"]) == raw, (text, got)


@pytest.mark.parametrize("make", [gpt2, qwen2, llama])
def test_tokenize_command(sides, make):
    """Lines with invalid UTF-8 in and out, as Python's errors="replace" reads them."""
    side = sides(make)
    rng = random.Random(9)
    raw = []
    for line in corpus(300, 5)[:-4]:
        data = bytearray(line.replace("\n", " ").encode())
        for _ in range(rng.randint(0, 2)):  # invalid UTF-8
            data.insert(rng.randint(0, len(data)), rng.choice([0xFF, 0xC0, 0xE2, 0xF0, 0x80]))
        raw.append(bytes(data).replace(b"\n", b""))
    out = mgm("tokenize", side.folder, stdin=b"\n".join(raw) + b"\n").decode()
    ids = [list(map(int, row.split())) for row in out.split("\n")[:-1]]
    assert ids == [side.hf.encode(line.decode(errors="replace")).ids for line in raw]
    back = mgm("tokenize", side.folder / "tokenizer.json", "--decode", stdin=out.encode())
    want = "".join(side.hf.decode(row, skip_special_tokens=False) + "\n" for row in ids)
    assert back.decode() == want


# ---- files that are real ---------------------------------------------------------------------------


class Gguf:
    """The key-value part of a GGUF file."""

    SIZES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def __init__(self, data):
        self.data, self.at = data, 24
        assert data[:4] == b"GGUF"
        self.values = {}
        for _ in range(struct.unpack_from("<Q", data, 16)[0]):
            key = self.text()
            self.values[key] = self.value(self.take("I"))

    def take(self, code):
        value = struct.unpack_from("<" + code, self.data, self.at)[0]
        self.at += struct.calcsize("<" + code)
        return value

    def text(self):
        size = self.take("Q")
        self.at += size
        return self.data[self.at - size:self.at].decode()

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            item, count = self.take("I"), self.take("Q")
            return [self.value(item) for _ in range(count)]
        return self.take(self.SIZES[kind])


def smollm2_real(path):
    values = Gguf(path.read_bytes()).values
    tokens = values["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in values["tokenizer.ggml.merges"]]
    t = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([tokens[i] for i, kind in enumerate(values["tokenizer.ggml.token_type"]) if kind == 3])
    return t


def test_smollm2(tmp_path):
    oracle = smollm2_real(fetched("smollm2_head.gguf"))
    assert oracle.get_vocab_size() == 49152
    oracle.save(str(tmp_path / "tokenizer.json"))
    side = HfSide(oracle, tmp_path)
    lines = corpus(LINES, 8, side.specials)
    want = [oracle.encode(line).ids for line in lines]
    check_ids(side, lines, want)
    for ids in want[: LINES // 4]:
        assert side.ask(decode=ids[:300], skip=True)["text"] == oracle.decode(ids[:300], skip_special_tokens=True)
    close(side)


# ---- labels ----------------------------------------------------------------------------------------

ROLE = "<|start_header_id|>system<|end_header_id|>\n\n"  # the assistant's; the published weights were trained so
USER = "<|start_header_id|>user<|end_header_id|>\n\n"
SYSTEM = (ROLE + "You are a helpful language and vision assistant. You are able to understand the visual content that "
          "the user provides, and assist the user with a variety of tasks using natural language.<|eot_id|>")
IMAGE, IGNORE = -200, -100


def image_ids(hf, text):
    """The reference's tokenizer_image_token: BOS once, pieces joined by -200."""
    pieces = [hf.encode(piece).ids for piece in text.split("<image>")]
    out = pieces[0][:1]
    for i, piece in enumerate(pieces):
        out += ([IMAGE] if i else []) + piece[1:]
    return out


def llama3_labels(hf, pairs):
    """The reference's preprocess_llama_3: rounds counted in tokens."""
    text = SYSTEM + "".join(f"{USER}{q}<|eot_id|>{ROLE}{a}<|eot_id|>" for q, a in pairs)
    ids = image_ids(hf, text)
    labels, sep = list(ids), "<|eot_id|>" + ROLE
    rounds = text.split("<|eot_id|>")
    rounds = ["<|eot_id|>".join(rounds[:3])] + ["<|eot_id|>".join(rounds[i:i + 2]) for i in range(3, len(rounds), 2)]
    labels[0], cur = IGNORE, 1
    for part in rounds:
        if not part:
            break
        halves = part.split(sep)
        assert len(halves) == 2
        length = len(image_ids(hf, part)) - 1 + 1
        given = len(image_ids(hf, halves[0] + sep)) - 2 + 1
        labels[cur:cur + given] = [IGNORE] * given
        cur += length
    assert cur == len(ids), "tokenization mismatch"
    return ids, labels


def test_llama3_labels(sides):
    side, rng = sides(llama3), random.Random(10)
    for _ in range(300):
        def say():
            return " ".join(atom(rng, ()) for _ in range(rng.randint(1, 6))).strip() or "x"
        pairs = [(say(), say()) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.7:
            pairs[0] = ("<image>\n" + pairs[0][0], pairs[0][1])
        images = sum("<image>" in q for q, _ in pairs)
        turns = [turn for q, a in pairs for turn in (["human", q], ["gpt", a])]
        got = side.ask(template="llama_3", turns=turns, images=images)
        ids, labels = llama3_labels(side.hf, pairs)
        assert got["ids"] == ids, (pairs, first_difference(got["ids"], ids))
        assert got["labels"] == labels, (pairs, first_difference(got["labels"], labels))
        prompt = side.ask(template="llama_3", turns=turns[:-1], images=images, prompt=True)["ids"]
        assert got["ids"][: len(prompt)] == prompt
        assert IGNORE not in got["labels"][len(prompt):]


@pytest.mark.parametrize("add_bos,add_eos", [(None, None), (False, False), (True, True)])
def test_config_beside_a_tokenizer_json(sides, tmp_path, add_bos, add_eos):
    """LlamaTokenizerFast puts BOS and EOS by tokenizer_config.json, whatever the post-processor says."""
    import transformers

    hf = sides(llama).hf
    hf.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config.update({k: v for k, v in (("add_bos_token", add_bos), ("add_eos_token", add_eos)) if v is not None})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    oracle = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert oracle.is_fast
    side = Side(None, tmp_path)
    lines = corpus(200, 11, ["<s>", "</s>"])
    check_ids(side, lines, [oracle(line).input_ids for line in lines])
    close(side)


def test_which_file_of_a_directory(sides, tmp_path):
    for make in (gpt2, llama):
        (tmp_path / "tokenizer.json").write_bytes((sides(make).folder / "tokenizer.json").read_bytes())
        out = mgm("tokenize", tmp_path, stdin=b"one two\n").decode().split()
        assert list(map(int, out)) == sides(make).hf.encode("one two").ids
    (tmp_path / "tokenizer.model").write_bytes(b"YQ== 0\nYg== 1\n")  # tiktoken's: tokenizer.json says more
    assert mgm("tokenize", tmp_path, stdin=b"one two\n").decode().split() == out
    (tmp_path / "tokenizer.json").unlink()
    assert b"2 ranks are no known encoding" in mgm("tokenize", tmp_path, code=3)
