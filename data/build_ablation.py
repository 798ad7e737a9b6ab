#!/usr/bin/env python3
"""Builds the data of the HR ablation: scenes with an object, a number and dots; framed words in document crops; places
on maps; captions of drawings. Everything that is graded comes in four sizes. Mosaics of many things are for training.

    data/build_ablation.py --out DIR              all of it
    data/build_ablation.py --out DIR --share 0.01 a small one, to look at
    data/build_ablation.py --sheet F.png          one picture of every task and size

Writes DIR/pretrain.json (lists of what mosaics and scenes show, stage 0), align.json (the same and captions of drawings,
stage 1), train.json and heldout.json (questions, stage 2; a held-out record is one question and also has "task", "size"
and, of scenes, "boxes" around what it asks about), images/, and licences.csv with the package, file and licence behind
every picture. What is held out: photographs behind scenes, manuals, countries, titles of drawings, and some drawings of
known titles. The same seed gives the same bytes under the same Pillow, librsvg and poppler; the hash of all is printed.

Needs the packages of tests/requirements.txt, rsvg-convert, pdftoppm and pdftotext (Debian librsvg2-bin, poppler-utils),
fonts-dejavu-core, and apt-get, which downloads the pinned packages (kept in --cache, 270 MB).
"""

import argparse
import collections
import csv
import hashlib
import json
import math
import random
import sys
import tempfile
from pathlib import Path

import yaml
from PIL import Image

import ablation_captions
import ablation_documents
import ablation_maps
import ablation_scenes
import embedded_pictures
from ablation_scenes import Picture, Turn

DATA = Path(__file__).resolve().parent
# Pictures of scenes and mosaics; questions of every size of documents and maps, at least.
COUNTS = {"train": {"scenes": 16384, "mosaics": 32000, "documents": 500, "maps": 300},
          "heldout": {"scenes": 384, "documents": 100, "maps": 100}}
PHOTO_SIDE = 400  # of photographs behind things, which are softened; pixels
NEW_TITLES = 0.1  # share of the drawings' titles that are held out
KNOWN_TITLES = 0.35  # share of the other titles with several drawings of which one is held out
HELDOUT_COUNTRIES = 0.2
ASKED = 3  # one mosaic in so many is asked about in stage 2, which is about scenes; all are listed in stages 0 and 1
MOST_TURNS = 4  # of a record of stage 2
CAPTION_QUESTION = "What does the picture show?"
LIST_QUESTION = "What is in the picture, row by row?"


