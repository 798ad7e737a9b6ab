"""tests/bench/ablation/run.py with a program in mgm's place: nine runs, two at a time on two GPUs, stopped and gone on
with, one that fails; and the report on what they leave."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
BENCH = ROOT / "tests/bench/ablation"
sys.path.insert(0, str(BENCH))
import report
import run

# Does what the real one does to files. It writes a line to calls.txt at its start and its end; a training takes
# FAKE_SECONDS, and SIGTERM ends it with 143 after a note of the step it had reached.
FAKE = '''#!{python}
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
option = lambda name: pathlib.Path(words[words.index(name) + 1])
sets = dict(w.split("=", 1) for i, w in enumerate(words) if words[i - 1] == "--set")
home = pathlib.Path("{home}")
def note(what):
    with open(home / "calls.txt", "a") as file:
        file.write(json.dumps([time.time(), what, words[0], os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()]) + "\\n")
note("begin")
if words[0] == "config":
    print("stages:\\n  max_steps: 1000\\n  global_batch: 128\\n  max_steps: 500\\n  global_batch: 64\\n  max_steps: 1500\\n  global_batch: 64")
elif words[0] == "convert":
    option("--out").mkdir()
elif words[0] == "train":
    if os.environ.get("FAKE_FAILS", "-") in words[1]:
        sys.exit("error: no loss was found")
    for stage in (0, 1, 2):
        folder = pathlib.Path(sets[f"stages[{{stage}}].run.dir"])
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        assert json.loads(sets[f"stages[{{stage}}].data.sources"])[0]["annotations"].endswith(("pretrain.json", "align.json", "train.json")[stage])
        at = folder / "checkpoints/step"
        def stop(*_):
            at.write_text("7")
            note("stopped")
            sys.exit(143)
        signal.signal(signal.SIGTERM, stop)
        if at.exists():
            note("went on from " + at.read_text())
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
        (folder / "metrics.jsonl").write_text("".join(json.dumps({{"step": i, "loss": 4.0 - stage}}) + "\\n" for i in range(60)))
        print(f"step 40/40  eta 0s  loss 1.0  lr 0  |g| 1  9999 tok/s  {{640 * (stage + 1)}}.0 img/s  mem 1 GiB  wait 0%")
elif words[0] == "export":
    option("--out").mkdir()
elif words[0] == "chat":
    arm, seed = option("--out").parent.name.split(".")
    lines = [json.loads(line) for line in option("--batch").read_text().splitlines()]
    assert all(sorted(line) == ["id", "image", "prompt"] and pathlib.Path(line["image"]).is_file() for line in lines)
    wrong = {{"hr_on": 4, "hr_upsampled": 2, "hr_off": 2}}[arm]  # every so many-th answer
    keep = lambda i, line: line["id"].split("|")[1] if (i + int(seed)) % wrong else "nothing"
    option("--out").write_text("".join(json.dumps({{"id": l["id"], "answer": keep(i, l), "stopped": True}}) + "\\n" for i, l in enumerate(lines)))
elif words[0] == "report":
    option("--out").write_text('<div class="card"><div class="pair"><img alt="" src="data:a"><img alt="" src="data:b"></div>'
                               '<div class="soft">x.webp</div></div>')
note("end")
'''


def make_data(folder):
    """Held-out questions whose id holds the answer, after a bar; two ask about each picture of documents."""
    records = []
    for task, sizes in (("objects", (14, 88)), ("new objects", (14,)), ("digits", (8, 40)), ("documents", (12,)), ("captions", ("new title",))):
        for size in sizes:
            for i in range(8):
                answer = {"objects": "frog" if i % 4 else "owl", "new objects": "yak", "digits": f"{100 + i}", "documents": f"word{i}",
                          "captions": f"A picture of thing {i}."}[task]
                name = f"{task}_{size}_{i}".replace(" ", "_")
                (folder / "images").mkdir(parents=True, exist_ok=True)
                picture = f"{task}_{size}_{i // 2}" if task == "documents" else name
                (folder / f"images/{picture}.webp").write_bytes(b"RIFF")
                records.append({"id": f"{name}|{answer}", "image": f"{picture}.webp", "task": task, "size": size, "conversations": [
                    {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": answer}]})
    (folder / "heldout.json").write_text(json.dumps(records))
    return records


class Place:
    def __init__(self, folder, gpus):
        self.folder, self.out = folder, folder / "out"
        (folder / "build/bin").mkdir(parents=True)
        self.program("build/bin/mgm", FAKE.format(python=sys.executable, home=folder))
        (folder / "path").mkdir()
        listing = "".join(f"GPU {i}: Fake\\n" for i in range(gpus))
        self.program("path/nvidia-smi", f'#!/bin/sh\n[ "$1" = -L ] && printf "{listing}" || echo Fake H100\n')
        self.records = make_data(self.out / "data")
        (self.out / "model.gguf").write_bytes(b"GGUF")

    def program(self, name, text):
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *words, **environment):
        env = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        env |= {"MGM_BUILD_DIR": str(self.folder / "build"), "PATH": f"{self.folder / 'path'}:{env['PATH']}", **environment}
        return subprocess.Popen([sys.executable, BENCH / "run.py", *words, "--out", self.out], env=env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *words, code=0, **environment):
        process = self.start(*words, **environment)
        out, error = process.communicate(timeout=120)
        assert process.returncode == code, f"{process.returncode}\n{out}\n{error}"
        return out, error

    def calls(self, *commands):
        path = self.folder / "calls.txt"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if line[2] in commands]

    def results(self):
        return sorted(p.stem for p in (self.out / "results").glob("*.*.json"))


NINE = sorted(f"{arm}.{seed}" for arm in run.ARMS for seed in (1, 2, 3))


def test_nine_runs_two_at_a_time(tmp_path):
    place = Place(tmp_path, gpus=2)
    out, _ = place.run("run", FAKE_SECONDS="0.15")
    assert "9 of 9 runs done" in out and place.results() == NINE
    trains = place.calls("train")
    assert {line[3] for line in trains} == {"0", "1"}
    at_once = most = 0
    for line in sorted(trains):
        at_once += {"begin": 1, "end": -1}[line[1]]
        most = max(most, at_once)
    assert most == 2
    # Of one GPU there is never more than one.
    for gpu in "01":
        assert [line[1] for line in sorted(line for line in place.calls("train", "export", "chat", "report") if line[3] == gpu)][::2].count("end") == 0
    # A whole seed first: after three runs there is one of each arm.
    started = [line.split(":")[0] for line in out.splitlines() if ": on GPU" in line]
    assert {name.split(".")[0] for name in started[:3]} == set(run.ARMS) and {name[-1] for name in started[:3]} == {"1"}
    # What is done is not done again; checkpoints are gone, models are not.
    before = len(place.calls("train"))
    place.run("run")
    assert len(place.calls("train")) == before
    assert not list(place.out.glob("*/stage?/checkpoints")) and len(list(place.out.glob("*/model"))) == 9
    assert (place.out / "results/mining_hr_on.json").exists() and not (place.out / "results/mining_hr_off.json").exists()


def test_one_failure_does_not_stop_the_others(tmp_path):
    place = Place(tmp_path, gpus=1)
    out, error = place.run("run", "--seeds", "1,2", code=1, FAKE_FAILS="hr_upsampled")
    assert "4 of 6 runs done; left: hr_upsampled.1, hr_upsampled.2" in out
    assert "hr_upsampled.1: mgm train ended with exit code 1" in error and "error: no loss was found" in error
    out, _ = place.run("run", "--seeds", "1,2")
    assert "6 of 6 runs done" in out


@pytest.mark.parametrize("how", ["clock", "SIGTERM", "SIGINT"])
def test_a_stopped_run_goes_on(how, tmp_path):
    place = Place(tmp_path, gpus=2)
    words = ("run", "--seeds", "1", "--stop-after", "1.5") if how == "clock" else ("run", "--seeds", "1")
    process = place.start(*words, FAKE_SECONDS="30")
    if how != "clock":
        while len(place.calls("train")) < 2:
            time.sleep(0.05)
        time.sleep(0.3)  # the signal's handler is there
        process.send_signal(getattr(signal, how))
    out, error = process.communicate(timeout=60)
    assert process.returncode == 3, error
    assert "0 of 3 runs done" in out and "stopped, and goes on with the same line" in out
    assert sum(line[1] == "stopped" for line in place.calls("train")) == 2  # saved, each once
    out, _ = place.run("run", "--seeds", "1")
    assert "3 of 3 runs done" in out
    assert sum(line[1] == "went on from 7" for line in place.calls("train")) == 2


def test_a_killed_parent_leaves_no_training_and_its_seconds(tmp_path):
    place = Place(tmp_path, gpus=1)
    process = place.start("run", FAKE_SECONDS="60")
    while not place.calls("train"):
        time.sleep(0.05)
    time.sleep(0.6)
    process.kill()
    process.communicate()
    assert 0.3 < json.loads((place.out / "hr_on.1/seconds.json").read_text())["train"] < 60
    for _ in range(100):
        if [line[1] for line in place.calls("train")] == ["begin", "stopped"]:
            return
        time.sleep(0.05)
    pytest.fail(f"still there: {place.calls('train')}")


def test_time_says_how_long_a_run_takes(tmp_path):
    out, _ = Place(tmp_path, gpus=1).run("time")
    assert "stage0: 200 ms a step, 1000 steps: 200 s" in out
    assert "stage1: 50 ms a step, 500 steps: 25 s" in out
    assert "stage2: 33 ms a step, 1500 steps: 50 s" in out
    assert "a run: 275 s on Fake H100" in out


def test_without_a_model_there_is_an_error(tmp_path):
    place = Place(tmp_path, gpus=1)
    (place.out / "model.gguf").unlink()
    assert "docs/ablation.md" in place.run("run", code=1)[1]


def test_report(tmp_path):
    place = Place(tmp_path, gpus=0)
    place.run("run")
    out, _ = place.run("report")
    entries = {(e["task"], e["size"]): e for e in json.loads((place.out / "report/results.json").read_text())["entries"]}
    assert set(entries) == {("objects", 14), ("objects", 88), ("objects", None), ("new objects", 14), ("new objects", None), ("digits", 8), ("digits", 40), ("digits", None),
                            ("documents", 12), ("documents", None), ("captions", "new title"), ("captions", None)}
    # The program answers three of four with HR, one of two without.
    for task in ("objects", "new objects", "digits", "documents"):
        assert entries[task, None]["arms"]["hr_on"]["mean"] == 0.75
        assert entries[task, None]["arms"]["hr_off"]["by_seed"] == [0.5] * 3
        assert entries[task, None]["differences"]["hr_on - hr_off"]["mean"] == 0.25
        assert entries[task, None]["differences"]["hr_upsampled - hr_off"]["mean"] == 0
    records = {r["id"]: r for r in place.records}
    documents = [[records[i]["image"] for i in cluster] for cluster in report.clusters([i for i in records if "documents" in i], records)]
    assert sorted(documents) == [[f"documents_12_{i}.webp"] * 2 for i in range(4)]  # drawn together for the bootstrap
    assert entries["objects", None]["constant"] == 0.75 and entries["objects", None]["questions"] == 16
    assert "| objects | 14 | 8 | 75.0 | 75.0 ± 0.0 (" in out and (place.out / "report/ablation.md").read_text() in out
    svg = (place.out / "report/curves.svg").read_text()
    assert svg.count("<polyline") == 4 * 4 and "captions" not in svg  # four tasks; three arms and the constant
    page = (place.out / "report/index.html").read_text()
    assert page.count('<div class="card"><img') == 2 * 7 and page.count('<div class="pair">') == 2


def test_an_answer_that_is_missing_is_named(tmp_path):
    place = Place(tmp_path, gpus=0)
    place.run("run", "--seeds", "1")
    path = place.out / "results/hr_on.1.json"
    result = json.loads(path.read_text())
    del result["answers"]["objects_14_0|owl"]
    path.write_text(json.dumps(result))
    assert "hr_on.1.json: 1 of 56 questions have no answer, objects_14_0|owl for one" in place.run("report", code=1)[1]


def test_mining_maps_of_a_page_without_any():
    with pytest.raises(run.Failed, match="no mining map"):
        run.mining_maps("<html></html>")
