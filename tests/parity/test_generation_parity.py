"""Continuations of many prompts at once against transformers, one prompt at a time."""
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


def probe(folder, model_dir, prompts, tokens, *options):
    offsets = torch.tensor([0, *(len(p) for p in prompts)]).cumsum(0)
    save_file({"ids": torch.cat(prompts), "offsets": offsets, "tokens": torch.tensor([tokens])}, folder / "in.safetensors")
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
    assert len({tuple(row) for row in expected.tolist()}) == len(prompts)
    for rows in (1, 3, len(prompts)):
        actual = probe(tmp_path, tmp_path / "model", prompts, 12, rows)["ids"]
        assert torch.equal(actual, expected), (rows, actual, expected)