def draw_of(*key):
    """A number in [0, 1) that depends on the words of `key` alone."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, key)).encode()).digest()[:8], "big") / 2**64


def photo(path):
    with Image.open(path) as source:
        image = source.convert("RGB")
    image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    return image


class Writer:
    """Pictures, records and licences, counted up."""

    def __init__(self, out, packages):
        self.out, self.packages = out, packages
        self.licences = []
        self.records = {"pretrain": [], "align": [], "train": [], "heldout": []}

    def picture(self, name, picture):
        """Saves it as images/NAME.webp."""
        path = self.out / "images" / f"{name}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.image.save(path, format="WEBP", quality=70, method=4)
        sources = [(self.packages[source], path) for source, path in picture.sources]
        said = [f"{package['package']} {package['version']}: {path}" for package, path in sources]
        self.licences.append([f"{name}.webp", "; ".join(said), "; ".join(sorted({p["licence"] for p, _ in sources}))])

    def train(self, name, picture, rng, first=()):
        """A record of the questions in random order, of many some, behind those of `first`."""
        turns = [*first, *rng.sample(picture.turns, min(MOST_TURNS - len(first), len(picture.turns)))]
        self.records["train"].append(record(name, name, [(turn.question, turn.answer) for turn in turns]))

    def caption(self, split, name, picture):
        self.records[split].append(record(name, name, [("", picture.caption)]))

    def listed(self, name, picture):
        """What stages 0 and 1 list."""
        for split in ("pretrain", "align"):
            self.caption(split, name, picture)

    def heldout(self, name, picture):
        """A record of every question."""
        for i, turn in enumerate(picture.turns):
            more = {"boxes": [list(box) for box in turn.boxes]} if turn.boxes else {}
            self.records["heldout"].append(
                record(f"{name}_{i}", name, [(turn.question, turn.answer)], task=turn.task, size=turn.size, **more))

    def add(self, split, name, picture, rng):
        self.picture(name, picture)
        if split == "train":
            self.train(name, picture, rng)
        else:
            self.heldout(name, picture)

    def close(self):
        for name, records in self.records.items():
            text = json.dumps(records, indent=0, ensure_ascii=False)
            (self.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        with open(self.out / "licences.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([["picture", "sources", "licences"], *sorted(self.licences)])


def record(identity, name, pairs, **more):
    turns = []
    for i, (question, answer) in enumerate(pairs):
        marker = "" if i else "<image>\n" if question else "<image>"
        turns += [{"from": "human", "value": marker + question}, {"from": "gpt", "value": answer}]
    return {"id": identity, "image": f"{name}.webp", **more, "conversations": turns}


class Sources:
    """The unpacked packages, opened."""

    def __init__(self, manifest, roots, folder):
        self.manifest, self.roots, self.folder = manifest, roots, folder
        self.cutouts = {label: ablation_captions.cutout(roots["stamps"] / path) for label, path in manifest["objects"].items()}
        for cutout in self.cutouts.values():
            cutout.thumbnail((ablation_scenes.SIDE, ablation_scenes.SIDE))

    def backgrounds(self, split):
        return {name: photo(self.roots["backgrounds"] / name) for name in self.manifest["backgrounds"][split]}

    def documents(self, split):
        return {(source, name): ablation_documents.Document(self.roots[source] / name, self.folder)
                for source, name in self.manifest["documents"][split]}

    def maps(self, split):
        """{size: {map: its regions, two or more}}"""
        found = {size: {} for size in ablation_maps.SIZES}
        for kgm in sorted(self.roots["maps"].glob("*.kgm")):
            held_out = draw_of("country", ablation_maps.country(kgm.stem)) < HELDOUT_COUNTRIES
            if kgm.stem in self.manifest["not_maps"] or held_out != (split == "heldout"):
                continue
            by_size = collections.defaultdict(list)
            for region in ablation_maps.regions(self.roots["maps"], kgm.stem):
                by_size[region.size].append(region)
            for size, regions in by_size.items():
                if len(regions) > 1:
                    found[size][kgm.stem] = regions
        return found


def scenes(writer, split, count, sources, seed):
    backgrounds = sources.backgrounds(split)
    for i in range(count):
        rng = random.Random(f"{seed} {split} scene {i}")
        # Every size equally often, in every combination.
        sizes = {task: values[i // 4**k % 4] for k, (task, values) in enumerate(ablation_scenes.SIZES.items())}
        picture = with_files(ablation_scenes.scene(rng, sizes, backgrounds, sources.cutouts), sources)
        name = f"{split}/scene_{i:05}"
        writer.add(split, name, picture, rng)
        if split == "train":
            writer.listed(name, picture)


def mosaics(writer, split, count, sources, seed):
    backgrounds = sources.backgrounds(split)
    for i in range(count):
        rng = random.Random(f"{seed} {split} mosaic {i}")
        grid = ablation_scenes.GRIDS[i % len(ablation_scenes.GRIDS)]
        picture = with_files(ablation_scenes.mosaic(rng, grid, backgrounds, sources.cutouts), sources)
        name = f"{split}/mosaic_{i:05}"
        writer.picture(name, picture)
        writer.listed(name, picture)
        if i // len(ablation_scenes.GRIDS) % ASKED == 0:
            # A list ties more of what is seen to words of the language model than a single cell does.
            writer.train(name, picture, rng, [Turn("mosaic", 0, LIST_QUESTION, picture.caption)] if grid > 1 else [])


def with_files(picture, sources):
    """Of a stamp the source is its file."""
    picture.sources = [(source, sources.manifest["objects"].get(key, key)) for source, key in picture.sources]
    return picture


def until(writer, split, name, count, seed, make):
    """Pictures of make(rng) (None: try another) until they ask `count` questions."""
    asked = i = 0
    for attempt in range(20 * count):
        if asked >= count:
            return
        rng = random.Random(f"{seed} {split} {name} {attempt}")
        picture = make(rng)
        if picture:
            writer.add(split, f"{split}/{name}_{i:04}", picture, rng)
            asked += len(picture.turns)
            i += 1
    raise embedded_pictures.BuildError(f"{split} {name}: only {asked} questions of {count}")


def documents(writer, split, count, sources, seed):
    opened = sources.documents(split)
    for size in ablation_documents.SIZES:
        until(writer, split, f"document_{size:02}", count, seed,
              lambda rng, size=size: ablation_documents.document_crop(rng, size, opened))


def maps(writer, split, count, sources, seed):
    found = sources.maps(split)
    for size in ablation_maps.SIZES:
        until(writer, split, f"map_{size:02}", count, seed,
              lambda rng, size=size: ablation_maps.map_question(rng, size, sources.roots["maps"], found[size]))


MAKERS = {"scenes": scenes, "mosaics": mosaics, "documents": documents, "maps": maps}


def caption_group(drawing, labels, chosen, objects):
    """"train", or the group of held-out captions a drawing belongs to: "new title", or "known title" for one drawing of
    some titles that others share. Stamps that scenes show are never held out."""
    if drawing.source == "stamps" and str(drawing.path) in objects:
        return "train"
    if draw_of("title", drawing.label) < NEW_TITLES:
        return "new title"
    known = labels[drawing.label] > 1 and draw_of("known", drawing.label) < KNOWN_TITLES
    return "known title" if known and chosen[drawing.label] is drawing else "train"


def captions(writer, share, sources, seed):
    """Drawings that cannot be drawn and those that are the same as an earlier one are left out."""
    objects = set(sources.manifest["objects"].values())
    drawings = ablation_captions.all_drawings(sources.roots)
    drawings = [drawing for drawing in drawings if draw_of("drawing", drawing.label) < share]
    kept, seen = [], set()
    for drawing in drawings:
        content = hashlib.sha256(drawing.file.read_bytes()).digest()
        if content in seen:
            continue
        seen.add(content)
        try:
            image = drawing.picture(seed)
        except embedded_pictures.BuildError:
            continue
        drawn = hashlib.sha256(image.tobytes()).digest()
        if drawn in seen:
            continue
        seen.add(drawn)
        name = f"captions/{len(kept):05}"
        kept.append((drawing, name))
        writer.picture(name, Picture(image, [], [(drawing.source, drawing.path)]))
    labels = collections.Counter(drawing.label for drawing, _ in kept)
    # The held-out one of a title: any but the stamps of the scenes.
    chosen = {d.label: d for d, _ in kept if not (d.source == "stamps" and str(d.path) in objects)}
    for drawing, name in kept:
        group = caption_group(drawing, labels, chosen, objects)
        picture = Picture(None, [Turn("captions", group, CAPTION_QUESTION, drawing.caption)], caption=drawing.caption)
        if group == "train":
            writer.train(name, picture, random.Random(0))
            writer.caption("align", name, picture)
        else:
            writer.heldout(name, picture)


def contact_sheet(path, sources):
    """One picture of every task and size of the training data; scenes have a row for their three tasks."""
    rng = random.Random(0)
    backgrounds, opened, found = sources.backgrounds("train"), sources.documents("train"), sources.maps("train")
    rows = [[], [], [], []]
    for k in range(4):
        sizes = {task: values[k] for task, values in ablation_scenes.SIZES.items()}
        rows[0].append(ablation_scenes.scene(rng, sizes, backgrounds, sources.cutouts))
        rows[3].append(ablation_scenes.mosaic(rng, ablation_scenes.GRIDS[k], backgrounds, sources.cutouts))
        crop = None
        while crop is None:
            crop = ablation_documents.document_crop(rng, ablation_documents.SIZES[k], opened)
        rows[1].append(crop)
        size = ablation_maps.SIZES[k]
        rows[2].append(ablation_maps.map_question(rng, size, sources.roots["maps"], found[size]))
    side = ablation_scenes.SIDE
    sheet = Image.new("RGB", (4 * side, len(rows) * side))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture.image, (x * side, y * side))
            print(f"row {y + 1}, column {x + 1}:", *(f"{turn.question} {turn.answer}" for turn in picture.turns))
    sheet.save(path)


def digest(folder):
    """SHA-256 over the names and contents of all files."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def build(out, sources, seed, share=1.0):
    """Writes everything; `share` of the numbers above. Returns {file: records}."""
    writer = Writer(out, sources.manifest["packages"])
    for split, counts in COUNTS.items():
        for name, count in counts.items():
            MAKERS[name](writer, split, math.ceil(share * count), sources, seed)
    captions(writer, share, sources, seed)
    for name, records in writer.records.items():
        random.Random(f"{seed} {name}").shuffle(records)
    writer.close()
    return writer.records


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path)
    what.add_argument("--sheet", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of all pictures")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "mgm_ablation_packages")
    args = parser.parse_args()
    if args.out and args.out.exists() and any(args.out.iterdir()):
        raise SystemExit(f"{args.out} is not empty: what lies there would be taken for data")
    manifest = yaml.safe_load((DATA / "ablation_manifest.yaml").read_text(encoding="utf-8"))
    roots = {name: Path(root) for name, root in embedded_pictures.fetch(manifest["packages"], args.cache).items()}
    with tempfile.TemporaryDirectory() as folder:
        sources = Sources(manifest, roots, Path(folder))
        if args.sheet:
            contact_sheet(args.sheet, sources)
            return
        records = build(args.out, sources, args.seed, args.share)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: " + ", ".join(f"{name} {len(of)}" for name, of in records.items()) + f" records, {size / 1e6:.0f} MB")
    print(f"sha256 {digest(args.out)}")


if __name__ == "__main__":
    try:
        main()
    except embedded_pictures.BuildError as error:
        sys.exit(f"build_ablation: {error}")
