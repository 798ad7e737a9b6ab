"""Mini-Gemini composed literally in PyTorch: CLIP and Llama of transformers, ConvNeXt of timm, patch info
mining as the paper writes it. Writes itself as a model directory in the published layout.

Every parameter is redrawn (norm weights and gamma U(0.5, 1.5), biases N(0, 0.3)): with default
initialisation (gamma 1e-6, zero biases) a comparison passes with whole blocks missing.
"""
import dataclasses
import json
import pathlib
import shutil

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import save_file
from timm.models.convnext import ConvNeXt
from torch import nn

from backbones import redraw

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "data/embedded/tokenizer"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE = -200
IGNORE = -100


@dataclasses.dataclass
class Sizes:
    # LR encoder
    image: int = 42
    patch: int = 14
    clip_width: int = 24
    clip_mlp: int = 40
    clip_layers: int = 3
    clip_heads: int = 2
    select_layer: int = -2
    select_feature: str = "patch"
    # HR encoder; None: plain LLaVA
    depths: tuple | None = (1, 2, 1, 1)
    dims: tuple = (6, 10, 12, 14)
    convnext_eps: float = 1e-6
    # geometry
    hr: int = 60
    grid: int = 1
    with_global: bool = False
    # language model
    vocab: int = 1024
    width: int = 40
    mlp: int = 52
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    tied: bool = False
    theta: float = 10000.0
    projector: str = "mlp2x_gelu"
    template: str = "v1"
    # another architecture than Llama, and what its configuration has beside the sizes above
    backbone: type = transformers.LlamaConfig
    backbone_options: dict = dataclasses.field(default_factory=dict)


def make_projector(kind, inputs, outputs):
    if kind == "linear":
        return nn.Linear(inputs, outputs)
    if kind == "identity":
        return nn.Identity()
    depth = int(kind[3:].split("x")[0])
    layers = [nn.Linear(inputs, outputs)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(outputs, outputs)]
    return nn.Sequential(*layers)


def head(inputs, outputs):
    return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, outputs))


