#!/usr/bin/env python3
"""The small HR ablation: three arms, some seeds, three stages each; answers to the held-out questions; a report.

    tests/bench/ablation/run.py time                  # 40 steps of each stage: how long a run will take here
    tests/bench/ablation/run.py run                   # nine runs, as many at a time as there are GPUs
    tests/bench/ablation/run.py report                # results.json, ablation.md, curves.svg, outlines.svg, captions.svg, index.html

A run is done when OUT/results/ARM.SEED.json is there; what is done is not done again, and a run that was stopped goes on
from its last checkpoint. --stop-after SECONDS (or SIGTERM) saves and ends with exit code 3; the same line goes on.
MGM_BUILD_DIR names the build (default build/release). Standard library alone; captions.svg needs Pillow too and is left
out without it.
"""
import argparse
import ctypes
import dataclasses
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
MGM = pathlib.Path(os.environ.get("MGM_BUILD_DIR", ROOT / "build/release")) / "bin/mgm"
CONFIGS = ROOT / "configs/ablation/small"
ARMS = ("hr_on", "hr_upsampled", "hr_off")
STAGES = ("stage0", "stage1", "stage2")
ANNOTATIONS = ("pretrain.json", "align.json", "train.json")  # of the stages
TIMED = 40  # steps of a stage that `time` runs
BATCH = 64  # questions answered at a time
SHOWN_MAPS = 6  # pictures that mgm report draws mining maps of
STOPPED_CODES = (-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT)


class Stopped(Exception):
    """The time is over, or a signal came."""


class Failed(Exception):
    """A command ended with an error."""


class Clock:
    """When to stop; shared by all lanes."""

    def __init__(self, seconds):
        self.stop = threading.Event()
        if seconds:
            timer = threading.Timer(seconds, self.stop.set)
            timer.daemon = True
            timer.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop.set())

    def call(self, command, log, gpu=None, beat=lambda: None):
        """Runs a command to its end, or passes the wish to stop on as SIGTERM; beat() is called five times a second."""
        if self.stop.is_set():
            raise Stopped
        environment = dict(os.environ) if gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)}
        told = False
        with open(log, "a", encoding="utf-8") as out:
            out.write(f"$ {' '.join(map(str, command))}\n")
            out.flush()
            # In a session of its own, so that a Ctrl-C reaches it once, through here: a second signal would end a save.
            process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=environment,
                                       start_new_session=True, preexec_fn=end_with_parent)
            while process.poll() is None:
                if self.stop.is_set() and not told:
                    process.terminate()
                    told = True
                beat()
                time.sleep(0.2)
        if told and process.returncode in STOPPED_CODES:
            raise Stopped
        if process.returncode != 0:
            tail = pathlib.Path(log).read_text(encoding="utf-8", errors="replace")[-1500:]
            raise Failed(f"mgm {command[1]} ended with exit code {process.returncode}; {log} ends with\n{tail}")


