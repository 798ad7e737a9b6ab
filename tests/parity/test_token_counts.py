"""Every tokenizer file against the library it comes from, line by line over the multilingual corpus of
test_bpe_parity: 500 lines, with MGM_TEST_FULL=1 20,000. Encoding is equal if all ids are; decoding, of the library's
ids, if the text is, with special tokens and without where the library has both.

    MGM_TOKEN_COUNTS=counts.jsonl ... pytest tests/parity/test_token_counts.py    # also writes down what it counted
    python tests/parity/test_token_counts.py counts.jsonl                         # as the table of docs/tokenizers.md
"""
import dataclasses
import json
import os
import sys
from typing import Callable

import pytest
import sentencepiece
import test_bpe_parity as bpe
import test_gguf_tokenizer as gguf_test
import test_tiktoken_parity as tiktoken_files
import test_tokenizer_parity as sp_test
import tiktoken
import transformers
from real_files import MISTRAL_SENTENCEPIECE, fetched, mistral, tekkenizer
from sentencepiece import sentencepiece_model_pb2 as sp_proto
from test_bpe_parity import Side, close
from test_bpe_parity import sides as bpe_sides  # noqa: F401  a fixture
from test_tokenizer_parity import sides as sp_sides  # noqa: F401  a fixture

LINES = 20000 if os.environ.get("MGM_TEST_FULL") == "1" else 500
BLANK = " \u2581"
DECODED = 1000  # ids of a line; only the four very long words have more


@dataclasses.dataclass
class Case:
    file: str
    oracle: str
    side: Side
    encode: Callable  # text -> ids
    decode: Callable  # ids -> {whether special tokens are left out: text}
    specials: list = dataclasses.field(default_factory=list)  # written into the lines
    longest: int = 10**9  # characters of a line that the oracle takes
    nul: bool = True  # whether it takes "\0"
    exempt: Callable = lambda line: False  # lines whose text another oracle of the file decides


