"""Adapters with the names of kohya's scripts: what diffusers makes of them is what was trained."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from safetensors.torch import load
from support.models.families.flux import SIZE, write_flux
from support.models.families.flux_2 import write_flux_2
from support.models.families.qwen_image import write_qwen_image
from support.models.families.xl import write_xl
from support.models.families.z_image import write_z_image

from orchestrator.errors import UsageError
from orchestrator.results.export import exported
from orchestrator.results.formats import Format
from trainers.adapters.files import WEIGHTS
from trainers.adapters.reading import read_files
from trainers.config import LoraConfig, ModelConfig, PromptsConfig, SamplingConfig
from trainers.models.layers.trained_lora import Adapter
from trainers.models.pipeline import load_parts
from trainers.models.pipeline_policy import PipelinePolicy
from trainers.pipelines.families import FAMILIES, FLUX_1, STABLE_DIFFUSION, STABLE_DIFFUSION_3

DOUBLE = ("add_q_proj", "add_v_proj", "to_add_out", "to_out.0", "ff.net.0.proj", "ff_context.net.2")
"""Of FLUX.1, whose single blocks diffusers takes apart at their true size alone."""


def drawn(model: ModelConfig, adapter: Path, noise: torch.Tensor) -> torch.Tensor:
    """Return what plain diffusers draws with an adapter."""
    parts, folder = load_parts(model, "fp32"), str(model.pretrained)
    plain = parts.family.load(folder)
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(str(adapter))
    sampling = SamplingConfig(steps=2, rest=1)
    with torch.no_grad():
        return parts.family.own(plain, ["a cat"], sampling, noise, parts.asked(sampling))


@pytest.mark.parametrize(
    ("write", "targets"),
    [
        (write_xl, ("all-linear",)),
        (write_flux, DOUBLE),
        (write_flux_2, ("all-linear",)),
        (write_qwen_image, ("all-linear",)),
        (write_z_image, ("all-linear",)),
    ],
    ids=["sdxl", "flux_1", "flux_2", "qwen", "z_image"],
)
def test_diffusers_draws_the_same_with_names_of_kohya(
    write: Callable[[Path], Path], targets: tuple[str, ...], tmp_path: Path
) -> None:
    asked = {} if write is write_xl else SIZE | {"max_sequence_length": 100}
    model = ModelConfig(pretrained=str(write(tmp_path / "pipeline")), **asked)
    parts = load_parts(model, "fp32")
    prompts = PromptsConfig(train=("a cat",), evaluate=("a cat",))
    adapter = Adapter(parts.network, LoraConfig(rank=2, alpha=3, targets=targets))
    policy = PipelinePolicy(parts, adapter, prompts, SamplingConfig(steps=2, rest=1))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    files, noise = policy.adapter(), policy.fixed_draw(0, 0, 1).noise[0]
    made = {}
    for form in Format:
        (target := tmp_path / form.value).mkdir()
        for name, content in exported(files, form, parts.family.form).items():
            (target / name).write_bytes(content)
        made[form] = drawn(model, target, noise)
    assert all(name.startswith("lora_unet_") for name in load((tmp_path / "kohya" / WEIGHTS).read_bytes()))
    torch.testing.assert_close(made[Format.kohya], made[Format.diffusers], rtol=0, atol=1e-5)
    (tmp_path / "none").mkdir()
    for parameter in policy.parameters().values():
        parameter.data.zero_()
    for name, content in policy.adapter().items():
        (tmp_path / "none" / name).write_bytes(content)
    assert (made[Format.kohya] - drawn(model, tmp_path / "none", noise)).abs().max() > 1e-2


@pytest.mark.parametrize(
    "parts", [("attn.to_q", "attn.to_v"), ("proj_mlp",), ("attn.to_k", "proj_mlp", "proj_out")]
)
def test_single_blocks_of_flux_are_taken_apart_as_they_were(parts: tuple[str, ...]) -> None:
    """At their true width, as the converter of diffusers knows no other."""
    random, width = np.random.default_rng(0), 3072
    sizes = {"proj_mlp": (width, 4 * width), "proj_out": (5 * width, width)}
    tensors = {}
    for rank, part in enumerate(parts, start=1):  # ranks need not be alike
        inputs, outputs = sizes.get(part, (width, width))
        name = f"transformer.single_transformer_blocks.7.{part}"
        tensors[f"{name}.lora_A.weight"] = random.normal(size=(rank, inputs)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = random.normal(size=(outputs, rank)).astype(np.float32)
    kohya = exported({WEIGHTS: safetensors.numpy.save(tensors)}, Format.kohya, FLUX_1)
    found = _convert_kohya_flux_lora_to_diffusers(load(kohya[WEIGHTS]))
    for name in found:
        if "lora_B" not in name:
            continue
        down, up = found[name.replace("lora_B", "lora_A")].numpy(), found[name].numpy()
        first = np.s_[:100, :]  # of the product, which has millions of entries
        update = (up[first] @ down)[:, :100]
        if name in tensors:
            expected = (tensors[name][first] @ tensors[name.replace("lora_B", "lora_A")])[:, :100]
            np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-5)
        else:
            assert not update.any()
    assert tensors.keys() <= found.keys()


def test_a_family_without_names_says_which_have_some() -> None:
    tensors = {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": np.ones((1, 4), dtype=np.float32),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": np.ones((4, 1), dtype=np.float32),
    }
    files = {WEIGHTS: safetensors.numpy.save(tensors)}
    for family, whose in ((STABLE_DIFFUSION_3, "SD 3"), (None, "a family that is not known here")):
        with pytest.raises(UsageError, match=f"and none that diffusers reads for those of {whose}") as raised:
            exported(files, Format.kohya, family)
        assert all(known.name in str(raised.value) for known in FAMILIES if known.kohya is not None)
        assert exported(files, Format.diffusers, family)[WEIGHTS]


def test_the_names_of_an_unknown_model_tell_that_it_has_a_unet() -> None:
    """As of a model on the hub that is not on this machine."""
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {
        f"unet.{layer}.lora_A.weight": np.ones((1, 4), dtype=np.float32),
        f"unet.{layer}.lora_B.weight": np.ones((4, 1), dtype=np.float32),
    }
    files = {WEIGHTS: safetensors.numpy.save(tensors)}
    assert exported(files, Format.kohya, None) == exported(files, Format.kohya, STABLE_DIFFUSION)


def test_a_layer_without_a_name_is_told() -> None:
    tensors = {
        "transformer.x_embedder.lora_A.weight": np.ones((1, 4), dtype=np.float32),
        "transformer.x_embedder.lora_B.weight": np.ones((4, 1), dtype=np.float32),
    }
    with pytest.raises(Exception, match="has no name for the layer x_embedder"):
        exported({WEIGHTS: safetensors.numpy.save(tensors)}, Format.kohya, FLUX_1)


def test_a_layer_that_states_no_alpha_does_not_take_that_of_others() -> None:
    """In diffusers it does (``findings/diffusers_alpha_of_others.sh``); in this format it is the rank."""
    tensors = {}
    for part, alpha in (("q", 1.0), ("k", 1.0), ("v", None)):
        layer = f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_{part}"
        tensors[f"{layer}.lora_down.weight"] = np.ones((4, 8), dtype=np.float32)
        tensors[f"{layer}.lora_up.weight"] = np.ones((8, 4), dtype=np.float32)
        if alpha is not None:
            tensors[f"{layer}.alpha"] = np.array(alpha, dtype=np.float32)
    found = read_files({WEIGHTS: safetensors.numpy.save(tensors)})
    strengths = {update.layer[-1]: update.strength for update in found}
    assert strengths == {"q": 0.25, "k": 0.25, "v": 1.0}
