"""`mgm forward` against the PyTorch composition of mgm_oracle.py: every intermediate, many geometries."""
import itertools
import json
import pathlib
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))
from mgm_binary import mgm  # noqa: E402
from mgm_oracle import IGNORE, IMAGE, Oracle, Sizes, relative_l2  # noqa: E402

PICTURES = [ROOT / "data/embedded/images" / name for name in ("apple.png", "bus_red.webp", "seal.jpg")]
TOLERANCE = 1e-5  # relative L2, fp32
TENSORS = ("hr_stage0", "hr_stage1", "hr_stage2", "hr_stage3", "lr_features", "mined", "visual_tokens",
           "inputs_embeds", "logits", "loss")

CASES = {
    "odd maps that floor (15, 7, 3, 1)": Sizes(),
    "grid and global, grouped queries, tied head": Sizes(hr=192, grid=2, with_global=True, kv_heads=1, tied=True),
    "grid without global": Sizes(hr=144, grid=3, heads=3, kv_heads=3, width=36),
    "first layer, three linear layers": Sizes(select_layer=1, projector="mlp3x_gelu", hr=96),
    "last layer, one linear layer": Sizes(select_layer=-1, projector="linear", hr=72, theta=500000.0),
    "identity projector": Sizes(projector="identity", clip_width=40, clip_heads=2, hr=84),
    "no HR encoder": Sizes(depths=None, hr=64),
    "no HR encoder, class token kept": Sizes(depths=None, hr=64, select_feature="cls_patch"),
    "other ConvNeXt epsilon": Sizes(convnext_eps=1e-5, depths=(1, 1, 3, 2), hr=120),
}


@pytest.fixture(scope="module", autouse=True)
def exact():
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    yield
    torch.set_grad_enabled(True)


def forward(model_dir, out, images, *options):
    args = ["forward", model_dir, "--device", "cpu", "--out", out]
    for image in images:
        args += ["--image", image]
    mgm(*args, *options)
    return load_file(out)


def compare(actual, oracle, images, tolerance=TOLERANCE):
    ids = actual["input_ids"][0].tolist()
    labels = actual["labels"] if "loss" in actual else None
    expected = oracle.run(ids, [oracle.picture(path) for path in images], labels)
    assert expected.keys() <= actual.keys()
    errors = {name: relative_l2(actual[name], expected[name]) for name in TENSORS if name in expected}
    bad = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not bad, f"relative L2 above {tolerance}: {bad}; all: {errors}"
    return errors


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mining", ["absorbed", "reference"])
def test_every_intermediate(tmp_path, name, mining):
    sizes = CASES[name]
    if mining == "reference" and sizes.depths is None:
        pytest.skip("nothing is mined")
    oracle = Oracle(sizes, seed=3)
    actual = forward(oracle.save(tmp_path / "model"), tmp_path / "out.safetensors", PICTURES[:1],
                     "--prompt", "What is in the picture?", "--answer", "An apple", "--mining", mining)
    compare(actual, oracle, PICTURES[:1])


