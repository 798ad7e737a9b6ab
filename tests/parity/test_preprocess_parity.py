"""`mgm preprocess` against Pillow, NumPy and torch, to the bit: canvas, HR tensor, LR views.

A process per picture is slow, so 40 of the pictures of scripts/fetch_test_images.sh are asked, and all of them with
MGM_TEST_FULL=1. The canvases of every picture are compared in test_image_parity.py, the table of normalised values
there too; what this file adds (bytes to tensor, views, the command and its geometry) depends on sizes alone.
"""
import dataclasses
import json
import pathlib
import random
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))
from mgm_binary import FULL, mgm  # noqa: E402
from mgm_oracle import MEAN, STD, Oracle, Sizes, lr_views  # noqa: E402
from test_image_parity import DATA, REFUSED, canvas, kind_of, pillow  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's remarks about odd metadata


@dataclasses.dataclass
class Setup:
    """A config file, or the sizes of a model directory; and what it means."""
    source: object
    hr: int
    lr: int
    grid: int = 1
    with_global: bool = False
    aspect: str = "pad"
    upsampled: bool = False


SETUPS = {
    "stage 1, centre crop": Setup("configs/stage1/vicuna_7b.yaml", 768, 336, aspect="square"),
    "stage 2, padded": Setup("configs/stage2/vicuna_7b.yaml", 768, 336),
    "four tiles and the whole": Setup("configs/stage2/vicuna_7b_hd.yaml", 1536, 336, 2, True),
    "LR 224": Setup("configs/ablation/lr_224_hr_512.yaml", 512, 224, aspect="square"),
    "HR enlarged from LR": Setup("configs/ablation/upsampled_lr.yaml", 768, 336, aspect="square", upsampled=True),
    "directory, LR larger than half of HR": Setup(Sizes(hr=60, image=42), 60, 42),
    "directory, nine tiles": Setup(Sizes(hr=144, grid=3, image=42), 144, 42, 3),
    "directory, tiles enlarged": Setup(Sizes(hr=192, grid=2, image=126, patch=21, with_global=True), 192, 126, 2, True),
}


@pytest.fixture(scope="module")
def pictures():
    """Decodable pictures, no two alike, in a fixed random order."""
    assert (DATA / ".complete").exists(), f"no test pictures in {DATA}: run scripts/fetch_test_images.sh"
    found, seen = [], set()
    for path in sorted(p for p in DATA.rglob("*") if p.is_file()):
        if not kind_of(path) or path.name in REFUSED:
            continue
        theirs, _ = pillow(path)
        if isinstance(theirs, Exception) or (theirs.size, theirs.tobytes()) in seen:
            continue
        seen.add((theirs.size, theirs.tobytes()))
        # Pillow would fill gigabytes for the centre crop of very long pictures; test_image_parity.py has those.
        if max(theirs.size) <= 20 * min(theirs.size):
            found.append(path)
    assert len(found) >= 500
    random.Random(1).shuffle(found)
    return found if FULL else found[:40]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """{name of a setup: what --config takes}"""
    out = {}
    for name, setup in SETUPS.items():
        out[name] = setup.source
        if isinstance(setup.source, Sizes):
            out[name] = tmp_path_factory.mktemp("model")  # config.json is all that preprocessing reads
            (out[name] / "config.json").write_text(json.dumps(Oracle(setup.source).config()))
    return out


def expected(image, setup):
    """Canvas [S, S, 3], hr [3, S, S], lr [views, 3, s, s]"""
    square = np.asarray(canvas(image, setup.aspect, setup.hr))
    unit = (square * (1 / 255.0)).astype(np.float32)
    hr = torch.from_numpy((unit - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1).contiguous()
    lr = lr_views(hr, setup.lr, setup.grid, setup.with_global)
    if setup.upsampled:
        whole = F.interpolate(hr[None], size=(setup.lr * setup.grid,) * 2, mode="bilinear", align_corners=False)
        hr = F.interpolate(whole, size=(setup.hr,) * 2, mode="bilinear", align_corners=False)[0]
    return square, hr, lr


def problem(folder, path, setup, source):
    """None, or what differs."""
    out, png = folder / "out.safetensors", folder / "canvas.png"
    mgm("preprocess", path, "--config", source, "--out", out, "--png", png)
    actual = load_file(out)
    square, hr, lr = expected(pillow(path)[0], setup)
    if not np.array_equal(np.asarray(Image.open(png)), square):
        return "canvas"
    assert actual.keys() == {"hr", "lr"}
    for name, theirs in (("hr", hr), ("lr", lr)):
        ours = actual[name]
        if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
            return f"{name} {ours.dtype} {tuple(ours.shape)} instead of {theirs.dtype} {tuple(theirs.shape)}"
        if not torch.equal(ours, theirs):
            return f"{name} off by up to {(ours - theirs).abs().max().item():.2e}"
    return None


def test_pictures(tmp_path, pictures, sources):
    """Every picture with one of the setups in turn."""
    names, problems = list(SETUPS), []
    for i, path in enumerate(pictures):
        name = names[i % len(names)]
        if what := problem(tmp_path, path, SETUPS[name], sources[name]):
            problems.append(f"{path}, {name}: {what}")
    print(f"{len(pictures)} pictures")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("size", [(1, 1), (1, 97), (97, 1), (2, 3), (3, 2), (60, 60), (61, 59)])
def test_odd_sizes(tmp_path, sources, size):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)
    name = "directory, nine tiles"
    assert problem(tmp_path, path, SETUPS[name], sources[name]) is None


def test_a_cut_picture_leaves_nothing(tmp_path, sources):
    whole = (ROOT / "data/embedded/images/seal.jpg").read_bytes()
    path, out = tmp_path / "cut.jpg", tmp_path / "out.safetensors"
    path.write_bytes(whole[:len(whole) // 2])
    done = mgm("preprocess", path, "--config", sources["stage 2, padded"], "--out", out, code=3)
    assert str(path) in done.stderr and not out.exists()


def test_the_comparison_can_fail(tmp_path, sources):
    path = ROOT / "data/embedded/images/bus_red.webp"
    padded, source = SETUPS["stage 2, padded"], sources["stage 2, padded"]
    assert problem(tmp_path, path, padded, source) is None
    wide = tmp_path / "wide.png"
    Image.open(path).convert("RGB").resize((101, 67)).save(wide)
    assert problem(tmp_path, wide, dataclasses.replace(padded, aspect="square"), source) == "canvas"
    assert "hr off" in problem(tmp_path, wide, dataclasses.replace(padded, upsampled=True), source)
