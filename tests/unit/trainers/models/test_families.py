"""Families of pipelines: each against its own pipeline of diffusers, on small random models."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from support import tiny_pipeline

from trainers.models.embedded import export, flow, tokenizer
from trainers.models.families.registry import FAMILIES, family_with
from trainers.models.pipeline import source_of
from trainers.pipelines.families import FAMILIES as FORMS
from trainers.testing import check_family


@pytest.fixture(scope="module")
def random_flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of Stable Diffusion 3 with random weights, T5 left out."""
    words = tokenizer.build()
    transformer, encoders = flow.build(words)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in transformer.parameters():
            if not parameter.any():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=1.3,
    )
    folder = tmp_path_factory.mktemp("flow")
    export.export_flow(autoencoder, transformer, encoders, words, folder)
    return folder


def test_every_form_has_a_family() -> None:
    assert [family.form for family in FAMILIES] == list(FORMS)
    assert [family_with(form).form for form in FORMS] == list(FORMS)


def test_stable_diffusion_is_a_family(tmp_path: Path) -> None:
    folder = tiny_pipeline.write(tmp_path / "pipeline")
    (tmp_path / "adapter").mkdir()
    check_family(folder, tmp_path / "adapter", prompts=tiny_pipeline.PROMPTS[:2])


def test_the_shipped_flow_model_is_sampled_as_its_own_pipeline_samples(tmp_path: Path) -> None:
    prompts = ("a small red ring on a yellow background", "a large blue moon on a red background")
    check_family(source_of("embedded-flow"), tmp_path, prompts=prompts)


def test_stable_diffusion_3_is_a_family(random_flow: Path, tmp_path: Path) -> None:
    check_family(random_flow, tmp_path, prompts=("a red circle", "a blue ring"))
