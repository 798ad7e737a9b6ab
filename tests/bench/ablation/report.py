"""The report of the HR ablation: numbers with intervals, a Markdown table, curves as SVG, a page with pictures."""
import base64
import collections
import html
import json

import drawings
import outlines
import scoring

ARMS = {"hr_on": "HR on", "hr_upsampled": "HR sees the LR view", "hr_off": "HR off"}
COLOURS = {"hr_on": "#1b6ca8", "hr_upsampled": "#c1440e", "hr_off": "#555555"}
# task: (what its sizes are, name of its score, the score of an answer)
TASKS = {
    "objects": ("longer side, px", "exact match", scoring.exact_match),
    "new objects": ("longer side, px", "exact match", scoring.exact_match),  # that no scene for training shows
    "digits": ("height of a digit, px", "exact match", scoring.exact_match),
    "counts": ("diameter of a dot, px", "exact match", scoring.exact_match),
    "documents": ("height of a line, px", "word accuracy", scoring.word_accuracy),
    "maps": ("side of the region, px, at least", "exact match", scoring.exact_match),
    "captions": ("", "CIDEr-D", None),
}
DIFFERENCES = [("hr_on", "hr_upsampled"), ("hr_on", "hr_off"), ("hr_upsampled", "hr_off")]
SHOWN = 2  # pictures of a task and size on the page


def expected(record):
    return record["conversations"][1]["value"]


def question(record):
    return record["conversations"][0]["value"].replace("<image>", "").strip()


