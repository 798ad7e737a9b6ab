"""Speed of the data room beside Python's: the index of a 100 MB annotation file, and pictures per second from
JPEG files to canvases. Prints a table; nothing passes or fails.

    ninja -C build/release data_bench && .deps/venv/bin/python tests/bench/data_bench.py
"""

import json
import os
import pathlib
import random
import subprocess
import tempfile
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("MGM_BUILD_DIR", ROOT / "build/release"))
TOKENIZER = ROOT / "data/embedded/tokenizer"
MEGABYTES, PICTURES, SIZE, SIDE = 100, 240, (640, 480), 768
ROUNDS = 3  # the best of; sides take turns, so that a busy machine hurts both


def bench(*args):
    out = subprocess.run([BUILD / "tests/data_bench", *map(str, args)], check=True, capture_output=True, text=True)
    seconds, count = out.stdout.split()
    return float(seconds), int(count)


def best(*functions):
    return [min(times) for times in zip(*[[f() for f in functions] for _ in range(ROUNDS)])]


def annotations(path):
    rng = random.Random(1)
    words = "the a red cat on table what is in this picture there are two".split()
    records, size = [], 0
    while size < MEGABYTES * 1e6:
        turns = [{"from": ("human", "gpt")[t % 2], "value": ("<image>\n" if t == 0 else "") +
                  " ".join(rng.choices(words, k=rng.randint(5, 60)))} for t in range(2 * rng.randint(1, 4))]
        records.append({"id": f"{len(records):09}", "image": f"coco/{len(records)}.jpg", "conversations": turns})
        size += sum(len(t["value"]) + 30 for t in turns) + 70
    path.write_text(json.dumps(records))


def python_json(path):
    start = time.perf_counter()
    with open(path) as file:
        json.load(file)
    return time.perf_counter() - start


def python_pictures(folder, names):
    """What the reference's dataset does of a picture: decode, pad to a square, resize."""
    start = time.perf_counter()
    for name in names:
        image = Image.open(folder / name).convert("RGB")
        square = Image.new("RGB", (max(image.size),) * 2, (122, 116, 104))
        square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
        np.asarray(square.resize((SIDE, SIDE), Image.BICUBIC))
    return time.perf_counter() - start


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        annotations(folder / "big.json")
        megabytes = (folder / "big.json").stat().st_size / 1e6
        rows = ["python json.load", "mgm index, 1 thread", "mgm index, 2 threads"]
        times = best(lambda: python_json(folder / "big.json"), lambda: bench("index", folder / "big.json", 1)[0],
                     lambda: bench("index", folder / "big.json", 2)[0])
        for row, seconds in zip(rows, times):
            print(f"{row:28}{seconds:8.3f} s{megabytes / seconds:9.0f} MB/s{times[0] / seconds:7.1f} x")

        rng = np.random.default_rng(1)
        records = []
        for i in range(PICTURES):
            small = rng.integers(0, 256, (SIZE[1] // 16, SIZE[0] // 16, 3), dtype=np.uint8)
            Image.fromarray(small).resize(SIZE, Image.BICUBIC).save(folder / f"{i}.jpg", quality=90)
            records.append({"id": i, "image": f"{i}.jpg", "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A picture."}]})
        (folder / "data.json").write_text(json.dumps(records))
        load = ("load", folder / "data.json", folder, TOKENIZER, SIDE)
        rows = ["python Pillow, 1 process", "mgm loader, 1 worker", "mgm loader, 2 workers"]
        times = best(lambda: python_pictures(folder, [f"{i}.jpg" for i in range(PICTURES)]),
                     lambda: bench(*load, 1)[0], lambda: bench(*load, 2)[0])
        for row, seconds in zip(rows, times):
            print(f"{row:28}{seconds:8.3f} s{PICTURES / seconds:9.1f} pictures/s{times[0] / seconds:7.1f} x")


if __name__ == "__main__":
    main()
