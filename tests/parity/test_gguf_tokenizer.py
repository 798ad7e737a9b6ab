"""The tokenizer inside a GGUF file. Byte-level kind: against `tokenizers` with the model's own pre-tokenizer over the
file's vocabulary and merges, for SmolLM2's real file, for vocabularies trained here and for those of llama.cpp's tests
(with the ids Hugging Face's tokenizers gave for them). Sentencepiece kind: files written from real sentencepiece models
against sentencepiece itself. What `mgm convert` writes is loaded by transformers and compared too."""
import json
import os
import pathlib
import shutil
from unittest import mock

import gguf
import mistral_common
import numpy as np
import pytest
import sentencepiece
import test_bpe_parity as bpe
import transformers
from real_files import MISTRAL_SENTENCEPIECE, fetched, mistral, smollm2
from test_bpe_parity import LINES, check_ids, close, corpus
from test_gguf_import import redrawn, write_gguf
from test_tokenizer_parity import Side, mgm, train
from tiktoken_ext import openai_public
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
WITH_BOS = ("llama-bpe", "tekken")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def metadata(path):
    values = bpe.Gguf(path.read_bytes()).values  # GGUFReader takes half a minute for a large vocabulary
    return {k.removeprefix("tokenizer."): v for k, v in values.items() if k.startswith("tokenizer.")}


def write(path, model, tokens, types, scores=None, merges=None, architecture="llama", name="", **keys):
    """A GGUF file with a vocabulary and nothing else; keys: tokenizer.ggml.*"""
    out = gguf.GGUFWriter(path, architecture)
    if name:
        out.add_name(name)
    out.add_tokenizer_model(model)
    out.add_token_list(tokens)
    out.add_token_types(types)
    if scores is not None:
        out.add_token_scores(scores)
    if merges is not None:
        out.add_token_merges(merges)
    for key, value in keys.items():
        key = f"tokenizer.ggml.{key}"
        add = {bool: out.add_bool, str: out.add_string, int: out.add_uint32}[type(value)]
        add(key, value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


# ---- byte level ---------------------------------------------------------------------------------


def tekken():
    """The pattern of Mistral's own file."""
    return json.loads((pathlib.Path(mistral_common.__file__).parent / "data/tekken_240911.json").read_text())["config"]["pattern"]


def o200k():
    """That of OpenAI's own code, without its vocabulary."""
    with mock.patch.object(openai_public, "load_tiktoken_bpe", lambda *_, **__: {}):
        return openai_public.o200k_base()["pat_str"]


def pre_tokenizer(pre):
    split = lambda pattern: pre_tokenizers.Split(Regex(pattern), "isolated")
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    cjk = "[一-龥ࠀ-一가-퟿]+"
    steps = {
        "llama-bpe": [split(bpe.LLAMA3), bare], "dbrx": [split(bpe.LLAMA3), bare], "qwen2": [split(bpe.QWEN2), bare],
        "gpt-2": [own], "smollm": [digits, own], "starcoder": [digits, own], "refact": [digits, own],
        "command-r": [digits, own], "tekken": [split(tekken()), bare], "gpt-4o": [split(o200k()), bare],
        "llama4": [split(o200k()), bare],
        "deepseek-coder": [split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(cjk), digits, bare],
    }[pre]
    return pre_tokenizers.Sequence(steps)


def oracle(values):
    """The `tokenizers` object with a GGUF file's vocabulary."""
    pre, tokens, types = values["ggml.pre"], values["ggml.tokens"], values["ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in values["ggml.merges"]]
    t = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=pre in WITH_BOS))
    if pre == "qwen2":
        t.normalizer = normalizers.NFC()
    t.pre_tokenizer, t.decoder = pre_tokenizer(pre), decoders.ByteLevel()
    for kind in (CONTROL, USER_DEFINED):
        t.add_tokens([AddedToken(tokens[i], normalized=False, special=kind == CONTROL)
                      for i, one in enumerate(types) if one == kind])
    if values.get("ggml.add_bos_token", pre in WITH_BOS):
        bos = values["ggml.bos_token_id"]
        t.post_processor = processors.TemplateProcessing(single=f"{tokens[bos]} $A", pair=f"{tokens[bos]} $A $B",
                                                         special_tokens=[(tokens[bos], bos)])
    return t


