#!/usr/bin/env python3
"""Builds the data of the HR ablation: scenes with an object, a number and dots; framed words in document crops; places
on maps; captions of drawings, photographs and figures; questions without a picture. Everything that is graded comes in four
sizes. Mosaics of many things are for training.

    data/build_ablation.py --out DIR              all of it
    data/build_ablation.py --out DIR --share 0.01 a small one, to look at
    data/build_ablation.py --sheet F.png          one picture of every task and size

Writes DIR/pretrain.json (lists of what pictures show, stage 0), align.json (some of the lists and captions, stage 1),
train.json and heldout.json (questions, stage 2; a held-out record is one question and also has "task", "size" and, of
scenes, "boxes" around what it asks about), images/, licences.csv with the package, file and licence behind every picture,
and text_licences.csv with those behind the records without one. What is held out: photographs behind scenes, some things,
manuals, countries, captions, and some pictures of known captions. The same seed gives the same bytes under the same Pillow,
librsvg and poppler; the hash of all is printed.

Needs the packages of tests/requirements.txt, rsvg-convert, pdftoppm and pdftotext (Debian librsvg2-bin, poppler-utils),
fonts-dejavu-core, and apt-get, which downloads the pinned packages (kept in --cache, 750 MB).
"""

import argparse
import collections
import concurrent.futures
import hashlib
import itertools
import math
import os
import random
import sys
import tempfile
from pathlib import Path

import yaml
from PIL import Image

import ablation_captions
import ablation_documents
import ablation_figures
import ablation_licences
import ablation_maps
import ablation_scenes
import ablation_texts
import embedded_pictures
import qt_resources
from ablation_scenes import Picture, Turn
from ablation_writer import Writer

DATA = Path(__file__).resolve().parent
# Pictures of scenes and mosaics; questions of every size of documents and maps, at least.
COUNTS = {"train": {"scenes": 8192, "mosaics": 20480, "documents": 3600, "maps": 2500},
          "heldout": {"scenes": 384, "new_objects": 192, "documents": 160, "maps": 150}}
TEXT_SHARE = 0.1  # of stage 2's records: those of text alone
PHOTO_SIDE = 400  # of photographs behind things, which are softened; pixels
NEW_TITLES = 0.1  # share of the drawings' titles that are held out
KNOWN_TITLES = 0.35  # share of the other titles with several drawings of which one is held out
HELDOUT_COUNTRIES = 0.2
ASKED = 3  # one mosaic in so many is asked about in stage 2, which is about scenes; all are listed in stages 0 and 1
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


class Sources:
    """The unpacked packages, opened. `texts`: {package of the manifest: its debian/copyright}"""

    def __init__(self, manifest, roots, folder, texts):
        self.manifest, self.roots, self.folder = manifest, dict(roots), folder
        archives = self.roots["gcompris"]
        for activity in ablation_figures.ACTIVITIES:
            qt_resources.unpack(archives / f"{activity}.rcc", folder)
        self.roots["gcompris"] = folder / "gcompris"
        self.licences = ablation_licences.Licences(manifest["packages"], texts, self.roots)
        self.cutouts, self.new_cutouts = ({label: self.cutout(path) for label, path in manifest[of].items()}
                                          for of in ("objects", "new_objects"))
        self.files = {**manifest["objects"], **manifest["new_objects"]}

    def cutout(self, path):
        cutout = ablation_captions.cutout(self.roots["stamps"] / path)
        cutout.thumbnail((ablation_scenes.SIDE, ablation_scenes.SIDE))
        return cutout

    def backgrounds(self, split):
        return {name: photo(self.roots["backgrounds"] / name) for name in self.manifest["backgrounds"][split]}

    def documents(self, split):
        return {(source, name): ablation_documents.Document(self.roots[source] / name, self.folder, self.manifest["words"])
                for source, name in self.manifest["documents"][split]}

    def map_names(self, split):
        """Maps of the countries of that split."""
        names = (kgm.stem for kgm in sorted(self.roots["maps"].glob("*.kgm")) if kgm.stem not in self.manifest["not_maps"])
        return [name for name in names if (draw_of("country", ablation_maps.country(name)) < HELDOUT_COUNTRIES) == (split == "heldout")]

    def maps(self, split):
        return {name: ablation_maps.Map(self.roots["maps"], name) for name in self.map_names(split)}


