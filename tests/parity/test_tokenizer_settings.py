"""What tokenizer_config.json, special_tokens_map.json and added_tokens.json say beside a tokenizer.model and beside a
tokenizer.json: ids, decoding and the named special tokens against `transformers`' AutoTokenizer, slow beside a
tokenizer.model, fast beside a tokenizer.json."""

import json
import shutil

import pytest
import tokenizers
import transformers
from test_bpe_parity import corpus
from test_tokenizer_parity import EMBEDDED, Side, mgm, train
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
IM = ["<|im_start|>", "<|im_end|>"]
TEXTS = ["<|im_start|>user hi<|im_end|>", " two  spaces", "a <|im_end|>  b", "<pad>x <pad>", "x <s> y </s> z", f"a {END} b",
         "<extra>tok <extra>  end", "<a><b> <c>", "the red bus", "<|im_end|>", "", "<bos>hi<eos>", "a\u2581b <unk> c", "<x> y <x>",
         "the <pad> and <|im_start|> the"]


def token(content, **more):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, **more}


def typed(content, **more):
    return {"__type": "AddedToken", **token(content, **more)}


def special(content, **more):
    return token(content, special=True, **more)


def write(folder, source, settings=None, **others):
    """A folder with `source` and tokenizer_config.json (None: none), and other files by name."""
    folder.mkdir(exist_ok=True)
    shutil.copy(source, folder)
    for name, content in {"tokenizer_config": settings, **others}.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def compare(folder, fast, lines=()):
    hf = transformers.AutoTokenizer.from_pretrained(folder, use_fast=fast)
    assert hf.is_fast is fast
    side = Side(hf, folder)
    texts = [*TEXTS, *(line for line in lines if len(line) < 2000)]
    for text in texts:
        ids = hf(text).input_ids
        assert side.ask(encode=text)["ids"] == ids, (text, hf.convert_ids_to_tokens(ids))
        for skip in (False, True):
            want = hf.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert side.ask(decode=ids, skip=skip)["text"] == want, (text, ids, skip)
    side.process.stdin.close()
    assert side.process.wait() == 0


# tokenizer_config.json and the other files.
CASES = {
    "additional": ({"additional_special_tokens": IM}, {}),
    "additional as objects": ({"additional_special_tokens": [typed(IM[0], rstrip=True), typed(IM[1], lstrip=True)]}, {}),
    "additional in the map": ({}, {"special_tokens_map": {"additional_special_tokens": [IM[0], token(IM[1], lstrip=True)]}}),
    "additional in both": ({"additional_special_tokens": [IM[1], "<a>"]},
                           {"special_tokens_map": {"additional_special_tokens": IM}}),
    "additional null": ({"additional_special_tokens": None}, {}),
    "additional that the vocabulary has": ({"additional_special_tokens": ["the", "<x>", "a"]}, {}),
    "additional beside a decoder": ({"additional_special_tokens": ["<a>", "<extra>", "<b>"],
                                     "added_tokens_decoder": {"NEXT": special("<extra>", rstrip=True)}}, {}),
    "additional object beside a decoder": ({"additional_special_tokens": [typed("<extra>", lstrip=True)],
                                            "added_tokens_decoder": {"NEXT": special("<extra>", rstrip=True)}}, {}),
    "extra": ({"extra_special_tokens": {"z_token": "<x>", "b_token": typed("<a>", lstrip=True)},
               "additional_special_tokens": ["<b>"]}, {}),
    "pad beyond the vocabulary": ({"pad_token": "<pad>"}, {}),
    "eos beyond the vocabulary": ({"eos_token": IM[1]}, {}),
    "every role": ({"pad_token": "<pad>", "sep_token": "<a>", "cls_token": "<b>", "mask_token": "<c>", "eos_token": "<extra>",
                    "additional_special_tokens": ["<b>", "<x>"]}, {}),
    "the map goes first": ({"eos_token": "<a>", "pad_token": "<b>"},
                           {"special_tokens_map": {"eos_token": token("<x>", rstrip=True), "pad_token": "<pad>"}}),
    "a decoder makes the map void": ({"eos_token": "<a>", "pad_token": "<b>",
                                      "added_tokens_decoder": {"NEXT": special("<a>"), "NEXT+1": special("<b>")}},
                                     {"special_tokens_map": {"eos_token": "<x>", "additional_special_tokens": ["<c>"]},
                                      "added_tokens": {"<extra>": 5000}}),
    "the map alone": (None, {"special_tokens_map": {"eos_token": IM[1], "additional_special_tokens": ["<a>"]}}),
    "added_tokens.json": ({"additional_special_tokens": IM[:1]}, {"added_tokens": {IM[1]: "NEXT+1", IM[0]: "NEXT"}}),
    "a token not special": ({"added_tokens_decoder": {"NEXT": token("<extra>", special=False, normalized=True)},
                             "additional_special_tokens": ["<a>"]}, {}),
    "split_special_tokens": ({"split_special_tokens": True, "additional_special_tokens": IM}, {}),
    "split, and some not special": ({"split_special_tokens": True, "additional_special_tokens": IM,
                                     "added_tokens_decoder": {"NEXT": token("<extra>", special=False)}}, {}),
}