def compare(path, seed):
    t = oracle(metadata(path))
    specials = [token.content for token in t.get_added_tokens_decoder().values()][:40]
    side = Side(t, path)
    lines = corpus(LINES, seed, specials)
    want = [t.encode(line).ids for line in lines]
    check_ids(side, lines, want)
    for ids in want[: LINES // 4]:
        for skip in (False, True):
            assert side.ask(decode=ids[:300], skip=skip)["text"] == t.decode(ids[:300], skip_special_tokens=skip)
    close(side)


def test_smollm2():
    compare(smollm2(), 21)


def trained(make, pre, path, **keys):
    """A tokenizer of test_bpe_parity as llama.cpp's converter writes it."""
    data = json.loads(make().to_str())
    vocab = dict(data["model"]["vocab"]) | {a["content"]: a["id"] for a in data["added_tokens"]}
    tokens = sorted(vocab, key=vocab.get)
    added = {a["content"]: CONTROL if a["special"] else USER_DEFINED for a in data["added_tokens"] if not a["normalized"]}
    return write(path, "gpt2", tokens, [added.get(token, NORMAL) for token in tokens], pre=pre,
                 merges=[" ".join(merge) for merge in data["model"]["merges"]], **keys)


@pytest.mark.parametrize("make,pre", [(bpe.gpt2, "gpt-2"), (bpe.llama3, "llama-bpe"), (bpe.llama3, "dbrx"),
                                      (bpe.qwen2, "qwen2"), (bpe.smollm2, "smollm"), (bpe.smollm2, "deepseek-coder"),
                                      (bpe.llama3, "tekken"), (bpe.llama3, "gpt-4o"), (bpe.llama3, "llama4")])
def test_trained(tmp_path, make, pre):
    keys = {"bos_token_id": make().token_to_id("<|begin_of_text|>")} if pre in WITH_BOS else {}
    compare(trained(make, pre, tmp_path / "a.gguf", **keys), 22)


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "starcoder", "refact", "command-r", "deepseek-coder"])
def test_published_byte_level(name):
    compare(fetched("llama.cpp") / f"ggml-vocab-{name}.gguf", 23)


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "starcoder", "refact", "command-r", "deepseek-coder",
                                  "deepseek-llm", "llama-spm", "phi-3"])
def test_published_ids(name):
    """The ids that the models' own Hugging Face tokenizers gave for llama.cpp's texts."""
    path = fetched("llama.cpp") / f"ggml-vocab-{name}.gguf"
    # A byte more than text: the files keep the carriage returns of their texts.
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    rows = path.with_suffix(".gguf.out").read_text().split("\n")
    assert len(texts) == len(rows) > 40
    side, bos = Side(None, path), side_bos(metadata(path))
    for text, row in zip(texts, rows):
        got = side.ask(encode=text)["ids"]
        assert got == bos + [int(one) for one in row.split()], text
    close(side)


def side_bos(values):
    added = values.get("ggml.add_bos_token", values["ggml.model"] == "llama" or values.get("ggml.pre") == "llama-bpe")
    return [values["ggml.bos_token_id"]] if added else []


def test_bos_and_eos_are_the_files_own(tmp_path):
    for add_bos in (False, True):
        for add_eos in (False, True):
            path = trained(bpe.llama3, "llama-bpe", tmp_path / "a.gguf", bos_token_id=7, eos_token_id=8,
                           add_bos_token=add_bos, add_eos_token=add_eos)
            side = Side(None, path)
            ids = side.ask(encode="a b")["ids"]
            assert (ids[0] == 7, ids[-1] == 8) == (add_bos, add_eos)
            assert ids.count(7) == add_bos and ids.count(8) == add_eos
            close(side)


