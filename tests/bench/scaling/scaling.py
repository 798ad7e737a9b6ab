#!/usr/bin/env python3
"""How a training step scales over the GPUs of one host, beside the plan and beside PyTorch's FSDP2.

    tests/bench/scaling/scaling.py predict --gpus 1,2,4,8 --out scaling        # what the plan says, before any run
    tests/bench/scaling/scaling.py run --gpus 4 --out scaling [--only NAME,...] [--peers]
    tests/bench/scaling/scaling.py report --out scaling                        # Markdown table, scaling.svg, scaling.json

A cell is a model, a dist.mode and a number of GPUs; weights are random, samples all of one length.
`predict` and `run` write OUT/<cell>.plan.json and OUT/<cell>.json; a cell that exists is not run again, so that a host
that goes away costs one cell. Throughput is that of the steps before the two profiled ones at the end, from whose
timeline the exposed communication is read. MGM_BUILD_DIR names the build (default build/release).
"""
import argparse
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[3]
MGM = pathlib.Path(os.environ.get("MGM_BUILD_DIR", ROOT / "build/release")) / "bin/mgm"
sys.path.insert(0, str(ROOT / "tests/bench/comm"))
RECOMPUTE = '[{match: "model.layers.*", policy: full}]'


@dataclasses.dataclass
class Model:
    recipe: str
    visual: int             # tokens of the picture; 0: text only
    length: int = 1024      # tokens of a sample
    per_gpu: int = 8        # samples of a GPU in a step
    modes: tuple = ("zero2", "zero3", "hybrid")
    offload: bool = False   # of the optimizer, to the host
    peer: str = ""          # shape of the peer where the model is a language model alone
    sets: dict = dataclasses.field(default_factory=dict)


MODELS = {
    "llm_7b": Model("configs/stage2/vicuna_7b.yaml", 0, peer="7b", sets={"model.hr_encoder": "none", "image.hr_size": 336}),
    "mgm_7b": Model("configs/stage2/vicuna_7b.yaml", 576),
    "mgm_13b_hd": Model("configs/stage2/vicuna_13b_hd.yaml", 2880, length=3200, per_gpu=1, modes=("zero3",)),
    "mgm_34b": Model("configs/stage2/yi_34b.yaml", 576, per_gpu=1, modes=("zero3",), offload=True),
}


def cells(args):
    """(name, model, mode, GPUs, shard size) of what was asked for."""
    out = []
    for gpus in (int(n) for n in args.gpus.split(",")):
        for model in args.models.split(","):
            for mode in MODELS[model].modes if gpus > 1 else ["replicate"]:
                shard = gpus // 2 if mode == "hybrid" else 0
                if mode == "hybrid" and gpus < 4:
                    continue
                name = f"{model}.{mode}.{gpus}" + (".recompute" if args.recompute else "")
                if not args.only or name in args.only.split(","):
                    out.append((name, model, mode, gpus, shard))
    return out


def sets(args, model, mode, gpus, shard):
    values = {"model.init": "random", "model.projector.path": '""', "train.global_batch": model.per_gpu * gpus,
              "train.micro_batch": model.per_gpu, "dist.mode": mode, "optimizer.clip_norm": 1, **model.sets}
    if shard:
        values["dist.shard_size"] = shard
    values["train.recompute"] = RECOMPUTE if args.recompute else "[]"
    values["dist.offload"] = "optimizer" if model.offload else "none"
    return [text for key, value in values.items() for text in ("--set", f"{key}={value}")]


def predict(args):
    for name, model, mode, gpus, shard in cells(args):
        model = MODELS[model]
        command = [str(MGM), "train", model.recipe, *sets(args, model, mode, gpus, shard), "--plan", "--json", "--world", str(gpus),
                   "--gpus-per-node", str(shard or gpus), "--network", "240",  # a shard group counts as a node
                   "--gpu-memory", args.gpu_memory, "--tokens", str(model.length),
                   "--images", str(int(model.visual > 0))]
        plan = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)[0]
        found = next(m for m in plan["modes"] if m["mode"] == mode and m["offload"] == model.offload)
        step = found["step_s"]
        cell = {"step_ms": 1e3 * step, "tokens_s_gpu": plan["time_shape"]["tokens"] / step, "exposed": found["exposed_s"] / step,
                "peak_gib": found["memory"]["peak_allocated"] / 2**30, "fits": found["fits"]}
        (args.out / f"{name}.plan.json").write_text(json.dumps(cell, indent=1))
        print(f"{name:32} {cell['step_ms']:8.0f} ms {cell['tokens_s_gpu']:8.0f} tokens/s per GPU, exposed "
              f"{100 * cell['exposed']:.1f} %, {cell['peak_gib']:.1f} GiB{'' if cell['fits'] else '  DOES NOT FIT'}")


