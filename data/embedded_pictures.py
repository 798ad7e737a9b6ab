"""Pictures of data/embedded: fetched as pinned Debian packages, rendered, written in several formats.

Every licence is checked before a picture is used: an SVG of openclipart must carry a public-domain tag in
its own metadata, a photo's docstring in scikit-image must contain the words quoted in the manifest.
"""

import hashlib
import io
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from PIL import Image, ImageChops

SIZE = 512  # side of a drawing's canvas, pixels
PHOTO_SIZE = 400  # longer side of a photo, pixels
MARGIN = 16  # white border around a drawing, pixels
FLAG_SIZE = (384, 288)
PUBLIC_DOMAIN = {
    "http://web.resource.org/cc/PublicDomain",
    "http://creativecommons.org/licenses/publicdomain/",
}
EXTENSIONS = {
    "png": "png",
    "rgb": "png",
    "jpeg": "jpg",
    "progressive": "jpg",
    "grey": "jpg",
    "webp": "webp",
    "gif": "gif",
}


class BuildError(Exception):
    """A source or a picture is not what the manifest says."""


def rsvg_version():
    out = subprocess.run(["rsvg-convert", "--version"], capture_output=True, text=True, check=True)
    return out.stdout.split()[2]


def fetch(packages, folder):
    """Downloads and unpacks the pinned packages below `folder`; returns {source name: its root}."""
    roots = {}
    for name, package in packages.items():
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        if not list(target.glob("*.deb")):
            spec = f"{package['package']}={package['version']}"
            run = subprocess.run(
                ["apt-get", "download", spec], cwd=target, capture_output=True, text=True, check=False
            )
            if run.returncode != 0:
                raise BuildError(f"apt-get download {spec} failed: {run.stderr.strip()}")
        (deb,) = target.glob("*.deb")
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        if digest != package["sha256"]:
            raise BuildError(f"{deb.name}: sha256 {digest}, the manifest says {package['sha256']}")
        subprocess.run(["dpkg-deb", "-x", deb, target / "root"], check=True)
        roots[name] = target / "root" / package["root"]
    return roots


def svg_metadata(path):
    """(licence URLs, author) out of an SVG's RDF metadata."""
    licences, author = set(), ""
    for element in ElementTree.parse(path).iter():
        tag = element.tag.rsplit("}", 1)[-1] if isinstance(element.tag, str) else ""
        if tag == "license":
            licences |= {v for k, v in element.attrib.items() if k.endswith("}resource")}
        elif tag == "creator" and not author:
            author = " ".join("".join(element.itertext()).split())
    return licences, author


def licence_of(picture, path):
    """(licence, author) of a picture; BuildError if its own evidence does not say free."""
    if picture["from"] == "openclipart":
        licences, author = svg_metadata(path)
        if not licences or not licences <= PUBLIC_DOMAIN:
            raise BuildError(f"{path}: licence {sorted(licences)} is not public domain")
        return "Public domain", author or "not named"
    if picture["from"] == "skimage":
        text = (path.parent / "_fetchers.py").read_text(encoding="utf-8")
        if picture["quote"] not in text:
            raise BuildError(f"{path}: _fetchers.py does not say '{picture['quote']}'")
        return picture["licence"], picture["author"]
    return "Public domain", "not named"


def rasterise(path, width, height):
    command = ["rsvg-convert", "-w", str(width), "-h", str(height), "-a", "-b", "white", str(path)]
    run = subprocess.run(command, capture_output=True, check=False)
    if run.returncode != 0 or not run.stdout:
        raise BuildError(f"{path}: rsvg-convert failed: {run.stderr.decode().strip()}")
    return Image.open(io.BytesIO(run.stdout)).convert("RGB")


def content_box(image):
    difference = ImageChops.difference(image, Image.new("RGB", image.size, "white")).convert("L")
    box = difference.point(lambda v: 255 * (v > 8)).getbbox()
    if box is None:
        raise BuildError("an empty picture")
    return box


def draw_svg(path):
    """The drawing without its empty page, as large as the canvas allows, centred on white."""
    inner = SIZE - 2 * MARGIN
    left, top, right, bottom = content_box(rasterise(path, SIZE, SIZE))
    scale = min(4096, SIZE * inner // max(right - left, bottom - top))
    image = rasterise(path, scale, scale)
    image = image.crop(content_box(image))
    image.thumbnail((inner, inner), Image.LANCZOS)
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    canvas.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return canvas


def load(picture, path):
    if picture["from"] == "skimage":
        with Image.open(path) as photo:
            image = photo.convert("RGB")
        image.thumbnail((PHOTO_SIZE, PHOTO_SIZE), Image.LANCZOS)
        return image
    if picture["from"] == "flags":
        return rasterise(path, *FLAG_SIZE)
    return draw_svg(path)


def save(image, path, kind):
    if kind == "png":
        image.quantize(64, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)
    elif kind == "gif":
        image.quantize(32, dither=Image.Dither.NONE).save(path, format="GIF")
    elif kind == "rgb":
        image.save(path, format="PNG", optimize=True)
    elif kind == "webp":
        image.save(path, format="WEBP", quality=80, method=6)
    else:
        grey = image.convert("L") if kind == "grey" else image
        grey.save(path, format="JPEG", quality=85, optimize=True, progressive=kind == "progressive")


def licence_page(pictures, packages, found):
    lines = [
        "# Licences of the pictures",
        "",
        "Every picture here is in the public domain or CC0. This page is written by "
        "`data/build_embedded.py`, which",
        "checks each picture's own evidence before it uses it. The questions, answers and captions are",
        "the project's own, under its licence.",
        "",
        "| source | Debian package | sha256 of the package | evidence |",
        "|---|---|---|---|",
    ]
    for name, package in packages.items():
        evidence = package["evidence"].replace("|", "\\|")
        pin = f"{package['package']} {package['version']}"
        lines.append(f"| {name} | {pin} | `{package['sha256']}` | {evidence} |")
    lines += ["", "| picture | source | file in the package | author | licence |", "|---|---|---|---|---|"]
    for picture in pictures:
        licence, author = found[picture["id"]]
        author = re.sub(r"[|\n]", " ", author)
        source = picture["from"]
        path = f"{packages[source]['root']}/{picture['path']}"
        lines.append(f"| {picture['image']} | {source} | {path} | {author} | {licence} |")
    return "\n".join(lines) + "\n"


def build(pictures, packages, out, cache):
    """Writes out/images/* and out/LICENSES.md."""
    roots = fetch(packages, cache)
    (out / "images").mkdir(parents=True, exist_ok=True)
    found = {}
    for picture in pictures:
        path = Path(roots[picture["from"]]) / picture["path"]
        found[picture["id"]] = licence_of(picture, path)
        save(load(picture, path), out / "images" / picture["image"], picture["format"])
    page = licence_page(pictures, packages, found)
    (out / "LICENSES.md").write_text(page, encoding="utf-8")