def end_with_parent():
    """In the child: SIGTERM should this program be killed (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def say(text, to=sys.stdout):
    """In one write: print() writes the end of the line by itself, and lanes speak at once."""
    to.write(text + "\n")
    to.flush()


def write_whole(path, text):
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


# ---- one run ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Run:
    args: argparse.Namespace
    arm: str
    seed: int

    @property
    def name(self):
        return f"{self.arm}.{self.seed}"

    @property
    def folder(self):
        return self.args.out / self.name

    @property
    def result(self):
        return self.args.out / "results" / f"{self.name}.json"

    def train_command(self, **more):
        def source(name):
            return json.dumps([{"annotations": str(self.args.data / name), "images": str(self.args.data / "images")}])

        # Stage 0 has a language model of its own, with the tokenizer of the others'.
        values = {"train.seed": self.seed, "stages[0].text.tokenizer": self.args.llm}
        for i, (stage, name) in enumerate(zip(STAGES, ANNOTATIONS)):
            values |= {f"stages[{i}].run.dir": self.folder / stage, f"stages[{i}].data.sources": source(name)}
            if i > 0:
                values |= {f"stages[{i}].model.llm.path": self.args.llm,
                           f"stages[{i}].model.projector.path": self.folder / STAGES[i - 1] / "mm_projector.bin"}
        sets = [f"{key}={value}" for key, value in values.items()] + self.args.set + [f"{key}={value}" for key, value in more.items()]
        return ["train", CONFIGS / f"{self.arm}.yaml", *(word for text in sets for word in ("--set", text))]

    def steps(self):
        """Of the stages: their number of steps and the mean loss of the last fifty."""
        out = {}
        for stage in STAGES:
            lines = (self.folder / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            losses = [json.loads(line)["loss"] for line in lines]
            steps, losses = len(losses), [loss for loss in losses if loss is not None]  # None: nothing to learn from
            out[stage] = {"steps": steps, "loss": sum(losses[-50:]) / len(losses[-50:])}
        return out

    def spend(self, what, clock, command, gpu):
        """Runs a command of mgm; its seconds add up over all starts of the run, those that SIGKILL ended too."""
        path, begin = self.folder / "seconds.json", time.monotonic()
        spent = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

        def note():
            write_whole(path, json.dumps({**spent, what: spent.get(what, 0) + time.monotonic() - begin}))

        try:
            clock.call([MGM, *command], self.folder / "log.txt", gpu, note)
        finally:
            note()

    def work(self, clock, gpu):
        """Trains, exports, answers; returns the seconds of each."""
        self.folder.mkdir(parents=True, exist_ok=True)
        model, answers = self.folder / "model", self.folder / "answers.jsonl"
        if not model.exists():
            self.spend("train", clock, self.train_command(), gpu)
            self.spend("export", clock, ["export", self.folder / "stage2", "--out", model], gpu)
        answers.unlink(missing_ok=True)
        self.spend("answer", clock, ["chat", model, "--batch", self.args.out / "questions.jsonl", "--out", answers,
                                     "--batch-size", BATCH, "--max-new-tokens", self.args.max_new_tokens], gpu)
        if self.arm != "hr_off" and self.seed == self.args.seeds[0]:
            self.draw_mining(clock, model, gpu)
        lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
        seconds = json.loads((self.folder / "seconds.json").read_text(encoding="utf-8"))
        write_whole(self.result, json.dumps({
            "arm": self.arm, "seed": self.seed, "machine": machine(), "seconds": seconds, "stages": self.steps(),
            "set": self.args.set, "answers": {line["id"]: line["answer"] for line in lines},
            "cut": sum(not line["stopped"] for line in lines)}, indent=0))
        if not self.args.keep:
            for stage in STAGES:
                shutil.rmtree(self.folder / stage / "checkpoints", ignore_errors=True)
        return seconds

    def draw_mining(self, clock, model, gpu):
        """Where mining looks, out of the page that mgm report makes."""
        page = self.folder / "report.html"
        self.spend("report", clock, ["report", model, "--heldin", self.args.out / "shown.json", "--images",
                                     self.args.data / "images", "--out", page], gpu)
        write_whole(self.args.out / "results" / f"mining_{self.arm}.json",
                    json.dumps(mining_maps(page.read_text(encoding="utf-8"))))


def mining_maps(page):
    """[(name of the picture, its data URI, the data URI of its mining map)] of a page of mgm report."""
    found = re.findall(r'<div class="pair"><img alt="" src="([^"]+)"><img alt="" src="([^"]+)"></div><div class="soft">([^<]*)<', page)
    if not found:
        raise Failed("the page of mgm report holds no mining map")
    return [(name, picture, overlay) for picture, overlay, name in found]


# ---- all of them ------------------------------------------------------------------------------------


def gpus():
    """Numbers of the GPUs to use; [None] where there is none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return named.split(",") if named else [None]
    if not shutil.which("nvidia-smi"):
        return [None]
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return list(range(len(re.findall(r"^GPU \d+:", listed, re.M)))) or [None]


def machine():
    if not shutil.which("nvidia-smi"):
        return "CPU"
    names = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True).stdout
    return (names.split("\n")[0] or "CPU").strip()


def heldout_records(data):
    return json.loads((data / "heldout.json").read_text(encoding="utf-8"))


def question_line(record, images):
    question = record["conversations"][0]["value"].replace("<image>", "").strip()
    return json.dumps({"id": record["id"], "prompt": question, "image": str(images / record["image"])}, ensure_ascii=False)


