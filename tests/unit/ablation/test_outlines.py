"""The outlines of the ablation's report against Pillow, and the weights of mining against the drawing of mgm report."""
import base64
import io
import pathlib
import sys
import xml.dom.minidom

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "tests/bench/ablation"))
import outlines

SIDE, CELLS = outlines.SIDE, outlines.CELLS


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", optimize=True)
    return out.getvalue()


def uri(pixels):
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def photograph(seed, height=SIDE, width=SIDE):
    """Smooth in places and noisy in others, so that an encoder has a use for every filter."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([128 + 100 * np.sin(x / 23 + c) * np.cos(y / (17 + c)) for c in range(3)], -1)
    return np.clip(smooth + rng.normal(0, 40, (height, width, 3)) * (x > width // 2)[..., None], 0, 255).astype(np.uint8)


def tinted(picture, shares):
    """What csrc/report/attention_picture.cpp draws for weights of those shares of the strongest tint."""
    alpha = np.kron(shares, np.ones((SIDE // CELLS,) * 2))[..., None] * outlines.STRONGEST
    grey = (picture @ [0.299, 0.587, 0.114] * 0.6 + 100)[..., None]
    base = outlines.GREY * grey + (1 - outlines.GREY) * picture
    return np.rint(np.minimum(255, base * (1 - alpha) + np.array(outlines.TINT) * alpha)).astype(np.uint8)


@pytest.mark.parametrize("height, width", [(1, 1), (3, 70), (64, 64), (SIDE, SIDE)])
def test_reads_what_pillow_writes(height, width):
    picture = photograph(3, height, width)
    assert np.array_equal(np.array(outlines.png_rows(png(picture))), picture)


def test_pngs_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="depth 8, colour type 0"):
        outlines.png_rows(png(photograph(4)[..., 0]))


def test_the_tint_is_found_again():
    picture, shares = photograph(5), np.random.default_rng(5).random((CELLS, CELLS)).round(2)
    shares[shares < 0.4] = 0
    found = outlines.tint_shares(picture.tolist(), tinted(picture, shares).tolist())
    assert np.abs(np.array(found) - shares).max() < 0.02  # rounding to 8 bits


def test_pillow_reads_the_tint():
    shares = np.random.default_rng(6).random((5, 7))
    image = np.array(Image.open(io.BytesIO(outlines.png_of_tint(shares.tolist()))))
    assert image.shape == (5, 7, 4) and (image[..., :3] == outlines.TINT).all()
    assert np.abs(image[..., 3] / 255 - shares).max() < 1 / 255


def test_every_scene_with_boxes_is_drawn():
    def record(scene, i, task, size, answer, boxes):
        return {"id": f"{scene}_{i}", "image": f"heldout/{scene}.webp", "task": task, "size": size, **({"boxes": boxes} if boxes else {}),
                "conversations": [{"value": "<image>\n?"}, {"value": answer}]}
    records = [r for scene in ("a", "b") for r in (
        record(scene, 0, "objects", 40, "cat & <dog>", [[10, 20, 50, 60]]), record(scene, 1, "digits", 20, "47", [[100, 100, 130, 120]]),
        record(scene, 2, "counts", 5, "2", [[5, 5, 10, 10], [200, 200, 205, 205]]))] + [record("map", 0, "maps", 3, "north", None)]
    records = {r["id"]: r for r in records}
    mining = {arm: [(f"{scene}.webp", uri(photograph(7)), uri(tinted(photograph(7), np.zeros((CELLS, CELLS))))) for scene in ("a", "b")]
              for arm in ("x", "y")}
    answers = {arm: {r: "47" for r in records} for arm in ("x", "y", "z")}
    drawn = outlines.draw(records, answers, mining, {"x": "X", "y": "Y", "z": "Z"})
    xml.dom.minidom.parseString(drawn)
    assert drawn.count("<image") == 4 and drawn.count("<circle") == 8
    assert drawn.count(outlines.GOOD + '" font-weight="normal">47<') == 6  # of two scenes and three arms
    assert drawn.count("cat &amp; &lt;dog&gt;") == 4
    assert outlines.draw({"map_0": records["map_0"]}, answers, mining, {"x": "X", "y": "Y", "z": "Z"}) == ""
