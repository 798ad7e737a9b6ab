"""Document crops of the HR ablation: pages of real manuals, cropped so that lines have one of four heights, with up to
four words framed in colour. The words are those of a closed list. Text and boxes come from `pdftotext -bbox`, pictures
from `pdftoppm` (Debian poppler-utils).
"""

import gzip
import html
import re
import subprocess
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ablation_scenes import SIDE, Picture, Turn

SIZES = (10, 15, 23, 36)  # pixels from the top to the bottom of a line's box, about the size of the type
FRAMES = {"red": (214, 32, 32), "blue": (36, 84, 214), "green": (22, 150, 60), "orange": (240, 140, 16)}
FRAME_GAP, MARGIN = 3, 8  # pixels
LOWEST = 4  # points from the top to the bottom of a line's box, at least
PAGE = re.compile(r'<page width="([\d.]+)" height="([\d.]+)">(.*?)</page>', re.S)
WORD = re.compile(r'<word xMin="([-\d.]+)" yMin="([-\d.]+)" xMax="([-\d.]+)" yMax="([-\d.]+)">(.*?)</word>')


@dataclass
class Word:
    text: str
    box: tuple  # points from the top left corner of the page

    @property
    def height(self):
        return self.box[3] - self.box[1]


@dataclass
class Page:
    number: int
    width: float  # points
    height: float
    words: list  # of the closed list


def plain(text):
    """Without the punctuation around it."""
    return html.unescape(text).strip(".,;:()'\"\u2018\u2019\u201c\u201d")


def run(*command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True).stdout


class Document:
    """A PDF (or its gzip): where on its pages the words of a closed list stand."""

    def __init__(self, path, folder, words):
        self.path, listed = path, set(words)
        if path.suffix == ".gz":
            self.path = folder / path.stem
            self.path.write_bytes(gzip.decompress(path.read_bytes()))
        self.places = {word: [] for word in words}  # [(page, Word)]
        text = run("pdftotext", "-bbox", self.path, "-").decode(errors="replace")
        for i, (width, height, body) in enumerate(PAGE.findall(text)):
            found = [Word(plain(w[4]), tuple(map(float, w[:4]))) for w in WORD.findall(body)]
            page = Page(i + 1, float(width), float(height), [w for w in found if w.text in listed and w.height > LOWEST])
            for word in page.words:
                self.places[word.text].append((page, word))
            self.pages = i + 1

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


def document_crop(rng, size, documents, words):
    """A Picture with up to four framed words of the list, every one about as high as `size`; None where the page drawn has
    no room for the first. That one is drawn evenly from the list, and long manuals give more than short ones, but not in
    proportion. `documents`: {(package, file): Document}. The caption lists the frames."""
    first = rng.choice(words)
    keys = [key for key in sorted(documents) if documents[key].places[first]]
    if not keys:
        return None
    key = rng.choices(keys, [documents[key].pages ** 0.5 for key in keys])[0]
    page, focus = rng.choice(documents[key].places[first])
    scale = size / focus.height
    # The focus lies anywhere inside the crop; the crop stays on the page where the page is large enough.
    left, top = (round(min(max(scale * low - rng.uniform(0.1, 0.7) * SIDE, 0), max(0, scale * side - SIDE)))
                 for low, side in ((focus.box[0], page.width), (focus.box[1], page.height)))

    def placed(word):
        return tuple(round(scale * v) - (left, top)[i % 2] for i, v in enumerate(word.box))

    framed = []  # (word, box)
    by_text = {}  # common words are not framed more often for standing there more often
    for word in page.words:
        if word.text != first and inside(placed(word)) and abs(scale * word.height - size) < 0.1 * size:
            by_text.setdefault(word.text, []).append(word)
    others = [rng.choice(of) for of in rng.sample([by_text[text] for text in sorted(by_text)], len(by_text))]
    for word in [focus, *others]:
        box = placed(word)
        if len(framed) < len(FRAMES) and inside(box) and apart(box, [b for _, b in framed]):
            framed.append((word, box))
    if not framed or framed[0][0] is not focus:
        return None
    image = documents[key].crop(page.number, scale, left, top)
    pen = ImageDraw.Draw(image)
    said = {}
    for colour, (word, box) in zip(rng.sample(sorted(FRAMES), len(framed)), framed):
        edge = (box[0] - FRAME_GAP, box[1] - FRAME_GAP, box[2] + FRAME_GAP, box[3] + FRAME_GAP)
        pen.rectangle(edge, outline=FRAMES[colour], width=2)
        said[colour] = word.text
    turns = [Turn("documents", size, f"Which word is in the {colour} frame?", said[colour]) for colour in FRAMES if colour in said]
    return Picture(image, turns, [key], ", ".join(f"{colour}: {said[colour]}" for colour in FRAMES if colour in said))
