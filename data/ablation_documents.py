"""Document crops of the HR ablation: pages of real manuals, cropped so that lines have one of four heights, with up to
three words framed in colour. Text and boxes come from `pdftotext -bbox`, pictures from `pdftoppm` (Debian
poppler-utils).
"""

import gzip
import html
import re
import subprocess
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ablation_scenes import SIDE, Picture, Turn

SIZES = (10, 15, 23, 36)  # pixels from the top to the bottom of a line's box, about the size of the type
FRAMES = {"red": (214, 32, 32), "green": (22, 150, 60), "blue": (36, 84, 214)}
WORD = re.compile(r"[A-Za-z]{3,12}")
FRAME_GAP, MARGIN = 3, 8  # pixels


@dataclass
class Word:
    text: str
    box: tuple  # points from the top left corner of the page

    @property
    def height(self):
        return self.box[3] - self.box[1]

    @property
    def plain(self):
        """Its letters alone, or "" if it is no plain word."""
        text = self.text.strip(".,;:()'\"\u2018\u2019\u201c\u201d")
        return text if WORD.fullmatch(text) else ""


@dataclass
class Page:
    width: float  # points
    height: float
    words: list


def run(*command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True).stdout


class Document:
    """A PDF (or its gzip), page by page."""

    def __init__(self, path, folder):
        self.path = path
        if path.suffix == ".gz":
            self.path = folder / path.stem
            self.path.write_bytes(gzip.decompress(path.read_bytes()))
        info = run("pdfinfo", self.path).decode(errors="replace")
        self.pages = int(re.search(r"^Pages:\s+(\d+)", info, re.M).group(1))
        self.read = {}

    def page(self, number):
        if number not in self.read:
            text = run("pdftotext", "-bbox", "-f", number, "-l", number, self.path, "-").decode(errors="replace")
            width, height = map(float, re.search(r'<page width="([\d.]+)" height="([\d.]+)"', text).groups())
            found = re.findall(r'<word xMin="([-\d.]+)" yMin="([-\d.]+)" xMax="([-\d.]+)" yMax="([-\d.]+)">(.*?)</word>', text)
            words = [Word(html.unescape(w[4]), tuple(map(float, w[:4]))) for w in found]
            self.read[number] = Page(width, height, words)
        return self.read[number]

    def crop(self, number, scale, left, top):
        """SIDE x SIDE pixels of a page drawn at `scale` pixels per point; white beyond its edges."""
        data = run("pdftoppm", "-f", number, "-l", number, "-singlefile", "-r", f"{72 * scale:.4f}", "-x", left, "-y", top,
                   "-W", SIDE, "-H", SIDE, self.path)
        header = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", data)
        image = Image.frombytes("RGB", (int(header[1]), int(header[2])), data[header.end():])
        canvas = Image.new("RGB", (SIDE, SIDE), "white")
        canvas.paste(image, (0, 0))
        return canvas


def inside(box):
    return MARGIN <= box[0] and MARGIN <= box[1] and box[2] <= SIDE - MARGIN and box[3] <= SIDE - MARGIN


def apart(box, others):
    gap = 2 * FRAME_GAP + 2
    return all(box[2] + gap <= o[0] or o[2] + gap <= box[0] or box[3] + gap <= o[1] or o[3] + gap <= box[1] for o in others)


def document_crop(rng, size, documents):
    """A Picture with up to three framed words, of a random page of `documents` ({path: Document}); None where that page
    has no such word. Every word framed is about as high as `size`."""
    path = rng.choices(sorted(documents), [documents[key].pages for key in sorted(documents)])[0]
    number = rng.randint(1, documents[path].pages)
    page = documents[path].page(number)
    candidates = [word for word in page.words if word.plain and word.height > 4]
    if not candidates:
        return None
    focus = rng.choice(candidates)
    scale = size / focus.height
    # The focus lies anywhere inside the crop; the crop stays on the page where the page is large enough.
    left, top = (round(min(max(scale * low - rng.uniform(0.2, 0.6) * SIDE, 0), max(0, scale * side - SIDE)))
                 for low, side in ((focus.box[0], page.width), (focus.box[1], page.height)))

    def placed(word):
        return tuple(round(scale * v) - (left, top)[i % 2] for i, v in enumerate(word.box))

    framed = []  # (word, box)
    others = [word for word in candidates if word is not focus]
    for word in [focus, *rng.sample(others, len(others))]:
        box = placed(word)
        if len(framed) < len(FRAMES) and inside(box) and abs(scale * word.height - size) < 0.1 * size:
            if word.plain not in [w.plain for w, _ in framed] and apart(box, [b for _, b in framed]):
                framed.append((word, box))
    if not framed or framed[0][0] is not focus:
        return None
    image = documents[path].crop(number, scale, left, top)
    pen = ImageDraw.Draw(image)
    turns = []
    for colour, (word, box) in zip(rng.sample(sorted(FRAMES), len(framed)), framed):
        edge = (box[0] - FRAME_GAP, box[1] - FRAME_GAP, box[2] + FRAME_GAP, box[3] + FRAME_GAP)
        pen.rectangle(edge, outline=FRAMES[colour], width=2)
        turns.append(Turn("documents", size, f"Which word is in the {colour} frame?", word.plain))
    return Picture(image, turns, [path])
