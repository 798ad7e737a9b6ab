#!/usr/bin/env python3
"""Builds data/embedded, the small data set that comes with mgm, from data/embedded_manifest.yaml.

    data/build_embedded.py                   everything
    data/build_embedded.py --no-pictures     captions, questions and tokenizer only; needs no package
    data/build_embedded.py --check           builds elsewhere and compares with data/embedded (exit 1)
    data/build_embedded.py --sheet F.png     a contact sheet of all pictures with what is said of them

Needs the packages of tests/requirements.txt; for pictures also rsvg-convert (Debian librsvg2-bin) and
apt-get, which downloads the pinned packages (47 MB, kept in --cache). The same versions of Pillow,
sentencepiece and librsvg (RENDERER) give the same bytes; pictures are not compared under other versions.
"""

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import PIL
import sentencepiece
import yaml
from PIL import Image, ImageDraw

import embedded_pictures
import embedded_text

DATA = Path(__file__).resolve().parent
RENDERER = {"librsvg": "2.54.7", "pillow": "13.0.0"}
TOKENIZER = "0.2.3"  # sentencepiece
LIMIT_BYTES = 2_000_000


def read_manifest():
    """(pictures, packages, text) with the defaults of the manifest filled in."""
    manifest = yaml.safe_load((DATA / "embedded_manifest.yaml").read_text(encoding="utf-8"))
    defaults = {
        "drawings": {"kind": "drawing", "from": "openclipart"},
        "flags": {"kind": "flag", "from": "flags", "format": "png"},
        "photos": {"kind": "photo", "from": "skimage", "format": "jpeg"},
    }
    pictures = [
        {"split": "train", **default, **row}
        for section, default in defaults.items()
        for row in manifest[section]
    ]
    plurals = {p["noun"] for p in pictures if p.get("is") == "are"}
    for p in pictures:
        p["image"] = f"{p['id']}.{embedded_pictures.EXTENSIONS[p['format']]}"
        p["plurals"] = plurals
    ids = [p["id"] for p in pictures]
    if len(set(ids)) != len(ids):
        raise SystemExit(f"embedded_manifest.yaml: double ids {sorted({i for i in ids if ids.count(i) > 1})}")
    return pictures, manifest["packages"], manifest["text"]


def build_text(pictures, text, out):
    files = embedded_text.build_records(pictures, text)
    (out / "tokenizer").mkdir(parents=True, exist_ok=True)
    for name, records in files.items():
        (out / name).write_text(embedded_text.dump(records), encoding="utf-8")
    for name, content in embedded_text.tokenizer_files(files).items():
        (out / "tokenizer" / name).write_bytes(content)


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def compare(built, pictures_built):
    """Prints every difference between `built` and data/embedded; returns their number."""
    new, old = digests(built), digests(DATA / "embedded")
    if not pictures_built:
        old = {n: d for n, d in old.items() if not n.startswith("images/") and n != "LICENSES.md"}
    if sentencepiece.__version__ != TOKENIZER:
        print(f"tokenizer not compared: sentencepiece {sentencepiece.__version__}, not {TOKENIZER}")
        new.pop("tokenizer/tokenizer.model"), old.pop("tokenizer/tokenizer.model", None)
    wrong = [f"{n}: missing in data/embedded" for n in sorted(new.keys() - old.keys())]
    wrong += [f"{n}: not built from the manifest" for n in sorted(old.keys() - new.keys())]
    wrong += [f"{n}: differs" for n in sorted(new.keys() & old.keys()) if new[n] != old[n]]
    for line in wrong:
        print(line)
    print(f"{len(new)} files built, {len(wrong)} differences")
    return len(wrong)


def contact_sheet(pictures, path, columns=9, cell=170):
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * (cell + 34)), "#bbb")
    pen = ImageDraw.Draw(sheet)
    for i, p in enumerate(pictures):
        x, y = i % columns * cell, i // columns * (cell + 34)
        with Image.open(DATA / "embedded/images" / p["image"]) as image:
            small = image.convert("RGB")
        small.thumbnail((cell - 4, cell - 4))
        sheet.paste(small, (x + 2, y + 2))
        said = [p.get("noun", p.get("country")), p.get("colour", "-"), p.get("category", "-")]
        pen.text((x + 2, y + cell), f"{p['image']} {p['split'][:4]}", fill="black")
        pen.text((x + 2, y + cell + 15), ", ".join(said), fill="darkred")
    sheet.save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--no-pictures", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "mgm_embedded_packages")
    args = parser.parse_args()
    pictures, packages, text = read_manifest()
    if args.sheet:
        contact_sheet(pictures, args.sheet)
        return 0
    with_pictures = not args.no_pictures
    if with_pictures:
        found = {"librsvg": embedded_pictures.rsvg_version(), "pillow": PIL.__version__}
        if found != RENDERER:
            print(f"renderer {found}, the set was drawn with {RENDERER}: bytes will differ")
            if args.check:
                return 2
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) if args.check else DATA / "embedded"
        if with_pictures:
            embedded_pictures.build(pictures, packages, out, args.cache)
        build_text(pictures, text, out)
        if args.check:
            return 1 if compare(out, with_pictures) else 0
    total = sum(p.stat().st_size for p in (DATA / "embedded").rglob("*") if p.is_file())
    print(f"{len(pictures)} pictures, {total:,} bytes in {DATA / 'embedded'}")
    if total > LIMIT_BYTES:
        print(f"more than {LIMIT_BYTES:,} bytes")
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except embedded_pictures.BuildError as error:
        sys.exit(f"build_embedded: {error}")
