"""Where the HR ablation's pictures, captions, texts and licences come from: each kind on sources made here, and what the
manifest pins."""
import random
import re
import struct

import pytest
import yaml

import made_sources
from made_sources import PER_FILE
import ablation_captions
import ablation_figures
import ablation_licences
import ablation_maps
import ablation_texts
import build_ablation
import embedded_pictures
import qt_resources

pytestmark = pytest.mark.skipif(bool(made_sources.MISSING), reason=made_sources.REASON)
MANIFEST = yaml.safe_load((made_sources.ROOT / "data/ablation_manifest.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return made_sources.sources(tmp_path_factory.mktemp("packages"))


def said(drawings):
    return [(drawing.caption, str(drawing.path)) for drawing in drawings]


# ---- the manifest -----------------------------------------------------------------------------------


def test_every_package_is_pinned_and_has_a_licence_with_evidence():
    for name, package in MANIFEST["packages"].items():
        assert re.fullmatch("[0-9a-f]{64}", package["sha256"]) and isinstance(package["version"], str) and package["root"], name
        assert package["licence"].strip() and package["evidence"].strip(), name
        assert package.get("copyright_of", name) in MANIFEST["packages"]


def test_nothing_is_both_trained_on_and_held_out():
    for kind in ("documents", "backgrounds"):
        train, held = (set(map(str, MANIFEST[kind][split])) for split in ("train", "heldout"))
        assert train and held and not train & held, kind
    manuals = {name.split(".")[0].lower() for _, name in MANIFEST["documents"]["train"]}
    assert not manuals & {"policy", "octave"} and {name for _, name in MANIFEST["documents"]["heldout"]} == {"policy.pdf.gz", "octave.pdf"}
    old, new = MANIFEST["objects"], MANIFEST["new_objects"]
    assert not set(old) & set(new) and not set(old.values()) & set(new.values()) and len(new) >= 0.2 * len(old)


def test_the_list_of_words_is_closed_and_plain():
    words = MANIFEST["words"]
    assert 50 <= len(words) <= 70 and words == sorted(set(words)) and all(re.fullmatch("[a-z]{4,12}", word) for word in words)


# ---- licences ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path,licence", [("src/main.cpp", "GPL-9"), ("src/activities/lang/a/b.webp", "CC-X"), ("", "GPL-9")])
def test_debian_copyright_is_read_as_debian_reads_it(path, licence):
    assert ablation_licences.licence_in(PER_FILE, path) == licence


def test_a_readme_goes_before_debian_copyright(sources):
    of = lambda path: sources.licences.of("gcompris", f"src/activities/{path}")
    assert of("categorization/resource/images/tools/measuringTape2.webp") == "CC0-1.0"
    assert of("explore_monuments/resource/egypt/sphinx.webp") == "CC-BY"
    assert of("lang/resource/words_sample/pear.webp") == "CC-X"
    assert of("details/resource/image/tower_background.webp") == "GPL-9"
    assert sources.licences.of("stellarium", "skycultures/western/aur.png") == "CC BY-SA 4.0"
    assert sources.licences.of("stellarium", "nebulae/default/n40-x.png") == "GPL-9"


def test_no_licence_is_an_error(sources):
    packages = {"one": {"package": "deb-one", "licence": "per file", "evidence": "words"}}
    licences = ablation_licences.Licences(packages, {"one": "words and no paragraphs"}, {"one": sources.roots["gcompris"]})
    with pytest.raises(embedded_pictures.BuildError, match="deb-one: a/b.png has no licence"):
        licences.of("one", "a/b.png")
    with pytest.raises(embedded_pictures.BuildError, match="does not say 'words'"):
        ablation_licences.Licences(packages, {"one": "other text"}, {})


# ---- captioned pictures -----------------------------------------------------------------------------


def test_what_gcompris_calls_its_pictures(sources):
    assert said(ablation_figures.gcompris(sources.roots["gcompris"])) == [
        ("Measuring tape.", "src/activities/categorization/resource/images/tools/measuringTape2.webp"),
        ("Pear.", "src/activities/lang/resource/words_sample/pear.webp"),
        ("Great sphinx.", "src/activities/explore_monuments/resource/egypt/sphinx.webp"),
        ("A tower at night.", "src/activities/details/resource/image/tower_background.webp")]


def test_figures_have_their_titles_and_what_stands_below(sources):
    assert said(ablation_figures.figures("gimp", sources.roots["gimp"])) == [
        ("The large dialog: with a list.", "images/large.png"), ("The other & more.", "images/other.png")]
    assert said(ablation_figures.figures("handbook", sources.roots["handbook"])) == [("A desk.", "images/desk.png")]


def test_nebulae_and_constellations_that_may_be_changed(sources):
    assert said(ablation_figures.stellarium(sources.roots["stellarium"])) == [
        ("Bow-Tie Nebula.", "nebulae/default/n40-x.png"), ("Inuit driver, an Inuit constellation.", "skycultures/inuit/aur.png"),
        ("The constellation western driver.", "skycultures/western/aur.png")]


def test_elements_and_tools(sources):
    assert said(ablation_figures.tools(sources.roots["kalzium"])) == [("Beaker.", "toolpics/beaker.png")]
    (icon,) = ablation_figures.element_icons(sources.roots["kalzium"], sources.roots["elements"])
    assert icon.caption == "The element hydrogen, H." and icon.questions == [("Which chemical element does the picture stand for?", "Hydrogen")]


def test_flags_are_asked_for_by_country(sources):
    drawings = list(ablation_captions.flags(sources.roots["flags"], ablation_figures.countries(sources.roots["countries"])))
    assert [drawing.questions for drawing in drawings] == [[("Which country's flag is this?", f"Land {code}")] for code in ("AA", "BB", "CC")]


def test_a_photograph_is_shown_whole_and_not_enlarged(sources):
    (drawing,) = ablation_figures.tools(sources.roots["kalzium"])
    image = drawing.picture(1)
    assert image.size == (256, 256) and image.getpixel((5, 128)) == (255, 255, 255)
    box = embedded_pictures.content_box(image)
    assert (box[2] - box[0], box[3] - box[1]) == (160, 120)


def test_resource_archives():
    files = {"a/one.txt": b"1" * 300, "a/b/two.txt": b"two", "three.txt": b"three" * 50}
    assert qt_resources.entries(made_sources.archive(files)) == files
    with pytest.raises(ValueError, match="no Qt resource"):
        qt_resources.entries(b"PK" + bytes(30))
    packed = made_sources.archive({"a": b"1"}).replace(struct.pack(">IHHHI", 6, 1, 0, 1, 0), struct.pack(">IHHHI", 6, 4, 0, 1, 0))
    with pytest.raises(ValueError, match="zstd"):
        qt_resources.entries(packed)


# ---- texts ------------------------------------------------------------------------------------------


def test_facts_have_their_sources(sources):
    facts = ablation_texts.facts(sources.roots, ["landa", "landc"])
    by_kind = {kind: [fact for fact in facts if fact.kind == kind] for kind in ("package", "capital", "element", "country")}
    assert [(f.question, f.answer) for f in by_kind["package"]] == [
        ("What is the package mc for?", "text-mode file manager"), ("What is the package vim for?", "an editor of text")]
    assert len(by_kind["capital"]) == 24 and by_kind["capital"][0].source[0] == "maps"
    assert {f.source[1] for f in by_kind["capital"]} == {"landa.kgm", "landc.kgm"}
    assert [f.answer for f in by_kind["element"]] == ["H", "Hydrogen", "Hydrogen", "He", "Helium", "Helium"]
    assert ("Which country has the code DD?", "Land DD") in [(f.question, f.answer) for f in by_kind["country"]]
    assert all(fact.source for fact in facts)


def test_sums_are_right():
    found = list(ablation_texts.sums())
    assert len({text.question for text in found}) == len(found) > 9000
    for text in random.Random(1).sample(found, 500):
        a, sign, b = re.fullmatch(r"What is (\d+) ([-+x]) (\d+)\?", text.question).groups()
        assert int(text.answer) == eval(f"{a} {sign.replace('x', '*')} {b}")


def test_texts_are_facts_and_sums(sources):
    facts = ablation_texts.facts(sources.roots, ["landa"])
    few = ablation_texts.drawn(random.Random(1), facts, 8)
    assert [text.source is not None for text in few] == [True] * 6 + [False] * 2
    many = ablation_texts.drawn(random.Random(1), facts, 100)  # facts are too few: all of them, each once
    assert len(many) == 100 and len({text.question for text in many}) == 100 and {f.question for f in facts} <= {t.question for t in many}


def test_facts_are_of_countries_that_are_not_held_out(sources):
    train, held = sources.map_names("train"), sources.map_names("heldout")
    assert train and held and not {ablation_maps.country(name) for name in train} & {ablation_maps.country(name) for name in held}
    assert set(train) | set(held) | {"landb"} == {path.stem for path in sources.roots["maps"].glob("*.kgm")}
    assert build_ablation.HELDOUT_COUNTRIES == 0.2
