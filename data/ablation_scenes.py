"""Scenes of the HR ablation: a known object, a number and some dots in one large picture, each at one of four sizes.

A picture has SIDE pixels; the low-resolution view of the ablation's models has 112 / 256 of them. Sizes are chosen so
that the smallest of a task is lost in that view and the largest is plain in it. Mosaics, a grid of cells with a thing in
each, are for training: towers that start from random weights need many things to tell apart, and a mosaic asks about as
many as it has cells. For their sake, too, photographs behind things are pale and what is drawn upon them is dark.
Everything is drawn from a random generator that is given, so the same seed gives the same data.
"""

from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

SIDE = 256
SIZES = {"objects": (12, 22, 40, 76), "digits": (8, 12, 20, 36), "counts": (3, 5, 8, 14)}  # pixels, see each task
FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSans-Bold.ttf"  # Debian fonts-dejavu-core
GRIDS = (1, 2, 3, 4)  # cells on a side of a mosaic
SHARES = {"objects": (0.5, 0.95), "digits": (0.3, 0.6), "counts": (0.07, 0.11)}  # of a cell: sizes of a mosaic's things
INK = (16, 16, 16)
PALE = 0.7  # share of white that is mixed into photographs
NUM_DIGITS = 2
MAX_COUNT = 6
NUMBERS = ("one", "two", "three", "four", "five", "six")


@dataclass
class Turn:
    task: str
    size: object  # pixels; captions: a group
    question: str
    answer: str
    boxes: list = field(default_factory=list)  # left, top, right, bottom of what is asked about, where a scene shows it


@dataclass
class Picture:
    image: Image.Image
    turns: list  # of Turn
    sources: list = field(default_factory=list)  # (package of the manifest, path in it), for licences and splits
    caption: str = ""  # what stage 1 says of it


class Crowded(Exception):
    """No room was found for a thing; another scene may have it."""


