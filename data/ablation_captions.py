"""Captioned pictures of the HR ablation: Tux Paint's stamps, Open Clip Art's drawings, flags of countries; what all kinds of
them share. More kinds: ablation_figures.py."""

import collections
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

import embedded_pictures
from ablation_scenes import SIDE, on_white

NO_STAMPS = ("symbols",)  # letters, coins and signs
NO_CLIPART = ("buttons", "logos", "shapes", "special")  # shapes and special are stars, polygons and patterns by number
NO_TITLE = re.compile(r"HASH\(|^part of|etiquette|unknown|untitled|_|\d{3}|"
                      r"\b(icons?|iconset|logo|buttons?|theme|clip ?arts?|svg)\b", re.I)
MOST_ALIKE = 12  # drawings of Open Clip Art with the same title: more, and it is the name of a set
TITLE = re.compile(r"[A-Za-z][A-Za-z0-9 ,.'()&-]{2,59}")


@dataclass
class Drawing:
    source: str  # package of the manifest
    path: Path  # below its root
    caption: str
    file: Path
    questions: list = field(default_factory=list)  # (question, answer) beside the one for the caption

    @property
    def label(self):
        """What the split keeps together: the caption without its article and what tells drawings of one thing apart."""
        words = re.findall(r"[a-z]+", re.sub(r"\(.*?\)|\d+", " ", self.caption.lower()))
        return " ".join(words[1:] if words[:1] in (["a"], ["an"], ["the"]) else words)

    def picture(self, seed):
        """SIDE x SIDE pixels on white; BuildError if it cannot be drawn or its licence is not what the package says."""
        if self.source == "clipart":
            licences, _ = embedded_pictures.svg_metadata(self.file)
            if not licences or not licences <= embedded_pictures.PUBLIC_DOMAIN:
                raise embedded_pictures.BuildError(f"{self.file}: licence {sorted(licences)} is not public domain")
        if self.source == "stamps" and self.file.suffix == ".png":
            return on_white(random.Random(f"{seed} {self.path}"), cutout(self.file))
        if self.file.suffix == ".svg":
            return embedded_pictures.draw_svg(self.file).resize((SIDE, SIDE), Image.LANCZOS)
        return photograph(self.file, "black" if self.source == "stellarium" else "white")


def photograph(path, ground):
    """A photograph or figure as a whole in SIDE x SIDE pixels, on a ground of one colour; small ones are not enlarged."""
    with Image.open(path) as source:
        image = source.convert("RGBA")
    image.thumbnail((SIDE, SIDE), Image.LANCZOS)
    canvas = Image.new("RGB", (SIDE, SIDE), ground)
    canvas.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2), image)
    return canvas


def cutout(path):
    """A stamp without its empty border; BuildError if it has no transparent background."""
    with Image.open(path) as stamp:
        image = stamp.convert("RGBA")
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] > 0 or alpha.getbbox() is None:
        raise embedded_pictures.BuildError(f"{path}: no transparent background")
    return image.crop(alpha.getbbox())


def stamps(root):
    for path in sorted([*root.rglob("*.png"), *root.rglob("*.svg")]):
        text = path.with_suffix(".txt")
        name = path.relative_to(root)
        if not text.exists() or path.stem.endswith("_mirror") or name.parts[0] in NO_STAMPS:
            continue
        caption = text.read_text(encoding="utf-8").splitlines()[0].strip()
        if caption:
            yield Drawing("stamps", name, caption, path)


def svg_title(path):
    """The title in an SVG's metadata as its author wrote it, or ""."""
    text = path.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"<cc:Work.*?<dc:title>(.*?)</dc:title>", text, re.S)
    return " ".join(found.group(1).split()) if found else ""


def clipart(root):
    found = []
    for path in sorted(root.rglob("*.svg")):
        name = path.relative_to(root)
        if name.parts[0] in NO_CLIPART or any("theme" in part for part in name.parts[:-1]):
            continue
        title = svg_title(path)
        if TITLE.fullmatch(title) and not NO_TITLE.search(title):
            found.append(Drawing("clipart", name, f"{title[0].upper()}{title[1:].rstrip('.')}.", path))
    titles = collections.Counter(drawing.caption for drawing in found)
    return [drawing for drawing in found if titles[drawing.caption] <= MOST_ALIKE]


def flags(root, countries):
    """`countries`: [(two letters, name)]"""
    for code, name in countries:
        path = root / f"{code.lower()}.svg"
        if path.exists():
            yield Drawing("flags", path.relative_to(root), f"The flag of {name}.", path, [("Which country's flag is this?", name)])

