"""What patterns of a tokenizer.json match, character by character, against `tokenizers` (Oniguruma); and texts on which
normalization or the pieces of an added token take a turn of their own."""
import unicodedata

import pytest
from test_tokenizer_parity import Side
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

# Assigned since Unicode 14 at the latest; no planes of ideographs alone.
CHARACTERS = [chr(c) for c in range(1, 0x20000) if unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs") and chr(c) != "x"]
PATTERNS = [r"\w", r"[\w]", r"[^\w]", r"\W", r"\s", r"[^\s]", r"\S", r"\d", r"\v", r"\f", r"\p{L}", r"\p{^L}", r"\p{N}", r"\p{P}",
            r"\p{S}", r"\p{M}", r"\p{Z}", r"\p{Lu}", r"\p{Han}", r"\P{Han}", r"\p{^Han}", r"[^\p{Han}]", r"\p{Hiragana}",
            r"\p{Katakana}", r"\p{Hangul}", r"\p{Latin}", r"\p{Cyrillic}", r"\p{Arabic}", r"\p{Devanagari}", r"\p{Common}",
            r"[[:punct:]]", r"[[:space:]]", r"[[:blank:]]", r"[[:upper:]]", r"[[:digit:]]", r"[[:word:]]", r"[[:alnum:]]",
            r"[[:alpha:]]", r"[[:lower:]]", r"(?i)k", r"(?i)[a-z]"]
# Other_Alphabetic and Other_Lowercase of later versions of Unicode than PCRE2 10.42 has.
LATER = {r"[[:alpha:]]": 38, r"[[:alnum:]]": 38, r"[[:lower:]]": 5}


def side_of(tokenizer, folder):
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return Side(tokenizer, folder)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_what_they_match_in_oniguruma(tmp_path, pattern):
    tokenizer = Tokenizer(models.BPE(vocab={"<unk>": 0, "ab": 1, "x": 2}, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(Regex(pattern), "x")  # x: it matched; <unk>: it did not
    side = side_of(tokenizer, tmp_path / "t")
    differ, matched = [], 0
    for begin in range(0, len(CHARACTERS), 8000):
        part = CHARACTERS[begin:begin + 8000]
        got, want = side.ask(encode="".join(part))["ids"], tokenizer.encode("".join(part)).ids
        assert len(want) == len(part) and len(got) == len(part)
        differ += [f"U+{ord(c):04X}" for c, a, b in zip(part, got, want) if a != b]
        matched += want.count(2)
    assert 0 < matched < len(CHARACTERS) or pattern == r"(?i)k"
    assert len(differ) <= LATER.get(pattern, 0), differ[:20]


def test_what_is_not_translated_is_refused(tmp_path):
    for pattern in (r"[[:xdigit:]]", r"[[:^alpha:]]", r"[a&&b]", r"\bx"):
        tokenizer = Tokenizer(models.BPE(vocab={"x": 0}, merges=[]))
        tokenizer.normalizer = normalizers.Replace(Regex(pattern), "x")
        with pytest.raises(AssertionError, match="died"):
            side_of(tokenizer, tmp_path / "t").ask(encode="x")


def byte_level(**more):
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = more.get("decoder", decoders.ByteLevel())
    return tokenizer


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_long_runs_of_marks(tmp_path, form):
    """In time that grows with their length: with its square, the last text takes longer than a test may."""
    tokenizer = byte_level()
    tokenizer.normalizer = getattr(normalizers, form)()
    side = side_of(tokenizer, tmp_path / "t")
    marks = "\u0301\u0323\u0345\u05b0\u0338\u0344"
    for text in ("a" + marks, "a\u0323" + marks[::-1] + "b" + marks, "가" + marks * 2 + "\u0f73\u0f72" + marks):
        assert side.ask(encode=text)["ids"] == tokenizer.encode(text).ids
    text = "a" + "\u0301\u0323" * 200_000
    assert side.ask(encode=text)["ids"] == tokenizer.encode(text).ids


def test_a_blank_token_that_its_neighbour_took(tmp_path):
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<|end|>", rstrip=True), AddedToken("<|in|>", lstrip=True)])
    tokenizer.add_tokens([AddedToken("  "), AddedToken(" ")])
    side = side_of(tokenizer, tmp_path / "t")
    for text in ("hello<|end|>  the", "<|end|> <|end|>", "a  <|in|>b", "  <|in|>  ", "<|end|>   <|in|> ", " <|end|>"):
        assert side.ask(encode=text)["ids"] == tokenizer.encode(text).ids, text


def test_an_empty_sequence_is_a_decoder(tmp_path):
    tokenizer = byte_level(decoder=decoders.Sequence([]))
    ids = tokenizer.encode("to be").ids
    assert side_of(tokenizer, tmp_path / "t").ask(decode=ids, skip=False)["text"] == tokenizer.decode(ids)


def test_the_head_of_a_merges_file(tmp_path):
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    side = side_of(tokenizer, tmp_path / "t")
    file = tmp_path / "t/tokenizer.json"
    text = file.read_text()
    old = text.replace('[\n        "a",\n        "b"\n      ]', '"#version: 0.2", "a b"')
    assert old != text
    file.write_text(old)
    assert side.ask(encode="ab")["ids"] == Tokenizer.from_file(str(file)).encode("ab").ids == [2]


@pytest.mark.parametrize("form", ["NFC", "NFKC", "NFKD"])
def test_a_changed_character_moves_no_other(tmp_path, form):
    """Places in the text, by which words are learned or not: of a character that stays, its own bytes."""
    tokenizer = byte_level()
    tokenizer.normalizer = getattr(normalizers, form)()
    text = "问：你好，答：ﾊﾟ我\u212b한"  # U+FF9F joins the one before it
    side = side_of(tokenizer, tmp_path / "t")
    got = side.ask(encode=text)
    assert got["ids"] == tokenizer.encode(text).ids
    for character in "问你好答我":
        begin = len(text[:text.index(character)].encode())
        assert sum(begin <= b < e <= begin + 3 for b, e in got["spans"]) == 3, character
