"""data/build_ablation.py on sources made here: the same bytes twice, nothing held out that was trained on, a licence for
every picture and every text, every cell as large as asked for."""
import collections
import csv
import json
import pathlib
import random
import re

import numpy as np
import pytest
from PIL import Image

import made_sources
from made_sources import LISTED
import ablation_captions
import ablation_documents
import ablation_figures
import ablation_licences
import ablation_maps
import ablation_scenes
import ablation_writer
import build_ablation
import embedded_pictures

pytestmark = pytest.mark.skipif(bool(made_sources.MISSING), reason=made_sources.REASON)
COUNTS = {"train": {"scenes": 8, "mosaics": 20, "documents": 6, "maps": 6},
          "heldout": {"scenes": 4, "new_objects": 4, "documents": 3, "maps": 3}}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return made_sources.sources(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_ablation, "COUNTS", COUNTS)
        out = tmp_path_factory.mktemp("data")
        records = build_ablation.build(out, sources, 1)
        yield out, records


def pictures(records):
    return {record["image"] for record in records if "image" in record}


def licences(out, name="licences", key="picture"):
    with open(out / f"{name}.csv", newline="", encoding="utf-8") as file:
        return {row[key]: row for row in csv.DictReader(file)}


def said(records):
    return {turn["value"] for record in records for turn in record["conversations"]}


def test_the_same_seed_gives_the_same_bytes(sources, built, tmp_path, monkeypatch):
    monkeypatch.setattr(build_ablation, "COUNTS", COUNTS)
    build_ablation.build(tmp_path, sources, 1)
    assert build_ablation.digest(tmp_path) == build_ablation.digest(built[0])
    path = tmp_path / "images/train/scene_00000.webp"
    path.write_bytes(path.read_bytes() + b" ")
    assert build_ablation.digest(tmp_path) != build_ablation.digest(built[0])


def test_another_seed_gives_other_pictures(sources, built, tmp_path):
    writer = ablation_writer.Writer(tmp_path, sources.manifest["packages"], sources.licences)
    build_ablation.scenes(writer, "train", 2, sources, seed=2)
    for i in range(2):
        name = f"images/train/scene_{i:05}.webp"
        assert (tmp_path / name).read_bytes() != (built[0] / name).read_bytes()


def test_nothing_held_out_is_trained_on(sources, built):
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
    # Things of new scenes are in no picture for training but their captions', which are trained on.
    (new,) = sources.manifest["new_objects"].values()
    shown = {name for name in trained if new in rows[name]["sources"]}
    assert shown and all(name.startswith("captions/") for name in shown)
    assert all(new in rows[r["image"]]["sources"] for r in records["heldout"] if r["task"] == "new objects")
    assert not any(new in rows[r["image"]]["sources"] for r in records["heldout"] if r["task"] != "new objects")
    assert "A yak." in said(records["align"]) and "A yak." in said(records["train"])
    # Facts are of countries trained on.
    held_names = {part.split(": ")[1] for part in sources_of(held, "maps")}
    facts = licences(out, "text_licences", "record").values()
    assert held_names and not any(name in row["sources"] for name in held_names for row in facts)
    # Drawings: bytes of no held-out picture are those of a trained one, and new titles are new.
    content = {name: (out / "images" / name).read_bytes() for name in trained | held}
    assert not {content[n] for n in trained} & {content[n] for n in held}
    asked = {group: {r["conversations"][1]["value"] for r in records["heldout"] if r["size"] == group} for group in ("new title", "known title")}
    taught = said(records["pretrain"] + records["align"] + records["train"])
    assert asked["new title"] and not asked["new title"] & taught
    assert asked["known title"] and asked["known title"] <= taught


