"""Captioned pictures of the HR ablation: Tux Paint's stamps, Open Clip Art's drawings, flags of countries."""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import embedded_pictures
from ablation_scenes import SIDE, on_white

NO_STAMPS = ("symbols", "people", "military")  # letters, coins and signs; persons
CLIPART = ("animals", "buildings", "containers", "decorations", "education", "electronics", "food", "office", "plants",
           "recreation", "science", "tools", "transportation")
NO_TITLE = re.compile(r"HASH\(|^part of|^clip ?art by|etiquette|unknown|untitled|\.svg|_|\d{3}", re.I)
TITLE = re.compile(r"[A-Za-z][A-Za-z0-9 ,.'()&-]{2,59}")


@dataclass
class Drawing:
    source: str  # package of the manifest
    path: Path  # below its root
    caption: str
    file: Path

    @property
    def label(self):
        """What the split keeps together: the caption without what tells drawings of one thing apart."""
        text = re.sub(r"\(.*?\)|\d+", " ", self.caption.lower())
        return " ".join(re.findall(r"[a-z]+", text))

    def picture(self, seed):
        """SIDE x SIDE pixels on white; BuildError if it cannot be drawn or its licence is not what the package says."""
        if self.source == "clipart":
            licences, _ = embedded_pictures.svg_metadata(self.file)
            if not licences or not licences <= embedded_pictures.PUBLIC_DOMAIN:
                raise embedded_pictures.BuildError(f"{self.file}: licence {sorted(licences)} is not public domain")
        if self.file.suffix == ".png":
            return on_white(random.Random(f"{seed} {self.path}"), cutout(self.file))
        return embedded_pictures.draw_svg(self.file).resize((SIDE, SIDE), Image.LANCZOS)


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
    for folder in CLIPART:
        for path in sorted((root / folder).rglob("*.svg")):
            title = svg_title(path)
            if TITLE.fullmatch(title) and not NO_TITLE.search(title):
                yield Drawing("clipart", path.relative_to(root), f"{title[0].upper()}{title[1:].rstrip('.')}.", path)


def flags(root, countries):
    """`countries`: iso-codes' JSON of ISO 3166-1."""
    for entry in json.loads(countries.read_text(encoding="utf-8"))["3166-1"]:
        path = root / f"{entry['alpha_2'].lower()}.svg"
        if path.exists():
            yield Drawing("flags", path.relative_to(root), f"The flag of {entry.get('common_name', entry['name'])}.", path)


def all_drawings(roots):
    """Every captioned picture there is, in a fixed order."""
    return [*stamps(roots["stamps"]), *clipart(roots["clipart"]), *flags(roots["flags"], roots["countries"])]
