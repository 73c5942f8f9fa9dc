"""Compositions of networks for tests, and adapters that are a header and nothing else."""

import json
from pathlib import Path

from trainers.adapters.files import WEIGHTS

ADAPTERS = """\
name: adapters
models:
  vivid: {adapter: saturation, rewards: [saturation]}
  bright: {adapter: colourfulness, rewards: [colourfulness, saturation]}
  crisp: {adapter: contrast}
objective: {minmax_kl: [vivid, bright, crisp]}
methods:
  - constrained
  - weighted: {weights: equal}
"""
PROMPTS = """\
name: concepts
models:
  cat: {prompt: a cat}
  dog: {prompt: a dog, rewards: [clip, {blip_itm: {output: logit}}]}
  sun: {prompt: a sun, rewards: [clip, blip_itm]}
objective: {minmax_kl: [cat, dog, sun]}
methods:
  - constrained
  - weighted: {weights: equal}
"""
PIPELINES = """\
name: pipelines
models:
  one: {pretrained: embedded}
  two: {pretrained: owner/name, revision: main}
objective: {minmax_kl: [one, two]}
"""


def write_adapter(directory: Path, *, width: int = 64, prompt_width: int = 64, rank: int = 4) -> Path:
    """Write an adapter of two layers: a header and zeros."""
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    shapes = {
        f"{layer}.attn1.to_k.lora_A.weight": [rank, width],
        f"{layer}.attn1.to_k.lora_B.weight": [width, rank],
        f"{layer}.attn2.to_k.lora_A.weight": [rank, prompt_width],
        f"{layer}.attn2.to_k.lora_B.weight": [width, rank],
    }
    header, start = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + bytes(start))
    return directory
