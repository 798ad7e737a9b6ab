"""Held-out scenes in outline, for where their photographs may not be shown: what stands where, where mining looks and
what each arm answers, as one SVG. Outlines come from the boxes of the held-out records, the weights of mining from the
tint that mgm report lays over a picture (csrc/report/attention_picture.cpp)."""
import base64
import html
import struct
import zlib

import scoring

SIDE, CELLS, GAP, TEXT = 256, 64, 16, 64  # pixels of a picture, positions of its map on a side; between panels; below them
TINT, GREY, STRONGEST = (230, 60, 20), 0.55, 0.85
GOOD, BAD = "#1a7f37", "#b42318"


def png_rows(data):
    """Rows of (r, g, b) of an 8-bit RGB PNG without interlace."""
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    if data[:8] != b"\x89PNG\r\n\x1a\n" or (depth, colour, interlace) != (8, 2, 0):
        raise ValueError(f"a PNG of depth {depth}, colour type {colour}, interlace {interlace}; 8, 2 and 0 are read")
    packed, at = b"", 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind == b"IDAT":
            packed += data[at + 8:at + 8 + length]
        at += 12 + length
    raw, stride, rows = zlib.decompress(packed), 3 * width, []
    above = bytearray(stride)
    for y in range(height):
        kind, line = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
        for i in range(stride):
            left, up, corner = (line[i - 3] if i >= 3 else 0), above[i], (above[i - 3] if i >= 3 else 0)
            line[i] = line[i] + (0, left, up, (left + up) // 2, paeth(left, up, corner))[kind] & 255
        rows.append([tuple(line[i:i + 3]) for i in range(0, stride, 3)])
        above = line
    return rows


def paeth(left, up, corner):
    guess = left + up - corner
    return min((left, up, corner), key=lambda value: abs(guess - value))


def png_of_tint(shares):
    """An RGBA PNG of the tint's colour, its opacity `shares`, rows of numbers in [0, 1]."""
    raw = b"".join(b"\0" + b"".join(bytes((*TINT, round(255 * share))) for share in row) for row in shares)
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    header = struct.pack(">IIBBBBB", len(shares[0]), len(shares), 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


def tint_shares(picture, overlay):
    """How strong the tint is at every position of the map, of the strongest; rows."""
    step = len(picture) // CELLS
    return [[tint_share(picture[y * step + step // 2][x * step + step // 2], overlay[y * step + step // 2][x * step + step // 2])
             for x in range(CELLS)] for y in range(CELLS)]


def tint_share(before, after):
    grey = (before[0] * 0.299 + before[1] * 0.587 + before[2] * 0.114) * 0.6 + 100
    base = [GREY * grey + (1 - GREY) * value for value in before]
    toward = [tint - value for tint, value in zip(TINT, base)]
    share = sum(d * (a - b) for d, a, b in zip(toward, after, base)) / sum(d * d for d in toward)
    return min(1.0, max(0.0, share / STRONGEST))


def decoded(uri):
    return base64.b64decode(uri.split(",", 1)[1])


def outline(records):
    """What a scene shows: the object's box with its name, the number, the dots."""
    out = [f'<rect width="{SIDE}" height="{SIDE}" fill="#fff" stroke="#999"/>']
    for record in records:
        answer = html.escape(record["conversations"][1]["value"])
        for left, top, right, bottom in record["boxes"]:
            width, height = right - left, bottom - top
            if record["task"] == "counts":
                out.append(f'<circle cx="{left + width / 2}" cy="{top + height / 2}" r="{width / 2}" fill="#101010"/>')
            elif record["task"] == "digits":
                out.append(f'<text x="{left}" y="{bottom}" font-size="{record["size"] / 0.73:.1f}" font-weight="bold" '
                           f'font-family="DejaVu Sans" textLength="{width}" lengthAdjust="spacingAndGlyphs">{answer}</text>')
            else:
                label_y = top - 3 if top > 14 else bottom + 11
                out.append(f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="{GOOD}" stroke-width="1.5"/>'
                           f'<text x="{min(left, SIDE - 60)}" y="{label_y}" fill="{GOOD}">{answer}</text>')
    return out


def answer_table(records, answers, arms):
    """A line of what is right, and one of each arm's answers."""
    columns = [120 + 55 * i for i in range(len(records))]
    lines = [("", [(record["conversations"][1]["value"], "#000") for record in records])]
    for arm, name in arms.items():
        said = [(answers[arm][record["id"]], record["conversations"][1]["value"]) for record in records]
        lines.append((name, [(answer or "-", GOOD if scoring.exact_match(answer, right) == 1 else BAD) for answer, right in said]))
    out = []
    for i, (name, texts) in enumerate(lines):
        y = SIDE + 16 + 14 * i
        out.append(f'<text x="0" y="{y}">{name}</text>')
        out += [f'<text x="{x}" y="{y}" fill="{colour}" font-weight="{"normal" if i else "bold"}">{html.escape(text[:9])}</text>'
                for x, (text, colour) in zip(columns, texts)]
    return out


def draw(records, answers, mining, arms):
    """The SVG: a column per scene that mining was drawn of, a row per arm of `mining` ({arm: [(picture's name, data URI of
    the picture, of its tinted one)]}). `answers`: {arm: {id: answer}}, `arms`: {arm: its name}. "" without boxes."""
    by_picture = {}
    for record in records.values():
        if record.get("boxes"):
            by_picture.setdefault(record["image"].rsplit("/", 1)[-1], []).append(record)
    names = [name for name, _, _ in next(iter(mining.values()), []) if name in by_picture]
    if not names:
        return ""
    width, row = len(names) * (SIDE + GAP) + GAP, SIDE + GAP + 16
    height = len(mining) * row + TEXT + GAP
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           'font-family="sans-serif" font-size="11">', f'<rect width="{width}" height="{height}" fill="white"/>']
    for i, (arm, pictures) in enumerate(mining.items()):
        out.append(f'<text x="{GAP}" y="{i * row + 20}" font-weight="bold">{arms[arm]}</text>')
        for name, before, after in pictures:
            if name not in names:
                continue
            shares = tint_shares(png_rows(decoded(before)), png_rows(decoded(after)))
            tint = base64.b64encode(png_of_tint(shares)).decode()
            scene = sorted(by_picture[name], key=lambda record: record["id"])
            out += [f'<g transform="translate({GAP + names.index(name) * (SIDE + GAP)} {i * row + 28})">', *outline(scene),
                    f'<image width="{SIDE}" height="{SIDE}" opacity="0.7" image-rendering="pixelated" href="data:image/png;base64,{tint}"/>']
            if i == len(mining) - 1:
                out += answer_table(scene, answers, arms)
            out.append("</g>")
    return "\n".join(out + ["</svg>\n"])