class Oracle(nn.Module):
    def __init__(self, sizes: Sizes, seed=0):
        super().__init__()
        s = self.s = sizes
        clip = transformers.CLIPVisionConfig(
            hidden_size=s.clip_width, intermediate_size=s.clip_mlp, num_hidden_layers=s.clip_layers,
            num_attention_heads=s.clip_heads, image_size=s.image, patch_size=s.patch, attn_implementation="eager")
        self.clip = transformers.CLIPVisionModel(clip)
        llm = s.backbone(**{**dict(
            vocab_size=s.vocab, hidden_size=s.width, intermediate_size=s.mlp, num_hidden_layers=s.layers,
            num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, max_position_embeddings=2048,
            rms_norm_eps=1e-5, rope_theta=s.theta, tie_word_embeddings=s.tied, pad_token_id=None), **s.backbone_options})
        self.llm = transformers.AutoModelForCausalLM.from_config(llm, attn_implementation="eager")
        self.convnext = None
        if s.depths:
            self.convnext = ConvNeXt(depths=s.depths, dims=s.dims, norm_eps=s.convnext_eps, num_classes=0)
            channels = sum(s.dims)
            self.query = head(s.clip_width, s.clip_width)
            self.key = head(channels, s.clip_width)
            self.value = head(channels, s.clip_width)
        self.projector = make_projector(s.projector, s.clip_width, s.width)
        redraw(self, seed)
        self.eval()

    # ---- forward ---------------------------------------------------------------------------------------
    def lr_features(self, lr):
        """[V, 3, s, s] -> [V, n * n, C]"""
        hidden = self.clip(lr, output_hidden_states=True).hidden_states[self.s.select_layer]
        return hidden[:, 1:] if self.s.select_feature == "patch" else hidden

    def hr_stages(self, hr):
        x = self.convnext.stem(hr)
        out = []
        for stage in self.convnext.stages:
            x = stage(x)
            out.append(x)
        return out

    def mine(self, queries, maps):
        """The paper's unified resampler: queries [b, n * n, C], map [b, Ca, h, h] -> [b, n * n, C]"""
        b, count, width = queries.shape
        n = int(count**0.5)
        p = maps.shape[-1] // n
        windows = maps.permute(0, 2, 3, 1).reshape(b, n, p, n, p, -1).swapaxes(2, 3).flatten(1, 2).flatten(2, 3)
        q, k, v = self.query(queries), self.key(windows), self.value(windows)
        logits = q[:, :, None] @ (k / width**0.5).transpose(-1, -2)
        return (logits.softmax(-1) @ v).squeeze(2)

    def encode(self, hr, lr):
        """hr [3, S, S], lr [views, 3, s, s] of one picture -> dict with final token order"""
        s, out = self.s, {}
        features = self.lr_features(lr)
        tiles, whole = (features[:-1], features[-1:]) if s.with_global else (features, features[:0])
        out["lr_features"] = torch.cat([whole.flatten(0, 1), tiles.flatten(0, 1)])[None]
        tokens = out["lr_features"]
        if self.convnext is not None:
            stages = self.hr_stages(hr[None])
            for i, stage in enumerate(stages):
                out[f"hr_stage{i}"] = stage
            size = stages[0].shape[-2:]
            full = torch.cat([stages[0]] + [F.interpolate(x, size=size, mode="bilinear", align_corners=False)
                                            for x in stages[1:]], dim=1)
            mined = []
            if s.with_global:
                small = F.interpolate(full, scale_factor=1 / s.grid, mode="bilinear", align_corners=False)
                mined.append(self.mine(whole, small).flatten(0, 1))
            side = full.shape[-1] // s.grid
            for r in range(s.grid):
                for c in range(s.grid):
                    tile = full[:, :, r * side:(r + 1) * side, c * side:(c + 1) * side]
                    mined.append(self.mine(tiles[r * s.grid + c][None], tile).flatten(0, 1))
            out["mined"] = torch.cat(mined)[None]
            tokens = tokens + out["mined"]
        out["visual_tokens"] = self.projector(tokens)
        return out

    def run(self, ids, pictures, labels=None):
        """ids with one IMAGE per picture; pictures: [(hr, lr)]. labels are expanded, not shifted."""
        encoded = [self.encode(hr, lr) for hr, lr in pictures]
        out = {k: torch.cat([e[k] for e in encoded]) for k in encoded[0]} if encoded else {}
        rows, image = [], 0
        for token in ids:
            if token == IMAGE:
                rows.append(out["visual_tokens"][image])
                image += 1
            else:
                rows.append(self.llm.model.embed_tokens(torch.tensor([token])))
        out["inputs_embeds"] = torch.cat(rows)[None]
        out["logits"] = self.llm(inputs_embeds=out["inputs_embeds"]).logits
        if labels is not None:
            out["loss"] = F.cross_entropy(out["logits"][0, :-1].float(), labels[0, 1:], ignore_index=IGNORE)[None]
        return out

    # ---- preprocessing -----------------------------------------------------------------------------------
    def picture(self, path, aspect="pad"):
        return preprocess(path, self.s, aspect)

    # ---- published layout ----------------------------------------------------------------------------------
    def published(self):
        """{published name: tensor}"""
        out = {}
        for name, p in self.named_parameters():
            part, rest = name.split(".", 1)
            if part == "clip":
                out["model.vision_tower.vision_tower." + rest] = p
            elif part == "convnext":
                if rest.startswith(("stem.", "stages.")):
                    out["model.vision_tower_aux.vision_" + rest] = p
            elif part == "llm":
                out[rest] = p
            elif part == "projector":
                out["model.mm_projector." + rest] = p
            else:
                full = {"query": "query", "key": "aux", "value": "val"}[part]
                out[f"model.vlm_uni_{full}_projector.{rest}"] = p
        return out

    def config(self):
        s = self.s
        llm = self.llm.config
        return {
            **json.loads(llm.to_json_string(use_diff=False)),
            "architectures": ["MGM" + type(self.llm).__name__],
            "model_type": "mgm" if llm.model_type == "llama" else "mgm_" + llm.model_type, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32", "mm_vision_tower": "openai/clip",
            "mm_vision_tower_aux": "openclip-convnext", "mm_hidden_size": s.clip_width,
            "mm_hidden_size_aux": sum(s.dims), "image_size_aux": s.hr, "mm_projector_type": s.projector,
            "mm_vision_select_layer": s.select_layer, "mm_vision_select_feature": s.select_feature,
            "image_aspect_ratio": "pad", "image_grid": s.grid, "image_global": s.with_global,
            "tokenizer_model_max_length": 2048, "tokenizer_padding_side": "right",
            "mgm": {
                "vision_tower": {"image_size": s.image, "patch_size": s.patch, "hidden_size": s.clip_width,
                                 "intermediate_size": s.clip_mlp, "num_hidden_layers": s.clip_layers,
                                 "num_attention_heads": s.clip_heads, "layer_norm_eps": 1e-5},
                **({"convnext": {"depths": s.depths, "dims": s.dims, "norm_eps": s.convnext_eps}} if s.depths else {}),
                "hr_size": s.hr, "hr_source": "native", "image_mean": MEAN, "image_std": STD,
                "template": s.template,
            },
        }

    def save(self, folder):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True)
        save_file({k: v.detach().contiguous() for k, v in self.published().items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.config()))
        for file in TOKENIZER.iterdir():
            shutil.copy(file, folder)
        return folder


def preprocess(path, s, aspect="pad"):
    """As the reference: pad to a square (or centre crop), CLIPImageProcessor at the HR size, LR views
    bilinear from the normalised HR tensor. hr [3, S, S], lr [views, 3, s, s]"""
    image = Image.open(path).convert("RGB")
    if aspect == "pad" and image.width != image.height:
        side = max(image.size)
        square = Image.new("RGB", (side, side), tuple(int(x * 255) for x in MEAN))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": s.hr}, crop_size={"height": s.hr, "width": s.hr}, image_mean=MEAN, image_std=STD)
    hr = torch.from_numpy(np.asarray(processor(image)["pixel_values"][0]))
    return hr, lr_views(hr, s.image, s.grid, s.with_global)


def lr_views(hr, side, grid, with_global):
    """hr [3, S, S], normalised -> [views, 3, side, side]: bilinear without antialiasing, row-major tiles, then
    the whole picture once more"""
    big = F.interpolate(hr[None], size=(side * grid,) * 2, mode="bilinear", align_corners=False)[0]
    views = [big[:, r * side:(r + 1) * side, c * side:(c + 1) * side] for r in range(grid) for c in range(grid)]
    if with_global:
        views.append(F.interpolate(big[None], size=(side, side), mode="bilinear", align_corners=False)[0])
    return torch.stack(views)


def relative_l2(actual, expected):
    actual, expected = actual.double(), expected.double()
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert torch.isfinite(actual).all() and torch.isfinite(expected).all()
    return ((actual - expected).norm() / expected.norm().clamp_min(1e-30)).item()