def test_no_pre_tokenizer_is_said(tmp_path):
    values = json.loads(bpe.gpt2().to_str())["model"]
    tokens = sorted(values["vocab"], key=values["vocab"].get)
    path = write(tmp_path / "a.gguf", "gpt2", tokens, [NORMAL] * len(tokens),
                 merges=[" ".join(merge) for merge in values["merges"]])
    t = bpe.gpt2()
    t.pre_tokenizer = pre_tokenizers.Sequence([
        *(pre_tokenizers.Split(Regex(p), "isolated") for p in (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    lines = corpus(LINES // 4, 24)
    t = Tokenizer.from_str(json.dumps({**json.loads(t.to_str()), "added_tokens": []}))
    side = Side(None, path)
    check_ids(side, lines, [t.encode(line).ids for line in lines])
    close(side)


# ---- sentencepiece ------------------------------------------------------------------------------


def from_sentencepiece(model, path, user_defined=(), **keys):
    """As convert_hf_to_gguf.py writes it."""
    sp = sentencepiece.SentencePieceProcessor(model_file=str(model))
    tokens = [sp.IdToPiece(i) for i in range(sp.vocab_size())]
    types = [UNKNOWN if sp.IsUnknown(i) else CONTROL if sp.IsControl(i) else UNUSED if sp.IsUnused(i)
             else BYTE if sp.IsByte(i) else USER_DEFINED if tokens[i] in user_defined else NORMAL
             for i in range(sp.vocab_size())]
    scores = [sp.GetScore(i) for i in range(sp.vocab_size())]
    special = {"bos_token_id": sp.bos_id(), "eos_token_id": sp.eos_id(), "unknown_token_id": sp.unk_id()}
    return sp, write(path, "llama", tokens, types, scores, **{k: v for k, v in special.items() if v >= 0}, **keys)


@pytest.mark.parametrize("version", MISTRAL_SENTENCEPIECE)
def test_mistral(tmp_path, version):
    sp, path = from_sentencepiece(mistral(MISTRAL_SENTENCEPIECE[version]), tmp_path / "a.gguf")
    side = Side(None, path)
    lines = [line for line in corpus(LINES, 25) if "\0" not in line]  # its Python binding ends there
    check_ids(side, lines, [[sp.bos_id(), *sp.encode(line)] for line in lines])
    for line in lines[: LINES // 4]:
        if line[:1] not in (" ", "\u2581"):  # LlamaTokenizer takes one blank too many off such a text, and so do we
            assert side.ask(decode=sp.encode(line), skip=True)["text"] == sp.decode(sp.encode(line))
    # A special token in the text is its id, and the text behind it begins anew, blank in front included.
    assert side.ask(encode="<s>Hi</s>you")["ids"] == [1, 1, *sp.encode("Hi"), 2, *sp.encode("you")]
    close(side)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gemma"])
def test_flags_and_user_defined(tmp_path, prefix, architecture):
    symbols = ["USER", "<start_of_turn>"]
    model = train(tmp_path, "sp", add_dummy_prefix=prefix, user_defined_symbols=symbols)
    for add_bos in (False, True):
        sp, path = from_sentencepiece(model, tmp_path / "a.gguf", symbols, architecture=architecture,
                                      add_space_prefix=prefix, add_bos_token=add_bos, add_eos_token=not add_bos)
        side = Side(None, path)
        lines = [line for line in corpus(LINES // 2, 26, symbols) if "\0" not in line]
        around = ([sp.bos_id()], []) if add_bos else ([], [sp.eos_id()])
        check_ids(side, lines, [around[0] + sp.encode(line) + around[1] for line in lines])
        close(side)


def test_added_tokens(tmp_path):
    """Tokens Hugging Face adds to a model (score -1000), and the blanks that Phi-3's take with them."""
    model = train(tmp_path, "sp")
    sp = sentencepiece.SentencePieceProcessor(model_file=model)
    n = sp.vocab_size()
    tokens = [sp.IdToPiece(i) for i in range(n)] + ["<|user|>", "<tool>"]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (n - 259) + [CONTROL, USER_DEFINED]
    scores = [sp.GetScore(i) for i in range(n)] + [-1000.0] * 2
    for name, strips in (("Phi-3 mini", True), ("other", False)):
        path = write(tmp_path / "a.gguf", "llama", tokens, types, scores, name=name, bos_token_id=1, eos_token_id=2)
        side = Side(None, path)
        behind = "what" if strips else "\nwhat"
        want = [1, n, *sp.encode(behind), n + 1, *sp.encode("now")]
        assert side.ask(encode="<|user|>\nwhat<tool>now")["ids"] == want
        close(side)


# ---- what comes of it ---------------------------------------------------------------------------


def test_convert_writes_a_tokenizer(tmp_path):
    """Both kinds, loaded by transformers from the converted directory."""
    mgm("convert", smollm2(), "--out", tmp_path / "smollm2", "--dtype", "bf16")
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path / "smollm2")
    side = Side(None, smollm2())
    lines = corpus(LINES // 4, 27, hf.all_special_tokens)
    check_ids(side, lines, [hf(line).input_ids for line in lines])
    close(side)
    assert hf.chat_template == metadata(smollm2())["chat_template"]
    assert (hf.bos_token_id, hf.eos_token_id, hf.pad_token_id) == (1, 2, 2)

    model = tmp_path / "tiny.gguf"
    write_gguf(redrawn("llama"), "llama", model)
    sp_model = train(tmp_path, "sp", vocab_size=300 + 200)
    sp, vocabulary = from_sentencepiece(sp_model, tmp_path / "vocabulary.gguf")
    folder = tmp_path / "sp_dir"
    folder.mkdir()
    joined = joined_gguf(model, vocabulary, tmp_path / "joined.gguf")
    mgm("convert", joined, "--out", folder / "out")
    slow = transformers.LlamaTokenizer.from_pretrained(folder / "out")
    side = Side(None, folder / "out")
    lines = [line for line in corpus(LINES // 4, 28) if "\0" not in line]
    check_ids(side, lines, [slow(line).input_ids for line in lines])
    assert slow.legacy and slow("a b").input_ids == [1, *sp.encode("a b")]
    close(side)


def joined_gguf(model, vocabulary, path):
    """The tensors of one file, the vocabulary of the other."""
    weights = gguf.GGUFReader(model)
    out = gguf.GGUFWriter(path, "llama")
    for reader, prefix in ((weights, "llama."), (gguf.GGUFReader(vocabulary), "tokenizer.")):
        for key, field in reader.fields.items():
            if not key.startswith(prefix):
                continue
            value = field.contents()
            kind = field.types[0]
            out.add_key_value(key, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in weights.tensors:
        out.add_tensor(tensor.name, np.array(tensor.data))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def test_a_directory_with_a_gguf_alone(tmp_path):
    sp, path = from_sentencepiece(mistral("tokenizer.model.v1"), tmp_path / "model.gguf")
    want = " ".join(map(str, [1, *sp.encode("What is it?")])) + "\n"
    for where in (path, tmp_path):
        assert mgm("tokenize", where, stdin=b"What is it?\n").decode() == want
    assert mgm("tokenize", tmp_path, "--decode", stdin=want.encode()) == b"<s>What is it?\n"
    # Tokenizer files beside it go first.
    shutil.copy(train(tmp_path / "sp", "sp"), tmp_path / "tokenizer.model")
    assert mgm("tokenize", tmp_path, stdin=b"What is it?\n").decode() != want


def test_refusals_say_why(tmp_path):
    tokens = ["<unk>", "<s>", "</s>", "a", "b"]
    path = tmp_path / "a.gguf"

    def refused(*args, **keys):
        write(path, *args, **keys)
        return mgm("tokenize", path, code=3).decode()

    assert "'tokenizer.ggml.model' is 'bert'" in refused("bert", tokens, [1] * 5)
    said = refused("gpt2", tokens, [1] * 5, merges=["a b"], pre="no-such")
    assert "'tokenizer.ggml.pre' is 'no-such'" in said and "llama-bpe, llama-v3" in said and "smollm" in said
    assert "merges' is missing" in refused("gpt2", tokens, [1] * 5)
    assert "'ab' is not in the vocabulary" in refused("gpt2", tokens, [1] * 5, merges=["a b"], pre="gpt-2")
    assert "holds 'ab', at place 0" in refused("gpt2", tokens, [1] * 5, merges=["ab"], pre="gpt-2")
    assert "scores' is missing" in refused("llama", tokens, [1] * 5)
    assert "bos_token_id' is missing" in refused("gpt2", [*tokens, "ab"], [1] * 6, merges=["a b"], pre="gpt-2",
                                                  add_bos_token=True)
    assert "occurs twice" in refused("gpt2", ["a", "b", "ab", "a"], [1] * 4, merges=["a b"], pre="gpt-2")
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert b"a.gguf" in mgm("tokenize", path, code=4)
    write_gguf(redrawn("llama"), "llama", path)
    assert b"holds no tokenizer" in mgm("tokenize", path, code=3)
