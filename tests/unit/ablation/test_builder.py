"""data/build_ablation.py on sources made here: the same bytes twice, nothing held out that was trained on, a licence for
every picture, every cell as large as asked for."""
import collections
import csv
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "data"))
import ablation_captions
import ablation_documents
import ablation_maps
import ablation_scenes
import build_ablation
import embedded_pictures

TOOLS = [tool for tool in ("rsvg-convert", "pdftoppm", "pdftotext", "pdfinfo") if not shutil.which(tool)]
pytestmark = pytest.mark.skipif(bool(TOOLS) or not pathlib.Path(ablation_scenes.FONT).exists(),
                                reason=f"NOT RUN: needs {TOOLS or ablation_scenes.FONT} (librsvg2-bin, poppler-utils, fonts-dejavu-core)")
COUNTS = {"train": {"scenes": 8, "mosaics": 20, "documents": 3, "maps": 4},
          "heldout": {"scenes": 4, "documents": 2, "maps": 2}}
PD = '<cc:license rdf:resource="http://web.resource.org/cc/PublicDomain"/>'
COLOURS = [(10 + 20 * i, 250 - 20 * i, 60 + 15 * i) for i in range(12)]
WORDS = "package system install the files which language value number should table between server config option".split()


def svg(path, title, shape, licence=PD):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"""<svg xmlns="http://www.w3.org/2000/svg" xmlns:cc="http://web.resource.org/cc/" width="100" height="100"
  xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<metadata><rdf:RDF><cc:Work rdf:about=""><dc:title>{title}</dc:title>{licence}</cc:Work></rdf:RDF></metadata>{shape}</svg>""")


def circle(i):
    return f'<circle cx="50" cy="50" r="{10 + i % 35}" fill="rgb({i * 37 % 255},{i * 91 % 255},80)"/>'


def make_stamps(root):
    for i, name in enumerate(["frog", "owl", "bee", "cow", "pig"]):
        stamp = Image.new("RGBA", (60, 40 + 4 * i))
        ImageDraw.Draw(stamp).ellipse([5, 5, 50, 35], fill=(40 * i, 200 - 30 * i, 90, 255))
        path = root / f"animals/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        stamp.save(path)
        path.with_suffix(".txt").write_text(f"A {name}.\nutf8 text\n")
    Image.new("RGB", (30, 30), "red").save(root / "animals/opaque.png")
    (root / "animals/opaque.txt").write_text("A thing without transparency.\n")
    (root / "people").mkdir()
    shutil.copy(root / "animals/cow.png", root / "people/person.png")
    (root / "people/person.txt").write_text("A person.\n")


def make_clipart(root):
    for i in range(24):  # 12 titles, some of them held out, twice each, as different drawings
        svg(root / f"food/{i}.svg", f"Fruit {'adghkmopqwyz'[i % 12] * 3}", circle(i))
    svg(root / "food/again.svg", "Another name", circle(3))  # drawn as an earlier one
    svg(root / "food/owned.svg", "Owned drawing", circle(77), licence="")
    svg(root / "food/part.svg", "Part of a theme", circle(78))
    svg(root / "shapes/star.svg", "Star", circle(79))


