"""The licence behind every picture of the HR ablation: what the manifest says of a package, after a look into the package's
debian/copyright, or, where licences differ from file to file, what a README beside the file or debian/copyright says.
"""

import fnmatch
import gzip
import re

from embedded_pictures import BuildError

PER_FILE = "per file"
OWN = "made by the builder; Apache-2.0, as it is"  # of what no source is behind


def paragraphs(text):
    """[(globs, licence)] of a debian/copyright that machines can read, or of a README with the same fields."""
    out = []
    for block in re.split(r"\n\s*\n", text):
        fields, key = {}, ""
        for line in block.split("\n"):
            found = re.match(r"(Files|License|Copyright|Source|Comment):\s*(.*)", line)
            if found:
                key, fields[found[1]] = found[1], [found[2]]
            elif key:
                fields[key].append(line)
        if "Files" in fields and fields.get("License", [""])[0].strip():
            out.append((" ".join(fields["Files"]).split(), " ".join(fields["License"][0].split())))
    return out


def licence_in(text, path):
    """Of the last paragraph that names the path, as Debian reads it; "" without one."""
    found = [licence for globs, licence in paragraphs(text) if any(fnmatch.fnmatchcase(path, glob) for glob in globs)]
    return found[-1] if found else ""


def readme_licence(root, path):
    """What the README of the file's folder, or of one above it, says of it; "" where none does."""
    for folder in (root / path).parents:
        readme = folder / "README"
        if readme.exists():
            return licence_in(readme.read_text(encoding="utf-8", errors="replace"), str((root / path).relative_to(folder)))
        if folder == root:
            break
    return ""


def info_licence(root, path):
    """What the info.ini of the file's folder says, as Stellarium's sky cultures do; "" without one."""
    info = (root / path).parent / "info.ini"
    found = re.search(r"^license\s*=\s*(.+)$", info.read_text(encoding="utf-8"), re.M) if info.exists() else None
    return found[1].strip() if found else ""


def debian_copyright(package_root, package):
    """The text of a package's debian/copyright."""
    folder = package_root / "usr/share/doc" / package
    for name in ("copyright", "copyright.gz"):
        if (folder / name).exists():
            data = (folder / name).read_bytes()
            return (gzip.decompress(data) if name.endswith(".gz") else data).decode(errors="replace")
    raise BuildError(f"{package}: no debian/copyright")


class Licences:
    """`packages`: those of the manifest; `texts`: {source: its debian/copyright}; `roots`: {source: folder}."""

    def __init__(self, packages, texts, roots):
        self.packages, self.texts, self.roots = packages, texts, roots
        for name, package in packages.items():
            words = " ".join(package.get("evidence", "").split())
            if words not in " ".join(texts.get(name, "").split()):
                raise BuildError(f"{package['package']}: debian/copyright does not say '{words}'")

    def of(self, source, path):
        """The licence of a file below the root of a source; BuildError where there is none."""
        package = self.packages[source]
        licence = package.get("licence", "")
        if licence == PER_FILE:
            path, root = str(path), self.roots[source]
            licence = readme_licence(root, path) or info_licence(root, path) or licence_in(self.texts.get(source, ""), path)
        if not licence:
            raise BuildError(f"{package['package']}: {path} has no licence")
        return licence