def test_everything_is_used_and_has_its_licence(built):
    out, records = built
    there = {str(p.relative_to(out / "images")) for p in (out / "images").rglob("*.webp")}
    assert there == pictures(r for of in records.values() for r in of) == set(licences(out))
    for name, row in licences(out).items():
        assert row["sources"] and row["licences"], name
        if "scene" in name:
            assert row["licences"] == "licence of backgrounds; licence of stamps"
        with Image.open(out / "images" / name) as image:
            assert image.size == (ablation_scenes.SIDE, ablation_scenes.SIDE) and image.format == "WEBP"
    texts = licences(out, "text_licences", "record")
    assert set(texts) == {r["id"] for r in records["train"] if "image" not in r}
    assert all(row["licences"] and bool(row["sources"]) == (row["licences"] != ablation_licences.OWN) for row in texts.values())
    assert len({row["licences"] for row in texts.values()}) > 1


def test_a_missing_licence_is_an_error(sources, tmp_path, monkeypatch):
    monkeypatch.setitem(sources.manifest["packages"]["backgrounds"], "licence", "")
    writer = ablation_writer.Writer(tmp_path, sources.manifest["packages"], sources.licences)
    with pytest.raises(embedded_pictures.BuildError, match="deb-backgrounds: [abcd].jpg has no licence"):
        build_ablation.scenes(writer, "train", 1, sources, seed=1)


def test_a_tenth_of_stage_2_is_text_alone(built):
    _, records = built
    alone = [r for r in records["train"] if "image" not in r]
    assert 0.08 <= len(alone) / len(records["train"]) <= 0.12
    assert not any("image" not in r for name in ("pretrain", "align", "heldout") for r in records[name])
    assert not any("<image>" in turn["value"] for r in alone for turn in r["conversations"])


def test_records_are_well_formed(built):
    out, records = built
    for name, of in records.items():
        assert json.loads((out / f"{name}.json").read_text(encoding="utf-8")) == of
        assert len({record["id"] for record in of}) == len(of) > 0
        for record in of:
            texts = [turn["value"] for turn in record["conversations"]]
            assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"] * (len(texts) // 2)
            if "image" in record:
                assert texts[0].startswith("<image>") and sum(text.count("<image>") for text in texts) == 1
            assert all(text.strip() for text in texts)
    assert all(len(record["conversations"]) == 2 and {"task", "size"} <= record.keys() for record in records["heldout"])
    assert all(record["conversations"][0]["value"] == "<image>" for record in records["pretrain"] + records["align"])
    # A mosaic of sixteen cells would be a long conversation.
    assert max(len(record["conversations"]) for record in records["train"]) == 2 * ablation_writer.MOST_TURNS


def test_answers_are_of_closed_lists(built):
    """Of documents, maps, scenes: every answer of stage 2 and of what is held out, and every list of stages 0 and 1."""
    _, records = built
    closed = {"Which word is in the": set(LISTED), "Where on the map is the": set(ablation_maps.DIRECTIONS),
              "Which thing is in the": {"frog", "owl", "yak"}, "How many dots are": set("123456")}
    counted = collections.Counter()
    for record in records["train"] + records["heldout"]:
        texts = [turn["value"].replace("<image>\n", "") for turn in record["conversations"]]
        for question, answer in zip(texts[::2], texts[1::2]):
            for start, answers in closed.items():
                if question.startswith(start):
                    assert answer in answers, (record["id"], question)
                    counted[start] += 1
    assert set(counted) == set(closed)
    colours = {"document": (set(ablation_documents.FRAMES), set(LISTED)), "map": (set(ablation_maps.COLOURS), set(ablation_maps.DIRECTIONS))}
    lists = [r for r in records["pretrain"] + records["align"] if re.search("/(document|map)_", r["image"])]
    asked = {r["image"]: set(zip(*[iter([t["value"].replace("<image>\n", "") for t in r["conversations"]])] * 2)) for r in records["train"] if "image" in r}
    for record in lists:
        pairs = [part.split(": ") for part in record["conversations"][1]["value"].split(", ")]
        names, answers = colours[re.search("/(document|map)_", record["image"])[1]]
        assert {pair[0] for pair in pairs} <= names and {pair[1] for pair in pairs} <= answers and len(dict(pairs)) == len(pairs)
        what = "Which word is in the {} frame?" if "document" in record["image"] else "Where on the map is the {} region?"
        assert asked[record["image"]] == {(what.format(colour), answer) for colour, answer in pairs}
    assert {re.search("/(document|map)_", r["image"])[1] for r in lists} == {"document", "map"}


