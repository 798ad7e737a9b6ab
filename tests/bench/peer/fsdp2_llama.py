#!/usr/bin/env python3
"""One training step of a Llama-shaped language model under PyTorch FSDP2, the yardstick of tests/bench/scaling.

    torchrun --standalone --nproc-per-node N tests/bench/peer/fsdp2_llama.py --shape 7b --mode zero3 [--recompute]

bf16 parameters and activations, fp32 masters, moments and reduction, fused AdamW, clipping, blocks compiled. Prints one
line of JSON: the median step in ms, tokens/s per GPU and the peak of allocated memory on the first rank.
"""
import argparse
import json
import os
import statistics

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "1b": (2048, 5632, 22, 32, 4, 32000),
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "13b": (5120, 13824, 40, 40, 40, 32000),
    "34b": (7168, 20480, 60, 56, 8, 64000),
}


def build(args, device):
    hidden, intermediate, layers, heads, kv_heads, vocabulary = SHAPES[args.shape]
    config = LlamaConfig(hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
                         num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=vocabulary,
                         max_position_embeddings=4096, attn_implementation="sdpa", use_cache=False)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).train()
    if args.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    world = dist.get_world_size()
    mesh = (init_device_mesh("cuda", (world // args.shard_size, args.shard_size), mesh_dim_names=("replicate", "shard"))
            if args.mode == "hybrid" else init_device_mesh("cuda", (world,)))
    options = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32)}
    for layer in model.model.layers:
        layer.compile()
        fully_shard(layer, reshard_after_forward=args.mode != "zero2", **options)
    fully_shard(model, reshard_after_forward=False, **options)
    model.to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
        width = hidden // heads
        frequencies = 1e4 ** (-torch.arange(0, width, 2, device=device).float() / width)
        for name, buffer in model.named_buffers():
            if "inv_freq" in name:
                buffer.copy_(frequencies)
    return model, vocabulary


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--mode", choices=("zero2", "zero3", "hybrid"), default="zero3")
    parser.add_argument("--shard-size", type=int, default=2, help="hybrid: GPUs of a shard group")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    torch.manual_seed(0)
    model, vocabulary = build(args, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
    ids = torch.randint(vocabulary, (args.batch, args.length), device=device)
    times = []
    for _ in range(3 + args.steps):  # three to compile and warm up
        dist.barrier()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    step_ms = statistics.median(times[3:])
    if dist.get_rank() == 0:
        print(json.dumps({"step_ms": round(step_ms, 1), "tokens_s_gpu": round(args.batch * args.length / step_ms * 1e3),
                          "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
