"""csrc/image against Pillow and transformers' CLIPImageProcessor, to the bit, over the pictures that
scripts/fetch_test_images.sh brings. tests/parity/image_probe.cpp answers for our side."""

import collections
import io
import os
import pathlib
import random
import subprocess

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("MGM_BUILD_DIR", ROOT / "build/release"))
DATA = pathlib.Path(os.environ.get("MGM_TEST_DATA", ROOT / ".deps/test_images"))
PAD = (122, 116, 104)

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's remarks about odd metadata

# Pictures that Pillow opens and we refuse, each for a reason.
REFUSED = {
    "hopper_bad_exif.jpg": "the pixel data are damaged: Pillow shows noise",
    "badcrc.png": "the pixel data fail their checksum, which Pillow does not look at",
    "huge_IDAT.png": "cut: the chunk of pixel data is longer than the file",
}
# Pictures that Pillow refuses for their metadata, which we do not read. The pixels are intact.
ONLY_OURS = {
    "png_decompression_dos.png": "a compressed text of gigabytes",
    "chunk_no_fctl.png": "frame numbers of an animation",
    "empty_ancillary_chunks.png": "an empty cHRM chunk",
}


class Probe:
    """The C++ side: one process that answers commands."""

    def __init__(self):
        path = BUILD / "tests/image_probe"
        assert path.exists(), f"{path} is missing: build the target image_probe"
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def line(self, *command):
        self.process.stdin.write((" ".join(map(str, command)) + "\n").encode())
        self.process.stdin.flush()
        answer = self.process.stdout.readline().decode()
        assert answer, f"image_probe died at {command}"
        return answer.rstrip("\n")

    def image(self, *command):
        """An array [h, w, 3], or the message of a DataError."""
        answer = self.line(*command)
        if answer.startswith("error "):
            assert answer.startswith("error 3 "), answer  # only DataErrors
            return answer
        width, height = map(int, answer.split()[1:])
        data = self.process.stdout.read(width * height * 3)
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)


@pytest.fixture(scope="module")
def probe():
    return Probe()


def kind_of(path):
    head = path.read_bytes()[:16]
    if head[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return None


@pytest.fixture(scope="module")
def files():
    found = sorted(p for p in DATA.rglob("*") if p.is_file() and not p.name.startswith("."))
    assert (DATA / ".complete").exists() and found, (
        f"no test pictures in {DATA}: run scripts/fetch_test_images.sh")
    return found


@pytest.fixture(scope="module")
def pictures(files):
    return [p for p in files if kind_of(p)]


def pillow(source):
    """Image.open(...).convert("RGB"), or the exception."""
    try:
        with Image.open(source) as image:
            info = (image.size[0], image.size[1], image.mode)
            return image.convert("RGB"), info
    except Exception as error:  # Pillow raises many kinds
        return error, None


def differs(ours, theirs):
    """None if equal, else what differs."""
    theirs = np.asarray(theirs)
    if isinstance(ours, str):
        return ours
    if ours.shape != theirs.shape:
        return f"shape {ours.shape} instead of {theirs.shape}"
    wrong = ours != theirs
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        largest = np.abs(ours.astype(int) - theirs).max()
        return f"{wrong.mean():.2%} of the bytes, by up to {largest}, first at {at}"
    return None


def write(folder, data, count=[0]):
    """A file of its own for `data`: image_probe remembers the last path."""
    count[0] += 1
    path = folder / f"{count[0]}.bin"
    path.write_bytes(data)
    return path


def test_decode_equals_pillow(probe, pictures):
    equal, both_refuse, problems = collections.Counter(), 0, []
    refused, only_ours = set(), set()
    for path in pictures:
        theirs, info = pillow(path)
        ours = probe.image("decode", path)
        if isinstance(theirs, Exception):
            if isinstance(ours, str):
                both_refuse += 1
            else:
                only_ours.add(path.name)
        elif isinstance(ours, str):
            refused.add(path.name)
        elif difference := differs(ours, theirs):
            problems.append(f"{path}: {difference}")
        else:
            equal[kind_of(path)] += 1
            told = probe.line("info", path).split(" ", 4)
            if told[2:] != [str(v) for v in info]:
                problems.append(f"{path}: header {told} instead of {info}")
    print(f"equal: {dict(equal)}, refused by both: {both_refuse}")
    assert not problems, "\n".join(problems)
    assert refused == set(REFUSED)
    assert only_ours == set(ONLY_OURS)
    assert sum(equal.values()) >= 750, "fewer pictures than there should be"


def expand(image):
    """MGM's expand2square."""
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), PAD)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def canvas(image, aspect, side):
    """The canvas written with Pillow calls, as CLIPImageProcessor makes them."""
    if aspect == "pad":
        image = expand(image)
    width, height = image.size
    short, long = min(width, height), max(width, height)
    scaled = int(side * long / short)
    image = image.resize((side, scaled) if width <= height else (scaled, side), Image.BICUBIC)
    left, top = (image.size[0] - side) // 2, (image.size[1] - side) // 2
    return image.crop((left, top, left + side, top + side))


