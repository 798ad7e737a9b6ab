"""csrc/text's tiktoken and tekken files against tiktoken and mistral-common, on the corpus of test_bpe_parity. Real files
come from packages; where there is none, ranks are made here."""
import base64
import pathlib
import random
import re

import pytest
import tiktoken
from real_files import fetched, mistral, tekkenizer
from test_bpe_parity import LINES, LLAMA3, QWEN2, Side, check_ids, close, corpus, line_of


def ranks_of(path):
    rows = (row.split() for row in path.read_bytes().splitlines() if row)
    return {base64.b64decode(token): int(rank) for token, rank in rows}


def tiktoken_cases():
    from tiktoken_ext import openai_public

    source = pathlib.Path(openai_public.__file__).read_text()
    cl100k = source[source.index("def cl100k_base"):]
    pattern = cl100k[cl100k.index('r"""') + 4:]
    return {
        "cl100k_base.tiktoken": (pattern[:pattern.index('"""')],
                                 {"<|endoftext|>": 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259,
                                  "<|fim_suffix|>": 100260, "<|endofprompt|>": 100276}, None),
        "llama3.tiktoken": (LLAMA3, {"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001,
                                     "<|start_header_id|>": 128006, "<|end_header_id|>": 128007,
                                     "<|eot_id|>": 128009, "<|reserved_special_token_245|>": 128255}, 128000),
        "qwen.tiktoken": (QWEN2, {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645,
                                  "<|extra_204|>": 151850}, None),
    }


# Longer than this without white space tiktoken's own regular expressions may give up.
def real_corpus(seed, specials=()):
    return [line for line in corpus(LINES, seed, specials) if len(line) < 15000]


@pytest.mark.parametrize("name", list(tiktoken_cases()))
def test_tiktoken(name):
    path = fetched(name)
    pattern, special, bos = tiktoken_cases()[name]
    oracle = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks_of(path), special_tokens=special)
    check_tiktoken(path, oracle, [bos] if bos is not None else [])


def check_tiktoken(path, oracle, first=()):
    """Ids, which are returned, and texts of a file against tiktoken."""
    side = Side(None, path)
    lines = real_corpus(6, sorted(oracle.special_tokens_set))
    want = [[*first, *oracle.encode(line, allowed_special="all")] for line in lines]
    check_ids(side, lines, want)
    for ids in want[: LINES // 4]:
        assert side.ask(decode=ids[:300], skip=False)["text"] == oracle.decode(ids[:300])
    close(side)
    return {id for ids in want for id in ids}


# Ids of the ranks; p50k's leave <|endoftext|> its own, and those behind it are runs of blanks.
MADE_RANKS = {"r50k_base": range(50256), "p50k_base": [*range(50256), *range(50257, 50281)], "o200k_base": range(199998)}


def made_ranks(ids):
    """Bytes, then beginnings of words, every one a byte longer than one before it, then runs of 2 to 25 blanks."""
    rng, blanks = random.Random(12), [b" " * n for n in range(2, 26)]
    tokens = dict.fromkeys(bytes([b]) for b in range(256))
    while len(tokens) < len(ids) - len(blanks):
        for word in re.findall(r"\s?\S+", line_of(rng)):
            raw = word.encode()
            tokens.update(dict.fromkeys(raw[:k] for k in range(2, min(len(raw), 12) + 1)))
    return dict(zip([*list(tokens)[:len(ids) - len(blanks)], *blanks], ids, strict=True))


@pytest.mark.parametrize("name", MADE_RANKS)
def test_tiktoken_with_made_ranks(name, monkeypatch, tmp_path):
    """Pattern, special tokens and ids as tiktoken's own package has them; the ranks of the real file are not here."""
    from tiktoken_ext import openai_public

    ranks, path = made_ranks(MADE_RANKS[name]), tmp_path / f"{name}.tiktoken"
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items()))
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: ranks)
    oracle = tiktoken.Encoding(**getattr(openai_public, name)())
    used = check_tiktoken(path, oracle)
    assert {oracle.encode_single_token(special) for special in oracle.special_tokens_set} <= used
    assert {ranks[b"  "], ranks[b"   "]} <= used and len(used) > 1500


@pytest.mark.parametrize("name", ["tekken_240718.json", "tekken_240911.json"])
def test_tekken(name):
    path, (oracle, ignore) = mistral(name), tekkenizer(name)
    side = Side(None, path)
    lines = real_corpus(7)
    want = [oracle.encode(line, bos=True, eos=False) for line in lines]
    check_ids(side, lines, want)
    for ids in want[: LINES // 4]:
        got = side.ask(decode=ids[:300], skip=True)
        assert got["text"] == oracle.decode(ids[:300], special_token_policy=ignore)
    turn = side.ask(encode="<s>[INST] Hi [/INST]</s>[IMG]<SPECIAL_999>")["ids"]
    control = {t: oracle.get_special_token(t) for t in ("<s>", "</s>", "[INST]", "[/INST]", "[IMG]")}
    assert turn == [control["<s>"], control["<s>"], control["[INST]"], *oracle.encode(" Hi ", False, False),
                    control["[/INST]"], control["</s>"], control["[IMG]"], 999]
    close(side)
