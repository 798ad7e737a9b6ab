"""Tiny random language models of every architecture, built with transformers, every parameter redrawn."""
import dataclasses

import torch
import transformers

COMMON = dict(vocab_size=101, hidden_size=36, intermediate_size=52, num_hidden_layers=3, num_attention_heads=6,
              num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=False)
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}
# Widths that kernels for GPUs take, of 16-wide heads; those above are odd on purpose.
EVEN = dict(hidden_size=96, intermediate_size=64)
EVEN_FACTORS = {"short_factor": [1 + 0.2 * i for i in range(8)], "long_factor": [2.0**i for i in range(8)]}
PHI_ROPE = {"type": "longrope", "short_factor": [1.0, 1.3, 2.1], "long_factor": [1.0, 4.0, 32.0]}


@dataclasses.dataclass
class Backbone:
    config: type
    options: dict


def backbone(config, **options):
    return Backbone(config, options)


BACKBONES = {
    "llama": backbone(transformers.LlamaConfig),
    "llama 3.1 rope": backbone(transformers.LlamaConfig, rope_scaling=LLAMA3_ROPE, rope_theta=500.0),
    "llama linear rope, biases, head_dim": backbone(
        transformers.LlamaConfig, rope_scaling={"type": "linear", "factor": 3.0}, attention_bias=True, mlp_bias=True,
        head_dim=10),
    "llama longrope by its factor": backbone(
        transformers.LlamaConfig, rope_scaling={**PHI_ROPE, "type": "longrope", "factor": 3.3}),
    "llama tied, exact gelu": backbone(transformers.LlamaConfig, tie_word_embeddings=True, hidden_act="gelu"),
    "qwen2": backbone(transformers.Qwen2Config, rope_theta=1e6),
    "qwen2, attention_bias without effect": backbone(transformers.Qwen2Config, attention_bias=True),
    "qwen2 windows from layer 1": backbone(
        transformers.Qwen2Config, use_sliding_window=True, sliding_window=7, max_window_layers=1,
        tie_word_embeddings=True),
    "qwen3": backbone(transformers.Qwen3Config, head_dim=14, rope_theta=1e6),
    "qwen3 biases, named layer types": backbone(
        transformers.Qwen3Config, head_dim=8, attention_bias=True, use_sliding_window=True, sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "mistral": backbone(transformers.MistralConfig, sliding_window=6),
    "mistral, window of one": backbone(transformers.MistralConfig, sliding_window=1),
    "mistral without window": backbone(transformers.MistralConfig, sliding_window=None, head_dim=8),
    "gemma": backbone(transformers.GemmaConfig, head_dim=256, num_key_value_heads=1, tie_word_embeddings=True),
    "gemma, exact gelu": backbone(transformers.GemmaConfig, head_dim=10, hidden_act="gelu", tie_word_embeddings=True),
    "gemma, hidden_act counts": backbone(
        transformers.GemmaConfig, head_dim=10, hidden_act="gelu", hidden_activation="gelu_pytorch_tanh"),
    "gemma2, hidden_activation counts": backbone(transformers.Gemma2Config, head_dim=10, hidden_act="gelu"),
    "gemma2": backbone(
        transformers.Gemma2Config, head_dim=10, sliding_window=6, query_pre_attn_scalar=17, attn_logit_softcapping=1.5,
        final_logit_softcapping=2.5, tie_word_embeddings=True),
    "gemma2 without caps": backbone(
        transformers.Gemma2Config, head_dim=10, sliding_window=9, query_pre_attn_scalar=17, attn_logit_softcapping=None,
        final_logit_softcapping=None, tie_word_embeddings=True),
    "phi3": backbone(transformers.Phi3Config, sliding_window=8),
    "phi3 longrope": backbone(
        transformers.Phi3Config, rope_scaling=PHI_ROPE, original_max_position_embeddings=512,
        max_position_embeddings=4096),
    "phi3 partly rotated": backbone(
        transformers.Phi3Config, partial_rotary_factor=0.75, num_attention_heads=4, hidden_size=32),
    "mixtral": backbone(transformers.MixtralConfig, num_local_experts=5, num_experts_per_tok=2),
    "mixtral, most experts empty": backbone(transformers.MixtralConfig, num_local_experts=64, num_experts_per_tok=3),
    "mixtral with router loss": backbone(
        transformers.MixtralConfig, num_local_experts=5, num_experts_per_tok=2, output_router_logits=True,
        router_aux_loss_coef=0.3, sliding_window=9),
}
# Without special ids of their own: Gemma's padding row would be left out of the embedding's gradient.
NO_IDS = dict(pad_token_id=None, bos_token_id=None, eos_token_id=None)


def redraw(model, seed, unit_norms=False):
    """Norm weights and scalars U(0.5, 1.5), of 1 + w norms U(-0.5, 0.5); biases N(0, 0.3); matrices keep the scale of
    what passes."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        with torch.no_grad():
            if name.endswith("bias"):
                p.normal_(0, 0.3, generator=generator)
            elif p.dim() <= 1:
                p.uniform_(0.5, 1.5, generator=generator)
                if unit_norms:
                    p.sub_(1)
            else:
                p.normal_(0, (p.numel() / p.shape[0]) ** -0.5, generator=generator)


def even(name):
    """What `make` changes so that widths are EVEN."""
    rope = BACKBONES[name].options.get("rope_scaling", {})
    return {**EVEN, **({"rope_scaling": {**rope, **EVEN_FACTORS}} if "short_factor" in rope else {})}


def make(name, seed=0, **changes):
    spec = BACKBONES[name]
    config = spec.config(**{**COMMON, **NO_IDS, **spec.options, **changes})
    config._attn_implementation = "eager"  # the one that has soft caps
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    redraw(model, seed, unit_norms="gemma" in config.model_type)
    return model.eval()