def load(data, out):
    """(held-out records by id, results: {arm: {seed: result}})"""
    records = {r["id"]: r for r in json.loads((data / "heldout.json").read_text(encoding="utf-8"))}
    results = {arm: {} for arm in ARMS}
    for path in sorted((out / "results").glob("*.*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        missing = records.keys() - result["answers"].keys()
        if missing:
            raise SystemExit(f"{path}: {len(missing)} of {len(records)} questions have no answer, {min(missing)} for one")
        results[result["arm"]][result["seed"]] = result
    return records, {arm: dict(sorted(by_seed.items())) for arm, by_seed in results.items() if by_seed}


def score_all(records, answers):
    """{id: score} of one run."""
    scores = {}
    for identity, record in records.items():
        score = TASKS[record["task"]][2]
        if score:
            scores[identity] = score(answers[identity], expected(record))
    captions = [identity for identity, record in records.items() if record["task"] == "captions"]
    if captions:
        scores |= scoring.cider({i: answers[i] for i in captions}, {i: [expected(records[i])] for i in captions})
    return scores


def cells(records):
    """{(task, size or None for all): ids}"""
    out = collections.defaultdict(list)
    for identity, record in records.items():
        out[record["task"], record["size"]].append(identity)
        out[record["task"], None].append(identity)
    order = list(TASKS)
    return dict(sorted(out.items(), key=lambda cell: (order.index(cell[0][0]), cell[0][1] is None, cell[0][1] or 0)))


def clusters(ids, records):
    """The ids that ask about the same picture, together."""
    by_picture = collections.defaultdict(list)
    for identity in ids:
        by_picture[records[identity]["image"]].append(identity)
    return list(by_picture.values())


def rounded(values):
    return None if values is None else [round(v, 5) for v in values]


def evaluate(records, results):
    """One entry per task and size, with means, intervals and differences of the arms."""
    scores = {arm: [score_all(records, result["answers"]) for result in by_seed.values()] for arm, by_seed in results.items()}
    out = []
    for (task, size), ids in cells(records).items():
        groups = clusters(ids, records)
        entry = {"task": task, "size": size, "questions": len(ids), "arms": {}, "differences": {}}
        if TASKS[task][2]:  # what the best answer that never looks would score
            best = collections.Counter(expected(records[i]) for i in sorted(ids)).most_common(1)[0][0]
            entry["constant"] = round(scoring.mean([TASKS[task][2](best, expected(records[i])) for i in ids]), 5)
        for arm, seeds in scores.items():
            by_seed = [scoring.mean([of[i] for i in ids]) for of in seeds]
            entry["arms"][arm] = {
                "mean": round(scoring.mean(by_seed), 5), "by_seed": rounded(by_seed), "t": rounded(scoring.t_interval(by_seed)),
                "bootstrap": rounded(scoring.bootstrap({arm: seeds}, groups, lambda means, arm=arm: means[arm]))}
        for a, b in DIFFERENCES:
            if a in scores and b in scores:
                entry["differences"][f"{a} - {b}"] = {
                    "mean": round(entry["arms"][a]["mean"] - entry["arms"][b]["mean"], 5),
                    "bootstrap": rounded(scoring.bootstrap({a: scores[a], b: scores[b]}, groups, lambda m, a=a, b=b: m[a] - m[b]))}
        if task == "digits":
            entry["characters"] = {arm: round(scoring.mean(
                [scoring.character_accuracy(result["answers"][i], expected(records[i])) for result in by_seed.values() for i in ids]), 5)
                for arm, by_seed in results.items()}
        out.append(entry)
    return out


# ---- Markdown ---------------------------------------------------------------------------------------


def number(task, value):
    return f"{value:.2f}" if task == "captions" else f"{100 * value:.1f}"


def cell_text(task, value):
    half = "" if value["t"] is None else f" ± {number(task, (value['t'][1] - value['t'][0]) / 2)}"
    return f"{number(task, value['mean'])}{half} ({number(task, value['bootstrap'][0])} to {number(task, value['bootstrap'][1])})"


def size_text(entry):
    return "all" if entry["size"] is None else str(entry["size"])


def markdown(entries, results):
    arms = list(results)
    pairs = [f"{a} - {b}" for a, b in DIFFERENCES if a in results and b in results]
    machines = sorted({result["machine"] for by_seed in results.values() for result in by_seed.values()})
    lines = ["Scores in per cent; captions: CIDEr-D, 0 to 10. After ±: half the 95 % t interval of the mean over seeds; in brackets: the",
             "95 % interval of a bootstrap over seeds and pictures. Constant: the commonest answer to every question.", "",
             "| task | size | questions | constant | " + " | ".join(ARMS[arm] for arm in arms) + " |",
             "|---|---|---:|---:|" + "---|" * len(arms)]
    for entry in entries:
        constant = number(entry["task"], entry["constant"]) if "constant" in entry else ""
        lines.append(f"| {entry['task']} | {size_text(entry)} | {entry['questions']} | {constant} | "
                     + " | ".join(cell_text(entry["task"], entry["arms"][arm]) for arm in arms) + " |")
    if pairs:
        titles = [" − ".join(ARMS[arm] for arm in pair.split(" - ")) for pair in pairs]
        lines += ["", "Differences, with the bootstrap's interval; bold where it does not hold 0.", "",
                  "| task | size | " + " | ".join(titles) + " |", "|---|---|" + "---|" * len(pairs)]
        for entry in entries:
            texts = []
            for pair in pairs:
                value = entry["differences"][pair]
                low, high = value["bootstrap"]
                text = f"{number(entry['task'], value['mean'])} ({number(entry['task'], low)} to {number(entry['task'], high)})"
                texts.append(f"**{text}**" if low > 0 or high < 0 else text)
            lines.append(f"| {entry['task']} | {size_text(entry)} | " + " | ".join(texts) + " |")
    digits = [entry for entry in entries if "characters" in entry]
    if digits:
        lines += ["", "Digits right at their place, per cent:", "", "| size | " + " | ".join(ARMS[arm] for arm in arms) + " |",
                  "|---|" + "---:|" * len(arms)]
        lines += [f"| {size_text(e)} | " + " | ".join(number("digits", e["characters"][arm]) for arm in arms) + " |" for e in digits]
    whole = [entry for entry in entries if entry["size"] is None]
    lines += ["", "Run by run: losses at the end of the stages, scores of all sizes, seconds, answers that were cut.", "",
              "| arm | seed | stage 0 | stage 1 | stage 2 | " + " | ".join(entry["task"] for entry in whole)
              + " | training, s | answers, s | cut |", "|---|---|" + "---:|" * (len(whole) + 6)]
    for arm, by_seed in results.items():
        for i, (seed, run) in enumerate(by_seed.items()):
            losses = " | ".join(f"{stage['loss']:.3f}" for stage in run["stages"].values())
            scores = " | ".join(number(entry["task"], entry["arms"][arm]["by_seed"][i]) for entry in whole)
            lines.append(f"| {ARMS[arm]} | {seed} | {losses} | {scores} | {run['seconds']['train']:.0f} | "
                         f"{run['seconds']['answer']:.0f} | {run['cut']} |")
    return "\n".join(lines + ["", f"Machine: {', '.join(machines)}."]) + "\n"


# ---- curves -----------------------------------------------------------------------------------------

PANEL_W, PANEL_H, LEFT, TOP, BOTTOM = 300, 230, 46, 30, 46


def panel(task, entries, arms):
    """Score against size of one task, with the bootstrap's intervals."""
    points = [entry for entry in entries if entry["task"] == task and isinstance(entry["size"], (int, float))]
    at = {entry["size"]: LEFT + 20 + (PANEL_W - LEFT - 50) * i / max(1, len(points) - 1) for i, entry in enumerate(points)}
    y = lambda share: PANEL_H - BOTTOM - (PANEL_H - BOTTOM - TOP) * share
    out = [f'<text x="{LEFT}" y="18" font-weight="bold">{task}, {TASKS[task][1]}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        out.append(f'<line x1="{LEFT}" x2="{PANEL_W - 10}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#ddd"/>'
                   f'<text x="{LEFT - 5}" y="{y(share) + 4:.1f}" text-anchor="end">{100 * share:.0f} %</text>')
    for size, x in at.items():
        out.append(f'<text x="{x:.1f}" y="{PANEL_H - BOTTOM + 16}" text-anchor="middle">{size}</text>')
    out.append(f'<text x="{(LEFT + PANEL_W) / 2:.0f}" y="{PANEL_H - 10}" text-anchor="middle">{html.escape(TASKS[task][0])}</text>')
    constant = " ".join(f"{at[e['size']]:.1f},{y(e['constant']):.1f}" for e in points)
    out.append(f'<polyline fill="none" stroke="#999" stroke-dasharray="3 3" points="{constant}"/>')
    for k, arm in enumerate(arms):
        shift = 4 * (k - (len(arms) - 1) / 2)
        line = " ".join(f"{at[e['size']] + shift:.1f},{y(e['arms'][arm]['mean']):.1f}" for e in points)
        out.append(f'<polyline fill="none" stroke="{COLOURS[arm]}" stroke-width="1.8" points="{line}"/>')
        for entry in points:
            x, (low, high) = at[entry["size"]] + shift, entry["arms"][arm]["bootstrap"]
            out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}" stroke="{COLOURS[arm]}"/>'
                       f'<circle cx="{x:.1f}" cy="{y(entry["arms"][arm]["mean"]):.1f}" r="3" fill="{COLOURS[arm]}"/>')
    return out