def step_data(args, model):
    path = args.out / f"step_data_{model.visual}.json"
    if not path.exists():
        subprocess.run([sys.executable, str(ROOT / "tests/bench/make_step_data.py"), "--stage", "2", "--records", "512",
                        "--text-tokens", str(model.length - model.visual), "--out", str(path),
                        *([] if model.visual else ["--no-images"])], check=True)
    return path


def run_cell(args, name, model, mode, gpus, shard):
    from exposed import exposed_share
    folder = args.out / f"{name}.run"
    steps = args.steps
    options = {"run.dir": folder, "text.tokenizer": "data/embedded/tokenizer",
               "data.sources": f"[{{annotations: {step_data(args, model)}, images: data/embedded/images}}]",
               "data.workers": 4, "train.max_steps": steps, "checkpoint.at_end": "false", "checkpoint.every_minutes": 0,
               "checkpoint.every_steps": 0, "log.every_steps": 1, "log.profile_first": steps - 1, "log.profile_steps": 2}
    command = [str(MGM), "launch", "--nproc", str(gpus), "--", "train", model.recipe, *sets(args, model, mode, gpus, shard),
               *(text for key, value in options.items() for text in ("--set", f"{key}={value}"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=args.timeout)
    log = done.stdout + done.stderr
    (args.out / f"{name}.log").write_text(log)
    if done.returncode != 0:
        return {"error": f"exit code {done.returncode}", "log": log[-2000:]}
    line = re.search(rf"step {steps - 2}/.*?(\d+) tok/s\s+([\d.]+) img/s\s+mem ([\d.]+) GiB", log)
    tokens, pictures, peak = (float(v) for v in line.groups())
    per_step = gpus * model.per_gpu * model.length
    return {"step_ms": 1e3 * per_step / tokens, "tokens_s_gpu": tokens / gpus, "images_s_gpu": pictures / gpus, "peak_gib": peak,
            "exposed": exposed_share(folder / "trace_rank_0.json") if gpus > 1 else 0.0}


def run_peer(args, model, mode, gpus, shard):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus),
               str(ROOT / "tests/bench/peer/fsdp2_llama.py"), "--shape", model.peer, "--batch",
               str(model.per_gpu), "--length", str(model.length), "--mode", mode if gpus > 1 else "zero2"]
    command += ["--shard-size", str(shard)] if shard else []
    command += ["--recompute"] if args.recompute else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=args.timeout)
    found = re.search(r"^\{.*\}$", done.stdout, re.M)
    return json.loads(found.group()) if found else {"error": done.stderr[-500:]}


def run(args):
    if not shutil.which("nvidia-smi"):
        raise SystemExit("run: this host has no nvidia-smi, so no GPU to run on; `predict` and `report` need none")
    machine = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    for name, model, mode, gpus, shard in cells(args):
        path = args.out / f"{name}.json"
        cell = json.loads(path.read_text()) if path.exists() else {"machine": machine.stdout.split("\n")[0]}
        if "mgm" not in cell:
            cell["mgm"] = run_cell(args, name, MODELS[model], mode, gpus, shard)
        if args.peers and "fsdp2" not in cell and MODELS[model].peer:
            cell["fsdp2"] = run_peer(args, MODELS[model], mode, gpus, shard)
        path.write_text(json.dumps(cell, indent=1))
        print(name, json.dumps(cell), flush=True)


# ---- report -------------------------------------------------------------------------------------------------
def rows(out):
    found = []
    for path in sorted(out.glob("*.plan.json")):
        name = path.name[:-len(".plan.json")]
        model, mode, gpus, *rest = name.split(".")
        measured = out / f"{name}.json"
        cell = json.loads(measured.read_text()) if measured.exists() else {}
        found.append({"name": name, "model": model, "mode": mode, "gpus": int(gpus), "recompute": bool(rest),
                      "plan": json.loads(path.read_text()), **cell})
    return sorted(found, key=lambda r: (r["model"], r["recompute"], r["mode"], r["gpus"]))