def test_canvas_equals_pillow(probe, pictures):
    compared, seen, problems = 0, set(), []
    for path in pictures:
        theirs, _ = pillow(path)
        if isinstance(theirs, Exception) or path.name in REFUSED:
            continue
        key = theirs.tobytes() + str(theirs.size).encode()
        if key in seen:
            continue  # the same picture in another file
        seen.add(key)
        for side in (768, 336, 97):
            for aspect in ("pad", "square"):
                if aspect == "square" and max(theirs.size) > 20 * min(theirs.size):
                    continue  # Pillow would allocate gigabytes: test_long_pictures has these
                ours = probe.image("canvas", aspect, side, path)
                if difference := differs(ours, canvas(theirs, aspect, side)):
                    problems.append(f"{path} {theirs.size} {aspect} {side}: {difference}")
                compared += 1
    print(f"{compared} canvases of {len(seen)} different pictures")
    assert not problems, "\n".join(problems)
    assert len(seen) >= 500


def test_canvas_equals_clip_image_processor(probe, pictures, tmp_path):
    from transformers import CLIPImageProcessor

    answer = probe.line("table")
    table = np.frombuffer(probe.process.stdout.read(4 * int(answer.split()[1])), np.float32)
    table = table.reshape(3, 256)
    for side in (768, 336):
        processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side)
        chosen = [p for p in pictures if kind_of(p) == "JPEG"]
        for path in random.Random(side).sample(chosen, 20):
            theirs, _ = pillow(path)
            if isinstance(theirs, Exception) or path.name in REFUSED or min(theirs.size) < 2:
                continue  # it takes a side of one pixel for the channels
            for aspect in ("pad", "square"):
                image = expand(theirs) if aspect == "pad" else theirs
                expected = processor(image, return_tensors="np")["pixel_values"][0]
                ours = probe.image("canvas", aspect, side, path)
                normalised = np.stack([table[c][ours[:, :, c]] for c in range(3)])
                assert normalised.dtype == expected.dtype
                assert np.array_equal(normalised, expected), f"{path} {aspect} {side}"


def test_normalisation_table(probe):
    from transformers import CLIPImageProcessor

    answer = probe.line("table")
    table = np.frombuffer(probe.process.stdout.read(4 * int(answer.split()[1])), np.float32)
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (4, 1, 3))
    expected = CLIPImageProcessor()(ramp, do_resize=False, do_center_crop=False, return_tensors="np",
                                    input_data_format="channels_last")["pixel_values"][0]
    assert np.array_equal(table.reshape(3, 256), expected[:, 0])


def test_random_sizes(probe, tmp_path):
    """Sides of 1, 2, 3, primes; also resizes that turn the order of the passes."""
    rng = random.Random(5)
    sides = [1, 2, 3, 5, 7, 13, 31, 97, 200, 333, 511, 768, 997, 1500]
    for i in range(120):
        size = rng.choice(sides), rng.choice(sides)
        pixels = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        if i % 3 == 0:
            pixels = (pixels > 127).astype(np.uint8) * 255  # overshoot on both ends
        image = Image.fromarray(pixels)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        path = write(tmp_path, buffer.getvalue())
        target = rng.choice(sides), rng.choice(sides)
        ours = probe.image("resize", *target, path)
        difference = differs(ours, image.resize(target, Image.BICUBIC))
        assert not difference, f"{size} to {target}: {difference}"
        side = rng.choice([1, 2, 37, 101, 336])
        ours = probe.image("canvas", "pad", side, path)
        difference = differs(ours, canvas(image, "pad", side))
        assert not difference, f"{size} padded to {side}: {difference}"


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 4001)])
def test_long_pictures(probe, tmp_path, size):
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    path = write(tmp_path, buffer.getvalue())
    assert not differs(probe.image("canvas", "pad", 768, path), canvas(image, "pad", 768))
    assert not differs(probe.image("canvas", "square", 16, path), canvas(image, "square", 16))
    # At 768 Pillow would fill 9 GB, so only the part that the crop keeps is computed there.
    assert probe.image("canvas", "square", 768, path).shape == (768, 768, 3)


