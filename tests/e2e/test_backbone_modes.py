"""Every architecture under every way of sharding: several ranks end with the bits of one. By default each architecture
has three modes on two ranks and one of the others; with MGM_TEST_FULL=1 all of them. A CPU has no host memory to offload
to and leaves dist.offload aside: tests/gpu/test_backbones.py has that."""
import pytest

from mgm_binary import FULL, metrics, mgm
from ranks import finish, same_weights, weights

CONFIG = "configs/tiny/stage2.yaml"
STEPS = 4
HALF = 16  # of a head of the tiny model: its rotated pairs
LONGROPE = {"type": "longrope", "factor": 2.0, "original_max_positions": 1024,
            "short_factor": [1 + i / 10 for i in range(HALF)], "long_factor": [3 + i / 4 for i in range(HALF)]}
ARCHS = {
    "llama": {"num_kv_heads": 2},
    "gemma": {"tie_embeddings": True, "activation": "gelu_tanh"},
    "gemma2": {"tie_embeddings": True, "activation": "gelu_tanh", "sliding_window": 9, "attention_softcap": 5.0,
               "final_softcap": 8.0},
    "qwen2": {"num_kv_heads": 2},
    "qwen3": {"num_kv_heads": 2},
    "phi3": {"num_kv_heads": 2, "sliding_window": 11},
    "phi3_longrope": {"arch": "phi3", "num_kv_heads": 2, **{f"rope_scaling__{k}": v for k, v in LONGROPE.items()}},
    "mistral": {"num_kv_heads": 2, "sliding_window": 7},
    "mixtral": {"num_kv_heads": 2, "num_experts": 4, "experts_per_token": 2},
}
MODES = {  # ranks, settings
    "replicate": (2, {}), "zero1": (2, {}), "zero2": (2, {}), "zero3": (2, {}),
    # Two groups of two: cut inside, copied across.
    "hybrid": (4, {"dist__shard_size": 2}),
}
ALWAYS = ["replicate", "zero2", "zero3"]
IN_TURN = ["zero1", "hybrid"]


def train(run, world, **values):
    return finish(run, world, config=CONFIG, **{
        "model__projector__path": "", "model__llm__num_layers": 2, "train__max_steps": STEPS, "checkpoint__at_end": True,
        "train__global_batch": 16, "dist__reduction": "strict", "dist__virtual_shards": 4, **values})


def settings(arch):
    return {f"model__llm__{key}": value for key, value in {"arch": arch, **ARCHS[arch]}.items()}


def modes_of(arch):
    return list(MODES) if FULL else [*ALWAYS, IN_TURN[list(ARCHS).index(arch) % len(IN_TURN)]]


@pytest.mark.parametrize("arch", ARCHS)
def test_modes_train_to_the_same_bits(tmp_path, arch):
    values = settings(arch)
    one = train(tmp_path / "one", 1, dist__mode="replicate", **values)
    assert len(metrics(one)) == STEPS and metrics(one)[0]["loss"] != metrics(one)[-1]["loss"]
    for mode in modes_of(arch):
        world, more = MODES[mode]
        run = train(tmp_path / mode, world, dist__mode=mode, **more, **values)
        assert metrics(run) == metrics(one), mode
        assert mgm("checkpoint", "diff", one, run).stdout.endswith("\nequal\n"), mode
    same_weights(weights(run), weights(one))  # put together out of the ranks' parts
