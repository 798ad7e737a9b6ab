"""Pictures of the HR ablation: small things in large scenes, each drawn at four sizes, with one question each.

A picture has SIDE pixels; the low-resolution view of the ablation's models has 168 / 384 of them. Sizes are chosen so
that the smallest of a task is lost in that view and the largest is plain in it. Everything is drawn from a random
generator that is given, so the same seed gives the same data.
"""

from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIDE = 384
SIZES = {"objects": (14, 24, 44, 88), "digits": (8, 12, 20, 40), "counts": (3, 5, 9, 18)}  # pixels, see each task
FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSans-Bold.ttf"  # Debian fonts-dejavu-core
MAX_COUNT = 6


@dataclass
class Sample:
    task: str
    size: int  # pixels
    picture: Image.Image
    question: str
    answer: str
    sources: list  # keys of the things drawn, for licences and splits


def scene(rng, backgrounds):
    """(a crop of a photograph, its key), softened so that what is drawn upon it is the sharpest thing there."""
    key = rng.choice(sorted(backgrounds))
    photo = backgrounds[key]
    side = rng.randint(min(photo.size) // 3, min(photo.size))
    left, top = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
    crop = photo.crop((left, top, left + side, top + side)).resize((48, 48), Image.BILINEAR)
    return crop.resize((SIDE, SIDE), Image.BICUBIC), key


def place(rng, width, height, taken=(), gap=6):
    """A corner for a box of that size that keeps its distance from `taken`, or None where there is no room."""
    for _ in range(200):
        x, y = rng.randint(gap, SIDE - width - gap), rng.randint(gap, SIDE - height - gap)
        if all(x + width + gap <= l or r + gap <= x or y + height + gap <= t or b + gap <= y for l, t, r, b in taken):
            return x, y
    return None


def fit(cutout, size):
    """The cut-out with its longer side `size` pixels long."""
    scale = size / max(cutout.size)
    return cutout.resize([max(1, round(v * scale)) for v in cutout.size], Image.LANCZOS)


def objects(rng, size, backgrounds, cutouts):
    """One known object, its longer side `size` pixels long."""
    picture, key = scene(rng, backgrounds)
    label = rng.choice(sorted(cutouts))
    thing = fit(cutouts[label], size)
    x, y = place(rng, *thing.size)
    picture.paste(thing, (x, y), thing)
    return Sample("objects", size, picture, "What is in the picture?", label, [key, label])


def contrasting(picture, box):
    """Black or white, whichever stands out from the scene inside the box."""
    mean = picture.convert("L").crop(box).resize((1, 1), Image.BOX).getpixel((0, 0))
    return (16, 16, 16) if mean > 127 else (240, 240, 240)


def digits(rng, size, backgrounds):
    """Four digits; `size` is the height of one."""
    picture, key = scene(rng, backgrounds)
    text = "".join(rng.choice("0123456789") for _ in range(4))
    font = ImageFont.truetype(FONT, round(size / 0.73))  # DejaVu's digits are 0.73 em high
    left, top, right, bottom = font.getbbox(text)
    x, y = place(rng, right - left, bottom - top)
    box = (x, y, x + right - left, y + bottom - top)
    ImageDraw.Draw(picture).text((x - left, y - top), text, font=font, fill=contrasting(picture, box))
    return Sample("digits", size, picture, "What number is written?", text, [key])


def counts(rng, size, backgrounds):
    """One to MAX_COUNT round marks, `size` pixels in diameter, all of one colour."""
    picture, key = scene(rng, backgrounds)
    count = rng.randint(1, MAX_COUNT)
    fill = contrasting(picture, (0, 0, SIDE, SIDE))
    taken = []
    # Drawn four times as large, so that small marks are round.
    large = picture.resize((4 * SIDE, 4 * SIDE), Image.NEAREST)
    pen = ImageDraw.Draw(large)
    for _ in range(count):
        x, y = place(rng, size, size, taken, gap=2 * size)
        taken.append((x, y, x + size, y + size))
        pen.ellipse([4 * x, 4 * y, 4 * (x + size) - 1, 4 * (y + size) - 1], fill=fill)
    picture = large.resize((SIDE, SIDE), Image.BOX)
    return Sample("counts", size, picture, "How many dots are there?", str(count), [key])


def on_white(rng, cutout):
    """A cut-out alone on white, at a random place and size, for captions."""
    thing = fit(cutout, rng.randint(SIDE // 2, SIDE - 24))
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    picture.paste(thing, (rng.randint(0, SIDE - thing.width), rng.randint(0, SIDE - thing.height)), thing)
    return picture
