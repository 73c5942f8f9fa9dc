#!/usr/bin/env bash
# diffusers 0.42.1: in a LoRA of kohya's names a layer without ".alpha" is loaded at the strength of the layers that have one.
#
# In that format a layer that states no alpha has alpha = rank, strength 1; where no layer of a file states one, diffusers takes it so, too.
# Where some do, load_lora_weights gives the alpha that is stated most often to all layers that state none, without a warning.
# Expected: strengths 0.25, 0.25 and 1 of three layers of rank 4, of which two state alpha 1. Seen: 0.25 for all three.
#
# Output seen:
#   no layer states alpha:        q 1, k 1, v 1
#   q and k state 1, v nothing:   q 0.25, k 0.25, v 0.25
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
venv/bin/python - 2>/dev/null <<'PY'
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

RANK = 4
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(16,), norm_num_groups=4, layers_per_block=1, cross_attention_dim=16,
    attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    mid_block_type=None,
)
pipeline = StableDiffusionPipeline(
    unet=unet, vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=2), scheduler=DDIMScheduler(),
    text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)


def strengths(name, alphas):
    """Load a LoRA for q, k and v of one attention, with these alphas stated; return what each is multiplied by."""
    state = {}
    for part in "qkv":
        layer = f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_{part}"
        state[f"{layer}.lora_down.weight"] = torch.randn(RANK, 16)
        state[f"{layer}.lora_up.weight"] = torch.randn(16, RANK)
        if part in alphas:
            state[f"{layer}.alpha"] = torch.tensor(alphas[part])
    pipeline.load_lora_weights(state, adapter_name=name)
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    return {part: getattr(attention, f"to_{part}").scaling[name] for part in "qkv"}


def told(found):
    return ", ".join(f"{part} {value:g}" for part, value in found.items())


none = strengths("none", {})
some = strengths("some", {"q": 1.0, "k": 1.0})
print("no layer states alpha:       ", told(none))
print("q and k state 1, v nothing:  ", told(some))
assert list(none.values()) == [1, 1, 1], "changed"
assert list(some.values()) == [0.25, 0.25, 0.25], "changed"
PY
