#!/usr/bin/env python3
"""How long a 14.5 GB model takes to load and how much memory that takes, beside safetensors, transformers and the disk.

    tests/bench/load/load.py --out SCRATCH            # 15 GB on that disk; removed afterwards, unless --keep
    tests/bench/load/load.py --out SCRATCH --shape tiny --rounds 1

The model is random, bf16, in the published layout: a language model of Mistral-7B's shape in shards of 4 GB, with a vision
tower too small to matter. Every side loads it in a process of its own, with the files in the page cache (warm) and not
(cold: posix_fadvise DONTNEED; what the process then read from the disk is shown). All touch every byte: mgm when it
refuses NaN and infinity, the others in one pass behind loading. `read` is read(2) into one buffer: what the disk and the
memory allow. Time is from the call to the last byte, imports, process start and the GPU's first call left out; memory is the
peak of anonymous (RssAnon), locked (VmLck, VmPin) and shared pages (RssShmem: page-locked ones of CUDA) while loading,
sampled. With --device cuda all but `read` load onto the first GPU. MGM_BUILD_DIR names the build (default build/release).
"""
import argparse
import json
import os
import pathlib
import re
import select
import shutil
import statistics
import subprocess
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "decode"))
import decode  # noqa: E402

decode.SHAPES["7b"] = (4096, 14336, 32, 32, 8, 32000, False)  # Mistral-7B: 7.24 B parameters
SIDES = ("read", "safetensors", "transformers", "mgm")


# ---- the children: one side each, in a fresh process ----------------------------------------------------------
def shards(folder):
    return sorted(folder.glob("*.safetensors"))


def child_read(folder, device):
    buffer = memoryview(bytearray(8 << 20))
    yield
    for path in shards(folder):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def touch(tensors):
    for tensor in tensors:
        tensor.view(torch.int16).max()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def child_safetensors(folder, device):
    from safetensors import safe_open

    torch.set_num_threads(os.cpu_count())
    torch.zeros(1, device=device)
    yield
    held = []
    for path in shards(folder):
        with safe_open(path, "pt", device=device) as file:
            held += [file.get_tensor(name) for name in file.keys()]
    yield
    touch(held)


def child_transformers(folder, device):
    import transformers

    torch.set_num_threads(os.cpu_count())
    transformers.logging.set_verbosity_error()
    transformers.AutoModelForCausalLM  # noqa: B018 - the import is lazy
    transformers.LlamaForCausalLM
    torch.zeros(1, device=device)
    yield
    place = {"device_map": device} if device != "cpu" else {"low_cpu_mem_usage": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "llm", dtype=torch.bfloat16, **place)
    yield
    touch(p.detach() for p in model.parameters())


def run_child(side, folder, device):
    """Prints when each part is done: ready, then the seconds since of loading and of the touched last byte."""
    steps = {"read": child_read, "safetensors": child_safetensors, "transformers": child_transformers}[side](folder, device)
    next(steps)
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    for _ in steps:
        print(f"loaded {time.perf_counter() - start}", flush=True)
    print(f"done {time.perf_counter() - start}", flush=True)


# ---- the parent -------------------------------------------------------------------------------------------------
def evict(folder):
    for path in shards(folder):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(folder):
    steps = child_read(folder, "cpu")
    for _ in steps:
        pass


