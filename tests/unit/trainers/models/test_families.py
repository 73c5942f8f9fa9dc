"""Families of pipelines: each against its own pipeline of diffusers, on small random models."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline
from support import tiny_pipeline
from support.models.families.flows import write_flow
from support.models.families.flux import SIZE, write_flux
from support.models.families.flux_2 import write_flux_2
from support.models.families.qwen_image import write_qwen_image
from support.models.families.sd3 import write_sd3
from support.models.families.xl import write_xl
from support.models.families.z_image import write_z_image
from support.tiers import exhaustive

from orchestrator.plan import base_config
from orchestrator.spec import parse_spec
from orchestrator.spec.files.text_encoders import text_encoder
from trainers.adapters.layers import grouped, named_layers, target_problems
from trainers.config import ModelConfig, SamplingConfig
from trainers.memory.estimate import MemoryEstimate, estimated_memory
from trainers.models.families.registry import FAMILIES, family_with
from trainers.models.layers.adapted import weight_shapes
from trainers.models.pipeline import load_parts, source_of
from trainers.pipelines.configs import config_mistake, read_configs
from trainers.pipelines.families import FAMILIES as FORMS
from trainers.pipelines.families import FLUX_1, FLUX_2_KLEIN, QWEN_IMAGE, STABLE_DIFFUSION_XL, Z_IMAGE, Family
from trainers.pipelines.known import known_configs, known_family
from trainers.pipelines.readers import readers_of
from trainers.testing import check_family


@pytest.fixture(scope="module")
def random_flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of Stable Diffusion 3 with random weights, T5 left out."""
    return write_flow(tmp_path_factory.mktemp("flow"))


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of FLUX.1 with random weights."""
    return write_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of Stable Diffusion 3 with random weights, T5 among them."""
    return write_sd3(tmp_path_factory.mktemp("sd3"))


def test_every_form_has_a_family() -> None:
    assert [family.form for family in FAMILIES] == list(FORMS)
    assert [family_with(form).form for form in FORMS] == list(FORMS)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 860),
        ("stabilityai/stable-diffusion-xl-base-1.0", 2567),
        ("stabilityai/stable-diffusion-3.5-medium", 2243),
        ("black-forest-labs/FLUX.1-dev", 11901),
        ("black-forest-labs/FLUX.1-schnell", 11891),
        ("Tongyi-MAI/Z-Image", 6155),
        ("black-forest-labs/FLUX.2-dev", 32223),
        ("black-forest-labs/FLUX.2-klein-base-4B", 3876),
        ("Qwen/Qwen-Image", 20430),
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


