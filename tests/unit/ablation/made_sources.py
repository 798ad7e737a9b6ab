"""Sources for data/build_ablation.py that are made here, as small as they can be: a folder per package of the manifest."""
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import zlib

from PIL import Image, ImageDraw

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "data"))
import ablation_figures
import ablation_scenes
import build_ablation

TOOLS = [tool for tool in ("rsvg-convert", "pdftoppm", "pdftotext", "pdfinfo") if not shutil.which(tool)]
MISSING = TOOLS or [path for path in [ablation_scenes.FONT] if not pathlib.Path(path).exists()]
REASON = f"NOT RUN: needs {MISSING} (librsvg2-bin, poppler-utils, fonts-dejavu-core)"
PD = '<cc:license rdf:resource="http://web.resource.org/cc/PublicDomain"/>'
COLOURS = [(10 + 20 * i, 250 - 20 * i, 60 + 15 * i) for i in range(12)]
WORDS = "package system install files which language value number should table between server config option".split()
LISTED = WORDS[:10]
PER_FILE = """Format: x

Files: *
Copyright: someone
License: GPL-9

Files: src/activities/lang/*
License: CC-X
"""
PACKAGES = ("stamps", "clipart", "flags", "countries", "backgrounds", "manuals", "maps", "gcompris", "gimp", "handbook", "stellarium",
            "kalzium", "elements", "reference")


def svg(path, title, shape, licence=PD):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"""<svg xmlns="http://www.w3.org/2000/svg" xmlns:cc="http://web.resource.org/cc/" width="100" height="100"
  xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<metadata><rdf:RDF><cc:Work rdf:about=""><dc:title>{title}</dc:title>{licence}</cc:Work></rdf:RDF></metadata>{shape}</svg>""")


