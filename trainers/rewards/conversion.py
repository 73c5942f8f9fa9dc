"""Names of weights: from the formats in which they are published to those of transformers."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_OPEN_CLIP = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
} | {
    f"{theirs}.{kind}": f"{ours}.{kind}"
    for theirs, ours in {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }.items()
    for kind in ("weight", "bias")
}
_OPEN_CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TRANSPOSED = ("visual.proj", "text_projection")  # stored as [in, out]

_BLIP_VISION = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
)


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an open_clip vision transformer under the names of ``CLIPModel``.

    Raises:
        ValueError: a name is unknown.
    """
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "attn_mask":  # a constant of the architecture
            continue
        if name in _OPEN_CLIP:
            converted[_OPEN_CLIP[name]] = value.T.contiguous() if name in _TRANSPOSED else value
            continue
        found = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        if found is None:
            raise ValueError(f"no weight of an open_clip vision transformer: {name!r}")
        layer = f"{'vision' if found[1] else 'text'}_model.encoder.layers.{found[2]}"
        part, _, kind = found[3].rpartition(".")
        if found[3].startswith("attn.in_proj_"):
            kind = found[3].removeprefix("attn.in_proj_")
            for letter, third in zip("qkv", torch.chunk(value, 3), strict=True):
                converted[f"{layer}.self_attn.{letter}_proj.{kind}"] = third.clone()
        elif part in _OPEN_CLIP_BLOCK:
            converted[f"{layer}.{_OPEN_CLIP_BLOCK[part]}.{kind}"] = value
        else:
            raise ValueError(f"no weight of an open_clip vision transformer: {name!r}")
    return converted


def from_blip_vision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the original BLIP's ``visual_encoder`` under the names of ``BlipVisionModel``."""
    converted = {}
    for name, value in state.items():
        renamed = name
        for pattern, replacement in _BLIP_VISION:
            renamed = re.sub(pattern, replacement, renamed)
        converted[renamed] = value
    return converted
