"""Families of pipelines: each against its own pipeline of diffusers, on small random models."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from support import tiny_pipeline
from support.models import flows
from support.models.xl import write_xl

from orchestrator.plan import base_config
from orchestrator.spec import parse_spec
from trainers.config import ModelConfig
from trainers.memory.estimate import estimated_memory
from trainers.models.embedded import export
from trainers.models.families.registry import FAMILIES, family_with
from trainers.models.pipeline import load_parts, source_of
from trainers.pipelines.configs import config_mistake, read_configs
from trainers.pipelines.families import FAMILIES as FORMS
from trainers.pipelines.families import STABLE_DIFFUSION_XL
from trainers.pipelines.known import known_configs, known_family
from trainers.testing import check_family


@pytest.fixture(scope="module")
def random_flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of Stable Diffusion 3 with random weights, T5 left out."""
    words, transformer, encoders = flows.untrained()
    folder = tmp_path_factory.mktemp("flow")
    export.export_flow(flows.autoencoder(1.3), transformer, encoders, words, folder)
    return folder


def test_every_form_has_a_family() -> None:
    assert [family.form for family in FAMILIES] == list(FORMS)
    assert [family_with(form).form for form in FORMS] == list(FORMS)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 860),
        ("stabilityai/stable-diffusion-xl-base-1.0", 2567),
        ("stabilityai/stable-diffusion-3.5-medium", 2243),
    ],
)
def test_known_architectures_keep_the_rules_of_their_family(name: str, millions: int) -> None:
    family, configs = known_family(name), known_configs(name)
    assert family is not None
    assert configs is not None
    assert config_mistake(family, configs) is None
    network = getattr(diffusers, family.network_class)
    with torch.device("meta"):
        made = network.from_config(configs[family.network])
    assert round(sum(p.numel() for p in made.parameters()) / 1e6) == millions


def test_stable_diffusion_is_a_family(tmp_path: Path) -> None:
    folder = tiny_pipeline.write(tmp_path / "pipeline")
    (tmp_path / "adapter").mkdir()
    check_family(folder, tmp_path / "adapter", prompts=tiny_pipeline.PROMPTS[:2])


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_is_a_family(tmp_path: Path, zeros: bool) -> None:
    folder = write_xl(tmp_path / "pipeline", zeros=zeros)
    (tmp_path / "adapter").mkdir()
    check_family(folder, tmp_path / "adapter", prompts=tiny_pipeline.PROMPTS[:2])


def test_the_autoencoder_of_sdxl_does_not_overflow(tmp_path: Path) -> None:
    parts = load_parts(ModelConfig(pretrained=str(write_xl(tmp_path))), "fp16")
    assert (parts.network.dtype, parts.vae.dtype) == (torch.float16, torch.float32)
    latents = torch.randn(2, *parts.latent_shape, generator=torch.Generator().manual_seed(0))
    images = parts.decode(latents)
    assert images.shape == (2, 3, 16, 24)
    plain = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    expected = plain.vae.decode(latents / plain.vae.config.scaling_factor).sample / 2 + 0.5
    torch.testing.assert_close(images, expected.clamp(0, 1).detach(), rtol=0, atol=1e-5)


def test_latents_may_be_scaled_by_channel(tmp_path: Path) -> None:
    folder = write_xl(tmp_path)
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(
        json.dumps(config | {"latents_mean": [1.0, 0.0, -1.0, 0.5], "latents_std": [1.0, 2.0, 3.0, 4.0]})
    )
    parts = load_parts(ModelConfig(pretrained=str(folder)), "fp32")
    found = parts.family.unscaled(parts.vae, torch.full((1, 4, 1, 1), 0.13025))
    torch.testing.assert_close(found.flatten(), torch.tensor([2.0, 2.0, 2.0, 4.5]))


def test_a_refiner_is_refused(tmp_path: Path) -> None:
    """By its class, and by the five numbers of sizes that its UNet takes."""
    folder = write_xl(tmp_path, projection_class_embeddings_input_dim=30)
    with pytest.raises(ValueError, match="a refiner, which improves images and draws none"):
        load_parts(ModelConfig(pretrained=str(folder)), "fp32")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps(index | {"_class_name": "StableDiffusionXLImg2ImgPipeline"})
    )
    with pytest.raises(ValueError, match="as refiners are: it improves images and draws none; give the base"):
        load_parts(ModelConfig(pretrained=str(folder)), "fp32")


def test_what_sdxl_takes_is_told(tmp_path: Path) -> None:
    folder = write_xl(tmp_path, sample_size=16)
    document = {
        "name": "memory",
        "model": {"pretrained": str(folder)},
        "prompts": {"train": ["a cat"], "evaluate": ["a dog"]},
        "sampling": {"steps": 3, "rest": 1, "guidance": 3.0},
        "training": {"batch_per_worker": 2},
        "constraints": [{"reward": "saturation", "at_least": 0.5, "unit": "sigma"}],
    }
    config = base_config(parse_spec(json.dumps(document), directory=tmp_path))
    estimate = estimated_memory(config, STABLE_DIFFUSION_XL, read_configs(folder))
    assert estimate.training > 1e6
    assert estimate.evaluation > 1e6


def test_the_shipped_flow_model_is_sampled_as_its_own_pipeline_samples(tmp_path: Path) -> None:
    prompts = ("a small red ring on a yellow background", "a large blue moon on a red background")
    check_family(source_of("embedded-flow"), tmp_path, prompts=prompts)


def test_stable_diffusion_3_is_a_family(random_flow: Path, tmp_path: Path) -> None:
    check_family(random_flow, tmp_path, prompts=("a red circle", "a blue ring"))
