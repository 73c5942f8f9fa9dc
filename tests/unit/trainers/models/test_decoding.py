"""Decoding in parts, and by an autoencoder that lies elsewhere: the same images and gradients for less memory."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support import tiny_pipeline
from support.models.families.flux import write_flux
from support.models.families.flux_2 import write_flux_2
from support.models.families.qwen_image import write_qwen_image
from torch import Tensor

from trainers.config import ModelConfig
from trainers.memory.live import Live
from trainers.memory.sketch import Sketch
from trainers.models.decoding import decoded
from trainers.models.pipeline import Parts, load_parts
from trainers.pipelines.families import STABLE_DIFFUSION
from trainers.pipelines.known import known_configs

GIB = 2**30
WRITERS = {
    "AutoencoderKL of a diffusion": tiny_pipeline.write,
    "AutoencoderKL of a flow": write_flux,
    "AutoencoderKLFlux2": write_flux_2,
    "AutoencoderKLQwenImage": write_qwen_image,
}
SIZE = 32  # pixels a side


@pytest.fixture(scope="module", params=WRITERS)
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Those of a small pipeline of each kind of autoencoder."""
    folder = tmp_path_factory.mktemp("pipeline")
    WRITERS[request.param](folder)
    return load_parts(ModelConfig(pretrained=str(folder), height=SIZE, width=SIZE), "fp32")


def latents(parts: Parts, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *parts.latent_shape, generator=generator).requires_grad_()


def taken(parts: Parts, count: int, **how: Any) -> tuple[Tensor, Tensor, int]:
    """Return images, the gradient of some function of them, and the most bytes that both took besides the weights."""
    given = latents(parts, count)
    with Live() as live:
        images = decoded(parts, given, **how)
        (images.square() * torch.linspace(0.1, 1.0, images.shape[-1])).sum().backward()
    assert given.grad is not None
    return images.detach(), given.grad, live.peak


def test_image_by_image_takes_the_memory_of_one(parts: Parts) -> None:
    whole = taken(parts, 8)
    each = taken(parts, 8, checkpointing=True, pixels=SIZE * SIZE)
    one = taken(parts, 1)
    torch.testing.assert_close(each[0], whole[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(each[1], whole[1], rtol=1e-4, atol=1e-5)
    kept = 8 * 3 * SIZE * SIZE * 4  # bytes of the images
    assert each[2] < one[2] + 6 * kept
    assert each[2] < 0.3 * whole[2]


def test_an_autoencoder_elsewhere_is_here_as_long_as_it_is_needed(parts: Parts) -> None:
    away = replace(parts, offload=True)
    weights = sum(p.nbytes for name, p in parts.vae.named_parameters() if not name.startswith("encoder."))
    for how in ({}, {"checkpointing": True, "pixels": 2 * SIZE * SIZE}):
        here, there = (taken(each, 4, **how) for each in (parts, away))
        assert torch.equal(there[0], here[0])
        assert torch.equal(there[1], here[1])
        assert 0.8 * weights < there[2] - here[2] < 1.3 * weights, "the copy"
    with Live() as live, torch.no_grad():
        images = decoded(away, latents(away, 2).detach())
        assert live.now < images.nbytes + 0.5 * weights, "it has gone"
    assert not any(p.grad is not None or p.requires_grad for p in parts.vae.parameters())


def test_sd_1_5_at_batch_8_decodes_in_a_twentieth() -> None:
    configs = known_configs("runwayml/stable-diffusion-v1-5")
    assert configs is not None
    sketch = Sketch(STABLE_DIFFUSION, configs, ModelConfig(pretrained="x"), torch.float16, [])
    peaks = []
    for checkpointing in (False, True):
        live = Live()
        with sketch.mode, live:
            given = torch.zeros(8, 4, 64, 64, requires_grad=True)
            decoded(sketch.parts, given, checkpointing=checkpointing).sum().backward()
        peaks.append(live.peak / GIB)
    assert peaks[0] == pytest.approx(22.2, rel=0.1)
    assert peaks[1] == pytest.approx(1.12, rel=0.1)
