"""Scenes of the HR ablation: a known object, a number and some dots in one large picture, each at one of four sizes.

A picture has SIDE pixels; the low-resolution view of the ablation's models has 168 / 384 of them. Sizes are chosen so
that the smallest of a task is lost in that view and the largest is plain in it. Pictures of one thing alone, of any size up
to most of the picture, are for training: towers that start from random weights learn small things from large ones.
Everything is drawn from a random generator that is given, so the same seed gives the same data.
"""

from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

SIDE = 384
SIZES = {"objects": (14, 24, 44, 88), "digits": (8, 12, 20, 40), "counts": (3, 5, 9, 18)}  # pixels, see each task
FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSans-Bold.ttf"  # Debian fonts-dejavu-core
LARGEST = {"objects": 340, "digits": 240, "counts": 48}  # of things alone
NUM_DIGITS = 3
MAX_COUNT = 6
NUMBERS = ("one", "two", "three", "four", "five", "six")


@dataclass
class Turn:
    task: str
    size: object  # pixels; captions: a group
    question: str
    answer: str


@dataclass
class Picture:
    image: Image.Image
    turns: list  # of Turn
    sources: list = field(default_factory=list)  # (package of the manifest, path in it), for licences and splits
    caption: str = ""  # what stage 1 says of it


class Crowded(Exception):
    """No room was found for a thing; another scene may have it."""


def backdrop(rng, backgrounds):
    """(a crop of a photograph, its key), softened so that what is drawn upon it is the sharpest thing there."""
    key = rng.choice(sorted(backgrounds))
    photo = backgrounds[key]
    side = rng.randint(min(photo.size) // 3, min(photo.size))
    left, top = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
    crop = photo.crop((left, top, left + side, top + side)).resize((48, 48), Image.BILINEAR)
    return crop.resize((SIDE, SIDE), Image.BICUBIC), key


def place(rng, width, height, taken, gap=6):
    """A box of that size that keeps `gap` pixels from every box of `taken`, to which it is added."""
    if max(width, height) > SIDE - 2 * gap:
        raise Crowded
    for _ in range(200):
        x, y = rng.randint(gap, SIDE - width - gap), rng.randint(gap, SIDE - height - gap)
        if all(x + width + gap <= l or r + gap <= x or y + height + gap <= t or b + gap <= y for l, t, r, b in taken):
            taken.append((x, y, x + width, y + height))
            return taken[-1]
    raise Crowded


def fit(cutout, size):
    """The cut-out with its longer side `size` pixels long."""
    scale = size / max(cutout.size)
    return cutout.resize([max(1, round(v * scale)) for v in cutout.size], Image.LANCZOS)


def contrasting(image, box):
    """Black or white, whichever stands out from the picture inside the box."""
    mean = image.crop(box).convert("L").resize((1, 1), Image.BOX).getpixel((0, 0))
    return (16, 16, 16) if mean > 127 else (240, 240, 240)


def put_object(rng, image, size, taken, cutouts):
    """One known object, its longer side `size` pixels long; returns its label."""
    label = rng.choice(sorted(cutouts))
    thing = fit(cutouts[label], size)
    box = place(rng, *thing.size, taken)
    image.paste(thing, box[:2], thing)
    return label


def put_digits(rng, image, size, taken, digits=NUM_DIGITS):
    """A number of that many digits; `size` is the height of one; returns it."""
    text = "".join(rng.choice("0123456789") for _ in range(digits))
    font = ImageFont.truetype(FONT, round(size / 0.73))  # DejaVu's digits are 0.73 em high
    left, top, right, bottom = (round(v) for v in font.getbbox(text))
    box = place(rng, right - left, bottom - top, taken)
    ImageDraw.Draw(image).text((box[0] - left, box[1] - top), text, font=font, fill=contrasting(image, box))
    return text


def disc(size):
    """A round mask of that diameter, drawn eight times as large so that small ones are round."""
    large = Image.new("L", (8 * size, 8 * size))
    ImageDraw.Draw(large).ellipse([0, 0, 8 * size - 1, 8 * size - 1], fill=255)
    return large.resize((size, size), Image.BOX)


def put_dots(rng, image, size, taken):
    """One to MAX_COUNT round marks, `size` pixels in diameter and at least twice that apart; returns their number."""
    count = rng.randint(1, MAX_COUNT)
    mask, dots = disc(size), []
    for _ in range(count):
        box = place(rng, size, size, dots, gap=2 * size)
        while any(box[0] < r + 4 and l - 4 < box[2] and box[1] < b + 4 and t - 4 < box[3] for l, t, r, b in taken):
            dots.pop()
            box = place(rng, size, size, dots, gap=2 * size)
        image.paste(contrasting(image, box), box[:2], mask)
    return count


def article(noun):
    return f"{'An' if noun[0] in 'aeiou' else 'A'} {noun}"


def object_turn(size, label):
    return Turn("objects", size, "Which thing is in the picture?", label)


def digits_turn(size, number):
    return Turn("digits", size, "What number is written?", number)


def counts_turn(size, count):
    return Turn("counts", size, "How many dots are there?", str(count))


def dots(count):
    return f"{NUMBERS[count - 1]} dot{'s' if count > 1 else ''}"


def scene(rng, sizes, backgrounds, cutouts):
    """A Picture of one object, one number and some dots; `sizes`: {task: pixels}. `backgrounds` and `cutouts` map
    paths and labels to images; sources hold them as ("backgrounds", path) and ("stamps", label)."""
    while True:
        image, key = backdrop(rng, backgrounds)
        taken = []
        try:
            label = put_object(rng, image, sizes["objects"], taken, cutouts)
            number = put_digits(rng, image, sizes["digits"], taken)
            count = put_dots(rng, image, sizes["counts"], taken)
        except Crowded:
            continue
        turns = [object_turn(sizes["objects"], label), digits_turn(sizes["digits"], number),
                 counts_turn(sizes["counts"], count)]
        return Picture(image, turns, [("backgrounds", key), ("stamps", label)],
                       f"{article(label)}, the number {number} and {dots(count)}.")


def alone(rng, task, backgrounds, cutouts):
    """A Picture of one object, one number of up to NUM_DIGITS digits, or some dots, of a size between the task's smallest
    and LARGEST, every ratio of sizes equally likely. Sources as in scene()."""
    while True:
        image, key = backdrop(rng, backgrounds)
        size = round(SIZES[task][0] * (LARGEST[task] / SIZES[task][0]) ** rng.random())
        sources = [("backgrounds", key)]
        try:
            if task == "objects":
                label = put_object(rng, image, size, [], cutouts)
                return Picture(image, [object_turn(size, label)], sources + [("stamps", label)], f"{article(label)}.")
            if task == "digits":
                number = put_digits(rng, image, size, [], digits=rng.randint(1, NUM_DIGITS))
                return Picture(image, [digits_turn(size, number)], sources, f"The number {number}.")
            count = put_dots(rng, image, size, [])
            return Picture(image, [counts_turn(size, count)], sources, f"{dots(count).capitalize()}.")
        except Crowded:
            continue


def on_white(rng, cutout):
    """A cut-out alone on white, at a random place and size."""
    thing = fit(cutout, rng.randint(SIDE // 2, SIDE - 24))
    image = Image.new("RGB", (SIDE, SIDE), "white")
    image.paste(thing, (rng.randint(0, SIDE - thing.width), rng.randint(0, SIDE - thing.height)), thing)
    return image
