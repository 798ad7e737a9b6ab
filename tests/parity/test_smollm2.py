"""The one real small language model there is, SmolLM2-135M-Instruct from its GGUF file, against transformers with the weights
that its own reader dequantises: logits, and greedy answers token for token."""
import pathlib
import sys

import pytest
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import test_backbone_parity as forward
import test_generation_parity as generation
from mgm_oracle import relative_l2
from real_files import smollm2
from test_gguf_import import convert

QUESTIONS = ["What is gravity?", "Write a poem about rain.", "List three colours.", "def fib(n):", "Who was Newton?", "2+2=",
             "Translate 'cat' to French.", "Explain TCP.", "Tell me a joke.", "What is the capital of Japan?", "Name a fruit.",
             "Why is the sky blue?", "Define entropy.", "Summarise Hamlet.", "How do planes fly?", "Give me a recipe for bread.",
             "What is a prime?", "Who are you?", "Bonjour, ça va ?", "Count to ten."]
TOKENS = 24


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Our directory, transformers' model and the questions as it templates them."""
    gguf = smollm2()
    ours = tmp_path_factory.mktemp("smollm2") / "model"
    convert(gguf, ours)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32,
                                                               attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(ours)
    prompts = [torch.tensor(tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True))
               for question in QUESTIONS]
    return ours, theirs, prompts


@torch.no_grad()
def test_logits(models, tmp_path):
    ours, theirs, prompts = models
    offsets = [0]
    for prompt in prompts[:3]:
        offsets.append(offsets[-1] + len(prompt))
    actual = forward.probe(ours, torch.cat(prompts[:3]), offsets, tmp_path)
    expected = torch.cat([theirs(prompt[None]).logits[0] for prompt in prompts[:3]])
    assert relative_l2(actual["logits"], expected) <= 1e-5
    assert relative_l2(actual["cached"], expected[:offsets[1]]) <= 1e-5


@torch.no_grad()
def test_greedy_answers(models, tmp_path):
    ours, theirs, prompts = models
    actual = generation.probe(tmp_path, ours, prompts, TOKENS, 4)["ids"]
    expected = [theirs.generate(prompt[None], max_new_tokens=TOKENS, do_sample=False, eos_token_id=None,
                                pad_token_id=0)[0, len(prompt):] for prompt in prompts]
    assert len({tuple(row.tolist()) for row in expected}) == len(QUESTIONS)
    assert [i for i in range(len(prompts)) if not torch.equal(actual[i], expected[i])] == []
