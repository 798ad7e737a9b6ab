#!/usr/bin/env python3
"""Builds the data of the HR ablation: small objects, digits and dots in large scenes, and captions of stamps.

    data/build_ablation.py --out DIR                  all of it: 6,400 + 1,200 pictures, about 150 MB
    data/build_ablation.py --out DIR --per-cell 4     a small one, to look at
    data/build_ablation.py --sheet F.png              one picture of every task and size

Writes DIR/align.json (captions, stage 1), train.json and heldout.json (questions, stage 2; every record also has
"task" and "size"), images/, and licences.csv with the packages and licences of every picture. Held-out scenes lie on
photographs that no training scene lies on. The same seed gives the same pictures under the same Pillow.

Needs the packages of tests/requirements.txt, fonts-dejavu-core, and apt-get, which downloads the pinned packages
(kept in --cache, 200 MB).
"""

import argparse
import csv
import itertools
import json
import random
import tempfile
from pathlib import Path

import yaml
from PIL import Image

import ablation_tasks as tasks
import embedded_pictures

DATA = Path(__file__).resolve().parent
TRAIN_PER_CELL = 500  # pictures of a task and size
HELDOUT_PER_CELL = 100
PHOTO_SIDE = 1200
NOT_CAPTIONED = ("symbols", "people", "military")  # letters, coins and signs; persons


def cutout(path):
    """A stamp without its empty border; ValueError if it has no transparent background."""
    with Image.open(path) as stamp:
        image = stamp.convert("RGBA")
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] > 0:
        raise ValueError(f"{path}: no transparent background")
    return image.crop(alpha.getbbox())


def photo(path):
    with Image.open(path) as source:
        image = source.convert("RGB")
    image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    return image


def captioned_stamps(root):
    """(path below root, English caption, cut-out) of every stamp with both a transparent background and a caption."""
    for path in sorted(root.rglob("*.png")):
        text = path.with_suffix(".txt")
        name = path.relative_to(root)
        if not text.exists() or path.stem.endswith("_mirror") or name.parts[0] in NOT_CAPTIONED:
            continue
        caption = text.read_text(encoding="utf-8").splitlines()[0].strip()
        try:
            image = cutout(path)
        except ValueError:
            continue
        if caption:
            yield name, caption, image


class Writer:
    """Pictures, records and their licences, counted up."""

    def __init__(self, out, packages):
        self.out, self.packages = out, packages
        self.licences = []
        (out / "images").mkdir(parents=True, exist_ok=True)

    def picture(self, name, picture, sources):
        picture.save(self.out / "images" / name, format="JPEG", quality=92, subsampling=0)
        said = [f"{self.packages[source]['package']} {self.packages[source]['version']}: {path}" for source, path in sources]
        terms = sorted({self.packages[source]["licence"] for source, _ in sources})
        self.licences.append([name, "; ".join(said), "; ".join(terms)])

    def records(self, name, records):
        (self.out / name).write_text(json.dumps(records, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")

    def close(self):
        with open(self.out / "licences.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["picture", "sources", "licences"], *self.licences])


def record(identity, question, answer, **more):
    return {"id": identity, "image": f"{identity}.jpg", **more, "conversations": [
        {"from": "human", "value": f"<image>\n{question}" if question else "<image>"}, {"from": "gpt", "value": answer}]}


def draw(task, size, rng, backgrounds, cutouts):
    if task == "objects":
        return tasks.objects(rng, size, backgrounds, cutouts)
    return getattr(tasks, task)(rng, size, backgrounds)


def questions(writer, split, per_cell, manifest, roots, cutouts, seed):
    backgrounds = {name: photo(roots["backgrounds"] / name) for name in manifest["backgrounds"][split]}
    records = []
    for task, sizes in tasks.SIZES.items():
        for size in sizes:
            rng = random.Random(f"{seed} {split} {task} {size}")
            for i in range(per_cell):
                sample = draw(task, size, rng, backgrounds, cutouts)
                identity = f"{split}_{task}_{size}_{i:04}"
                sources = [("backgrounds", sample.sources[0])]
                sources += [("stamps", manifest["objects"][label]) for label in sample.sources[1:]]
                writer.picture(f"{identity}.jpg", sample.picture, sources)
                records.append(record(identity, sample.question, sample.answer, task=task, size=size))
    random.Random(seed).shuffle(records)
    writer.records(f"{split}.json", records)
    return len(records)


def captions(writer, roots, limit, seed):
    records = []
    for i, (name, caption, image) in enumerate(itertools.islice(captioned_stamps(roots["stamps"]), limit)):
        identity = f"align_{i:04}"
        rng = random.Random(f"{seed} {name}")
        writer.picture(f"{identity}.jpg", tasks.on_white(rng, image), [("stamps", name)])
        records.append(record(identity, "", caption))
    writer.records("align.json", records)
    return len(records)


def contact_sheet(path, manifest, roots, cutouts):
    backgrounds = {name: photo(roots["backgrounds"] / name) for name in manifest["backgrounds"]["train"]}
    rng = random.Random(0)
    columns = max(len(sizes) for sizes in tasks.SIZES.values())
    sheet = Image.new("RGB", (columns * tasks.SIDE, len(tasks.SIZES) * tasks.SIDE))
    for row, (task, sizes) in enumerate(tasks.SIZES.items()):
        for column, size in enumerate(sizes):
            sample = draw(task, size, rng, backgrounds, cutouts)
            sheet.paste(sample.picture, (column * tasks.SIDE, row * tasks.SIDE))
    sheet.save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path)
    what.add_argument("--sheet", type=Path)
    parser.add_argument("--per-cell", type=int, help="pictures of a task and size; captions as many as of a task")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "mgm_ablation_packages")
    args = parser.parse_args()
    manifest = yaml.safe_load((DATA / "ablation_manifest.yaml").read_text(encoding="utf-8"))
    roots = {name: Path(root) for name, root in embedded_pictures.fetch(manifest["packages"], args.cache).items()}
    cutouts = {label: cutout(roots["stamps"] / stamp) for label, stamp in manifest["objects"].items()}
    if args.sheet:
        contact_sheet(args.sheet, manifest, roots, cutouts)
        return
    writer = Writer(args.out, manifest["packages"])
    train = questions(writer, "train", args.per_cell or TRAIN_PER_CELL, manifest, roots, cutouts, args.seed)
    heldout = questions(writer, "heldout", args.per_cell or HELDOUT_PER_CELL, manifest, roots, cutouts, args.seed)
    aligned = captions(writer, roots, 4 * args.per_cell if args.per_cell else None, args.seed)
    writer.close()
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {aligned} captions, {train} questions, {heldout} held-out questions, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
