"""Answers whose first characters share a token with the prompt's last ones: labels against the reference's counting
formula, and what `mgm data check` and `mgm data show` say of them."""
import json
import sys

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from mgm_binary import ROOT, mgm, sets

sys.path.insert(0, str(ROOT / "tests/parity"))
from test_bpe_parity import LLAMA3, Regex, llama3_labels  # noqa: E402

IGNORE = -100
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>",
           "<|im_end|>"]
ANSWERS = ["A cat.", "\nA cat.", "\n\nA cat.", "\n\n\n\nA cat\n", " \nA cat."]


def tokenizer(bos):
    """Bytes, and runs of two to four line feeds as tokens of their own."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    feeds = ["\u010a" * n for n in (2, 3, 4)]
    merges = [("\u010a", "\u010a"), (feeds[0], "\u010a"), (feeds[0], feeds[0])]
    t = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(letters + feeds)}, merges=merges, ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in SPECIAL])
    if bos:
        bos = (SPECIAL[0], t.token_to_id(SPECIAL[0]))
        t.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    return t


@pytest.fixture
def saved(tmp_path):
    def save(bos):
        t = tokenizer(bos)
        t.save(str(tmp_path / "tokenizer.json"))
        return t, tmp_path / "tokenizer.json"
    return save


def turns(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def render(template, path, values):
    return json.loads(mgm("render", "--template", template, "--tokenizer", path, input=json.dumps(turns(*values))).stdout)


def test_llama_3_labels_are_those_of_the_formula(saved):
    t, path = saved(True)
    straddling = []
    for answer in ANSWERS:
        ours = render("llama_3", path, ["What?", answer, "And?", "Yes"])
        ids, labels = llama3_labels(t, [("What?", answer), ("And?", "Yes")])
        assert (ours["ids"], ours["labels"]) == (ids, labels), answer
        straddling.append(ours["straddling_tokens"])
    assert straddling == [0, 1, 1, 1, 0]


def test_mpt_labels_are_those_of_the_formula(saved):
    t, path = saved(False)
    for answer in ANSWERS:
        ours = render("mpt", path, ["What?", answer])
        whole = ours["text"]
        prompt = whole[: whole.rindex("assistant\n") + len("assistant\n")]
        ids, given = t.encode(whole).ids, len(t.encode(prompt).ids)
        assert ours["ids"] == ids and ours["labels"] == [IGNORE] * given + ids[given:], answer
        assert ours["straddling_tokens"] == answer.startswith("\n")
        assert t.decode([label for label in ours["labels"] if label != IGNORE], skip_special_tokens=False).count("\n") \
            <= answer.count("\n")


def test_check_and_show_tell(saved, tmp_path):
    _, path = saved(False)
    records = [{"id": n, "conversations": turns("What?", answer)} for n, answer in enumerate(ANSWERS)]
    annotations = tmp_path / "a.json"
    annotations.write_text(json.dumps(records))
    data = ["configs/tiny/stage2.yaml", *sets({"text.tokenizer": path, "text.template": "mpt",
                                               "data.sources": [{"annotations": str(annotations)}]})]
    assert "straddling tokens                   3   in 3 samples: the end of a prompt and the beginning of its answer in one" in \
        mgm("data", "check", *data).stdout
    found = json.loads(mgm("data", "check", *data, "--json").stdout)
    assert (found["straddling_tokens"], found["straddled_samples"]) == (3, 3)
    says = "; 1 not, being the end of a prompt and the beginning of its answer in one"
    assert says not in mgm("data", "show", *data, "--index", 0).stdout
    shown = mgm("data", "show", *data, "--index", 1).stdout
    assert says in shown and "assistant\n\n[[A cat." in shown
    records = records[:1]
    annotations.write_text(json.dumps(records))
    assert "straddling" not in mgm("data", "check", *data).stdout