_ATTN = {f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}
_JOINT = _ATTN | {f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")}
_UNET = {name.replace("attn", f"attn{place}") for place in (1, 2) for name in _ATTN}
_Z = {name.replace("attn", "attention") for name in _ATTN}


def _mlp(*names: str) -> set[str]:
    return {f"{name}.net.{last}" for name in names for last in ("0.proj", "2")}


@pytest.mark.parametrize(
    ("name", "attention", "others"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", _UNET, _mlp("ff")),
        ("stabilityai/stable-diffusion-xl-base-1.0", _UNET, _mlp("ff")),
        (
            "stabilityai/stable-diffusion-3.5-medium",
            _JOINT | {name.replace("attn", "attn2") for name in _ATTN},
            _mlp("ff", "ff_context"),
        ),
        ("black-forest-labs/FLUX.1-dev", _JOINT, {*_mlp("ff", "ff_context"), "proj_mlp", "proj_out"}),
        (
            "black-forest-labs/FLUX.2-klein-base-4B",
            {*_JOINT, "attn.to_out", "attn.to_qkv_mlp_proj"},
            {f"{name}.linear_{way}" for name in ("ff", "ff_context") for way in ("in", "out")},
        ),
        ("Qwen/Qwen-Image", _JOINT, _mlp("img_mlp", "txt_mlp")),
        ("Tongyi-MAI/Z-Image", _Z, {f"feed_forward.w{number}" for number in (1, 2, 3)}),
    ],
)
def test_groups_of_layers_are_those_of_the_blocks(name: str, attention: set[str], others: set[str]) -> None:
    family, configs = known_family(name), known_configs(name)
    assert family is not None
    assert configs is not None
    with torch.device("meta"):
        network = getattr(diffusers, family.network_class).from_config(configs[family.network])
    shapes = weight_shapes(network)
    blocks = re.compile(r".*(transformer_blocks|layers|noise_refiner|context_refiner)\.\d+\.")
    for group, expected in (("attention", attention), ("all-linear", attention | others)):
        found = grouped(group, shapes)
        assert {blocks.sub("", layer) for layer in found} == expected
        assert all(blocks.match(layer) and len(shapes[layer]) == 2 for layer in found)
        endings = tuple(f".{ending}" for ending in expected)
        assert {*found} == {layer for layer in shapes if blocks.match(layer) and layer.endswith(endings)}
        assert not list(target_problems([group], shapes, shapes))
        assert named_layers([group], shapes, shapes) == found


def test_stable_diffusion_is_a_family(tmp_path: Path) -> None:
    folder = tiny_pipeline.write(tmp_path / "pipeline")
    (tmp_path / "adapter").mkdir()
    check_family(folder, tmp_path / "adapter", prompts=tiny_pipeline.PROMPTS[:2])


@pytest.mark.parametrize("zeros", [True, *exhaustive(False)])
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


def estimated(folder: Path, form: Family, **model: Any) -> MemoryEstimate:
    document = {
        "name": "memory",
        "model": {"pretrained": str(folder), **model},
        "prompts": {"train": ["a cat"], "evaluate": ["a dog"]},
        "sampling": {"steps": 3, "rest": 1, "guidance": 3.0},
        "training": {"batch_per_worker": 2, "precision": "fp32", "gradient_checkpointing": False},
        "evaluation": {"batch": 4},
        "constraints": [{"reward": "saturation", "at_least": 0.5, "unit": "sigma"}],
    }
    config = base_config(parse_spec(json.dumps(document), directory=folder))
    return estimated_memory(config, form, read_configs(folder))


def test_what_sdxl_takes_is_told(tmp_path: Path) -> None:
    estimate = estimated(write_xl(tmp_path, sample_size=16), STABLE_DIFFUSION_XL)
    assert estimate.training > 1e6
    assert estimate.evaluation > 1e6


@pytest.mark.parametrize("form", [FLUX_1, QWEN_IMAGE, *exhaustive(Z_IMAGE, FLUX_2_KLEIN)])
def test_what_an_image_of_another_size_takes_is_told(form: Family, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(
        {FLUX_1: "flux", Z_IMAGE: "z_image", FLUX_2_KLEIN: "klein", QWEN_IMAGE: "qwen"}[form]
    )
    small, large = (estimated(folder, form, **SIZE | {"height": height}) for height in (32, 64))
    assert small.weights == large.weights
    assert 1.3 < large.training / small.training < 3.0
    assert 1.3 < large.evaluation / small.evaluation < 3.0


def test_the_shipped_flow_model_is_sampled_as_its_own_pipeline_samples(tmp_path: Path) -> None:
    prompts = ("a small red ring on a yellow background", "a large blue moon on a red background")
    check_family(source_of("embedded-flow"), tmp_path, prompts=prompts)


def test_stable_diffusion_3_is_a_family(random_flow: Path, tmp_path: Path) -> None:
    check_family(random_flow, tmp_path, prompts=("a red circle", "a blue ring"))


@pytest.mark.parametrize(
    "model",
    [*exhaustive({"max_sequence_length": 7}), {"max_sequence_length": 5, "negative_prompt": "green"}],
)
def test_stable_diffusion_3_with_t5_is_a_family(sd3: Path, tmp_path: Path, model: dict[str, Any]) -> None:
    """Three text encoders; of prompts shorter than what T5 reads, and of one that is longer."""
    prompts = ("red circle", "a circle beside which another red circle is nearly as large")
    check_family(sd3, tmp_path, prompts=prompts, model=model, guidances=[{"guidance": 3.0}])


def test_t5_is_read_as_far_as_it_is_asked_to(sd3: Path) -> None:
    """Beside nine tokens of CLIP; what fills up a short text counts, as in diffusers."""
    read = []
    for tokens in (2, 5, 7):
        parts = load_parts(ModelConfig(pretrained=str(sd3), max_sequence_length=tokens), "fp32")
        asked = parts.asked(SamplingConfig())
        found = parts.texts.encode(("red circle", "blue"), asked).sequence
        assert {"sequence": found.shape[1:], "pooled": (10,)} == parts.family.told(parts.configs, asked)
        read.append(found[:, 9:])
    assert [value.shape[1] for value in read] == [2, 5, 7]
    assert (read[2][:, :5] - read[1]).abs().max() > 1e-3, "T5 looks at what fills up, too"
    plain = StableDiffusion3Pipeline.from_pretrained(sd3)
    with torch.no_grad():
        own = plain.text_encoder_3(plain.tokenizer_3("blue", return_tensors="pt").input_ids)[0]
    assert own.shape[1] == 2, "the word and the end"
    torch.testing.assert_close(read[0][1:], own, rtol=1e-5, atol=1e-5)


def test_flux_is_a_family(flux: Path, tmp_path: Path) -> None:
    guidances = ({}, {"guidance": 3.0}, {"guidance": 3.0, "true_guidance": 2.0})
    for guidance in guidances:
        away = {"negative_prompt": "green"} if "true_guidance" in guidance else {}
        check_family(
            flux, tmp_path, prompts=tiny_pipeline.PROMPTS[:2], model=SIZE | away, guidances=[guidance]
        )


def test_flux_is_told_times_that_half_precision_does_not_have(flux: Path) -> None:
    """750 is 752 in bfloat16."""
    parts = load_parts(ModelConfig(pretrained=str(flux), **SIZE), "bf16")
    asked = parts.asked(SamplingConfig())
    told: list[float] = []
    parts.network.time_text_embed.time_proj.register_forward_pre_hook(
        lambda _, given: told.extend(given[0].tolist())
    )
    latents = torch.randn(2, *parts.latent_shape, dtype=torch.bfloat16)
    conditions = parts.texts.encode(("red circle", "red circle"), asked)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        parts.family.ask(parts.network, latents, torch.tensor(750.0), conditions)
    assert told[:2] == [750.0, 750.0]
    assert told[2:] == [1000.0, 1000.0], "guidance of 1"


@pytest.mark.parametrize(
    ("model", "sampling", "message"),
    [
        (
            {"height": 18},
            {},
            "model.height must be a multiple of 4 pixels, 2 of its autoencoder times 2 of its",
        ),
        (
            {},
            {"true_guidance": 2.0},
            "sampling.true_guidance needs model.negative_prompt: FLUX.1 is distilled",
        ),
        ({"negative_prompt": "a"}, {}, "model.negative_prompt has no effect without guidance away from it"),
        ({"max_sequence_length": 600}, {}, "model.max_sequence_length must be at most 512"),
    ],
)
def test_what_flux_does_not_have_is_refused_where_it_is_loaded(
    flux: Path, model: dict[str, Any], sampling: dict[str, Any], message: str
) -> None:
    parts = load_parts(ModelConfig(pretrained=str(flux), **SIZE | model), "fp32")
    with pytest.raises(ValueError, match=re.escape(message)):
        parts.check(SamplingConfig(**sampling))


def test_a_flux_that_is_told_no_guidance_is_not_guided(tmp_path: Path) -> None:
    parts = load_parts(ModelConfig(pretrained=str(write_flux(tmp_path, guidance=False)), **SIZE), "fp32")
    with pytest.raises(ValueError, match=r"sampling.guidance has no effect: this model was distilled"):
        parts.check(SamplingConfig(guidance=3.0))


@pytest.fixture(scope="module")
def z_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of Z-Image with random weights."""
    return write_z_image(tmp_path_factory.mktemp("z_image"))


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of FLUX.2 klein with random weights."""
    return write_flux_2(tmp_path_factory.mktemp("klein"))


TEXT = SIZE | {"max_sequence_length": 60}


def test_flux_2_klein_is_a_family(klein: Path, tmp_path: Path) -> None:
    check_family(klein, tmp_path, prompts=tiny_pipeline.PROMPTS[:2], model=TEXT)


def test_flux_2_is_a_family(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    folder = write_flux_2(tmp_path / "pipeline", klein=False)
    check_family(folder, tmp_path / "adapter", prompts=tiny_pipeline.PROMPTS[:2], model=TEXT)


def test_a_klein_that_was_distilled_is_not_guided(tmp_path: Path) -> None:
    parts = load_parts(ModelConfig(pretrained=str(write_flux_2(tmp_path, distilled=True)), **TEXT), "fp32")
    parts.check(SamplingConfig())
    with pytest.raises(ValueError, match=r"sampling.guidance has no effect: .* \(is_distilled\)"):
        parts.check(SamplingConfig(guidance=3.0))


def test_z_image_is_a_family(z_image: Path, tmp_path: Path) -> None:
    """Also where texts of a batch differ in length."""
    prompts = ("red circle", "a circle beside which another circle is nearly as large")
    check_family(z_image, tmp_path, prompts=prompts, model=SIZE | {"max_sequence_length": 100})


def test_texts_of_other_lengths_are_filled_up(z_image: Path) -> None:
    parts = load_parts(ModelConfig(pretrained=str(z_image), **SIZE | {"max_sequence_length": 100}), "fp32")
    asked = parts.asked(SamplingConfig(guidance=2.0))
    both = parts.texts.encode(("red", "a circle beside a circle"), asked)
    assert both.mask is not None
    counts = [int(count) for count in both.mask.sum(dim=1)]
    assert counts[0] < counts[1] == both.sequence.shape[1]
    assert not both.sequence[0, counts[0] :].any()
    assert [row.sequence.shape[1] for row in both.rows()] == counts


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of Qwen-Image with random weights."""
    return write_qwen_image(tmp_path_factory.mktemp("qwen"))


def test_qwen_image_is_a_family(qwen: Path, tmp_path: Path) -> None:
    """Guidance leads away from nothing, and from something; texts differ in length."""
    prompts = ("red circle", "a circle beside which another circle is nearly as large")
    asked = SIZE | {"max_sequence_length": 400}
    check_family(qwen, tmp_path, prompts=prompts, model=asked)
    away = asked | {"negative_prompt": "a green triangle"}
    check_family(qwen, tmp_path, prompts=prompts, model=away, guidances=[{"guidance": 2.0}])


@pytest.mark.parametrize("write", [write_flux, write_flux_2, write_z_image])
def test_what_is_read_of_a_prompt_is_what_a_plan_says(write: Callable[[Path], Path], tmp_path: Path) -> None:
    """Prompts that differ in the last token that is read have other conditions, those beyond have the same.

    Of Qwen-Image 34 tokens are dropped, which are the template to its own tokenizer alone.
    """
    tokens = 16
    folder = write(tmp_path)
    parts = load_parts(ModelConfig(pretrained=str(folder), **SIZE | {"max_sequence_length": tokens}), "fp32")
    encoder = text_encoder(str(folder), None, readers_of(parts.family.form)[-1], tokens)
    assert encoder is not None
    one, two, three = tiny_pipeline.WORDS[:3]
    text = " ".join([one, two] * tokens)
    rest = encoder.unread(text)
    read = text.removesuffix(rest)
    assert encoder.length(text) > tokens > encoder.length(read) - 1

    def sequence(prompt: str) -> torch.Tensor:
        return parts.family.encode(parts.pipeline, prompt, parts.asked(SamplingConfig(steps=2))).sequence

    plain = sequence(text)
    assert torch.equal(sequence(read + rest.replace(one, three).replace(two, one)), plain)
    *before, last = read.split()
    assert last in (one, two)
    assert not torch.equal(sequence(" ".join([*before, three]) + read[len(read.rstrip()) :] + rest), plain)
