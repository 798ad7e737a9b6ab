"""More captioned pictures of the HR ablation: photographs and drawings of GCompris, figures of GIMP's help and of the Debian
handbook, nebulae and constellations of Stellarium, laboratory tools and elements of Kalzium. Each is `Drawing`s in a fixed
order, captions as their authors wrote them.
"""

import html
import json
import re
import xml.etree.ElementTree as ElementTree

from PIL import Image

import ablation_captions
from ablation_captions import Drawing
from ablation_licences import info_licence

# Folders of GCompris whose files are named after what they show, below src/activities.
NAMED = ("categorization/resource/images/fishes", "categorization/resource/images/monuments", "categorization/resource/images/others",
         "categorization/resource/images/renewable", "categorization/resource/images/tools", "instruments/resource",
         "lang/resource/words_sample", "solar_system/resource")
UNNAMED = re.compile(r"background|error|^(alphabets|numbers|question|solar)$")
EXPLORE = ("explore_farm_animals", "explore_monuments", "explore_world_animals")  # photographs with a title in a .qml file
ACTIVITIES = (*EXPLORE, "categorization", "details", "instruments", "lang", "solar_system")
# Sky cultures whose drawings may be changed, by their info.ini, and are their own.
CULTURES = ("belarusian", "boorong", "inuit", "macedonian", "romanian", "western")
FREE_CULTURES = ("CC BY-SA", "GNU GPL")
SMALLEST, LONGEST = 96, 3  # figures: pixels of the longer side, at least; longer side to shorter, at most
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
MOST_SAID = 160  # characters of a figure's caption: a longer one is the title alone
NO_FIGURE = re.compile(r"icon|button|^(note|tip|warning|caution)\b", re.I)


def sentence(text):
    text = " ".join(text.split()).rstrip(".")
    return f"{text[0].upper()}{text[1:]}." if text else ""


def spoken(stem):
    """The words of a file's name: "measuringTape2" is "measuring tape"."""
    words = re.sub(r"([a-z])([A-Z])", r"\1 \2", stem.replace("-color", ""))
    return re.sub(r"[_\d]+", " ", words).strip().lower()


def gcompris(root):
    """`root`: the unpacked archives."""
    base = root / "src/activities"
    for folder in NAMED:
        for path in sorted([*(base / folder).glob("*.webp"), *(base / folder).glob("*.svg")]):
            name = spoken(re.sub("^fish\\d+$", "fish", path.stem))
            if name and not UNNAMED.search(name):
                yield Drawing("gcompris", path.relative_to(root), sentence(name), path)
    for board in sorted(path for activity in EXPLORE for path in (base / activity / "resource/board").glob("*.qml")):
        text = board.read_text(encoding="utf-8")
        for entry in text.split("{")[2:]:
            title, image = (re.search(rf'"{key}"\s*:\s*(?:qsTr\()?"([^"]+)"', entry) for key in ("title", "image2"))
            path = root / image[1].split("/gcompris/")[1] if title and image else None
            if path and path.exists():
                yield Drawing("gcompris", path.relative_to(root), sentence(title[1]), path)
    for board in sorted((base / "details/resource/board").glob("*.qml")):
        text = board.read_text(encoding="utf-8")
        said = re.search(r'instruction\s*:\s*qsTr\("([^"]+)"\)', text)
        image = re.search(r'"pixmapfile"\s*:\s*"(image/\w+_background\.webp)"', text)
        path = base / "details/resource" / image[1] if image else None
        if said and path and path.exists():
            yield Drawing("gcompris", path.relative_to(root), sentence(said[1]), path)


def text_of(markup):
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", markup)).split())


def figure(source, root, path, caption):
    """A figure that is large enough to show something, or None."""
    if path.suffix not in (".png", ".jpg") or not path.exists() or not caption or NO_FIGURE.search(caption):
        return None
    with Image.open(path) as image:
        width, height = image.size
    if max(width, height) < SMALLEST or max(width, height) > LONGEST * min(width, height):
        return None
    return Drawing(source, path.relative_to(root), caption, path)