def scene_sizes(i):
    """Of the i-th scene, by task: every size equally often, in every combination."""
    return {task: values[i // 4**k % 4] for k, (task, values) in enumerate(ablation_scenes.SIZES.items())}


def scenes(writer, split, count, sources, seed):
    backgrounds = sources.backgrounds(split)
    for i in range(count):
        rng = random.Random(f"{seed} {split} scene {i}")
        picture = with_files(ablation_scenes.scene(rng, scene_sizes(i), backgrounds, sources.cutouts), sources)
        add(writer, split, f"{split}/scene_{i:05}", picture, rng)


def new_objects(writer, split, count, sources, seed):
    """Scenes with a thing that is never trained on in a scene; the question is about it alone."""
    backgrounds = sources.backgrounds(split)
    for i in range(count):
        rng = random.Random(f"{seed} {split} new object {i}")
        picture = with_files(ablation_scenes.scene(rng, scene_sizes(i), backgrounds, sources.new_cutouts), sources)
        picture.turns = [turn for turn in picture.turns if turn.task == "objects"]
        picture.turns[0].task = "new objects"
        add(writer, split, f"{split}/new_{i:05}", picture, rng)


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
    picture.sources = [(source, sources.files.get(key, key)) for source, key in picture.sources]
    return picture


def add(writer, split, name, picture, rng):
    """To what is trained on, in all stages, or to what is held out."""
    writer.picture(name, picture)
    if split == "train":
        writer.train(name, picture, rng)
        writer.listed(name, picture)
    else:
        writer.heldout(name, picture)


def until(writer, split, name, count, seed, make):
    """Pictures of make(rng) (None: try another) until they ask `count` questions. Some are made at a time."""
    asked = i = 0
    attempts = iter(range(100 * count))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        while some := [random.Random(f"{seed} {split} {name} {attempt}") for attempt in itertools.islice(attempts, 64)]:
            for rng, picture in zip(some, pool.map(make, some)):
                if asked >= count:
                    return
                if picture:
                    add(writer, split, f"{split}/{name}_{i:04}", picture, rng)
                    asked += len(picture.turns)
                    i += 1
    raise embedded_pictures.BuildError(f"{split} {name}: only {asked} questions of {count}")


def documents(writer, split, count, sources, seed):
    opened, words = sources.documents(split), sources.manifest["words"]
    for size in ablation_documents.SIZES:
        until(writer, split, f"document_{size:02}", count, seed,
              lambda rng, size=size: ablation_documents.document_crop(rng, size, opened, words))


def maps(writer, split, count, sources, seed):
    found = sources.maps(split)
    for size in ablation_maps.SIZES:
        until(writer, split, f"map_{size:02}", count, seed, lambda rng, size=size: ablation_maps.map_question(rng, size, found))


MAKERS = {"scenes": scenes, "new_objects": new_objects, "mosaics": mosaics, "documents": documents, "maps": maps}


def caption_group(drawing, labels, chosen, shown):
    """"train", or the group of held-out captions a drawing belongs to: "new title", or "known title" for one drawing of
    some titles that others share. Of the titles of `shown`, stamps in scenes, none is new."""
    if drawing.label not in shown and draw_of("title", drawing.label) < NEW_TITLES:
        return "new title"
    known = labels[drawing.label] > 1 and draw_of("known", drawing.label) < KNOWN_TITLES
    return "known title" if known and chosen.get(drawing.label) is drawing else "train"


def drawn(drawings, seed):
    """(drawing, its picture), without those that cannot be drawn and those that are the same as an earlier one."""
    def attempt(drawing):
        try:
            return drawing.picture(seed)
        except embedded_pictures.BuildError:
            return None

    seen, once = set(), []
    for drawing in drawings:
        content = hashlib.sha256(drawing.file.read_bytes()).digest()
        if content not in seen:
            seen.add(content)
            once.append(drawing)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(once), 64):
            some = once[first:first + 64]
            for drawing, image in zip(some, pool.map(attempt, some)):
                content = hashlib.sha256(image.tobytes()).digest() if image else None
                if image and content not in seen:
                    seen.add(content)
                    yield drawing, image


def captions(writer, share, sources, seed):
    stamps = set(sources.files.values())
    kept = []
    for drawing, image in drawn([d for d in ablation_figures.all_drawings(sources.roots) if draw_of("drawing", d.label) < share], seed):
        name = f"captions/{len(kept):05}"
        kept.append((drawing, name))
        writer.picture(name, Picture(image, [], [(drawing.source, drawing.path)]))
    labels = collections.Counter(drawing.label for drawing, _ in kept)
    in_scenes = [drawing for drawing, _ in kept if drawing.source == "stamps" and str(drawing.path) in stamps]
    shown = {drawing.label for drawing in in_scenes}
    # The held-out one of a title: any but the stamps of the scenes.
    chosen = {d.label: d for d, _ in kept if d not in in_scenes}
    for drawing, name in kept:
        group = caption_group(drawing, labels, chosen, shown)
        picture = Picture(None, [Turn("captions", group, CAPTION_QUESTION, drawing.caption)], caption=drawing.caption)
        if group == "train":
            picture.turns += [Turn("captions", group, *pair) for pair in drawing.questions]
            writer.train(name, picture, random.Random(f"{seed} {name}"))
            writer.caption("align", name, picture)
        else:
            writer.heldout(name, picture)


def texts(writer, sources, seed):
    """So many that they are TEXT_SHARE of stage 2's records."""
    count = round(len(writer.records["train"]) * TEXT_SHARE / (1 - TEXT_SHARE))
    found = ablation_texts.facts(sources.roots, sources.map_names("train"))
    for i, text in enumerate(ablation_texts.drawn(random.Random(f"{seed} texts"), found, count)):
        writer.text(f"texts/{i:05}", text)


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
            crop = ablation_documents.document_crop(rng, ablation_documents.SIZES[k], opened, sources.manifest["words"])
        rows[1].append(crop)
        part = None
        while part is None:
            part = ablation_maps.map_question(rng, ablation_maps.SIZES[k], found)
        rows[2].append(part)
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
    writer = Writer(out, sources.manifest["packages"], sources.licences)
    for split, counts in COUNTS.items():
        for name, count in counts.items():
            MAKERS[name](writer, split, math.ceil(share * count), sources, seed)
    captions(writer, share, sources, seed)
    texts(writer, sources, seed)
    for name, records in writer.records.items():
        random.Random(f"{seed} {name}").shuffle(records)
    writer.close()
    return writer.records


def copyrights(packages, cache):
    """{package of the manifest: the text of its debian/copyright}"""
    said = {name: package.get("copyright_of", name) for name, package in packages.items()}
    return {name: ablation_licences.debian_copyright(cache / of / "root", packages[of]["package"]) for name, of in said.items()}


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
        texts_of = copyrights(manifest["packages"], args.cache)
        sources = Sources(manifest, roots, Path(folder), texts_of)
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