def with_ids(value, size):
    """NEXT: the first id behind the vocabulary."""
    text = json.dumps(value)
    for n in (1, 2):
        text = text.replace(f'"NEXT+{n}": {{', f'"{size + n}": {{').replace(f'"NEXT+{n}"', str(size + n))
    return json.loads(text.replace('"NEXT": {', f'"{size}": {{').replace('"NEXT"', str(size)))


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_beside_a_tokenizer_model(tmp_path, name, legacy):
    config, others = with_ids(CASES[name], 1024)
    if config is None and not legacy:
        pytest.skip("`legacy` has no other place")
    if config is None:  # AutoTokenizer asks the model for the class then
        others["config"] = {"model_type": "llama"}
    else:
        config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, **config}
    compare(write(tmp_path / "t", EMBEDDED / "tokenizer.model", config, **others), fast=False)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][0] is not None])  # which names the class
def test_beside_a_model_of_gemma(tmp_path, name):
    """Whose own tokens have other names, though nothing beside it names them."""
    model = train(tmp_path, "tokenizer", add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>",
                  eos_piece="<eos>", bos_piece="<bos>")
    config, others = with_ids(CASES[name], 800)
    compare(write(tmp_path / "t", model, {"tokenizer_class": "GemmaTokenizer", **config}, **others), fast=False)


def test_ids_with_a_gap(tmp_path):
    """The next token is counted, not put behind the last."""
    config = {"tokenizer_class": "LlamaTokenizer", "additional_special_tokens": ["<a>", "<b>"],
              "added_tokens_decoder": {"500": token("<extra>"), "1030": token("<x>")}}
    compare(write(tmp_path / "t", EMBEDDED / "tokenizer.model", config), fast=False)
    config["added_tokens_decoder"] = {"1025": token("<x>")}  # where the count falls on it
    write(tmp_path / "t", EMBEDDED / "tokenizer.model", config)
    assert b"'<a>' is to be added with the id 1025, which added_tokens_decoder gives to '<x>'" in mgm("tokenize", tmp_path / "t", code=3)


# ---- tokenizer.json --------------------------------------------------------------------------------


def bpe(folder, pre_tokenizer, added=()):
    t = tokenizers.Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizer, decoders.ByteLevel()
    t.train_from_iterator([line for line in corpus(300, 77) if len(line) < 2000] + TEXTS * 2, trainers.BpeTrainer(
        vocab_size=600, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.add_tokens(list(added))
    folder.mkdir(exist_ok=True)
    t.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json", t.get_vocab_size()


CLASSES = ["PreTrainedTokenizerFast", "Qwen2Tokenizer", "GPT2Tokenizer"]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][0] is not None])
def test_beside_a_tokenizer_json(tmp_path, name, cls):
    file, size = bpe(tmp_path / "j", pre_tokenizers.ByteLevel(add_prefix_space=False))
    config, others = with_ids(CASES[name], size)
    compare(write(tmp_path / "t", file, {"tokenizer_class": cls, **config}, **others), fast=True)