def test_every_cell_is_as_large_as_asked_for(built):
    cells = collections.Counter((record["task"], record["size"]) for record in built[1]["heldout"])
    for task, sizes in ablation_scenes.SIZES.items():
        assert sum(cells[task, size] for size in sizes) == COUNTS["heldout"]["scenes"]
    assert [cells["objects", size] for size in ablation_scenes.SIZES["objects"]] == [1, 1, 1, 1]
    for task, module in (("documents", ablation_documents), ("maps", ablation_maps)):
        assert all(COUNTS["heldout"][task] <= cells[task, size] < COUNTS["heldout"][task] + 4 for size in module.SIZES)
    assert [cells["new objects", size] for size in ablation_scenes.SIZES["objects"]] == [1, 1, 1, 1]


def test_what_may_not_be_used_is_not(built):
    out, records = built
    texts = said(record for of in records.values() for record in of)
    for caption in ("A thing without transparency.", "A letter.", "Another name.", "Owned drawing.", "Part of a theme.", "Folder of a theme.",
                    "Name of a set.", "Star.", "Tiny thing.", "First icon."):
        assert caption not in texts
    assert "A cow." in texts and "The flag of Land AA." in texts and "The large dialog: with a list." in texts
    assert not any("landb" in row["sources"] for row in licences(out).values())
    # The scenes' own stamps are never held out.
    held = pictures(records["heldout"])
    assert not any("frog.png" in row["sources"] or "owl.png" in row["sources"] for name, row in licences(out).items()
                   if name in held and name.startswith("captions/"))


def test_no_title_of_a_thing_in_scenes_is_new():
    """Whatever other drawing has it: its caption is trained on with the stamp."""
    drawing = lambda caption: ablation_captions.Drawing("clipart", pathlib.Path("x.svg"), caption, pathlib.Path("x.svg"))
    assert drawing("A hammer.").label == drawing("Hammer 2 (red).").label == drawing("The hammer").label == "hammer"
    new = next(d for d in map(drawing, (f"Thing {chr(97 + i) * 3}" for i in range(26))) if build_ablation.draw_of("title", d.label) < build_ablation.NEW_TITLES)
    assert build_ablation.caption_group(new, {new.label: 2}, {}, set()) == "new title"
    assert build_ablation.caption_group(new, {new.label: 2}, {}, {new.label}) == "train"


def test_a_licence_that_is_not_free_is_refused(sources):
    (owned,) = [d for d in ablation_figures.all_drawings(sources.roots) if d.caption == "Owned drawing."]
    with pytest.raises(embedded_pictures.BuildError, match="not public domain"):
        owned.picture(1)


def test_a_scene_holds_what_it_says():
    """Drawn on white with known cut-outs: as many dots as the answer says, and the object's size in pixels."""
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


def test_what_becomes_of_pictures(built):
    """Stage 0 lists all but captioned ones, of which stage 1 lists every second; stage 2 asks about a third of the mosaics."""
    kinds = ("scene", "mosaic", "document", "map", "captions")
    names = {stage: {kind: {name for name in pictures(built[1][stage]) if kind in name} for kind in kinds} for stage in ("pretrain", "align", "train")}
    scenes, all_mosaics = ({f"train/{kind}_{i:05}.webp" for i in range(COUNTS["train"][f"{kind}s"])} for kind in ("scene", "mosaic"))
    assert names["pretrain"]["scene"] == names["train"]["scene"] == scenes and names["pretrain"]["mosaic"] == all_mosaics
    assert names["train"]["mosaic"] == {f"train/mosaic_{i:05}.webp" for i in (0, 1, 2, 3, 12, 13, 14, 15)}
    for kind in ("document", "map"):
        assert names["pretrain"][kind] == names["train"][kind] != set()
    assert not names["pretrain"]["captions"] and names["align"]["captions"] == names["train"]["captions"] != set()
    for kind in kinds[:-1]:
        assert names["align"][kind] < names["pretrain"][kind]
    assert len([r for r in built[1]["align"] if "captions" not in r["image"]]) == len(built[1]["pretrain"]) // 2


