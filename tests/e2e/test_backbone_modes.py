"""Every architecture under every way of sharding: two ranks end with the bits of one."""
import pytest

from mgm_binary import metrics, mgm
from ranks import finish, same_weights, weights

CONFIG = "configs/tiny/stage2.yaml"
STEPS = 4
ARCHS = {
    "gemma": {"tie_embeddings": True, "activation": "gelu_tanh"},
    "gemma2": {"tie_embeddings": True, "activation": "gelu_tanh", "sliding_window": 9, "attention_softcap": 5.0,
               "final_softcap": 8.0},
    "qwen2": {"num_kv_heads": 2},
    "qwen3": {"num_kv_heads": 2},
    "phi3": {"num_kv_heads": 2, "sliding_window": 11},
    "mistral": {"num_kv_heads": 2, "sliding_window": 7},
}


def train(run, world, **values):
    return finish(run, world, config=CONFIG, **{
        "model__projector__path": "", "model__llm__num_layers": 2, "train__max_steps": STEPS, "checkpoint__at_end": True,
        "dist__reduction": "strict", "dist__virtual_shards": 2, **values})


@pytest.mark.parametrize("arch", ARCHS)
def test_modes_train_to_the_same_bits(tmp_path, arch):
    values = {"model__llm__arch": arch, **{f"model__llm__{key}": value for key, value in ARCHS[arch].items()}}
    one = train(tmp_path / "one", 1, dist__mode="replicate", **values)
    assert len(metrics(one)) == STEPS and metrics(one)[0]["loss"] != metrics(one)[-1]["loss"]
    for mode in ("replicate", "zero2", "zero3"):
        run = train(tmp_path / mode, 2, dist__mode=mode, **values)
        assert metrics(run) == metrics(one), mode
        assert mgm("checkpoint", "diff", one, run).stdout.endswith("\nequal\n"), mode
    same_weights(weights(run), weights(one))  # put together out of the parts of zero3
