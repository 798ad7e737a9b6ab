"""Scores before a token is drawn, against the LogitsProcessors of transformers: every value, to the bit."""
import itertools
import os
import pathlib
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.generation.logits_process import (RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper,
                                                    TopKLogitsWarper, TopPLogitsWarper)

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROBE = pathlib.Path(os.environ.get("MGM_BUILD_DIR", ROOT / "build/release")) / "tests/sampler_probe"
NEVER = float("-inf")


def top_p_in_fp64(top_p):
    """Which tokens stay. In fp32 the running sum of a large vocabulary is off by more than a token's probability."""
    def step(ids, scores):
        return scores.masked_fill(torch.isinf(TopPLogitsWarper(top_p)(ids, scores.double())), NEVER)
    return step


def oracle(logits, ids, temperature, top_k, top_p, penalty):
    """In the order of transformers' GenerationMixin._get_logits_processor."""
    steps = []
    if penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(penalty))
    if temperature not in (0, 1):
        steps.append(TemperatureLogitsWarper(temperature))
    if temperature and top_k:
        steps.append(TopKLogitsWarper(top_k))
    if temperature and top_p < 1:
        steps.append(top_p_in_fp64(top_p))
    for step in steps:
        logits = step(ids, logits)
    return logits


def probe(folder, logits, ids, cases):
    save_file({"logits": logits, "ids": ids, "cases": torch.tensor(cases, dtype=torch.float64)}, folder / "in.safetensors")
    done = subprocess.run([PROBE, folder / "in.safetensors", folder / "out.safetensors"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = load_file(folder / "out.safetensors")
    return [out[f"scores.{i}"] for i in range(len(cases))]


@pytest.mark.parametrize("rows,vocab", [(5, 1000), (2, 32003), (1, 7)])
@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_scores(tmp_path, rows, vocab, spread):
    generator = torch.Generator().manual_seed(vocab + int(spread))
    logits = torch.randn(rows, vocab, generator=generator) * spread
    ids = torch.randint(0, vocab, (rows, 40), generator=generator)
    cases = list(itertools.product((0.0, 0.3, 1.0, 1.7), (0, 1, 5, 50), (0.0, 0.37, 0.9, 1.0), (1.0, 1.3, 0.8)))
    for case, actual in zip(cases, probe(tmp_path, logits, ids, cases), strict=True):
        expected = oracle(logits, ids, *case)
        assert torch.equal(actual, expected), (case, (actual != expected).sum().item())
    assert not torch.isinf(oracle(logits, ids, 0.0, 5, 0.9, 1.3)).any()
    assert torch.isinf(oracle(logits, ids, 1.0, 5, 1.0, 1.3)).sum() == rows * (vocab - 5)


def test_equal_scores_stay_together_at_the_edge_of_top_k(tmp_path):
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    ids = torch.zeros(1, 1, dtype=torch.int64)
    [actual] = probe(tmp_path, logits, ids, [(1.0, 2, 1.0, 1.0)])
    assert torch.equal(actual, TopKLogitsWarper(2)(ids, logits))
    assert torch.isinf(actual[0]).tolist() == [True, False, False, False, False, True]


def test_a_wrong_penalty_is_seen(tmp_path):
    logits = torch.randn(2, 100, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(20).reshape(2, 10)
    [actual] = probe(tmp_path, logits, ids, [(0.0, 0, 1.0, 1.2)])
    assert torch.equal(actual, oracle(logits, ids, 0.0, 0, 1.0, 1.2))
    assert not torch.equal(actual, oracle(logits, ids, 0.0, 0, 1.0, 1.3))
    assert not torch.equal(actual, oracle(logits, ids.flip(0), 0.0, 0, 1.0, 1.2))