@pytest.mark.parametrize("grid", ablation_scenes.GRIDS)
def test_a_mosaic_shows_what_its_list_says(grid):
    """Drawn on white with a red cut-out and dark ink: every cell by what is in it."""
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
    image, _ = ablation_scenes.backdrop(random.Random(1), {"x": Image.new("RGB", (400, 400), "black")})
    assert min(low for low, _ in image.getextrema()) >= round(255 * ablation_scenes.PALE) > 4 * max(ablation_scenes.INK)


def test_a_document_crop_frames_its_words(sources):
    opened, frames = sources.documents("train"), collections.Counter()
    (document,) = opened.values()
    assert set(document.places) == set(LISTED) and all(document.places[word] for word in LISTED)
    for seed in range(4):
        for size in ablation_documents.SIZES:
            picture = ablation_documents.document_crop(random.Random(seed), size, opened, LISTED)
            if picture is None:
                continue
            frames[len(picture.turns)] += 1
            assert len({turn.answer for turn in picture.turns}) == len(picture.turns)
            assert picture.caption == ", ".join(f"{turn.question.split()[5]}: {turn.answer}" for turn in picture.turns)
            for turn in picture.turns:
                assert turn.answer in LISTED
                colour = ablation_documents.FRAMES[turn.question.split(" in the ")[1].split()[0]]
                rows = np.nonzero((np.asarray(picture.image) == colour).all(axis=2).any(axis=1))[0]
                height = rows.max() - rows.min() + 1
                assert abs(height - size - 2 * ablation_documents.FRAME_GAP) <= 0.1 * size + 2
    assert frames[4] and max(frames) == 4


def test_a_map_shows_regions_where_it_says(sources):
    opened, seen = sources.maps("train"), collections.Counter()
    parts = 0
    for seed in range(60):
        size = ablation_maps.SIZES[seed % 4]
        picture = ablation_maps.map_question(random.Random(seed), size, opened)
        if picture is None:
            continue
        pixels = np.asarray(picture.image).astype(int)
        ground = np.argwhere((pixels != 255).any(axis=2))
        (top, left), (bottom, right) = ground.min(axis=0), ground.max(axis=0) + 1
        for turn in picture.turns:
            assert turn.size == size
            colour = np.array(ablation_maps.COLOURS[turn.question.split()[6]])
            rows, columns = np.nonzero(np.abs(pixels - colour).max(axis=2) < 60)
            assert size * 0.7 <= len(rows)**0.5 <= 2 * size * 1.3
            x, y = (columns.mean() - left) / (right - left), (rows.mean() - top) / (bottom - top)
            assert ablation_maps.DIRECTIONS[3 * int(3 * y) + int(3 * x)] == turn.answer
            seen[turn.answer] += 1
        parts += bottom - top > 200  # a part of a map is a square or nearly
    assert len(seen) > 6 and parts


@pytest.mark.parametrize("x,y,answer", [(0.1, 0.1, "north-west"), (0.5, 0.1, "north"), (0.9, 0.9, "south-east"), (0.5, 0.5, "centre"),
                                        (0.1, 0.5, "west"), (0.34, 0.1, None), (0.5, 0.65, None)])
def test_directions(x, y, answer):
    assert ablation_maps.direction(x, y) == answer


@pytest.mark.parametrize("name,country", [("france", "france"), ("france_regions", "france"), ("italyprovince", "italy"),
                                          ("zaire2006", "zaire"), ("great-britain_counties", "great-britain"), ("south_africa", "south")])
def test_maps_of_one_country_stay_together(name, country):
    assert ablation_maps.country(name) == country
