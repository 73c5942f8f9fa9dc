#!/usr/bin/env bash
# diffusers 0.42.1: output_type="latent" of Flux2Pipeline gives something else than that of Flux2KleinPipeline.
#
# Both run the same transformer on the same packed latents and decode with the same autoencoder. Expected: the latents that one gives are
# those that the other gives, as both images are. Seen: Flux2Pipeline returns the packed tokens as the network knows them, [batch, tokens,
# 4 x channels]; Flux2KleinPipeline has unpacked them, undone the batch norm and unpatchified them, [batch, channels, height / 8, width / 8],
# ready for vae.decode. The same noise and weights; so code that decodes or stores latents of one cannot take those of the other.
#
# Output seen:
#   images equal: True
#   Flux2Pipeline latents: (1, 16, 16)
#   Flux2KleinPipeline latents: (1, 4, 8, 8)
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6
venv/bin/python - 2>/dev/null <<'PY'
import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)

torch.manual_seed(0)
parts = {
    "transformer": Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    ),
    "vae": AutoencoderKLFlux2(latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4),
    "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    "text_encoder": None,
    "tokenizer": None,
}
parts["vae"].bn.running_mean.normal_()
parts["vae"].bn.running_var.uniform_(0.5, 2.0)
prompt, noise = torch.randn(1, 6, 32), torch.randn(1, 16, 4, 4)


def of(kind, output_type, **more):
    pipeline = kind(**parts, **more)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt=None, prompt_embeds=prompt, latents=noise.clone(), height=64, width=64, num_inference_steps=3,
        guidance_scale=1.0, output_type=output_type,
    ).images


plain, klein = of(Flux2Pipeline, "pt"), of(Flux2KleinPipeline, "pt", is_distilled=True)
print("images equal:", equal := bool(torch.allclose(plain, klein, atol=1e-5)))
shapes = [tuple(of(Flux2Pipeline, "latent").shape), tuple(of(Flux2KleinPipeline, "latent", is_distilled=True).shape)]
print("Flux2Pipeline latents:", shapes[0])
print("Flux2KleinPipeline latents:", shapes[1])
assert equal and shapes == [(1, 16, 16), (1, 4, 8, 8)], "changed"
PY
