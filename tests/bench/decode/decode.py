#!/usr/bin/env python3
"""How fast tokens are decoded, beside what the memory allows and beside transformers' generate().

    tests/bench/decode/decode.py --shape 7b --batch 1,8,32 --prompt 512 --out decode      # measures, then prints the table
    tests/bench/decode/decode.py --shape 7b --out decode --report                         # the table of what is there

Weights are random and lie in OUT/model_SHAPE in the published layout, with towers too small to matter (--keep leaves
them there). Each cell, one shape with one batch size, runs mgm and then transformers in a process of its own on the same
device and writes OUT/<shape>.b<batch>.p<prompt>[.eager].json; a cell that exists is not run again, one with an error is.
With --eager mgm launches its kernels one by one instead of replaying CUDA graphs. Both sides continue the
same number of prompts of the same length greedily, twice, by few and by many tokens; the difference is what counts, so
loading, prompts and first calls do not. The limit is bytes over bandwidth: a step reads every weight but the embedding
once, and every row's cached keys and values; the bandwidth is that of copying in the same run, or --bandwidth in GB/s.
MGM_BUILD_DIR names the build (default build/release).
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[3]
MGM = pathlib.Path(os.environ.get("MGM_BUILD_DIR", ROOT / "build/release")) / "bin/mgm"
TOKENIZER = ROOT / "data/embedded/tokenizer"
BARE = ROOT / "tests/e2e/bare.yaml"
FEW, END, SHARD_BYTES = 8, 2, 4e9
BITS = {"nf4": 4.127, "int8": 8}  # of a packed weight
SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary, tied
    "tiny": (64, 160, 2, 4, 2, 1024, False),
    "135m": (576, 1536, 30, 9, 3, 49152, True),
    "1b": (2048, 5632, 22, 32, 4, 32000, False),
    "7b": (4096, 11008, 32, 32, 32, 32000, False),
    "8b": (4096, 14336, 32, 32, 8, 128256, False),
    "13b": (5120, 13824, 40, 40, 40, 32000, False),
}
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
         "tie_word_embeddings")
CLIP = {"image_size": 42, "patch_size": 14, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "layer_norm_eps": 1e-5}


def llm_config(shape, positions):
    return {**dict(zip(NAMES, SHAPES[shape])), "max_position_embeddings": positions, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "hidden_act": "silu"}


# ---- the model ----------------------------------------------------------------------------------------------
def llm_tensors(shape):
    """Published name -> shape, in the order of the layers."""
    hidden, mlp, layers, heads, kv_heads, vocabulary, tied = SHAPES[shape]
    width = hidden // heads
    out = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        layer = f"model.layers.{i}."
        out[layer + "input_layernorm.weight"] = out[layer + "post_attention_layernorm.weight"] = (hidden,)
        for name, rows in (("q", hidden), ("k", kv_heads * width), ("v", kv_heads * width), ("o", hidden)):
            out[f"{layer}self_attn.{name}_proj.weight"] = (rows, hidden)
        out[layer + "mlp.gate_proj.weight"] = out[layer + "mlp.up_proj.weight"] = (mlp, hidden)
        out[layer + "mlp.down_proj.weight"] = (hidden, mlp)
    out["model.norm.weight"] = (hidden,)
    if not tied:
        out["lm_head.weight"] = (vocabulary, hidden)
    return out


def tower_tensors(shape):
    """A CLIP as small as one can be, and a linear projector."""
    width, mlp, patch = CLIP["hidden_size"], CLIP["intermediate_size"], CLIP["patch_size"]
    positions = (CLIP["image_size"] // patch) ** 2 + 1
    prefix = "model.vision_tower.vision_tower.vision_model."
    out = {"embeddings.class_embedding": (width,), "embeddings.patch_embedding.weight": (width, 3, patch, patch),
           "embeddings.position_embedding.weight": (positions, width)}
    norms, linears = ["pre_layrnorm", "post_layernorm"], {}
    for i in range(CLIP["num_hidden_layers"]):
        layer = f"encoder.layers.{i}."
        norms += [layer + "layer_norm1", layer + "layer_norm2"]
        linears.update({f"{layer}self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")})
        linears.update({layer + "mlp.fc1": (mlp, width), layer + "mlp.fc2": (width, mlp)})
    for name in norms:
        out[name + ".weight"] = out[name + ".bias"] = (width,)
    for name, size in linears.items():
        out[name + ".weight"], out[name + ".bias"] = size, size[:1]
    out = {prefix + name: size for name, size in out.items()}
    hidden = SHAPES[shape][0]
    return {**out, "model.mm_projector.weight": (hidden, width), "model.mm_projector.bias": (hidden,)}


def random_tensor(name, size, dtype, device):
    if "norm" in name:
        return torch.zeros(size, dtype=dtype) if name.endswith("bias") else torch.ones(size, dtype=dtype)
    value = torch.randn(size, device=device).mul_(0.02).to(dtype)
    if name in ("lm_head.weight", "model.embed_tokens.weight"):
        value[END] = 0  # its logit is 0, never the largest: no answer ends before its time
    return value.cpu()


def write_model(args):
    """OUT/model_SHAPE, whole or not at all."""
    from safetensors.torch import save_file
    folder = args.out / f"model_{args.shape}"
    if folder.exists():
        if json.loads((folder / "config.json").read_text())["max_position_embeddings"] >= args.positions:
            return folder
        shutil.rmtree(folder)
    partial = args.out / f"model_{args.shape}.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(TOKENIZER, partial)
    torch.manual_seed(0)
    shards, weight_map, shard, size = 0, {}, {}, 0

    def flush():
        nonlocal shards, shard, size
        if shard:
            shards += 1
            save_file(shard, partial / f"part-{shards}.safetensors", metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(shard, f"part-{shards}.safetensors"))
        shard, size = {}, 0

    for name, dims in {**llm_tensors(args.shape), **tower_tensors(args.shape)}.items():
        shard[name] = random_tensor(name, dims, args.dtype, args.device)
        size += shard[name].nbytes
        if size > SHARD_BYTES:
            flush()
    flush()
    (partial / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (partial / "config.json").write_text(json.dumps({
        **llm_config(args.shape, args.positions), "architectures": ["MGMLlamaForCausalLM"], "model_type": "mgm",
        "bos_token_id": 1, "eos_token_id": END, "torch_dtype": str(args.dtype).split(".")[1], "mm_vision_tower": "none",
        "mm_hidden_size": CLIP["hidden_size"], "mm_projector_type": "linear", "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad", "image_grid": 1, "image_global": False,
        "mgm": {"vision_tower": CLIP, "hr_size": CLIP["image_size"], "hr_source": "native", "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3, "template": "v1"}}))
    partial.rename(folder)
    return folder


# ---- the two sides ------------------------------------------------------------------------------------------
def call(command, timeout):
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-1500:]}")
    return done


def prompt_text(model, tokens):
    """Text of as many tokens, BOS included: numbers, whose digits are tokens of their own in any Llama vocabulary."""
    text = "".join(str(i % 10) for i in range(tokens))
    done = subprocess.run([str(MGM), "tokenize", str(model)], input=text + "\n", capture_output=True, text=True, check=True)
    surplus = len(done.stdout.split()) - tokens
    return text[:len(text) - surplus] if surplus > 0 else text


def run_mgm(args, model, batch):
    """tokens/s of the steps alone, and what they read."""
    questions, text = args.out / "questions.jsonl", prompt_text(model, args.prompt)
    questions.write_text("".join(json.dumps({"id": i, "prompt": text}) + "\n" for i in range(batch)))
    found = []
    for new in (FEW, args.new):
        stats = args.out / "stats.json"
        stats.unlink(missing_ok=True)
        call([MGM, "chat", model, "--device", args.device, "--dtype", "bf16" if args.dtype == torch.bfloat16 else "fp32",
              "--template", f"{BARE}:bare", "--batch", questions, "--batch-size", batch, "--max-new-tokens", new,
              "--out", args.out / "answers.jsonl", "--stats", stats, *(["--no-graphs"] if args.eager else []),
              *(["--quantize", args.quantize] if args.quantize != "none" else [])], args.timeout)
        found.append(json.loads(stats.read_text()))
        if found[-1]["step_tokens"] != batch * (new - 1):
            raise RuntimeError(f"answers ended early: {found[-1]}")
    few, many = found
    steps, seconds = many["steps"] - few["steps"], many["step_seconds"] - few["step_seconds"]
    return {"tokens_s": (many["step_tokens"] - few["step_tokens"]) / seconds, "step_ms": 1e3 * seconds / steps,
            "prompt_tokens": many["prompt_tokens"] // batch, "prompt_tokens_s": many["prompt_tokens"] / many["prompt_seconds"],
            "context_per_step": (many["context_tokens"] - few["context_tokens"]) / steps, "cache_gb": many["cache_bytes"] / 1e9,
            "graph_steps": (many["graph_steps"] - few["graph_steps"]) / steps}


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def peer(args):
    """One line of JSON: transformers' generate() with random weights of the same shape."""
    import transformers
    config = transformers.LlamaConfig(**llm_config(args.shape, args.positions), attn_implementation="sdpa")
    torch.manual_seed(0)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to(args.dtype).to_empty(device=args.device).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1)
            else:
                parameter.normal_(std=0.02)
        model.tie_weights()
        width = config.hidden_size // config.num_attention_heads
        for name, buffer in model.named_buffers():  # they came empty from the meta device
            if "inv_freq" in name:
                buffer.copy_(1e4 ** (-torch.arange(0, width, 2, device=args.device).float() / width))
    batch = int(args.batch)
    ids = torch.randint(3, 1000, (batch, args.prompt), device=args.device)
    mask = torch.ones_like(ids)

    def seconds(new):
        synchronize(args.device)
        begin = time.perf_counter()
        out = model.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, use_cache=True,
                             pad_token_id=0, eos_token_id=None)
        synchronize(args.device)
        assert out.shape[1] == args.prompt + new, out.shape
        return time.perf_counter() - begin

    with torch.inference_mode():
        seconds(FEW)
        spent = min(seconds(args.new) for _ in range(2)) - min(seconds(FEW) for _ in range(2))
    print(json.dumps({"tokens_s": batch * (args.new - FEW) / spent, "step_ms": 1e3 * spent / (args.new - FEW),
                      "transformers": transformers.__version__, "torch": torch.__version__}))