def prepare(args):
    """What all runs share: the language model, the questions, and those whose mining is drawn."""
    if not args.llm.exists():
        files = list(args.out.glob("*.gguf"))
        if len(files) != 1:
            raise SystemExit(f"{args.llm} is not there, and neither is one GGUF file in {args.out} to make it from (docs/ablation.md)")
        subprocess.run([MGM, "convert", files[0], "--out", args.llm, "--dtype", "bf16"], cwd=ROOT, check=True)
    records = heldout_records(args.data)
    write_whole(args.out / "questions.jsonl", "".join(question_line(r, args.data / "images") + "\n" for r in records))
    # One question of every size, small to large, of the scenes; mgm report takes plain LLaVA records.
    scenes = sorted((r for r in records if r["task"] == "objects"), key=lambda r: (r["size"], r["id"]))
    picked = [scenes[i * len(scenes) // SHOWN_MAPS] for i in range(min(SHOWN_MAPS, len(scenes)))]
    write_whole(args.out / "shown.json", json.dumps([{k: r[k] for k in ("id", "image", "conversations")} for r in picked]))


def run(args):
    prepare(args)
    todo = queue.Queue()
    runs = [Run(args, arm, seed) for seed in args.seeds for arm in args.arms]
    for one in runs:
        if not one.result.exists():
            todo.put(one)
    clock, failures = Clock(args.stop_after), []

    def lane(gpu):
        while not clock.stop.is_set():
            try:
                one = todo.get_nowait()
            except queue.Empty:
                return
            try:
                say(f"{one.name}: on {'the CPU' if gpu is None else f'GPU {gpu}'}")
                seconds = one.work(clock, gpu)
                say(f"{one.name}: done; " + ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items()))
            except Stopped:
                say(f"{one.name}: stopped, and goes on with the same line")
            except Exception as error:  # of one run; the others go on
                failures.append(one.name)
                say(f"{one.name}: {error}", sys.stderr)

    lanes = [threading.Thread(target=lane, args=(gpu,)) for gpu in gpus()]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    left = [one.name for one in runs if not one.result.exists()]
    print(f"{len(runs) - len(left)} of {len(runs)} runs done" + (f"; left: {', '.join(left)}" if left else ""))
    return 1 if failures else 3 if left else 0


def estimate(args):
    """Some steps of each stage of the largest arm, and what they say of a whole run."""
    prepare(args)
    one = Run(args, "hr_on", 0)
    shutil.rmtree(one.folder, ignore_errors=True)
    one.folder.mkdir(parents=True)
    sets = [word for text in args.set for word in ("--set", text)]
    shown = subprocess.run([MGM, "config", "show", CONFIGS / "hr_on.yaml", "--plain", *sets], cwd=ROOT, capture_output=True,
                           text=True, check=True).stdout
    steps = [int(n) for n in re.findall(r"max_steps: (\d+)", shown)]
    batches = [int(n) for n in re.findall(r"global_batch: (\d+)", shown)]
    one.spend("train", Clock(None), one.train_command(**{"train.max_steps": TIMED, "log.every_steps": 10}), gpus()[0])
    log = (one.folder / "log.txt").read_text(encoding="utf-8")
    rates = [float(rate) for rate in re.findall(rf"step {TIMED}/{TIMED} .*? ([\d.]+) img/s", log)]
    total = 0.0
    for stage, count, batch, rate in zip(STAGES, steps, batches, rates, strict=True):
        total += count * batch / rate
        print(f"{stage}: {1000 * batch / rate:.0f} ms a step, {count} steps: {count * batch / rate:.0f} s")
    print(f"a run: {total:.0f} s on {machine()}, and its start, export and answers")
    shutil.rmtree(one.folder)
    return 0


def report(args):
    import report as pages
    pages.write_report(args.data, args.out)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    for name in ("time", "run", "report"):
        action = actions.add_parser(name)
        action.add_argument("--out", type=pathlib.Path, default=ROOT / "runs/ablation")
        action.add_argument("--data", type=pathlib.Path, help="default OUT/data")
        if name == "report":
            continue
        action.add_argument("--llm", type=pathlib.Path, help="default OUT/smollm2, made from OUT/*.gguf where it is missing")
        action.add_argument("--set", action="append", default=[], help="passed on to mgm train")
        if name == "run":
            action.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS))
            action.add_argument("--seeds", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 3])
            action.add_argument("--stop-after", type=float, help="seconds")
            action.add_argument("--max-new-tokens", type=int, default=32)
            action.add_argument("--keep", action="store_true", help="the checkpoints of runs that are done (3 GB each)")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.data = (args.data or args.out / "data").resolve()
    if args.action in ("time", "run"):
        args.llm = (args.llm or args.out / "smollm2").resolve()
    try:
        return {"time": estimate, "run": run, "report": report}[args.action](args)
    except Failed as error:
        print(f"ablation: {error}", file=sys.stderr)
        return 1
    except Stopped:
        return 3


if __name__ == "__main__":
    sys.exit(main())
