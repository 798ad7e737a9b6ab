"""Held-out drawings with the captions that the arms answer, as one SVG; only drawings that may be shown, by the
licences.csv of the data."""
import base64
import csv
import html
import io

FREE = {"Public domain", "CC0"}
SHOWN, SIDE, GAP, LINE, LEFT = 6, 180, 16, 14, 150  # drawings; pixels
LONGEST = 28  # characters of a line


def free_of(licences):
    """Pictures of which every source may be shown."""
    with open(licences, newline="", encoding="utf-8") as file:
        return {row["picture"] for row in csv.DictReader(file) if set(row["licences"].split("; ")) <= FREE}


def picked(records, licences):
    """SHOWN of the held-out drawings that may be shown, evenly spread over the order of their names."""
    free = free_of(licences) if licences.exists() else set()
    drawings = sorted((r for r in records.values() if r["task"] == "captions" and r["image"] in free), key=lambda r: r["image"])
    return [drawings[i * len(drawings) // SHOWN] for i in range(min(SHOWN, len(drawings)))]


def jpeg(path):
    from PIL import Image
    out = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").resize((SIDE, SIDE), Image.LANCZOS).save(out, "JPEG", quality=80)
    return base64.b64encode(out.getvalue()).decode()


def line(x, k, text):
    """Line k below a drawing; the first is bold."""
    text = text if len(text) <= LONGEST else text[:LONGEST - 1] + "…"
    return f'<text x="{x}" y="{GAP + SIDE + LINE * (k + 1)}" font-weight="{"normal" if k else "bold"}">{html.escape(text)}</text>'


def draw(records, answers, data, arms):
    """The SVG: a column per drawing with its title and a line per arm. `answers`: {arm: {id: answer}}, `arms`: {arm: its
    name}. "" where no drawing may be shown, and without Pillow, which reads them."""
    shown = picked(records, data / "licences.csv")
    try:
        pictures = [jpeg(data / "images" / record["image"]) for record in shown]
    except ImportError:
        pictures = []
    if not pictures:
        return ""
    width, height = LEFT + len(shown) * (SIDE + GAP), GAP + SIDE + LINE * (len(arms) + 2)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           'font-family="sans-serif" font-size="11">', f'<rect width="{width}" height="{height}" fill="white"/>']
    out += [line(GAP, 0, "its title"), *(line(GAP, 1 + k, name) for k, name in enumerate(arms.values()))]
    for i, (record, picture) in enumerate(zip(shown, pictures)):
        x = LEFT + i * (SIDE + GAP)
        out += [f'<image x="{x}" y="{GAP // 2}" width="{SIDE}" height="{SIDE}" href="data:image/jpeg;base64,{picture}"/>',
                line(x, 0, record["conversations"][1]["value"]),
                *(line(x, 1 + k, answers[arm][record["id"]] or "-") for k, arm in enumerate(arms))]
    return "\n".join(out + ["</svg>\n"])