def curves(entries, arms):
    tasks = [task for task in TASKS if task != "captions" and any(entry["task"] == task for entry in entries)]
    columns, rows = 3, -(-len(tasks) // 3)
    width, height = columns * PANEL_W, rows * PANEL_H + 24
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           'font-family="sans-serif" font-size="11">', f'<rect width="{width}" height="{height}" fill="white"/>']
    for i, task in enumerate(tasks):
        out += [f'<g transform="translate({i % columns * PANEL_W} {i // columns * PANEL_H})">', *panel(task, entries, arms), "</g>"]
    legend = [(ARMS[arm], COLOURS[arm]) for arm in arms] + [("the commonest answer (dashed)", "#999")]
    for i, (text, colour) in enumerate(legend):
        out.append(f'<text x="{LEFT + 210 * i}" y="{height - 8}" fill="{colour}">● {text}</text>')
    return "\n".join(out + ["</svg>\n"])


# ---- the page ---------------------------------------------------------------------------------------

STYLE = """body{margin:0 auto;max-width:1100px;padding:24px 18px 60px;font:15px/1.45 system-ui,sans-serif;color:#1d2430}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}.soft{color:#5d6878}
.cards{display:grid;gap:12px;grid-template-columns:repeat(auto-fill,minmax(250px,1fr))}
.card{border:1px solid #d9dee6;border-radius:8px;padding:10px;background:#f6f7f9}.card img{width:100%;border-radius:4px;background:#fff}
.pair{display:flex;gap:6px}.pair img{width:50%}table{border-collapse:collapse;font-size:.86rem}
th,td{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid #d9dee6}.good{color:#1a7f37}.bad{color:#b42318}"""