def number(cell, key, form):
    return form.format(cell[key]) if cell and key in cell else ("error" if cell and "error" in cell else "not run")


def table(found):
    print("| model, mode | GPUs | step, ms | planned | tokens/s per GPU | exposed | planned | peak, GiB | planned | FSDP2 tokens/s per GPU | machine |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for r in found:
        own, plan = r.get("mgm"), r["plan"]
        exposed = f"{100 * own['exposed']:.1f} %" if own and "exposed" in own else number(own, "exposed", "")
        print(f"| {r['model']}, {r['mode']}{', recomputed' if r['recompute'] else ''} | {r['gpus']} | "
              f"{number(own, 'step_ms', '{:.0f}')} | {plan['step_ms']:.0f} | {number(own, 'tokens_s_gpu', '{:.0f}')} | {exposed} | "
              f"{100 * plan['exposed']:.1f} % | {number(own, 'peak_gib', '{:.1f}')} | {plan['peak_gib']:.1f} | "
              f"{number(r.get('fsdp2'), 'tokens_s_gpu', '{:.0f}')} | {r.get('machine', '')} |")


def plot(found, path):
    """tokens/s per GPU over GPUs, one line per model and mode, the plan dashed."""
    lines = {}
    for r in found:
        lines.setdefault((r["model"], r["mode"], r["recompute"]), []).append(r)
    width, height, left, bottom = 720, 420, 70, 50
    top = max(max(r["plan"]["tokens_s_gpu"], (r.get("mgm") or {}).get("tokens_s_gpu", 0)) for r in found) * 1.08
    most = max(r["gpus"] for r in found)
    x = lambda gpus: left + (width - left - 190) * ((gpus - 1) / max(1, most - 1))
    y = lambda rate: height - bottom - (height - bottom - 20) * rate / top
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    for i in range(6):
        rate = top * i / 5
        svg.append(f'<line x1="{left}" x2="{width - 190}" y1="{y(rate):.1f}" y2="{y(rate):.1f}" stroke="#ddd"/>'
                   f'<text x="{left - 6}" y="{y(rate) + 4:.1f}" text-anchor="end">{rate:,.0f}</text>')
    for gpus in sorted({r["gpus"] for r in found}):
        svg.append(f'<text x="{x(gpus):.1f}" y="{height - bottom + 18}" text-anchor="middle">{gpus}</text>')
    svg.append(f'<text x="{left}" y="{height - 8}">GPUs of one host; tokens/s per GPU, measured (line) and planned (dashed)</text>')
    colours = ["#1b6ca8", "#c1440e", "#2e7d32", "#6a1b9a", "#00838f", "#9e9d24", "#5d4037", "#455a64"]
    for i, ((model, mode, recompute), cells_of_line) in enumerate(sorted(lines.items())):
        colour = colours[i % len(colours)]
        for key, dash in (("plan", ' stroke-dasharray="5 4"'), ("mgm", "")):
            points = [(x(r["gpus"]), y(r[key]["tokens_s_gpu"])) for r in cells_of_line if "tokens_s_gpu" in (r.get(key) or {})]
            svg.append(f'<polyline fill="none" stroke="{colour}"{dash} points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>')
            svg += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points if key == "mgm"]
        svg.append(f'<text x="{width - 182}" y="{30 + 18 * i}" fill="{colour}">{model} {mode}{" recomputed" if recompute else ""}</text>')
    path.write_text("\n".join(svg + ["</svg>\n"]))


def report(args):
    found = rows(args.out)
    if not found:
        raise SystemExit(f"{args.out}: holds no prediction; run `predict` first")
    table(found)
    plot(found, args.out / "scaling.svg")
    (args.out / "scaling.json").write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=("predict", "run", "report"))
    parser.add_argument("--gpus", default="1,2,4,8")
    parser.add_argument("--models", default="llm_7b,mgm_7b")
    parser.add_argument("--only", default="", help="names of cells, comma-separated")
    parser.add_argument("--recompute", action="store_true", help="recompute the blocks of the language model")
    parser.add_argument("--peers", action="store_true", help="also FSDP2 where the model is a language model alone")
    parser.add_argument("--gpu-memory", default="141GB")
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    {"predict": predict, "run": run, "report": report}[args.action](args)


if __name__ == "__main__":
    main()