def encodings(image, rng):
    """The picture written in many ways: (name, bytes)."""
    grey = image.convert("L")
    alpha = Image.fromarray(np.asarray(grey)[:, ::-1].copy())
    rgba = image.copy()
    rgba.putalpha(alpha)
    palette = image.quantize(rng.choice([2, 3, 16, 250]))
    jobs = [(f"jpeg q{q} subsampling {s} progressive {p}", image,
             dict(format="JPEG", quality=q, subsampling=s, progressive=p))
            for q, s in ((30, 2), (75, 0), (90, 1), (95, 2)) for p in (False, True)]
    jobs += [("jpeg grey", grey, dict(format="JPEG")),
             ("jpeg cmyk", image.convert("CMYK"), dict(format="JPEG", quality=90)),
             ("jpeg restart", image, dict(format="JPEG", restart_marker_rows=1)),
             ("webp lossy", image, dict(format="WEBP", quality=rng.choice([10, 60, 95]))),
             ("webp lossy alpha", rgba, dict(format="WEBP", quality=70)),
             ("webp lossless alpha", rgba, dict(format="WEBP", lossless=True)),
             ("webp exact", rgba, dict(format="WEBP", lossless=True, exact=True)),
             ("webp animation", rgba, dict(format="WEBP", save_all=True, append_images=[image])),
             ("png 1", image.convert("1"), dict(format="PNG")),
             ("png L", grey, dict(format="PNG")),
             ("png LA", rgba.convert("LA"), dict(format="PNG")),
             ("png RGBA", rgba, dict(format="PNG")),
             ("png P", palette, dict(format="PNG")),
             ("png P tRNS", palette, dict(format="PNG", transparency=bytes([0, 128]))),
             ("png I;16", Image.fromarray(np.asarray(grey).astype(np.uint16) * 3), dict(format="PNG")),
             ("gif", palette, dict(format="GIF")),
             ("gif transparent", palette, dict(format="GIF", transparency=1)),
             ("gif animation", palette,
              dict(format="GIF", save_all=True, append_images=[palette.rotate(90)]))]
    for name, picture, options in jobs:
        buffer = io.BytesIO()
        picture.save(buffer, **options)
        yield name, buffer.getvalue()


@pytest.fixture(scope="module")
def sample(pictures):
    """A few dozen decoded pictures of all kinds, 16 to 700 pixels."""
    chosen = []
    for path in random.Random(3).sample(pictures, len(pictures)):
        theirs, _ = pillow(path)
        if not isinstance(theirs, Exception) and 16 <= min(theirs.size) and max(theirs.size) <= 700:
            chosen.append(Image.fromarray(np.asarray(theirs)))  # without metadata
        if len(chosen) == 40:
            return chosen
    raise AssertionError("too few pictures: run scripts/fetch_test_images.sh")


def test_encodings_equal_pillow(probe, sample, tmp_path):
    problems, compared, rng = [], 0, random.Random(4)
    for image in sample:
        for name, data in encodings(image, rng):
            theirs, info = pillow(io.BytesIO(data))
            path = write(tmp_path, data)
            if difference := differs(probe.image("decode", path), theirs):
                problems.append(f"{image.size} {name}: {difference}")
            told = probe.line("info", path).split(" ", 4)
            if told[2:] != [str(v) for v in info]:
                problems.append(f"{image.size} {name}: header {told} instead of {info}")
            path.unlink()
            compared += 1
    print(f"{compared} encodings")
    assert not problems, "\n".join(problems)


def test_cut_pictures(probe, sample, tmp_path):
    """Where Pillow refuses a cut file, so do we; where it does not, we refuse or agree."""
    rng, counts = random.Random(6), collections.Counter()
    for image in sample[:12]:
        for name, data in encodings(image, rng):
            for _ in range(4):
                cut = data[:rng.randrange(4, len(data))]
                theirs, _ = pillow(io.BytesIO(cut))
                path = write(tmp_path, cut)
                ours = probe.image("decode", path)
                path.unlink()
                if isinstance(theirs, Exception):
                    assert isinstance(ours, str), f"{name}, {len(cut)} of {len(data)}: {theirs}"
                    counts["refused by both"] += 1
                elif isinstance(ours, str):
                    counts["refused by us"] += 1
                else:
                    assert not differs(ours, theirs), f"{name}, {len(cut)} of {len(data)}"
                    counts["equal"] += 1
    print(dict(counts))
    assert counts["refused by both"] > 500


def test_damaged_pictures(probe, sample, tmp_path):
    """Random bytes: no crash, and where both accept the file the pixels are equal."""
    rng, counts = random.Random(7), collections.Counter()
    for image in sample[:12]:
        for name, data in encodings(image, rng):
            for _ in range(4):
                damaged = bytearray(data)
                for _ in range(rng.choice([1, 1, 3])):
                    damaged[rng.randrange(8, len(data))] = rng.randrange(256)
                theirs, _ = pillow(io.BytesIO(damaged))
                path = write(tmp_path, bytes(damaged))
                ours = probe.image("decode", path)
                path.unlink()
                if isinstance(theirs, Exception) or isinstance(ours, str):
                    counts[f"Pillow {'refuses' if isinstance(theirs, Exception) else 'accepts'}, "
                           f"we {'refuse' if isinstance(ours, str) else 'accept'}"] += 1
                else:
                    assert not differs(ours, theirs), name
                    counts["equal"] += 1
    print(dict(counts))
    assert counts["equal"] > 100


def test_other_formats_are_refused_by_name(probe, files):
    others = [p for p in files if p.suffix in (".bmp", ".tif", ".tiff", ".ppm") and not kind_of(p)]
    assert len(others) > 50
    for path in others:
        ours = probe.image("decode", path)
        assert isinstance(ours, str) and "JPEG, PNG, WebP, GIF" in ours and str(path) in ours
