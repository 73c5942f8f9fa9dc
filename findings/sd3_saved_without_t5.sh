#!/usr/bin/env bash
# diffusers 0.42.1: a StableDiffusion3Pipeline without its T5, which samples and saves, is refused by its own from_pretrained.
#
# text_encoder_3 may be None: the pipeline samples with zeros in its place. save_pretrained writes [null, null] for it and its tokenizer, and
# from_pretrained then finds two components missing. Expected: what was saved loads. Seen: ValueError "expected [...], but only
# {...} were passed"; it loads where the call says once more that both are None, one of them is not enough.
#
# Output seen:
#   saved: text_encoder_3 [None, None], tokenizer_3 [None, None]
#   from_pretrained(folder): ValueError
#   with text_encoder_3=None: ValueError
#   with tokenizer_3=None as well: loaded
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6
venv/bin/python - 2>/dev/null <<'PY'
import json
from pathlib import Path

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

Path("vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}))
Path("merges.txt").write_text("#version: 0.2\n")
tokenizer = CLIPTokenizer("vocab.json", "merges.txt", model_max_length=77)
width = CLIPTextConfig(
    vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    projection_dim=32, bos_token_id=0, eos_token_id=1,
)
pipeline = StableDiffusion3Pipeline(
    transformer=SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64,
    ),
    vae=AutoencoderKL(
        latent_channels=4, block_out_channels=(4,), norm_num_groups=2, scaling_factor=1.5, shift_factor=0.06,
    ),
    scheduler=FlowMatchEulerDiscreteScheduler(),
    text_encoder=CLIPTextModelWithProjection(width), tokenizer=tokenizer,
    text_encoder_2=CLIPTextModelWithProjection(width), tokenizer_2=tokenizer,
    text_encoder_3=None, tokenizer_3=None,
)
pipeline.set_progress_bar_config(disable=True)
assert pipeline("a a", num_inference_steps=2, height=8, width=8).images, "it samples"
pipeline.save_pretrained("saved")
index = json.loads(Path("saved/model_index.json").read_text())
print(f"saved: text_encoder_3 {index['text_encoder_3']}, tokenizer_3 {index['tokenizer_3']}")


def loaded(**said):
    try:
        StableDiffusion3Pipeline.from_pretrained("saved", **said)
    except ValueError as error:
        assert "were passed" in str(error), error
        return "ValueError"
    return "loaded"


seen = [loaded(), loaded(text_encoder_3=None), loaded(text_encoder_3=None, tokenizer_3=None)]
print("from_pretrained(folder):", seen[0])
print("with text_encoder_3=None:", seen[1])
print("with tokenizer_3=None as well:", seen[2])
assert seen == ["ValueError", "ValueError", "loaded"], "changed"
PY
