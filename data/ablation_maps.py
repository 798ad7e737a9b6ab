"""Map questions of the HR ablation: two regions of a real map are highlighted, and the question is where one of them
lies. Maps come from KGeography, whose .kgm files say which colour of a map's picture is which region.
"""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ablation_scenes import SIDE, Picture, Turn

SIZES = (3, 6, 12, 24)  # pixels: a region's size is the square root of its area, at least this, below twice this
COLOURS = {"red": (220, 24, 24), "blue": (24, 70, 224)}
ROWS, COLUMNS = ("north", "", "south"), ("west", "", "east")
BORDER = 0.04  # of a side: regions this near to the line between two answers are left out


@dataclass
class Region:
    map: str  # name of the .kgm file without its ending
    colour: tuple  # in the map's picture
    size: int  # of SIZES
    answer: str


def country(name):
    """What the split keeps together: several maps show the same country."""
    return re.sub(r"(_.*|province|2006)$", "", name)


def divisions(kgm):
    """Colours of what is land of the map: neither border, water nor neighbour."""
    for division in ElementTree.parse(kgm).getroot().iter("division"):
        if division.findtext("ignore", "no").strip() != "yes":
            yield tuple(int(division.findtext(f"color/{channel}")) for channel in ("red", "green", "blue"))


def pixels(folder, name):
    picture = ElementTree.parse(folder / f"{name}.kgm").getroot().findtext("mapFile")
    with Image.open(folder / picture) as image:
        return np.asarray(image.convert("RGB"))


def direction(x, y):
    """"north-west" and so on of a point in [0, 1]^2; None near a line between two answers."""
    if min(abs(v - third) for v in (x, y) for third in (1 / 3, 2 / 3)) < BORDER:
        return None
    parts = [ROWS[int(3 * y)], COLUMNS[int(3 * x)]]
    return "-".join(part for part in parts if part) or "centre"


def codes(rgb):
    """A number per colour."""
    return rgb.astype(np.int32) @ np.array([65536, 256, 1], dtype=np.int32)


def regions(folder, name):
    """The regions of a map that have a size of SIZES in a picture of SIDE pixels and lie clearly in one ninth of it."""
    rgb = pixels(folder, name)
    height, width = rgb.shape[:2]
    scale = SIDE / max(height, width)
    present, where = np.unique(codes(rgb), return_inverse=True)
    where = where.reshape(height, width)
    areas = np.bincount(where.ravel())
    mean_x, mean_y = (np.bincount(where.ravel(), at.ravel()) / areas for at in np.indices((height, width))[::-1])
    for colour in sorted(set(divisions(folder / f"{name}.kgm"))):
        code = int(codes(np.array(colour)))
        i = int(np.searchsorted(present, code))
        if i == len(present) or present[i] != code:
            continue
        side = scale * areas[i] ** 0.5
        size = max((s for s in SIZES if s <= side < 2 * s), default=None)
        answer = direction((mean_x[i] + 0.5) / width, (mean_y[i] + 0.5) / height)
        if size and answer:
            yield Region(name, colour, size, answer)


def map_picture(folder, name, highlighted):
    """The map in greys, with the regions of `highlighted` ({name of a colour: region}) in strong colours, on a white
    square."""
    rgb = pixels(folder, name)
    grey = np.asarray(Image.fromarray(rgb).convert("L"), dtype=np.float32)
    grey = np.where(rgb.max(axis=2) == 0, 90, 170 + grey / 3).astype(np.uint8)  # borders are black
    out = np.stack([grey] * 3, axis=2)
    for colour, region in highlighted.items():
        out[codes(rgb) == codes(np.array(region.colour))] = COLOURS[colour]
    image = Image.fromarray(out)
    scale = SIDE / max(image.size)
    image = image.resize([max(1, round(v * scale)) for v in image.size], Image.LANCZOS if scale < 1 else Image.BICUBIC)
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    canvas.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return canvas


def map_question(rng, size, folder, by_map):
    """A Picture with a red and a blue region of that size; `by_map`: {map: its regions of that size, two or more}."""
    name = rng.choice(sorted(by_map))
    pair = rng.sample(by_map[name], 2)
    chosen = dict(zip(rng.sample(sorted(COLOURS), 2), pair))
    turns = [Turn("maps", size, f"Where on the map is the {colour} region?", region.answer) for colour, region in chosen.items()]
    return Picture(map_picture(folder, name, chosen), turns, [("maps", f"{name}.kgm")])