def backdrop(rng, backgrounds):
    """(a crop of a photograph, its key), softened and pale so that what is drawn upon it is the sharpest and darkest there."""
    key = rng.choice(sorted(backgrounds))
    photo = backgrounds[key]
    side = rng.randint(min(photo.size) // 3, min(photo.size))
    left, top = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
    crop = photo.crop((left, top, left + side, top + side)).resize((32, 32), Image.BILINEAR)
    soft = crop.resize((SIDE, SIDE), Image.BICUBIC)
    return Image.blend(soft, Image.new("RGB", soft.size, "white"), PALE), key


def place(rng, width, height, taken, gap=6, within=None):
    """A box of that size inside `within` (default: the picture less `gap` at its edges) that keeps `gap` pixels from every
    box of `taken`, to which it is added."""
    left, top, right, bottom = within or (gap, gap, SIDE - gap, SIDE - gap)
    if width > right - left or height > bottom - top:
        raise Crowded
    for _ in range(200):
        x, y = rng.randint(left, right - width), rng.randint(top, bottom - height)
        if all(x + width + gap <= l or r + gap <= x or y + height + gap <= t or b + gap <= y for l, t, r, b in taken):
            taken.append((x, y, x + width, y + height))
            return taken[-1]
    raise Crowded


def fit(cutout, size):
    """The cut-out with its longer side `size` pixels long."""
    scale = size / max(cutout.size)
    return cutout.resize([max(1, round(v * scale)) for v in cutout.size], Image.LANCZOS)


def put_object(rng, image, size, taken, cutouts, within=None):
    """One known object, its longer side `size` pixels long; returns its label and its box."""
    label = rng.choice(sorted(cutouts))
    thing = fit(cutouts[label], size)
    box = place(rng, *thing.size, taken, within=within)
    image.paste(thing, box[:2], thing)
    return label, box


def put_digits(rng, image, size, taken, digits=NUM_DIGITS, within=None):
    """A number of that many digits; `size` is the height of one; returns it and its box."""
    text = "".join(rng.choice("0123456789") for _ in range(digits))
    font = ImageFont.truetype(FONT, round(size / 0.73))  # DejaVu's digits are 0.73 em high
    left, top, right, bottom = (round(v) for v in font.getbbox(text))
    box = place(rng, right - left, bottom - top, taken, within=within)
    ImageDraw.Draw(image).text((box[0] - left, box[1] - top), text, font=font, fill=INK)
    return text, box


def disc(size):
    """A round mask of that diameter, drawn eight times as large so that small ones are round."""
    large = Image.new("L", (8 * size, 8 * size))
    ImageDraw.Draw(large).ellipse([0, 0, 8 * size - 1, 8 * size - 1], fill=255)
    return large.resize((size, size), Image.BOX)


def put_dots(rng, image, size, taken, within=None):
    """One to MAX_COUNT round marks, `size` pixels in diameter and at least twice that apart (in a mosaic's cell: once);
    returns their boxes."""
    count = rng.randint(1, MAX_COUNT)
    mask, dots, gap = disc(size), [], size if within else 2 * size
    for _ in range(count):
        box = place(rng, size, size, dots, gap, within)
        while any(box[0] < r + 4 and l - 4 < box[2] and box[1] < b + 4 and t - 4 < box[3] for l, t, r, b in taken):
            dots.pop()
            box = place(rng, size, size, dots, gap, within)
        image.paste(INK, box[:2], mask)
    return dots


def article(noun):
    return f"{'An' if noun[0] in 'aeiou' else 'A'} {noun}"


def object_turn(size, label):
    return Turn("objects", size, "Which thing is in the picture?", label)


def digits_turn(size, number):
    return Turn("digits", size, "What number is written?", number)


def counts_turn(size, count):
    return Turn("counts", size, "How many dots are there?", str(count))


def dots_text(count):
    return f"{NUMBERS[count - 1]} dot{'s' if count > 1 else ''}"


def scene(rng, sizes, backgrounds, cutouts):
    """A Picture of one object, one number and some dots; `sizes`: {task: pixels}. `backgrounds` and `cutouts` map
    paths and labels to images; sources hold them as ("backgrounds", path) and ("stamps", label)."""
    while True:
        image, key = backdrop(rng, backgrounds)
        taken = []
        try:
            label, object_box = put_object(rng, image, sizes["objects"], taken, cutouts)
            number, digits_box = put_digits(rng, image, sizes["digits"], taken)
            dots = put_dots(rng, image, sizes["counts"], taken)
        except Crowded:
            continue
        turns = [object_turn(sizes["objects"], label), digits_turn(sizes["digits"], number),
                 counts_turn(sizes["counts"], len(dots))]
        for turn, boxes in zip(turns, ([object_box], [digits_box], dots)):
            turn.boxes = boxes
        return Picture(image, turns, [("backgrounds", key), ("stamps", label)],
                       f"{article(label)}, the number {number} and {dots_text(len(dots))}.")


def cell_thing(rng, image, cell, within, cutouts):
    """Draws a thing of a random task into a cell, `cell` pixels wide; returns (its Turn in a picture of its own, what it is
    called in a list, the source of an object)."""
    task = rng.choice(sorted(SIZES))
    low, high = SHARES[task]
    size = round(cell * low * (high / low) ** rng.random())
    if task == "objects":
        label, _ = put_object(rng, image, size, [], cutouts, within)
        return object_turn(size, label), label, [("stamps", label)]
    if task == "digits":
        number, _ = put_digits(rng, image, size, [], rng.randint(1, NUM_DIGITS), within)
        return digits_turn(size, number), number, []
    count = len(put_dots(rng, image, max(3, size), [], within))
    return counts_turn(size, count), dots_text(count), []


def mosaic(rng, grid, backgrounds, cutouts):
    """A Picture of grid x grid cells, each with an object, a number of up to NUM_DIGITS digits, or some dots. Its caption
    lists them row by row; its questions name a cell, but where there is only one. Sources as in scene()."""
    while True:
        image, key = backdrop(rng, backgrounds)
        cell, turns, names, sources = SIDE // grid, [], [], [("backgrounds", key)]
        try:
            for row in range(grid):
                for column in range(grid):
                    x, y = column * cell, row * cell
                    turn, name, source = cell_thing(rng, image, cell, (x + 2, y + 2, x + cell - 2, y + cell - 2), cutouts)
                    question = f"What is in row {row + 1}, column {column + 1}?"
                    turns.append(turn if grid == 1 else Turn("mosaic", turn.size, question, name))
                    names.append(name)
                    sources += source
        except Crowded:
            continue
        return Picture(image, turns, sorted(set(sources)), ", ".join(names))


def on_white(rng, cutout):
    """A cut-out alone on white, at a random place and size."""
    thing = fit(cutout, rng.randint(SIDE // 2, SIDE - 24))
    image = Image.new("RGB", (SIDE, SIDE), "white")
    image.paste(thing, (rng.randint(0, SIDE - thing.width), rng.randint(0, SIDE - thing.height)), thing)
    return image
