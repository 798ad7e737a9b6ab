"""Questions of the HR ablation that need no picture: what Debian packages are for, capitals, chemical elements, codes of
countries, arithmetic of one step. A tenth of what stage 2 learns from.
"""

import html
import re
from dataclasses import dataclass

import ablation_figures
import ablation_maps

PACKAGE = re.compile(r'href="http://packages\.debian\.org/sid/[^"]+">\s*<code class="literal">([^<]+)</code>')
SHORT = 120  # characters of what a package is said to be for, at most


@dataclass
class Text:
    kind: str
    question: str
    answer: str
    source: tuple = None  # (package of the manifest, path in it); None: made here


def packages(root):
    """Out of the tables of Debian's reference, each package once."""
    seen = set()
    for page in sorted(root.glob("ch*.en.html")):
        for row in re.findall(r"<tr>(?:(?!</tr>).)*<td.*?</tr>", page.read_text(encoding="utf-8"), re.S):
            name, said = PACKAGE.search(row), ablation_figures.text_of(row.rsplit("<td", 1)[1].partition(">")[2]).rstrip(".")
            if name and name[1] not in seen and 8 <= len(said) <= SHORT:
                seen.add(name[1])
                yield Text("package", f"What is the package {html.unescape(name[1])} for?", said, ("reference", page.name))


def capitals(root, names):
    """Of regions on the maps of that name: those with one capital, under whatever map."""
    said = {}
    for name in names:
        for _, division, capital in ablation_maps.divisions(root / f"{name}.kgm"):
            if division and capital and len(division) < 40 and len(capital) < 40:
                said.setdefault(division, {}).setdefault(capital, name)
    for division, of in sorted(said.items()):
        if len(of) == 1:
            (capital, name), = of.items()
            yield Text("capital", f"What is the capital of {division}?", capital, ("maps", f"{name}.kgm"))


def elements(listing):
    for number, symbol, name in ablation_figures.elements(listing):
        source = ("elements", listing.name)
        yield Text("element", f"What is the symbol of the element {name.lower()}?", symbol, source)
        yield Text("element", f"Which element has the symbol {symbol}?", name, source)
        yield Text("element", f"Which element has the atomic number {number}?", name, source)


def country_codes(listing):
    for code, name in ablation_figures.countries(listing):
        yield Text("country", f"Which country has the code {code}?", name, ("countries", listing.name))


def sums():
    """Additions and subtractions up to 99, products up to 12 x 12."""
    for a in range(1, 100):
        for b in range(1, 100):
            if a + b < 100:
                yield Text("sum", f"What is {a} + {b}?", str(a + b))
            if b <= a:
                yield Text("sum", f"What is {a} - {b}?", str(a - b))
            if a <= 12 and b <= 12:
                yield Text("sum", f"What is {a} x {b}?", str(a * b))


def facts(roots, maps):
    """All of those with a source."""
    return [*packages(roots["reference"]), *capitals(roots["maps"], maps), *elements(roots["elements"]), *country_codes(roots["countries"])]


def drawn(rng, found, count):
    """So many of them and of sums, a quarter sums, more where facts are too few."""
    given = rng.sample(found, min(len(found), count - count // 4))
    return given + rng.sample(list(sums()), count - len(given))
