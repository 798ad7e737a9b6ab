"""What ends an answer: a template's own stop tokens beside the tokenizer's end, one question at a time (streamed), in
batches and in beam search; with what transformers generates with the same ends."""
import dataclasses
import json
import shutil
import sys

import pytest
import torch

from mgm_binary import ROOT, mgm

sys.path.insert(0, str(ROOT / "tests/parity"))
from mgm_oracle import TOKENIZER, Oracle, Sizes  # noqa: E402
from test_generation import CUT, batch, chat, write_questions  # noqa: E402

EOS, STOP, OTHER = 2, 1024, 1025  # </s>; two added tokens behind the vocabulary
TOKENS, QUESTION, PLACE = 12, "Say hello to seventeen red apples.", 5
BODY = 'user_begin: "", user_end: "", assistant_begin: "", assistant_end: "<|eot_id|>"'
TABLE = f"""
ends: {{{BODY}, stop: ["<|eot_id|>"]}}
ends_two: {{{BODY}, stop: ["<|other|>", "<|eot_id|>"]}}
goes_on: {{{BODY}}}
"""
LLAMA_3 = "llama_3"


@dataclasses.dataclass
class World:
    oracle: Oracle
    model: object  # its directory
    table: object  # a file of templates

    def template(self, name):
        return name if name == LLAMA_3 else f"{self.table}:{name}"

    def prompt(self, name):
        turns = json.dumps([{"from": "human", "value": QUESTION}])
        out = mgm("render", "--template", self.template(name), "--tokenizer", self.model, input=turns).stdout
        return torch.tensor([json.loads(out)["ids"]])

    def generate(self, name, ends, **options):
        prompt = self.prompt(name)
        out = self.oracle.llm.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                                       max_new_tokens=TOKENS, eos_token_id=ends, pad_token_id=0, **options)
        return out[0, prompt.shape[1]:].tolist()


def write(oracle, folder):
    """With a tokenizer that has the two tokens."""
    oracle.save(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for number, content in ((STOP, "<|eot_id|>"), (OTHER, "<|other|>")):
        config.setdefault("added_tokens_decoder", {})[str(number)] = {
            "content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module", params=[LLAMA_3, "ends"])
def world(request, tmp_path_factory):
    """A model that says <|eot_id|> as the PLACEth token of its answer in this template, where it would have said a token
    that comes for the first time: the row of the head is that token's, a little longer."""
    torch.set_num_threads(2)
    root = tmp_path_factory.mktemp("stops")
    (root / "table.yaml").write_text(TABLE)
    for seed in range(20):
        oracle = Oracle(Sizes(hr=96, vocab=1026), seed=seed)
        with torch.no_grad():
            oracle.llm.lm_head.weight[[STOP, OTHER]] = -oracle.llm.lm_head.weight[[EOS]]
        made = World(oracle, root / f"model{seed}", root / "table.yaml")
        write(oracle, made.model)
        ids = made.generate(request.param, [EOS])
        if len(ids) == TOKENS and ids[PLACE] not in ids[:PLACE] and EOS not in ids:
            break
    else:
        pytest.fail("no seed gives such an answer")
    with torch.no_grad():
        oracle.llm.lm_head.weight[STOP] = 1.01 * oracle.llm.lm_head.weight[ids[PLACE]]
    shutil.rmtree(made.model)
    write(oracle, made.model)
    return request.param, made


def answers(world, template, *options):
    """One streamed, and one of a batch."""
    name, made = template, world
    shared = ["--template", made.template(name), "--max-new-tokens", TOKENS, *options]
    streamed = chat(made.model, "--prompt", QUESTION, *shared).stdout.removesuffix("\n")
    rows = batch(made.model, write_questions(made.table.parent, [(QUESTION, []), ("Hi", []), (QUESTION, [])]), *shared)
    assert rows[0]["answer"] == rows[2]["answer"] and rows[0]["stopped"] == rows[2]["stopped"]
    assert (streamed.removesuffix(CUT).strip(), not streamed.endswith(CUT)) == (rows[0]["answer"], rows[0]["stopped"])
    return rows[0]


def text(ids):
    """What mgm itself makes of ids without special tokens: tests of the tokenizers compare that with transformers."""
    words = " ".join(str(i) for i in ids if i not in (EOS, STOP, OTHER))
    return mgm("tokenize", TOKENIZER, "--decode", input=words + "\n").stdout.strip() if words else ""


@pytest.mark.parametrize("beams", [0, 1, 3])
def test_an_answer_ends_at_the_templates_stop(world, beams):
    name, made = world
    options = ["--beams", beams] if beams else []
    searched = {"num_beams": beams, "early_stopping": False} if beams else {}
    want = made.generate(name, [EOS, STOP], **searched)
    assert want[-1] == STOP and len(want) < TOKENS  # at the template's stop, not at EOS
    assert beams > 1 or len(want) == PLACE + 1
    assert answers(made, name, *options) == {"id": "q0", "answer": text(want), "stopped": True}
    if name != LLAMA_3:
        # Another stop beside it changes nothing; a format without any says what the model says on.
        assert answers(made, "ends_two", *options)["answer"] == text(want)
        longer = made.generate("goes_on", [EOS], **searched)
        assert len(longer) > len(want) or beams > 1
        assert answers(made, "goes_on", *options) == {"id": "q0", "answer": text(longer), "stopped": longer[-1] == EOS}


def test_a_stop_that_the_tokenizer_lacks_is_said(world, tmp_path):
    _, made = world
    (tmp_path / "t.yaml").write_text(f'lacks: {{{BODY}, stop: ["<|no_such|>"]}}\n')
    said = chat(made.model, "--prompt", "Hi", "--max-new-tokens", 1, "--template", f"{tmp_path}/t.yaml:lacks").stderr
    assert "the tokenizer has no token '<|no_such|>', which ends answers in template lacks" in said