def html_table(lines):
    """Rows of a Markdown table."""
    out = ["<table>"]
    for i, line in enumerate(lines):
        if i == 1:
            continue
        tag = "th" if i == 0 else "td"
        texts = (html.escape(text.strip()) for text in line.strip("|").split("|"))
        out.append("<tr>" + "".join(f"<{tag}>{f'<b>{t[2:-2]}</b>' if t.startswith('**') else t}</{tag}>" for t in texts) + "</tr>")
    return "\n".join(out + ["</table>"])


def html_of(text):
    """The Markdown of this file: tables, and paragraphs between them."""
    out = []
    for block in text.strip().split("\n\n"):
        lines = block.split("\n")
        out.append(html_table(lines) if lines[0].startswith("|") else f"<p>{html.escape(' '.join(lines))}</p>")
    return "\n".join(out)


def card(record, data, results):
    picture = base64.b64encode((data / "images" / record["image"]).read_bytes()).decode()
    kind = record["image"].rsplit(".", 1)[1].replace("jpg", "jpeg")
    rows = []
    for arm, by_seed in results.items():
        answer = next(iter(by_seed.values()))["answers"][record["id"]]
        right = scoring.exact_match(answer, expected(record)) == 1
        rows.append(f'{ARMS[arm]}: <span class="{"good" if right else "bad"}">{html.escape(answer) or "(nothing)"}</span>')
    return (f'<div class="card"><img alt="" loading="lazy" src="data:image/{kind};base64,{picture}"><div class="soft">{record["task"]}, '
            f'{record["size"]}</div>{html.escape(question(record))} <b>{html.escape(expected(record))}</b><br>{"<br>".join(rows)}</div>')


def page(records, results, data, table, drawing, mining):
    out = ['<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Small HR ablation</title>',
           f"<style>{STYLE}</style></head><body><h1>Does high resolution help? A small ablation</h1>", drawing, html_of(table)]
    for arm, pictures in mining.items():
        out.append(f"<h2>Where mining looks, {ARMS[arm]}</h2><p class=\"soft\">Each token weighs the positions of its own window: untinted "
                   "where a position gets its even share or less, full tint at four times that.</p><div class=\"cards\">")
        out += [f'<div class="card"><div class="pair"><img alt="" src="{a}"><img alt="" src="{b}"></div>{html.escape(name)}</div>'
                for name, a, b in pictures]
        out.append("</div>")
    seed = next(iter(next(iter(results.values()))))
    out.append(f"<h2>Held-out pictures and what seed {seed} answers</h2><p class=\"soft\">The first of each task and size, not picked.</p>")
    for task in TASKS:
        out.append('<div class="cards" style="margin-bottom:12px">')
        for (of, size), ids in cells(records).items():
            if of == task and size is not None:
                out += [card(records[i], data, results) for i in sorted(ids)[:SHOWN]]
        out.append("</div>")
    return "\n".join(out + ["</body></html>\n"])


def write_report(data, out):
    records, results = load(data, out)
    if not results:
        raise SystemExit(f"{out / 'results'}: holds no result; `run.py run` first")
    entries = evaluate(records, results)
    table, drawing = markdown(entries, results), curves(entries, list(results))
    mining = {arm: json.loads(path.read_text(encoding="utf-8")) for arm in results
              if (path := out / "results" / f"mining_{arm}.json").exists()}
    target = out / "report"
    target.mkdir(exist_ok=True)
    (target / "results.json").write_text(json.dumps({"entries": entries, "runs": {
        f"{arm}.{seed}": {key: result[key] for key in ("machine", "seconds", "stages", "set", "cut")}
        for arm, by_seed in results.items() for seed, result in by_seed.items()}}, indent=1) + "\n", encoding="utf-8")
    (target / "ablation.md").write_text(table, encoding="utf-8")
    (target / "curves.svg").write_text(drawing, encoding="utf-8")
    first = {arm: next(iter(by_seed.values()))["answers"] for arm, by_seed in results.items()}
    names = {arm: ARMS[arm] for arm in results}
    for name, figure in (("outlines", outlines.draw(records, first, mining, names)), ("captions", drawings.draw(records, first, data, names))):
        if figure:
            (target / f"{name}.svg").write_text(figure, encoding="utf-8")
    (target / "index.html").write_text(page(records, results, data, table, drawing, mining), encoding="utf-8")
    print(table)
    print(f"{target}: " + ", ".join(sorted(path.name for path in target.iterdir())))