BACKBONES = {
    "gemma": Sizes(backbone=transformers.GemmaConfig, tied=True, backbone_options={"head_dim": 12}),
    "gemma2": Sizes(backbone=transformers.Gemma2Config, tied=True, backbone_options={
        "head_dim": 12, "sliding_window": 9, "query_pre_attn_scalar": 17, "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 2.5}),
    "mistral": Sizes(backbone=transformers.MistralConfig, backbone_options={"sliding_window": 9}),
    "mixtral": Sizes(backbone=transformers.MixtralConfig, backbone_options={"num_local_experts": 5}),
    "phi3": Sizes(backbone=transformers.Phi3Config),
    "qwen2": Sizes(backbone=transformers.Qwen2Config),
    "qwen3": Sizes(backbone=transformers.Qwen3Config, backbone_options={"head_dim": 12}),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_other_backbones(tmp_path, name):
    """In the published layout; Gemma scales visual tokens as it does text, behind inputs_embeds."""
    oracle = Oracle(BACKBONES[name], seed=10)
    actual = forward(oracle.save(tmp_path / "model"), tmp_path / "out.safetensors", PICTURES[:1],
                     "--prompt", "What is in the picture?", "--answer", "An apple")
    compare(actual, oracle, PICTURES[:1])


class Kept(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return x * self.scale


def test_drop_path_as_the_published_code_leaves_it_on(tmp_path):
    """Off unless asked for. With a seed, blocks are left out and the others scaled as timm's DropPath does in training:
    what comes out is one of the ways to do so, another seed's perhaps another, the same seed's always the same."""
    oracle = Oracle(Sizes(depths=(1, 1, 3, 2), hr=96), seed=12)
    model = oracle.save(tmp_path / "model")
    blocks = [block for stage in oracle.convnext.stages for block in stage.blocks]
    rates = torch.linspace(0, 0.1, len(blocks)).tolist()
    ask = ("--prompt", "What is in the picture?")

    def ours(*options):
        return forward(model, tmp_path / "out.safetensors", PICTURES[:1], *ask, *options)

    plain = ours()
    compare(plain, oracle, PICTURES[:1])
    ids, picture = plain["input_ids"][0].tolist(), [oracle.picture(PICTURES[0])]
    ways = {}
    for count in range(4):
        for dropped in itertools.combinations(range(1, len(blocks)), count):
            for i, block in enumerate(blocks):
                block.drop_path = Kept(0 if i in dropped else 1 / (1 - rates[i]))
            ways[dropped] = oracle.run(ids, picture, None)
    found = set()
    for seed in range(12):
        actual = ours("--drop-path", seed)
        fitting = [way for way, expected in ways.items()
                   if all(relative_l2(actual[name], expected[name]) <= TOLERANCE for name in expected)]
        assert len(fitting) == 1, (seed, fitting)
        found.add(fitting[0])
        assert not torch.equal(actual["logits"], plain["logits"])
    assert () in found and len(found) > 2, found
    assert torch.equal(actual["logits"], ours("--drop-path", 11)["logits"])
    # Which pictures are encoded together does not tell what is drawn.
    lines = [{"id": i, "prompt": "Which?", "image": [str(p) for p in PICTURES[:1 + i % 2]]} for i in range(5)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answers = [mgm("chat", model, "--device", "cpu", "--drop-path", 4, "--max-new-tokens", 8, "--batch",
                   tmp_path / "questions.jsonl", "--batch-size", size).stdout for size in (1, 3, 5)]
    assert answers[0] and answers == answers[:1] * 3


def test_several_pictures_in_one_prompt(tmp_path):
    oracle = Oracle(Sizes(hr=96), seed=4)
    actual = forward(oracle.save(tmp_path / "model"), tmp_path / "out.safetensors", PICTURES,
                     "--template", "none", "--prompt", "One <image> two <image>\n<image> three?",
                     "--answer", " Four")
    assert actual["input_ids"][0].tolist().count(IMAGE) == 3
    compare(actual, oracle, PICTURES)


def test_text_alone(tmp_path):
    oracle = Oracle(Sizes(), seed=5)
    actual = forward(oracle.save(tmp_path / "model"), tmp_path / "out.safetensors", [],
                     "--prompt", "What do you do?", "--answer", "I look at pictures.")
    assert "visual_tokens" not in actual and IMAGE not in actual["input_ids"]
    compare(actual, oracle, [])


def test_labels_are_the_answer_and_its_end(tmp_path):
    oracle = Oracle(Sizes(), seed=6)
    actual = forward(oracle.save(tmp_path / "model"), tmp_path / "out.safetensors", PICTURES[:1],
                     "--prompt", "What is in the picture?", "--answer", "An apple")
    labels = actual["labels"][0]
    supervised = labels[labels != IGNORE].tolist()
    ids = actual["input_ids"][0].tolist()
    assert supervised == ids[-len(supervised):] and supervised[-1] == 2  # </s>
    assert len(labels) == len(ids) - 1 + oracle.s.image**2 // oracle.s.patch**2


def test_prompt_alone_has_no_labels_and_no_loss(tmp_path):
    oracle = Oracle(Sizes(), seed=6)
    actual = forward(oracle.save(tmp_path / "model"), tmp_path / "out.safetensors", PICTURES[:1],
                     "--prompt", "What is in the picture?")
    assert "loss" not in actual and (actual["labels"] == IGNORE).all()


def test_bf16(tmp_path):
    """Against the fp32 oracle. bf16 keeps 8 bits: 2^-9 per rounding, about ten of them in a row on the way
    to the logits of this model; measured 0.4 to 1.5 %."""
    oracle = Oracle(Sizes(hr=96), seed=7)
    actual = forward(oracle.save(tmp_path / "model"), tmp_path / "out.safetensors", PICTURES[:1], "--dtype", "bf16",
                     "--prompt", "What is in the picture?", "--answer", "An apple")
    compare(actual, oracle, PICTURES[:1], tolerance=0.03)


@pytest.mark.parametrize("part", ["encoders", "language model"])
def test_real_widths(tmp_path, part):
    """One block of the published widths: CLIP-L and ConvNeXt-L at 336 / 768 px; Llama 7B."""
    if part == "encoders":
        sizes = Sizes(image=336, clip_width=1024, clip_mlp=4096, clip_layers=2, clip_heads=16,
                      depths=(1, 1, 1, 1), dims=(192, 384, 768, 1536), hr=768)
    else:
        sizes = Sizes(width=4096, mlp=11008, layers=1, heads=32, kv_heads=32)
    oracle = Oracle(sizes, seed=8)
    actual = forward(oracle.save(tmp_path / "model"), tmp_path / "out.safetensors", PICTURES[:1],
                     "--prompt", "What is in the picture?", "--answer", "An apple")
    errors = compare(actual, oracle, PICTURES[:1])
    print(part, errors)


def test_damage_is_seen(tmp_path):
    """The comparison can fail: one altered bias of one head shows."""
    oracle = Oracle(Sizes(hr=96), seed=9)
    model = oracle.save(tmp_path / "model")
    oracle.value[1].bias[0] += 0.01
    actual = forward(model, tmp_path / "out.safetensors", PICTURES[:1], "--prompt", "What?")
    with pytest.raises(AssertionError, match="mined"):
        compare(actual, oracle, PICTURES[:1])