def lines_of(case):
    """As many as LINES of those that the oracle takes, the very long ones at the end among them."""
    lines = [line for line in bpe.corpus(LINES * 3 // 2, 41, case.specials)
             if len(line) < case.longest and (case.nul or "\0" not in line)]
    return lines[: LINES - 4] + lines[-4:]


def check(case):
    lines, encoded, decoded, wrong = lines_of(case), 0, 0, []
    for line in lines:
        want = list(case.encode(line))
        got, part = case.side.ask(encode=line).get("ids"), want[:DECODED]
        same = all(case.side.ask(decode=part, skip=skip, whole=True).get("text") == text for skip, text in case.decode(part).items())
        encoded += got == want
        decoded += same
        if got != want or not (same or case.exempt(line)):
            wrong.append(line[:200])
    close(case.side)
    case.side.process = None
    if os.environ.get("MGM_TOKEN_COUNTS"):
        with open(os.environ["MGM_TOKEN_COUNTS"], "a") as out:
            out.write(json.dumps({"file": case.file, "oracle": case.oracle, "lines": len(lines), "encode": encoded,
                                  "decode": decoded}) + "\n")
    print(f"{case.file} against {case.oracle}: of {len(lines)} lines {encoded} encode and {decoded} decode equal")
    assert len(lines) == LINES
    assert not wrong, (case.file, case.oracle, len(wrong), wrong[:3])


# ---- sentencepiece ------------------------------------------------------------------------------


def slow_case(file, hf, folder):
    cls, specials = type(hf), hf.all_special_tokens[:40]
    # Which transformers gathers anew, and looks through, for every token it decodes.
    known = {"all_special_ids": set(hf.all_special_ids), "all_special_tokens": set(hf.all_special_tokens)}
    hf.__class__ = type(cls.__name__, (cls,), known)

    def decode(ids):
        return {skip: hf.decode(ids, skip_special_tokens=skip) for skip in (False, True)}

    return Case(file, f"transformers `{cls.__name__}`", Side(hf, folder), lambda text: hf(text).input_ids, decode,
                specials)


def sentencepiece_case(file, sp, path, bos=True):
    """sentencepiece reads no special tokens in a text, so none are written. LlamaTokenizer takes a blank more off the
    front of a text than sentencepiece, and so do we."""
    front = [sp.bos_id()] if bos else []
    return Case(file, "sentencepiece", Side(None, path), lambda text: front + sp.encode(text),
                lambda ids: {True: sp.decode(ids)}, nul=False, exempt=lambda line: line[:1] in BLANK)


def bare(version, folder):
    """A directory with a Mistral model and nothing else."""
    (folder / "tokenizer.model").write_bytes(mistral(MISTRAL_SENTENCEPIECE[version]).read_bytes())
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def with_control_tokens(version, folder, legacy):
    """As the published directories are: every control token named in tokenizer_config.json."""
    sp = bare(version, folder)
    control = [sp.IdToPiece(i) for i in range(3, sp.vocab_size()) if sp.IsControl(i)]
    hf = transformers.LlamaTokenizer(str(folder / "tokenizer.model"), legacy=legacy, pad_token="<unk>",
                                     additional_special_tokens=sp_test.special(*control))
    hf.save_pretrained(folder)
    return sp, hf, control


@pytest.mark.parametrize("version", MISTRAL_SENTENCEPIECE)
def test_mistral_and_sentencepiece(tmp_path, version):
    check(sentencepiece_case(f"Mistral {version} `tokenizer.model`", bare(version, tmp_path), tmp_path))


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("version", MISTRAL_SENTENCEPIECE)
def test_mistral_and_transformers(tmp_path, version, legacy):
    _, hf, _ = with_control_tokens(version, tmp_path, legacy)
    check(slow_case(f"Mistral {version} `tokenizer.model`, `legacy: {str(legacy).lower()}`", hf, tmp_path))


@pytest.mark.parametrize("version", ["v2", "v3", "v7"])
def test_mistral_control_tokens(tmp_path, version):
    """Every control token is its id wherever it stands, is left out of an answer, and a conversation has the ids
    that mistral-common gives it, which takes control tokens by number and never from text."""
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    sp, _, control = with_control_tokens(version, tmp_path, legacy=True)
    side = Side(None, tmp_path)
    assert len(control) > 700 and {"[INST]", "[/INST]", "[TOOL_CALLS]"} <= set(control)
    for token in control:
        number = sp.PieceToId(token)
        assert side.ask(encode=f"{token}Hi{token}{token}")["ids"] == [1, number, *sp.encode("Hi"), number, number]
        assert side.ask(decode=[1, number, *sp.encode("Hi there"), number, 2], skip=True)["text"] == "Hi there"
    oracle = MistralTokenizer.from_file(mistral(MISTRAL_SENTENCEPIECE[version]))
    said = ["What is it?", "A cat, I'd say.", "  两只猫?\n", "No; naïve 🙂", "Why"]
    for turns in (said[:1], said[:3], said):
        messages = [(AssistantMessage if i % 2 else UserMessage)(content=text) for i, text in enumerate(turns)]
        want = oracle.encode_chat_completion(ChatCompletionRequest(messages=messages)).tokens
        text = "".join(f"{text}</s>" if i % 2 else f"[INST]{text}[/INST]" for i, text in enumerate(turns))
        assert side.ask(encode=text)["ids"] == want
    close(side)


@pytest.mark.parametrize("name", sp_test.NAMES)
def test_trained_and_slow_classes(sp_sides, name):  # noqa: F811
    made = sp_sides[name]
    file = "the embedded `tokenizer.model`" if name == "embedded" else f"`tokenizer.model` trained here, {name}"
    check(slow_case(file, made.hf, made.folder))


# ---- tokenizer.json -----------------------------------------------------------------------------


def fast_case(file, hf, path):
    def decode(ids):
        return {skip: hf.decode(ids, skip_special_tokens=skip) for skip in (False, True)}

    specials = [token.content for token in hf.get_added_tokens_decoder().values()][:40]
    return Case(file, "tokenizers", Side(hf, path), lambda text: hf.encode(text).ids, decode, specials)


@pytest.mark.parametrize("make", bpe.MADE)
def test_trained_and_tokenizers(bpe_sides, make):  # noqa: F811
    made = bpe_sides(make)
    check(fast_case(f"`tokenizer.json` trained here, {make.__name__}", made.hf, made.folder))


def test_smollm2_and_tokenizers(tmp_path):
    hf = bpe.smollm2_real(fetched("smollm2_head.gguf"))
    hf.save(str(tmp_path / "tokenizer.json"))
    check(fast_case("SmolLM2 `tokenizer.json`", hf, tmp_path))


# ---- tiktoken and tekken ------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(tiktoken_files.tiktoken_cases()))
def test_tiktoken(name):
    path = fetched(name)
    pattern, special, bos = tiktoken_files.tiktoken_cases()[name]
    oracle = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=tiktoken_files.ranks_of(path), special_tokens=special)
    front = [] if bos is None else [bos]
    # Longer than this without white space tiktoken's own regular expressions may give up.
    check(Case(f"`{name}`", "tiktoken", Side(None, path), lambda text: front + oracle.encode(text, allowed_special="all"),
               lambda ids: {False: oracle.decode(ids)}, list(special), longest=15000))


