"""Decoding on GPUs: every architecture token for token as transformers, with and without CUDA graphs; the binary with and
without graphs, and over two GPUs. Skipped loudly where there is no GPU."""
import json
import pathlib
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/parity"), str(ROOT / "tests/gpu"), str(ROOT / "tests/e2e")]
from backbones import BACKBONES, even, make  # noqa: E402
from gpus import need  # noqa: E402
from mgm_binary import mgm  # noqa: E402
from mgm_oracle import Oracle, Sizes  # noqa: E402
from test_generation_parity import greedy, probe, prompts_of  # noqa: E402


def changes(name):
    """Heads of a width that the decode kernel takes."""
    out = even(name)
    if "head_dim" in BACKBONES[name].options and BACKBONES[name].options["head_dim"] % 8:
        out["head_dim"] = 16
    return out


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_greedy_tokens_equal_transformers(tmp_path, name):
    need(1)
    model = make(name, seed=5, **changes(name))
    model.save_pretrained(tmp_path / "model")
    prompts = prompts_of(model.config.vocab_size, (23, 1, 13, 37, 2, 8, 13))
    expected = torch.stack([greedy(model, prompt, 12) for prompt in prompts])
    for device in ("cuda", "cuda-graphs"):
        for rows in (1, 3, len(prompts)):
            actual = probe(tmp_path, tmp_path / "model", prompts, 12, rows, device)["ids"]
            assert torch.equal(actual, expected), (device, rows, actual, expected)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """Answers of the binary to some questions, and its statistics."""
    need(1)
    folder = tmp_path_factory.mktemp("decode")
    model = Oracle(Sizes(hr=96, width=64, heads=4, kv_heads=2, layers=4), seed=11).save(folder / "model")
    questions = folder / "questions.jsonl"
    images = ROOT / "data/embedded/images"
    records = [{"prompt": "What is in the picture?", "image": str(images / "apple.png")}, {"prompt": "Say hello to seventeen apples."},
               {"prompt": "Where is it?", "image": str(images / "bus_red.webp")}, {"prompt": "Who?"}, {"prompt": "And why?"}]
    questions.write_text("".join(json.dumps({"id": n, **record}) + "\n" for n, record in enumerate(records)))

    def run(*options, code=0):
        stats = folder / "stats.json"
        done = mgm("chat", model, "--device", "cuda", "--batch", questions, "--stats", stats, "--max-new-tokens", 24, *options,
                   code=code)
        if code:
            return done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()], json.loads(stats.read_text()), done.stderr
    return run


@pytest.mark.parametrize("options", [["--dtype", "fp32"], ["--dtype", "bf16"], ["--beams", 3], ["--temperature", 1, "--seed", 4],
                                     ["--quantize", "nf4"]])
def test_graphs_change_no_answer(chat, options):
    with_graphs, stats, _ = chat("--batch-size", 3, *options)
    without, eager, _ = chat("--batch-size", 3, "--no-graphs", *options)
    assert with_graphs == without
    assert 0 < stats["graph_steps"] < stats["steps"] == eager["steps"] and 0 < stats["graphs"] < stats["graph_steps"]
    assert (eager["graphs"], eager["graph_steps"]) == (0, 0)


@pytest.mark.parametrize("options", [[], ["--beams", 3], ["--quantize", "int8"]])
def test_two_gpus_answer_as_one(chat, options):
    need(2)
    one, _, _ = chat("--gpus", 0, "--dtype", "fp32", *options)
    other, _, _ = chat("--gpus", 1, "--dtype", "fp32", *options)
    two, stats, said = chat("--gpus", "0,1", "--dtype", "fp32", *options)
    swapped, _, _ = chat("--gpus", "1,0", "--dtype", "fp32", *options)
    assert one == other == two == swapped
    assert "on GPU 0" in said and "on GPU 1" in said and "without CUDA graphs" in said
    assert stats["graph_steps"] == 0


def test_auto_takes_one_gpu_where_it_fits(chat):
    answers, stats, said = chat("--gpus", "auto", "--dtype", "fp32")
    assert "on GPU 1" not in said and stats["graph_steps"] > 0
    assert answers == chat("--gpus", 0, "--dtype", "fp32")[0]


def test_a_gpu_that_is_not_there(chat):
    assert "no GPU 99" in chat("--gpus", 99, code=2)
