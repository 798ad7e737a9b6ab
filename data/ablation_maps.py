"""Map questions of the HR ablation: up to three regions of a real map, or of a part of one, are coloured, and the question
is where one of them lies. Maps come from KGeography, whose .kgm files say which colour of a map's picture is which region.
"""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ablation_scenes import SIDE, Picture, Turn

SIZES = (3, 6, 12, 24)  # pixels: a region's size is the square root of its area, at least this, below twice this
COLOURS = {"red": (220, 24, 24), "blue": (24, 70, 224), "green": (16, 150, 48)}
ROWS, COLUMNS = ("north", "", "south"), ("west", "", "east")
DIRECTIONS = [f"{row}-{column}".strip("-") or "centre" for row in ROWS for column in COLUMNS]
SPREAD = 4  # sides of a region, at most, that the box around it is long: not many islands, nor marks beside a map
BORDER = 0.04  # of a side: regions this near to the line between two answers are left out
WHOLE = 0.4  # share of the pictures that show a map as a whole
PART = (0.35, 0.9)  # of its longer side, of the others


@dataclass
class Region:
    colour: tuple  # in the map's picture
    name: str
    area: int  # pixels
    centre: tuple
    box: tuple  # left, top, right, bottom


def country(name):
    """What the split keeps together: several maps show the same country."""
    return re.sub(r"(_.*|province|2006)$", "", name)


def divisions(kgm):
    """(colour, name, capital or "") of what is land of the map: neither border, water nor neighbour."""
    for division in ElementTree.parse(kgm).getroot().iter("division"):
        if division.findtext("ignore", "no").strip() != "yes":
            colour = tuple(int(division.findtext(f"color/{channel}")) for channel in ("red", "green", "blue"))
            yield colour, division.findtext("name", "").strip(), division.findtext("capital", "").strip()


def direction(x, y):
    """"north-west" and so on of a point in [0, 1]^2; None near a line between two answers."""
    if min(abs(v - third) for v in (x, y) for third in (1 / 3, 2 / 3)) < BORDER:
        return None
    return DIRECTIONS[3 * int(3 * y) + int(3 * x)]


def codes(rgb):
    """A number per colour."""
    return rgb.astype(np.int32) @ np.array([65536, 256, 1], dtype=np.int32)


class Map:
    """A map's picture and its regions."""

    def __init__(self, folder, name):
        self.name = name
        kgm = folder / f"{name}.kgm"
        with Image.open(folder / ElementTree.parse(kgm).getroot().findtext("mapFile")) as image:
            self.rgb = np.asarray(image.convert("RGB"))
        self.height, self.width = self.rgb.shape[:2]
        self.codes = codes(self.rgb)
        self.regions = []
        named = {}
        for colour, division, _ in divisions(kgm):
            named.setdefault(colour, division)
        for colour, division in sorted(named.items()):
            rows, columns = np.nonzero(self.codes == codes(np.array(colour)))
            if not len(rows):
                continue
            box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
            if max(box[2] - box[0], box[3] - box[1]) <= SPREAD * len(rows) ** 0.5:
                self.regions.append(Region(colour, division, len(rows), (columns.mean() + 0.5, rows.mean() + 0.5), box))

    def window(self, rng):
        """The whole of it, or a part: left, top, right, bottom."""
        if rng.random() < WHOLE:
            return 0, 0, self.width, self.height
        side = rng.uniform(*PART) * max(self.width, self.height)
        width, height = (max(1, round(min(side, limit))) for limit in (self.width, self.height))
        left, top = rng.randint(0, self.width - width), rng.randint(0, self.height - height)
        return left, top, left + width, top + height

    def seen(self, window):
        """[(region, its size of SIZES, its direction)] of what lies in the window as a whole, clearly in one ninth of it."""
        left, top, right, bottom = window
        scale = SIDE / max(right - left, bottom - top)
        for region in self.regions:
            box = region.box
            if left <= box[0] and top <= box[1] and box[2] <= right and box[3] <= bottom:
                side = scale * region.area ** 0.5
                size = max((s for s in SIZES if s <= side < 2 * s), default=None)
                where = direction((region.centre[0] - left) / (right - left), (region.centre[1] - top) / (bottom - top))
                if size and where:
                    yield region, size, where

    def picture(self, window, coloured):
        """What the window shows in greys, with the regions of `coloured` ({name of a colour: region}) in strong colours, on
        a white square."""
        part = np.s_[window[1]:window[3], window[0]:window[2]]
        rgb, code = self.rgb[part], self.codes[part]
        grey = np.asarray(Image.fromarray(rgb).convert("L"), dtype=np.float32)
        grey = np.where(rgb.max(axis=2) == 0, 90, 170 + grey / 3).astype(np.uint8)  # borders are black
        out = np.stack([grey] * 3, axis=2)
        for colour, region in coloured.items():
            out[code == codes(np.array(region.colour))] = COLOURS[colour]
        image = Image.fromarray(out)
        scale = SIDE / max(image.size)
        image = image.resize([max(1, round(v * scale)) for v in image.size], Image.LANCZOS if scale < 1 else Image.BICUBIC)
        canvas = Image.new("RGB", (SIDE, SIDE), "white")
        canvas.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
        return canvas


def map_question(rng, size, maps):
    """A Picture with up to three coloured regions of that size; None where the map drawn shows none at the place drawn. All
    nine places are drawn evenly. The caption lists the colours. `maps`: {name: Map}."""
    chosen, first = maps[rng.choice(sorted(maps))], rng.choice(DIRECTIONS)
    window = chosen.window(rng)
    found = [(region, where) for region, of, where in chosen.seen(window) if of == size]
    there = [i for i, (_, where) in enumerate(found) if where == first]
    if not there:
        return None
    focus = rng.choice(there)
    rest = [i for i in range(len(found)) if i != focus]
    picked = [focus, *rng.sample(rest, min(len(rest), len(COLOURS) - 1))]
    said = {colour: found[i] for colour, i in zip(rng.sample(sorted(COLOURS), len(picked)), picked)}
    said = {colour: said[colour] for colour in COLOURS if colour in said}
    turns = [Turn("maps", size, f"Where on the map is the {colour} region?", where) for colour, (_, where) in said.items()]
    image = chosen.picture(window, {colour: region for colour, (region, _) in said.items()})
    return Picture(image, turns, [("maps", f"{chosen.name}.kgm")], ", ".join(f"{colour}: {where}" for colour, (_, where) in said.items()))