@pytest.mark.parametrize("name", ["tekken_240718.json", "tekken_240911.json"])
def test_tekken(name):
    oracle, ignore = tekkenizer(name)
    check(Case(f"`{name}`", "mistral-common", Side(None, mistral(name)),
               lambda text: oracle.encode(text, bos=True, eos=False),
               lambda ids: {True: oracle.decode(ids, special_token_policy=ignore)}, longest=15000))


# ---- GGUF ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "starcoder", "refact", "command-r", "deepseek-coder"])
def test_gguf_and_tokenizers(name):
    path = fetched("llama.cpp") / f"ggml-vocab-{name}.gguf"
    check(fast_case(f"`ggml-vocab-{name}.gguf`", gguf_test.oracle(gguf_test.metadata(path)), path))


@pytest.mark.parametrize("name", ["llama-spm", "phi-3"])
def test_gguf_and_sentencepiece(name):
    """The file's pieces put into a model for sentencepiece, as Llama's is set up."""
    path = fetched("llama.cpp") / f"ggml-vocab-{name}.gguf"
    values, model = gguf_test.metadata(path), sp_proto.ModelProto()
    rows = zip(values["ggml.tokens"], values["ggml.scores"], values["ggml.token_type"], strict=True)
    unk = values["ggml.unknown_token_id"]
    for i, (token, score, kind) in enumerate(rows):  # Phi-3's has the types of these otherwise
        kind = gguf_test.UNKNOWN if i == unk else gguf_test.UNUSED if kind == gguf_test.UNKNOWN else kind
        model.pieces.add(piece=token, score=score, type=kind)
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = sp_proto.TrainerSpec.BPE, True
    model.normalizer_spec.add_dummy_prefix, model.normalizer_spec.remove_extra_whitespaces = True, False
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    assert sp.bos_id() == values["ggml.bos_token_id"]
    check(sentencepiece_case(f"`ggml-vocab-{name}.gguf`", sp, path, bool(gguf_test.side_bos(values))))


@pytest.mark.parametrize("version", MISTRAL_SENTENCEPIECE)
def test_mistral_gguf_and_sentencepiece(tmp_path, version):
    sp, path = gguf_test.from_sentencepiece(mistral(MISTRAL_SENTENCEPIECE[version]), tmp_path / "a.gguf")
    check(sentencepiece_case(f"Mistral {version} as GGUF", sp, path))


def table(path):
    """Files trained here add up to one row for each oracle."""
    rows = {}
    for row in map(json.loads, open(path)):
        kind, trained, _ = row["file"].partition(" trained here")
        sums = rows.setdefault((kind + trained, row["oracle"]), [0] * 4)
        for i, count in enumerate((1, row["lines"], row["encode"], row["decode"])):
            sums[i] += count
    print("| file | oracle | lines | encode equal | decode equal |\n|---|---|---|---|---|")
    for (file, oracle), (files, *counts) in rows.items():
        file += f", {files} files" if files > 1 else ""
        print(f"| {file} | {oracle} | " + " | ".join(f"{count:,}" for count in counts) + " |")


if __name__ == "__main__":
    table(sys.argv[1])