def circle(i):
    return f'<circle cx="50" cy="50" r="{10 + i % 35}" fill="rgb({i * 37 % 255},{i * 91 % 255},80)"/>'


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def photograph(path, colour, size=(160, 120)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def make_stamps(root):
    for i, name in enumerate(["frog", "owl", "bee", "cow", "pig", "yak"]):
        stamp = Image.new("RGBA", (60, 40 + 4 * i))
        ImageDraw.Draw(stamp).ellipse([5, 5, 50, 35], fill=(40 * i, 200 - 30 * i, 90, 255))
        path = root / f"animals/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        stamp.save(path)
        path.with_suffix(".txt").write_text(f"A {name}.\nutf8 text\n")
    Image.new("RGB", (30, 30), "red").save(root / "animals/opaque.png")
    (root / "animals/opaque.txt").write_text("A thing without transparency.\n")
    (root / "symbols").mkdir()
    shutil.copy(root / "animals/cow.png", root / "symbols/letter.png")
    (root / "symbols/letter.txt").write_text("A letter.\n")


def make_clipart(root):
    for i in range(24):  # 12 titles, some of them held out, twice each, as different drawings
        svg(root / f"food/{i}.svg", f"Fruit {'adghkmopqwyz'[i % 12] * 3}", circle(i))
    for i in range(13):
        svg(root / f"office/set{i}.svg", "Name of a set", circle(200 + i))
    svg(root / "food/again.svg", "Another name", circle(3))  # drawn as an earlier one
    svg(root / "food/owned.svg", "Owned drawing", circle(77), licence="")
    svg(root / "food/part.svg", "Part of a theme", circle(78))
    svg(root / "computer/some-theme/folder.svg", "Folder of a theme", circle(79))
    svg(root / "shapes/star.svg", "Star", circle(80))


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
            entries.append("<division><name>Part {0} of {4}</name><capital>Town {0} of {4}</capital><color><red>{1}</red><green>{2}</green>"
                           "<blue>{3}</blue></color></division>".format(i, *colour, m))
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


def archive(files):
    """A Qt resource archive of {path: content}; every second one is packed."""
    tree = {}
    for path, content in files.items():
        *folders, name = path.split("/")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = content
    names, contents, rows, todo = b"", b"", [None], [(0, "", tree)]
    while todo:
        number, name, content = todo.pop(0)
        at, packed = len(names), content if isinstance(content, bytes) and number % 2 else None
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(content, dict):
            rows[number] = struct.pack(">IHII", at, 2, len(content), len(rows))
            todo += [(len(rows) + i, *child) for i, child in enumerate(content.items())]
            rows += [None] * len(content)
            continue
        body = struct.pack(">I", len(packed)) + zlib.compress(packed) if packed else content
        rows[number] = struct.pack(">IHHHI", at, 1 if packed else 0, 0, 1, len(contents))
        contents += struct.pack(">I", len(body)) + body
    table = b"".join(rows)
    return b"qres" + struct.pack(">4I", 1, 20, 20 + len(table) + len(names), 20 + len(table)) + table + names + contents


def make_gcompris(root):
    files, base = root / "files", "gcompris/src/activities"
    photograph(files / base / "lang/resource/words_sample/pear.webp", "green")
    photograph(files / base / "categorization/resource/images/tools/measuringTape2.webp", "red")
    write(files / base / "categorization/resource/images/tools/README", "Copyright: b\nLicense: CC0-1.0\nFiles:\nmeasuringTape2.webp\n")
    photograph(files / base / "explore_monuments/resource/egypt/sphinx.webp", "yellow")
    write(files / base / "explore_monuments/resource/README", "License: CC-BY\nFiles:\negypt/sphinx.webp\n")
    write(files / base / "explore_monuments/resource/board/board1.qml", 'QtObject { property var tab: [ { "title": qsTr("great sphinx"),\n'
          '"image2": "qrc:/gcompris/src/activities/explore_monuments/resource/egypt/sphinx.webp" } ] }')
    photograph(files / base / "details/resource/image/tower_background.webp", "blue")
    write(files / base / "details/resource/board/board1_0.qml", 'property string instruction: qsTr("A tower at night")\n'
          '"pixmapfile" : "image/tower_background.webp"')
    for activity in ablation_figures.ACTIVITIES:
        held = {str(path.relative_to(files)): path.read_bytes() for path in sorted((files / base / activity).rglob("*")) if path.is_file()}
        (root / f"{activity}.rcc").write_bytes(archive(held or {"empty": b"-"}))


def make_figures(root):
    for i, name in enumerate(("large", "other", "tiny")):
        photograph(root / f"images/{name}.png", (40 * i, 90, 200), (30, 30) if name == "tiny" else (300, 150))
    block = '<div class="figure"><p class="title"><strong>Figure 1.{0}. The <em>{1}</em></strong></p><div class="mediaobject"><img src="images/{2}.png"/>{3}</div></div><br class="figure-break"/>'
    write(root / "page.html", block.format(1, "large dialog", "large", '<div class="caption"><p>with a list</p></div>')
          + block.format(2, "other &amp; more", "other", "") + block.format(3, "tiny thing", "tiny", "") + block.format(4, "first icon", "large", ""))


def make_stellarium(root):
    photograph(root / "nebulae/default/n40-x.png", "purple")
    photograph(root / "nebulae/default/unnamed.png", "navy")
    write(root / "nebulae/default/names.dat", '# names\nNGC  40   _("Bow-Tie Nebula") # A\nNGC  40   _("Scarab Nebula")\n')
    for culture, licence, colour in (("western", "CC BY-SA 4.0", "gray"), ("inuit", "GNU GPL v2.0", "white"), ("romanian", "CC BY-NC-ND 4.0", "pink")):
        folder = root / "skycultures" / culture
        photograph(folder / "aur.png", colour)
        write(folder / "info.ini", f"[info]\nlicense = {licence}\n")
        write(folder / "constellation_names.eng.fab", f'Aur\t"Auriga"\t_("{culture} driver (of a cart)")\n')
        write(folder / "constellationsart.fab", "# art\nAur aur.png 1 2 3\n")
    for culture in set(ablation_figures.CULTURES) - {"western", "inuit", "romanian"}:
        write(root / "skycultures" / culture / "info.ini", "license = CC BY-NC 4.0\n")


def make_elements(root, listing):
    svg(root / "iconsets/school/1.svg", "", circle(90))
    write(root / "tools.xml", "<tools><item><picture>beaker.png</picture><name>Beaker</name></item><item><picture>no.png</picture><name>No</name></item></tools>")
    photograph(root / "toolpics/beaker.png", "orange")
    atoms = "".join(f'<atom id="{s}"><scalar dictRef="bo:atomicNumber">{n}</scalar><label dictRef="bo:symbol" value="{s}"/><label dictRef="bo:name" '
                    f'xml:lang="en" value="{name}"/></atom>' for n, s, name in ((0, "Xx", "Dummy"), (1, "H", "Hydrogen"), (2, "He", "Helium")))
    listing.write_text(f'<list xmlns="http://www.xml-cml.org/schema">{atoms}</list>')


def make_reference(root):
    row = ('<tr><td> <a class="ulink" href="http://packages.debian.org/sid/{0}"> <code class="literal">{0}</code> </a></td><td>1</td>'
           '<td style="text-align: left"> {1}</td></tr>')
    write(root / "ch01.en.html", "<table><tr><th>package</th></tr>" + row.format("mc", "text-mode <em>file</em> manager.") + row.format("vim", "an editor of text")
          + row.format("mc", "a second time") + row.format("x", "short") + "</table>")


def make(root):
    """(manifest, {package: folder}, {package: its debian/copyright})"""
    for name in ("stamps", "clipart", "flags", "backgrounds", "manuals", "gcompris"):
        (root / name).mkdir()
    make_stamps(root / "stamps")
    make_clipart(root / "clipart")
    make_maps(root / "maps")
    make_gcompris(root / "gcompris")
    make_figures(root / "gimp")
    photograph(root / "handbook/images/desk.png", "brown")
    write(root / "handbook/a.html", '<div class="figure"><img src="x"/><div class="mediaobject"><img src="images/desk.png"/></div><p class="title">Figure 2. A desk</p></div>')
    make_stellarium(root / "stellarium")
    make_elements(root / "kalzium", root / "elements.xml")
    make_reference(root / "reference")
    for code in ("aa", "bb", "cc"):
        svg(root / f"flags/{code}.svg", "", circle(100 + ord(code[0])))
    (root / "countries.json").write_text(json.dumps({"3166-1": [{"alpha_2": c, "name": f"Land {c}"} for c in ("AA", "BB", "CC", "DD")]}))
    for i, name in enumerate(("a", "b", "c", "d")):
        Image.radial_gradient("L").resize((240, 200 + 10 * i)).convert("RGB").save(root / f"backgrounds/{name}.jpg")
    make_document(root / "manuals/train.pdf", 0)
    make_document(root / "manuals/heldout.pdf", 2)
    packages = {name: {"package": f"deb-{name}", "version": "1", "licence": f"licence of {name}", "evidence": f"words of {name}"} for name in PACKAGES}
    packages["gcompris"]["licence"] = packages["stellarium"]["licence"] = "per file"
    manifest = {
        "packages": packages, "words": LISTED,
        "objects": {"frog": "animals/frog.png", "owl": "animals/owl.png"}, "new_objects": {"yak": "animals/yak.png"},
        "backgrounds": {"train": ["a.jpg", "b.jpg"], "heldout": ["c.jpg", "d.jpg"]},
        "documents": {"train": [["manuals", "train.pdf"]], "heldout": [["manuals", "heldout.pdf"]]},
        "not_maps": ["landb"]}
    roots = {name: root / name for name in packages} | {"countries": root / "countries.json", "elements": root / "elements.xml"}
    return manifest, roots, {name: f"words  of\n{name}\n\n{PER_FILE}" for name in packages}


def sources(root):
    manifest, roots, texts = make(root)
    (root / "work").mkdir()
    return build_ablation.Sources(manifest, roots, root / "work", texts)
