"""Continuations of many prompts at once, and by beam search, against transformers, one prompt at a time."""
import collections
import os
import pathlib
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from backbones import BACKBONES, make

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROBE = pathlib.Path(os.environ.get("MGM_BUILD_DIR", ROOT / "build/release")) / "tests/generate_probe"
LENGTHS = (23, 1, 13, 37, 2, 8, 13)


def prompts_of(vocab, lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab, (length,), generator=generator) for length in lengths]


def probe(folder, model_dir, prompts, tokens, *options, stops=()):
    offsets = torch.tensor([0, *(len(p) for p in prompts)]).cumsum(0)
    save_file({"ids": torch.cat(prompts), "offsets": offsets, "tokens": torch.tensor([tokens]),
               "stops": torch.tensor(stops, dtype=torch.int64)}, folder / "in.safetensors")
    done = subprocess.run([PROBE, model_dir, folder / "in.safetensors", folder / "out.safetensors", *map(str, options)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "out.safetensors")


def greedy(model, prompt, tokens):
    """Without a cache: no rule of a cache decides what a window sees."""
    ids = prompt[None]
    for _ in range(tokens):
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt):]


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_greedy_batch_equals_transformers(tmp_path, name):
    model = make(name, seed=5)
    model.save_pretrained(tmp_path / "model")
    prompts = prompts_of(model.config.vocab_size, LENGTHS)
    expected = torch.stack([greedy(model, prompt, 12) for prompt in prompts])
    assert len({tuple(row) for row in expected.tolist()}) > len(prompts) // 2  # prompts matter
    for rows in (1, 3, len(prompts)):
        actual = probe(tmp_path, tmp_path / "model", prompts, 12, rows)["ids"]
        assert torch.equal(actual, expected), (rows, actual, expected)


# ---- beam search ------------------------------------------------------------------------------------------
TOKENS = 14


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A model, where it lies, 20 prompts, and the tokens it likes best, which serve as ends."""
    model = make("llama", seed=9)
    folder = tmp_path_factory.mktemp("beams") / "model"
    model.save_pretrained(folder)
    prompts = prompts_of(model.config.vocab_size, [3 + 5 * i % 17 for i in range(20)], seed=4)
    with torch.no_grad():
        liked = collections.Counter(torch.cat([greedy(model, prompt, TOKENS) for prompt in prompts]).tolist())
    return model, folder, prompts, [token for token, _ in liked.most_common()]


@torch.no_grad()
def transformers_beams(model, prompt, beams, length_penalty, repetition_penalty, stops):
    out = model.generate(prompt[None], attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), num_beams=beams,
                         length_penalty=length_penalty, repetition_penalty=repetition_penalty, early_stopping=False,
                         do_sample=False, max_new_tokens=TOKENS, eos_token_id=stops or None, pad_token_id=0,
                         return_dict_in_generate=True, output_scores=True)
    return out.sequences[0, len(prompt):].tolist(), out.sequences_scores[0].item()


@pytest.mark.parametrize("stops", [0, 1, 3])
@pytest.mark.parametrize("beams,length_penalty,repetition_penalty", [
    (2, 1.0, 1.0), (4, 1.0, 1.0), (5, 0.0, 1.0), (3, 2.0, 1.0), (3, -0.7, 1.0), (4, 1.0, 1.4)])
def test_beam_search_equals_transformers(searched, tmp_path, beams, length_penalty, repetition_penalty, stops):
    model, folder, prompts, liked = searched
    ends = liked[1:1 + stops]
    actual = probe(tmp_path, folder, prompts, TOKENS, beams, length_penalty, repetition_penalty, stops=ends)
    ended = 0
    for number, prompt in enumerate(prompts):
        ids, score = transformers_beams(model, prompt, beams, length_penalty, repetition_penalty, ends)
        assert [i for i in actual["ids"][number].tolist() if i >= 0] == ids, number
        assert abs(actual["scores"][number].item() - score) <= 1e-5 * max(1, abs(score)), number
        ended += ids[-1] in ends
    print(f"{beams} beams, length penalty {length_penalty}, {stops} stop ids: {ended} of {len(prompts)} answers ended")
    assert (ended > 0) == (stops > 0)


def test_beams_find_what_greedy_does_not(searched, tmp_path):
    model, folder, prompts, _ = searched
    beam = probe(tmp_path, folder, prompts, TOKENS, 4, 1.0, 1.0)["ids"]
    single = probe(tmp_path, folder, prompts, TOKENS, 4)["ids"]
    assert not torch.equal(beam, single)


@pytest.mark.parametrize("name", ["gemma2", "qwen2 windows from layer 1", "mixtral", "phi3 partly rotated"])
def test_beam_search_with_other_caches(tmp_path, name):
    """Windows, soft caps and experts; beams go on from rows that were others'."""
    model = make(name, seed=6)
    model.save_pretrained(tmp_path / "model")
    prompts = prompts_of(model.config.vocab_size, (5, 11, 2, 23), seed=2)
    actual = probe(tmp_path, tmp_path / "model", prompts, TOKENS, 3, 1.0, 1.0)["ids"]
    for number, prompt in enumerate(prompts):
        assert actual[number].tolist() == transformers_beams(model, prompt, 3, 1.0, 1.0, [])[0], number