def status(pid):
    """{name: bytes} of /proc/PID/status, and what the process has read from the disk."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
        io = pathlib.Path(f"/proc/{pid}/io").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    out = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith(" kB")}
    out["read_bytes"] = int(re.search(r"^read_bytes: (\d+)", io, re.M)[1])
    return out


class Watched:
    """A process, the lines it writes, and the peaks of its memory until `last` is among them."""

    def __init__(self, command, **options):
        self.process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, bufsize=0, **options)
        self.peak = {"anonymous": 0, "locked": 0}
        self.first, self.last = None, {}

    def sample(self):
        now = status(self.process.pid)
        if not now:
            return
        self.first, self.last = self.first or now, now
        self.peak["anonymous"] = max(self.peak["anonymous"], now.get("RssAnon", 0))
        locked = sum(now.get(name, 0) for name in ("VmLck", "VmPin", "RssShmem"))
        self.peak["locked"] = max(self.peak["locked"], locked)

    def lines(self, stream, stop):
        """Lines up to one that `stop` matches, sampled meanwhile."""
        text = ""
        while not stop(text):
            self.sample()
            if not select.select([stream], [], [], 0.002)[0]:
                continue
            part = os.read(stream.fileno(), 1 << 16)
            if not part:
                raise RuntimeError(f"{self.process.args[0]} ended: {text[-1000:]}")
            text += part.decode()
        return text

    def disk(self):
        return self.last.get("read_bytes", 0) - (self.first or {}).get("read_bytes", 0)


def run_python(side, folder, device):
    child = Watched([sys.executable, __file__, "--child", side, "--device", device, "--out", folder], stdout=subprocess.PIPE)
    child.lines(child.process.stdout, lambda text: "ready" in text)
    child.peak, child.first = {"anonymous": 0, "locked": 0}, None
    child.sample()
    before = dict(child.peak)
    child.process.stdin.write(b"\n")
    text = child.lines(child.process.stdout, lambda text: "done" in text and text.endswith("\n"))
    child.process.wait()
    found = dict(line.split() for line in text.splitlines() if " " in line)
    return {"seconds": float(found["done"]), "call_seconds": float(found.get("loaded", found["done"])),
            **{kind: child.peak[kind] - before[kind] for kind in before}, "disk": child.disk()}


def run_mgm(side, folder, device):
    """mgm forward up to its line that says the model is there; the forward pass itself is not waited for."""
    child = Watched([decode.MGM, "forward", folder, "--device", device, "--dtype", "bf16", "--prompt", "1", "--out",
                     folder / "out.safetensors"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    done = re.compile(r"model: \d+ tensors.* in ([\d.]+) s\b")
    try:
        text = child.lines(child.process.stderr, done.search)
    finally:
        child.process.kill()
        child.process.wait()
    seconds = float(done.search(text)[1])
    # The program itself, before the first byte of the model, is not subtracted: it is small and counts.
    return {"seconds": seconds, "call_seconds": seconds, "anonymous": child.peak["anonymous"],
            "locked": child.peak["locked"], "disk": child.disk()}


def measure(args, folder):
    rows = []
    cells = [(device, side) for device in args.device for side in args.sides if device == "cpu" or side != "read"]
    for cache in ("cold", "warm"):
        for round_number in range(args.rounds):
            for device, side in cells:
                if cache == "cold":
                    evict(folder)
                else:
                    warm(folder)
                run = run_mgm if side == "mgm" else run_python
                row = {"cache": cache, "device": device, "side": side, **run(side, folder, device)}
                print(json.dumps(row), flush=True)
                rows.append(row)
    return rows


def report(rows, folder):
    size = sum(path.stat().st_size for path in shards(folder))
    largest = max(path.stat().st_size for path in shards(folder))
    print(f"\n{size / 1e9:.1f} GB in {len(shards(folder))} shards, the largest {largest / 1e9:.2f} GB\n")
    print("| cache | onto | side | seconds | GB/s | from the disk, GB | peak anonymous + locked, GB | of one shard |")
    print("|---|---|---|---|---|---|---|---|")
    for cell in dict.fromkeys((row["cache"], row["device"], row["side"]) for row in rows):
        found = [row for row in rows if (row["cache"], row["device"], row["side"]) == cell]
        seconds = max(0.005, statistics.median(row["seconds"] for row in found))  # mgm prints hundredths
        memory = max(row["anonymous"] + row["locked"] for row in found)
        disk = statistics.median(row["disk"] for row in found)
        print(f"| {' | '.join(cell)} | {seconds:.1f} | {size / seconds / 1e9:.2f} | {disk / 1e9:.1f} | {memory / 1e9:.2f} | "
              f"{memory / largest:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder on the disk to measure")
    parser.add_argument("--shape", default="7b", choices=decode.SHAPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", type=lambda text: text.split(","), default=list(SIDES))
    parser.add_argument("--device", type=lambda text: text.split(","), default=["cpu"], help="cpu, cuda or cpu,cuda")
    parser.add_argument("--keep", action="store_true", help="leave the model there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return run_child(args.child, args.out, args.device[0])
    args.out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(args.out).free
    if args.shape == "7b" and free < 20e9:
        sys.exit(f"{args.out} has {free / 1e9:.0f} GB free; 20 are needed")
    args.positions, args.dtype = 2048, torch.bfloat16
    folder = decode.write_model(argparse.Namespace(**{**vars(args), "device": args.device[-1]}))
    try:
        llm = folder / "llm"  # the language model alone, as transformers takes it
        shutil.rmtree(llm, ignore_errors=True)
        llm.mkdir()
        for path in [*shards(folder), folder / "model.safetensors.index.json"]:
            (llm / path.name).symlink_to(path.resolve())
        (llm / "config.json").write_text(json.dumps({
            **decode.llm_config(args.shape, args.positions), "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "torch_dtype": "bfloat16"}))
        rows = measure(args, folder)
        (args.out / "load.json").write_text(json.dumps(rows, indent=1) + "\n")
        report(rows, folder)
    finally:
        if not args.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