def figures(source, root):
    """DocBook's figures in HTML pages: the figure's title, and behind a colon what stands below a picture of several."""
    seen = set()
    for page in sorted(root.glob("*.html")):
        text = page.read_text(encoding="utf-8", errors="replace")
        for block in re.split(r'<div class="figure">', text)[1:]:
            block = re.split(r'<br class="figure-break"', block)[0]
            title = re.search(r'<p class="title">(.*?)</p>', block, re.S)
            title = re.sub(r"^Figure [\w.]+\. ", "", text_of(title[1])) if title else ""
            for part in re.split(r'<div class="mediaobject"', block)[1:]:
                image = re.search(r'<img\b[^>]*src="([^"]+)"', part, re.S)
                below = re.search(r'<div class="caption">(.*?)</div>', part, re.S)
                below = text_of(below[1]) if below else ""
                caption = sentence(f"{title.rstrip('.')}: {below}" if 0 < len(below) <= MOST_SAID - len(title) else title)
                drawing = figure(source, root, root / image[1], caption) if image else None
                if drawing and (drawing.path, caption) not in seen:
                    seen.add((drawing.path, caption))
                    yield drawing


def nebula_names(path):
    """{"n4559": its first English name}, by what Stellarium's pictures are called after."""
    short = {"NGC": "n", "IC": "ic", "M": "m", "SH2": "sh2-", "B": "barnard", "VDB": "vdb"}
    names = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        found = re.match(r'(\w+)\s+(\d+)\s+_\("([^"]+)"\)', line)
        if found and found[1] in short:
            names.setdefault(f"{short[found[1]]}{found[2]}", found[3])
    return names


def stellarium(root):
    names = nebula_names(root / "nebulae/default/names.dat")
    for path in sorted((root / "nebulae/default").glob("*.png")):
        name = names.get(re.match(r"(?:sh2-|[a-z]+)\d+|", path.stem)[0])
        if name:
            yield Drawing("stellarium", path.relative_to(root), sentence(name), path)
    for culture in CULTURES:
        folder = root / "skycultures" / culture
        if not info_licence(root, f"skycultures/{culture}/info.ini").startswith(FREE_CULTURES):
            continue
        names = dict(re.findall(r'^(\S+)\s+"[^"]*"\s+_\("([^"]+)"\)', (folder / "constellation_names.eng.fab").read_text(encoding="utf-8"), re.M))
        for line in (folder / "constellationsart.fab").read_text(encoding="utf-8").splitlines():
            words = line.split()
            if len(words) > 1 and words[0] in names and (folder / words[1]).exists():
                name = re.sub(r"\s*\(.*?\)", "", names[words[0]]).strip("' ")
                people = culture.capitalize()
                which = f"{'an' if people[0] in 'AEIOU' else 'a'} {people} constellation"
                caption = f"The constellation {name}." if culture == "western" else sentence(f"{name}, {which}")
                yield Drawing("stellarium", (folder / words[1]).relative_to(root), caption, folder / words[1])


def tools(root):
    """Kalzium's photographs of laboratory tools."""
    for item in ElementTree.parse(root / "tools.xml").getroot().iter("item"):
        path = root / "toolpics" / item.findtext("picture", "").strip()
        if path.is_file():
            yield Drawing("kalzium", path.relative_to(root), sentence(item.findtext("name", "")), path)


def elements(listing):
    """[(atomic number, symbol, name)] of elements.xml."""
    out = []
    for atom in ElementTree.parse(listing).getroot().iter("{http://www.xml-cml.org/schema}atom"):
        said = {child.get("dictRef"): child.get("value") or child.text for child in atom if child.get(LANGUAGE, "en") == "en"}
        if int(said["bo:atomicNumber"]) > 0:
            out.append((int(said["bo:atomicNumber"]), said["bo:symbol"], said["bo:name"]))
    return sorted(out)


def element_icons(root, listing):
    """What an element is found in, above its symbol."""
    for number, symbol, name in elements(listing):
        path = root / f"iconsets/school/{number}.svg"
        if path.exists():
            question = ("Which chemical element does the picture stand for?", name)
            yield Drawing("kalzium", path.relative_to(root), f"The element {name.lower()}, {symbol}.", path, [question])


def countries(listing):
    """[(two letters, name)] of ISO 3166-1."""
    entries = json.loads(listing.read_text(encoding="utf-8"))["3166-1"]
    return [(entry["alpha_2"], entry.get("common_name", entry["name"])) for entry in entries]


def all_drawings(roots):
    """Every captioned picture there is, in a fixed order."""
    return [*ablation_captions.stamps(roots["stamps"]), *ablation_captions.clipart(roots["clipart"]),
            *ablation_captions.flags(roots["flags"], countries(roots["countries"])), *gcompris(roots["gcompris"]),
            *figures("gimp", roots["gimp"]), *figures("handbook", roots["handbook"]), *stellarium(roots["stellarium"]),
            *tools(roots["kalzium"]), *element_icons(roots["kalzium"], roots["elements"])]