# ---- the limit ----------------------------------------------------------------------------------------------
def copy_bandwidth(device):
    """Bytes read and written per second by copying a buffer that no cache holds, the best of several."""
    size = 2**30 if device == "cuda" else 2**28
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        synchronize(device)
        begin = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size / best


def limit(args, batch, context_per_step, bandwidth):
    """Tokens/s if a step took no longer than reading what it needs; and those bytes."""
    hidden, _, layers, heads, kv_heads, vocabulary, tied = SHAPES[args.shape]
    item = torch.empty(0, dtype=args.dtype).element_size()
    sizes = {name: torch.Size(size).numel() for name, size in llm_tensors(args.shape).items()}
    packed = sum(numel for name, numel in sizes.items() if name.endswith("_proj.weight"))
    weights = item * (sum(sizes.values()) - (0 if tied else vocabulary * hidden))
    weights += (BITS.get(args.quantize, 8 * item) / 8 - item) * packed
    cache = item * context_per_step * 2 * layers * kv_heads * (hidden // heads)
    return {"limit_tokens_s": batch * bandwidth / (weights + cache), "weights_gb": weights / 1e9, "cache_read_gb": cache / 1e9}


# ---- cells and the table ------------------------------------------------------------------------------------
def machine(device):
    return torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"


def attempt(what, *arguments):
    try:
        return what(*arguments)
    except Exception as error:  # a side that fails must not cost the others
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


def run_peer(args, batch, prompt):
    command = [sys.executable, __file__, "--peer", "--shape", args.shape, "--batch", batch, "--prompt", prompt, "--new", args.new,
               "--device", args.device, "--out", args.out]
    return json.loads(call(command, args.timeout).stdout.strip().splitlines()[-1])


def measure(args):
    if not MGM.exists():
        raise SystemExit(f"{MGM} is not there: build it, or name the build in MGM_BUILD_DIR")
    bandwidth = args.bandwidth * 1e9 or copy_bandwidth(args.device)
    if args.device == "cuda":
        torch.cuda.empty_cache()  # the two sides need the memory
    model = write_model(args)
    for batch in (int(n) for n in args.batch.split(",")):
        kind = (".eager" if args.eager else "") + ("" if args.quantize == "none" else f".{args.quantize}")
        path = args.out / f"{args.shape}.b{batch}.p{args.prompt}{kind}.json"
        cell = json.loads(path.read_text()) if path.exists() else {}
        cell.update(shape=args.shape, batch=batch, new=args.new, eager=args.eager, quantize=args.quantize, device=machine(args.device), bandwidth_gbs=bandwidth / 1e9)
        if "tokens_s" not in cell.get("mgm", {}):
            cell["mgm"] = attempt(run_mgm, args, model, batch)
            if "tokens_s" in cell["mgm"]:
                cell.update(limit(args, batch, cell["mgm"]["context_per_step"], bandwidth))
        if args.peers and "tokens_s" not in cell.get("transformers", {}):
            cell["transformers"] = attempt(run_peer, args, batch, cell["mgm"].get("prompt_tokens", args.prompt))
        path.write_text(json.dumps(cell, indent=1))
        print(json.dumps(cell), file=sys.stderr, flush=True)
    if not args.keep:
        shutil.rmtree(model)


def report(args):
    print("| model | batch | context | steps from graphs | tokens/s | limit | of the limit | step, ms | transformers tokens/s | ratio | "
          "machine |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    cells = [json.loads(path.read_text()) for path in args.out.glob(f"{args.shape}.b*.p*.json")]
    for cell in sorted(cells, key=lambda c: (c["batch"], c.get("eager", False), c["mgm"].get("context_per_step", 0))):
        own, other = cell["mgm"], cell.get("transformers", {})
        name = cell["shape"] + ("" if cell.get("quantize", "none") == "none" else f", {cell['quantize']}")
        if "tokens_s" not in own:
            print(f"| {name} | {cell['batch']} | | | error | | | | | | {cell['device']} |")
            continue
        theirs = f"{other['tokens_s']:,.1f}" if "tokens_s" in other else "error" if other else "not run"
        ratio = f"{own['tokens_s'] / other['tokens_s']:.2f}" if "tokens_s" in other else ""
        print(f"| {name} | {cell['batch']} | {own['context_per_step'] / cell['batch']:.0f} | "
              f"{100 * own.get('graph_steps', 0):.0f} % | {own['tokens_s']:,.1f} | "
              f"{cell['limit_tokens_s']:,.1f} | {100 * own['tokens_s'] / cell['limit_tokens_s']:.0f} % | {own['step_ms']:.2f} | "
              f"{theirs} | {ratio} | {cell['device']}, {cell['bandwidth_gbs']:,.0f} GB/s |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--batch", default="1,8,32", help="prompts continued at a time, comma-separated")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=136, help=f"tokens of an answer; those after the first {FEW} count")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="fp32 on the CPU, bf16 on a GPU")
    parser.add_argument("--bandwidth", type=float, default=0, help="GB/s; 0: measured by copying")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave transformers out")
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs (mgm chat --no-graphs)")
    parser.add_argument("--quantize", choices=("none", *BITS), default="none", help="as mgm chat --quantize; transformers stays in bf16")
    parser.add_argument("--keep", action="store_true", help="keep the weights for another call")
    parser.add_argument("--timeout", type=float, default=500, help="seconds one run of one side may take")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--report", action="store_true", help="print the table of the cells that are there")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.new <= FEW:
        parser.error(f"--new must be above {FEW}")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    args.positions = args.prompt + args.new + 16
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.peer:
        return peer(args)
    if not args.report:
        measure(args)
    report(args)


if __name__ == "__main__":
    main()