def make_maps(root):
    root.mkdir()
    for m in range(30):
        sea = (100, 20 + 7 * m, 100)  # so that no two maps are equal
        picture = Image.new("RGB", (300, 200), sea)
        pen, entries = ImageDraw.Draw(picture), []
        for i, colour in enumerate(COLOURS):
            side = (5, 10, 20, 38)[(i + i // 4) % 4]
            x, y = (10, 110, 155, 235)[i % 4], (8, 75, 145)[i // 4]
            pen.rectangle([x, y, x + side, y + side], fill=colour)
            entries.append("<division><name>{}</name><color><red>{}</red><green>{}</green><blue>{}</blue></color></division>".format(i, *colour))
        entries.append("<division><name>none</name><ignore>yes</ignore><color><red>{}</red><green>{}</green><blue>{}</blue></color></division>".format(*sea))
        name = f"land{chr(97 + m % 26)}{'_parts' if m >= 26 else ''}"
        picture.quantize(64, dither=Image.Dither.NONE).save(root / f"{name}.png")
        (root / f"{name}.kgm").write_text(f"<map><mapFile>{name}.png</mapFile>{''.join(entries)}</map>")


def make_document(path, first):
    lines = "".join(f'<text x="50" y="{60 + 14 * i}" font-family="DejaVu Sans" font-size="11">'
                    + " ".join(WORDS[(first + 5 * i + 3 * k) % len(WORDS)] for k in range(7)) + "</text>" for i in range(50))
    page = path.with_suffix(".svg")
    page.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" width="595pt" height="842pt" viewBox="0 0 595 842">{lines}</svg>')
    subprocess.run(["rsvg-convert", "-f", "pdf", "-o", path, page], check=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("packages")
    for name in ("stamps", "clipart", "flags", "backgrounds", "manuals"):
        (root / name).mkdir()
    make_stamps(root / "stamps")
    make_clipart(root / "clipart")
    make_maps(root / "maps")
    for code in ("aa", "bb", "cc"):
        svg(root / f"flags/{code}.svg", "", circle(100 + ord(code[0])))
    (root / "countries.json").write_text(json.dumps({"3166-1": [{"alpha_2": c, "name": f"Land {c}"} for c in ("AA", "BB", "CC", "DD")]}))
    for i, name in enumerate(("a", "b", "c", "d")):
        Image.radial_gradient("L").resize((240, 200 + 10 * i)).convert("RGB").save(root / f"backgrounds/{name}.jpg")
    make_document(root / "manuals/train.pdf", 0)
    make_document(root / "manuals/heldout.pdf", 2)
    manifest = {
        "packages": {name: {"package": f"deb-{name}", "version": "1", "licence": f"licence of {name}"}
                     for name in ("stamps", "clipart", "flags", "backgrounds", "manuals", "maps")},
        "objects": {"frog": "animals/frog.png", "owl": "animals/owl.png"},
        "backgrounds": {"train": ["a.jpg", "b.jpg"], "heldout": ["c.jpg", "d.jpg"]},
        "documents": {"train": [["manuals", "train.pdf"]], "heldout": [["manuals", "heldout.pdf"]]},
        "not_maps": ["landb"]}
    roots = {name: root / name for name in manifest["packages"]} | {"countries": root / "countries.json"}
    return build_ablation.Sources(manifest, roots, root)


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_ablation, "COUNTS", COUNTS)
        out = tmp_path_factory.mktemp("data")
        records = build_ablation.build(out, sources, 1)
        yield out, records


def pictures(records):
    return {record["image"] for record in records}


def licences(out):
    with open(out / "licences.csv", newline="", encoding="utf-8") as file:
        return {row["picture"]: row for row in csv.DictReader(file)}


def test_the_same_seed_gives_the_same_bytes(sources, built, tmp_path):
    build_ablation.build(tmp_path, sources, 1)
    assert build_ablation.digest(tmp_path) == build_ablation.digest(built[0])
    path = tmp_path / "images/train/scene_00000.webp"
    path.write_bytes(path.read_bytes() + b" ")
    assert build_ablation.digest(tmp_path) != build_ablation.digest(built[0])


def test_another_seed_gives_other_pictures(sources, built, tmp_path):
    writer = build_ablation.Writer(tmp_path, sources.manifest["packages"])
    build_ablation.scenes(writer, "train", 2, sources, seed=2)
    for i in range(2):
        name = f"images/train/scene_{i:05}.webp"
        assert (tmp_path / name).read_bytes() != (built[0] / name).read_bytes()


def test_nothing_held_out_is_trained_on(built):
    out, records = built
    rows = licences(out)
    trained, held = pictures(records["pretrain"] + records["align"] + records["train"]), pictures(records["heldout"])
    assert trained and held and not trained & held

    def sources_of(names, package):
        return {part for name in names for part in rows[name]["sources"].split("; ") if part.startswith(f"deb-{package} ")}

    for package in ("backgrounds", "manuals", "maps"):
        a, b = sources_of(trained, package), sources_of(held, package)
        assert a and b and not a & b, package
    countries = [{ablation_maps.country(pathlib.Path(part.split(": ")[1]).stem) for part in sources_of(names, "maps")} for names in (trained, held)]
    assert not countries[0] & countries[1]
    # Drawings: bytes of no held-out picture are those of a trained one, and new titles are new.
    content = {name: (out / "images" / name).read_bytes() for name in trained | held}
    assert not {content[n] for n in trained} & {content[n] for n in held}
    said = {group: {r["conversations"][1]["value"] for r in records["heldout"] if r["size"] == group} for group in ("new title", "known title")}
    taught = {r["conversations"][1]["value"] for r in records["pretrain"] + records["align"] + records["train"]}
    assert said["new title"] and not said["new title"] & taught
    assert said["known title"] and said["known title"] <= taught


def test_every_picture_is_used_and_has_its_licence(built):
    out, records = built
    there = {str(p.relative_to(out / "images")) for p in (out / "images").rglob("*.webp")}
    assert there == pictures(r for of in records.values() for r in of) == set(licences(out))
    for name, row in licences(out).items():
        assert row["sources"] and row["licences"], name
        if "scene" in name:
            assert row["licences"] == "licence of backgrounds; licence of stamps"
        with Image.open(out / "images" / name) as image:
            assert image.size == (ablation_scenes.SIDE, ablation_scenes.SIDE) and image.format == "WEBP"


def test_records_are_well_formed(built):
    out, records = built
    for name, of in records.items():
        assert json.loads((out / f"{name}.json").read_text(encoding="utf-8")) == of
        assert len({record["id"] for record in of}) == len(of) > 0
        for record in of:
            texts = [turn["value"] for turn in record["conversations"]]
            assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"] * (len(texts) // 2)
            assert texts[0].startswith("<image>") and sum(text.count("<image>") for text in texts) == 1
            assert all(text.strip() for text in texts)
    assert all(len(record["conversations"]) == 2 and {"task", "size"} <= record.keys() for record in records["heldout"])
    assert all(record["conversations"][0]["value"] == "<image>" for record in records["pretrain"] + records["align"])
    # A mosaic of sixteen cells would be a long conversation.
    assert max(len(record["conversations"]) for record in records["train"]) == 2 * build_ablation.MOST_TURNS


def test_every_cell_is_as_large_as_asked_for(built):
    cells = collections.Counter((record["task"], record["size"]) for record in built[1]["heldout"])
    for task, sizes in ablation_scenes.SIZES.items():
        assert sum(cells[task, size] for size in sizes) == COUNTS["heldout"]["scenes"]
    assert [cells["objects", size] for size in ablation_scenes.SIZES["objects"]] == [1, 1, 1, 1]
    for task, module in (("documents", ablation_documents), ("maps", ablation_maps)):
        assert all(COUNTS["heldout"][task] <= cells[task, size] < COUNTS["heldout"][task] + 3 for size in module.SIZES)


def test_what_may_not_be_used_is_not(built):
    out, records = built
    said = {turn["value"] for of in records.values() for record in of for turn in record["conversations"]}
    for caption in ("A thing without transparency.", "A person.", "Another name.", "Owned drawing.", "Part of a theme.", "Star."):
        assert caption not in said
    assert "A cow." in said and "The flag of Land AA." in said
    assert not any("landb" in row["sources"] for row in licences(out).values())
    # The scenes' own stamps are never held out.
    held = pictures(records["heldout"])
    assert not any("frog.png" in row["sources"] or "owl.png" in row["sources"] for name, row in licences(out).items()
                   if name in held and name.startswith("captions/"))


def test_a_licence_that_is_not_free_is_refused(sources):
    (owned,) = [d for d in ablation_captions.all_drawings(sources.roots) if d.caption == "Owned drawing."]
    with pytest.raises(embedded_pictures.BuildError, match="not public domain"):
        owned.picture(1)


def test_a_scene_holds_what_it_says():
    """Drawn on white with known cut-outs: as many dots as the answer says, and the object's size in pixels."""
    import random
    backgrounds = {"x": Image.new("RGB", (400, 400), "white")}
    cutouts = {"owl": Image.new("RGBA", (50, 25), (255, 0, 0, 255))}
    for seed in range(8):
        picture = ablation_scenes.scene(random.Random(seed), {"objects": 44, "digits": 20, "counts": 9}, backgrounds, cutouts)
        rgb = picture.image.load()
        red = [(x, y) for x in range(ablation_scenes.SIDE) for y in range(ablation_scenes.SIDE) if rgb[x, y] == (255, 0, 0)]
        width, height = (max(v) - min(v) + 1 for v in zip(*red))
        assert (width, height) == (44, 22)
        answers = {turn.task: turn.answer for turn in picture.turns}
        assert answers["objects"] == "owl" and len(answers["digits"]) == ablation_scenes.NUM_DIGITS and answers["digits"].isdigit()
        boxes = {turn.task: turn.boxes for turn in picture.turns}
        (left, top, right, bottom), xs, ys = boxes["objects"][0], *zip(*red)
        assert (left, top, right, bottom) == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
        dots = 0
        dark = {(x, y) for x in range(ablation_scenes.SIDE) for y in range(ablation_scenes.SIDE) if max(rgb[x, y]) < 60}
        assert all(any(l <= x < r and t <= y < b for l, t, r, b in boxes["digits"] + boxes["counts"]) for x, y in dark)
        assert str(len(boxes["counts"])) == answers["counts"]
        while dark:
            part, todo = set(), [dark.pop()]
            while todo:
                x, y = todo.pop()
                part.add((x, y))
                near = {(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & dark
                dark -= near
                todo += near
            xs, ys = zip(*part)
            square = max(xs) - min(xs) + 1 in (8, 9) and max(ys) - min(ys) + 1 in (8, 9)
            dots += square
        assert str(dots) == answers["counts"]
        words = dict(zip(ablation_scenes.NUMBERS, range(1, 7)))
        number, count = picture.caption.split("the number ")[1].split(" and ")
        assert picture.caption.startswith("An owl, ") and number == answers["digits"] and str(words[count.split()[0]]) == answers["counts"]


def test_what_becomes_of_scenes_and_mosaics(built):
    """Stage 0 lists all of them, and so does stage 1, stage 2 asks about scenes and a third of the mosaics."""
    names = {stage: pictures(r for r in built[1][stage] if "scene" in r["image"] or "mosaic" in r["image"])
             for stage in ("pretrain", "align", "train")}
    scenes, all_mosaics = ({f"train/{kind}_{i:05}.webp" for i in range(COUNTS["train"][f"{kind}s"])} for kind in ("scene", "mosaic"))
    assert names["pretrain"] == pictures(built[1]["pretrain"]) == scenes | all_mosaics
    assert names["align"] == scenes | all_mosaics
    assert names["train"] == scenes | {f"train/mosaic_{i:05}.webp" for i in (0, 1, 2, 3, 12, 13, 14, 15)}


@pytest.mark.parametrize("grid", ablation_scenes.GRIDS)
def test_a_mosaic_shows_what_its_list_says(grid):
    """Drawn on white with a red cut-out and dark ink: every cell by what is in it."""
    import random
    backgrounds = {"x": Image.new("RGB", (400, 400), "white")}
    cutouts = {"owl": Image.new("RGBA", (50, 25), (255, 0, 0, 255))}
    cell, seen = ablation_scenes.SIDE // grid, set()
    for seed in range(40 // grid**2 + 3):
        picture = ablation_scenes.mosaic(random.Random(seed), grid, backgrounds, cutouts)
        names, pixels = picture.caption.split(", "), np.asarray(picture.image).astype(int)
        assert len(names) == len(picture.turns) == grid**2
        for i, (name, turn) in enumerate(zip(names, picture.turns)):
            y, x = i // grid * cell, i % grid * cell
            part = pixels[y:y + cell, x:x + cell]
            red, dark = (part[..., 0] - part[..., 2] > 128), part.max(axis=2) < 128
            if grid == 1:
                assert turn.answer == (str(ablation_scenes.NUMBERS.index(name.split()[0]) + 1) if "dot" in name else name)
            else:
                assert (turn.question, turn.answer) == (f"What is in row {i // grid + 1}, column {i % grid + 1}?", name)
            if name == "owl":
                columns = np.flatnonzero(red.any(0))
                assert not dark.any() and np.ptp(columns) + 1 == turn.size <= cell
                seen.add("objects")
            elif name.isdigit():
                rows = np.flatnonzero(dark.any(1))
                assert not red.any() and abs(np.ptp(rows) + 1 - turn.size) <= 2 + turn.size // 20
                seen.add("digits")
            else:
                count = ablation_scenes.NUMBERS.index(name.split()[0]) + 1
                assert not red.any() and dark.sum() == pytest.approx(count * np.pi / 4 * max(3, turn.size)**2, rel=0.4)
                seen.add("counts")
        # Nothing lies in two cells.
        for line in range(cell, cell * grid, cell):
            assert pixels[line - 1:line + 1].min() > 200 and pixels[:, line - 1:line + 1].min() > 200
        owls = [("stamps", "owl")] if "owl" in names else []
        assert picture.sources == [("backgrounds", "x"), *owls]
    assert seen == {"objects", "digits", "counts"}


def test_photographs_behind_things_are_pale():
    """Darker than any of it is what is drawn upon it."""
    import random
    image, _ = ablation_scenes.backdrop(random.Random(1), {"x": Image.new("RGB", (400, 400), "black")})
    assert min(low for low, _ in image.getextrema()) >= round(255 * ablation_scenes.PALE) > 4 * max(ablation_scenes.INK)


def test_a_document_crop_frames_its_words(sources):
    import random
    opened = sources.documents("train")
    for seed in range(2):
        for size in ablation_documents.SIZES:
            picture = ablation_documents.document_crop(random.Random(seed), size, opened)
            if picture is None:
                continue
            for turn in picture.turns:
                assert turn.answer in WORDS
                colour = ablation_documents.FRAMES[turn.question.split(" in the ")[1].split()[0]]
                rows = np.nonzero((np.asarray(picture.image) == colour).all(axis=2).any(axis=1))[0]
                height = rows.max() - rows.min() + 1
                assert abs(height - size - 2 * ablation_documents.FRAME_GAP) <= 0.1 * size + 2


@pytest.mark.parametrize("x,y,answer", [(0.1, 0.1, "north-west"), (0.5, 0.1, "north"), (0.9, 0.9, "south-east"), (0.5, 0.5, "centre"),
                                        (0.1, 0.5, "west"), (0.34, 0.1, None), (0.5, 0.65, None)])
def test_directions(x, y, answer):
    assert ablation_maps.direction(x, y) == answer


@pytest.mark.parametrize("name,country", [("france", "france"), ("france_regions", "france"), ("italyprovince", "italy"),
                                          ("zaire2006", "zaire"), ("great-britain_counties", "great-britain"), ("south_africa", "south")])
def test_maps_of_one_country_stay_together(name, country):
    assert ablation_maps.country(name) == country
