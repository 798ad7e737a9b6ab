"""Files in Qt's resource archives (.rcc), as GCompris ships its pictures."""

import struct
import zlib

FOLDER, ZLIB, ZSTD = 2, 1, 4  # flags of an entry


def entries(data):
    """{path: content} of an archive."""
    if data[:4] != b"qres":
        raise ValueError("no Qt resource archive")
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    step, found = 22 if version >= 2 else 14, {}

    def name_at(offset):
        (length,) = struct.unpack(">H", data[names + offset:names + offset + 2])
        return data[names + offset + 6:names + offset + 6 + 2 * length].decode("utf-16-be")

    def walk(number, folder):
        at = tree + step * number
        name, flags = struct.unpack(">IH", data[at:at + 6])
        path = f"{folder}/{name_at(name)}" if number else folder
        if flags & FOLDER:
            count, first = struct.unpack(">2I", data[at + 6:at + 14])
            for child in range(first, first + count):
                walk(child, path)
            return
        (offset,) = struct.unpack(">I", data[at + 10:at + 14])
        (length,) = struct.unpack(">I", data[contents + offset:contents + offset + 4])
        content = data[contents + offset + 4:contents + offset + 4 + length]
        if flags & ZSTD:
            raise ValueError(f"{path}: packed with zstd, which is not read")
        found[path.lstrip("/")] = zlib.decompress(content[4:]) if flags & ZLIB else content

    walk(0, "")
    return found


def unpack(archive, folder):
    """Writes what an archive holds below `folder`."""
    for path, content in entries(archive.read_bytes()).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