@pytest.mark.parametrize("name", ["additional", "every role", "split_special_tokens"])
def test_class_with_tokens_of_its_own(tmp_path, name):
    """LlamaTokenizerFast adds <s>, </s> and <unk> where the vocabulary lacks them, in front of the others."""
    file, size = bpe(tmp_path / "j", pre_tokenizers.ByteLevel(add_prefix_space=True))
    config, others = with_ids(CASES[name], size)
    compare(write(tmp_path / "t", file, {"tokenizer_class": "LlamaTokenizerFast", **config}, **others), fast=True)
    config = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": END, "unk_token": None, **config}
    compare(write(tmp_path / "t", file, config, **others), fast=True)


@pytest.mark.parametrize("details", [
    dict(special=True, lstrip=True), dict(special=False, rstrip=True), dict(special=True, normalized=True),
    dict(special=False, normalized=True), dict(special=True, single_word=True)])
@pytest.mark.parametrize("written", [AddedToken("<x>", normalized=False), AddedToken("<x>", special=True), AddedToken("<x>")])
def test_details_of_a_token_in_both_files(tmp_path, details, written):
    file, size = bpe(tmp_path / "j", pre_tokenizers.ByteLevel(add_prefix_space=False), [written])
    config = {"tokenizer_class": CLASSES[0], "added_tokens_decoder": {str(size - 1): token("<x>", **details)}}
    compare(write(tmp_path / "t", file, config), fast=True)
    config["additional_special_tokens"] = [typed("<x>", lstrip=True)]
    compare(write(tmp_path / "t", file, config), fast=True)


def test_a_written_id_that_is_not_the_next(tmp_path):
    file, size = bpe(tmp_path / "j", pre_tokenizers.ByteLevel(add_prefix_space=False))
    config = {"tokenizer_class": CLASSES[0], "added_tokens_decoder": {"650": special("<x>"), "700": special("<extra>")}}
    folder = write(tmp_path / "t", file, config)
    compare(folder, fast=True)
    assert mgm("tokenize", folder, stdin=b"<extra>\n").split() == [str(size + 1).encode()]


@pytest.mark.parametrize("cls", [*CLASSES, "CohereTokenizer", "LlamaTokenizerFast"])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("in_file", [True, False])
def test_add_prefix_space(tmp_path, cls, whole, in_file):
    level = pre_tokenizers.ByteLevel(add_prefix_space=in_file)
    digits = pre_tokenizers.Digits(individual_digits=True)
    file, _ = bpe(tmp_path / "j", level if whole else pre_tokenizers.Sequence([digits, level]))
    for said in ({}, {"add_prefix_space": True}, {"add_prefix_space": False}, {"add_prefix_space": None}):
        if cls == "LlamaTokenizerFast" and said.get("add_prefix_space") is not None:
            continue  # which it answers by converting a tokenizer.model
        config = {"tokenizer_class": cls, "bos_token": END, "unk_token": END, "eos_token": END, **said}
        compare(write(tmp_path / "t", file, config), fast=True, lines=corpus(30, 3))


def test_errors_name_file_and_key(tmp_path):
    model = EMBEDDED / "tokenizer.model"
    for config, others, want in [
            ({"additional_special_tokens": "<a>"}, {}, "tokenizer_config.json: additional_special_tokens: unexpected content: expected a list"),
            ({}, {"special_tokens_map": {"eos_token": 3}}, "special_tokens_map.json: eos_token: unexpected content: expected a token, got 3"),
            ({"split_special_tokens": "no"}, {}, "tokenizer_config.json: split_special_tokens: unexpected content: expected true or false"),
            ({"bos_token": None}, {}, "add_bos_token is true and bos_token null"),
            ({"added_tokens_decoder": {"x": "<a>"}}, {}, "tokenizer_config.json: added_tokens_decoder: unexpected content")]:
        shutil.rmtree(tmp_path / "t", ignore_errors=True)
        write(tmp_path / "t", model, config, **others)
        assert want.encode() in mgm("tokenize", tmp_path / "t", code=3)
