"""Rewards with weights, on small random models in the published formats: contract, and the library's own result."""

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, einsum, nn
from transformers import (
    BertTokenizer,
    Blip2ForImageTextRetrieval,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
)

from trainers.reward_parameters import IMAGE_REWARD_PARAMETERS
from trainers.rewards import attributes
from trainers.rewards.blip import Blip2Itm, BlipItm, ImageReward
from trainers.rewards.clip import Aesthetic, ClipScore, HPSv2, HPSv21, PickScore, PromptCache
from trainers.rewards.mps import MPS
from trainers.rewards.together import together
from trainers.testing import check_reward

CLASSES: dict[str, Any] = {
    "brightness": attributes.Brightness,
    "global_contrast": attributes.GlobalContrast,
    "local_contrast": attributes.LocalContrast,
    "saturation": attributes.Saturation,
    "colourfulness": attributes.Colourfulness,
    "edge_density": attributes.EdgeDensity,
    "colour_entropy": attributes.ColourEntropy,
    "clip_score": ClipScore,
    "pick_score": PickScore,
    "hpsv2": HPSv2,
    "hpsv2_1": HPSv21,
    "aesthetic": Aesthetic,
    "blip_itm": BlipItm,
    "blip2_itm": Blip2Itm,
    "image_reward": ImageReward,
    "mps": MPS,
}
PRETRAINED = [name for name in CLASSES if not issubclass(CLASSES[name], attributes.Attribute)]


@pytest.fixture
def options(
    clip_folder: Path,
    open_clip_folder: Path,
    aesthetic_folder: Path,
    blip_folder: Path,
    blip2_folder: Path,
    image_reward_folder: Path,
    mps_folder: Path,
) -> dict[str, dict[str, str]]:
    clip = str(clip_folder)
    return {
        "clip_score": {"model": clip},
        "pick_score": {"model": clip, "processor": clip},
        "hpsv2": {"model": clip, "processor": clip},
        "hpsv2_1": {"model": str(open_clip_folder), "processor": clip},
        "aesthetic": {"model": str(aesthetic_folder), "clip": clip},
        "blip_itm": {"model": str(blip_folder)},
        "blip2_itm": {"model": str(blip2_folder), "output": "logit"},
        "image_reward": {"model": str(image_reward_folder), "processor": str(image_reward_folder)},
        "mps": {"model": str(mps_folder), "processor": clip},
    }


@pytest.mark.parametrize("name", PRETRAINED)
def test_contract(name: str, options: dict[str, Any], pictures: Tensor, prompts: list[str]) -> None:
    reward = CLASSES[name](**options[name])
    check_reward(reward, pictures, prompts)
    with torch.no_grad():
        assert reward(pictures, prompts).std() > 1e-5, "pictures differ"


@pytest.mark.parametrize("name", [name for name in PRETRAINED if name != "aesthetic"])
def test_the_prompt_matters_and_is_required(name: str, options: dict[str, Any], pictures: Tensor) -> None:
    reward = CLASSES[name](**options[name])
    same = pictures[:1].expand(2, -1, -1, -1)
    with torch.no_grad():
        one, other = reward(same, ["a red cube", "two cats under a tree"]).tolist()
    assert abs(one - other) > 1e-6
    with pytest.raises(ValueError, match=f"'{name}' needs one prompt per image: 2 images, no prompts"):
        reward(same)
    with pytest.raises(ValueError, match="2 images, 1 prompts"):
        reward(same, ["a"])


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_score_is_the_same_alone_and_beside_long_prompts(
    name: str, options: dict[str, Any], pictures: Tensor
) -> None:
    reward = CLASSES[name](**options[name])
    long = "a very long prompt of many words that is cut at the end of what the encoder reads " * 3
    with torch.no_grad():
        alone = reward(pictures[:1], ["a red cube"])
        beside = reward(pictures[:2], ["a red cube", long])[:1]
    torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PRETRAINED)
def test_weights_are_frozen_shared_and_not_trained(
    name: str, options: dict[str, Any], pictures: Tensor, prompts: list[str]
) -> None:
    one, other = (CLASSES[name](**options[name]) for _ in range(2))
    networks = [
        [part for part in (getattr(r, "_network", None), getattr(r, "_head", None)) if part is not None]
        + ([r._clip.network] if hasattr(r, "_clip") else [])
        for r in (one, other)
    ]
    for mine, theirs in zip(*networks, strict=True):
        assert mine is theirs
        assert not mine.training
        assert not any(p.requires_grad for p in mine.parameters())
    one(pictures.requires_grad_(), prompts).sum().backward()
    assert all(p.grad is None for network in networks[0] for p in network.parameters())


@pytest.mark.parametrize("name", PRETRAINED)
def test_half_precision_scores_in_float32(
    name: str, options: dict[str, Any], pictures: Tensor, prompts: list[str]
) -> None:
    full = CLASSES[name](**options[name])
    half = CLASSES[name](**options[name], precision="bf16")
    with torch.no_grad():
        expected, found = full(pictures, prompts), half(pictures, prompts)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(full(pictures, prompts), expected, rtol=1e-5, atol=1e-5)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.1 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("name", CLASSES)
def test_parameters_of_the_spec_are_those_of_the_class(name: str) -> None:
    expected = {p.name: p.default for p in inspect.signature(CLASSES[name]).parameters.values()}
    assert dict(IMAGE_REWARD_PARAMETERS[name]()) == expected


def test_every_reward_has_parameters() -> None:
    assert set(IMAGE_REWARD_PARAMETERS) == set(CLASSES)


def test_precision_is_one_of_ours(clip_folder: Path) -> None:
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, fp16, got 'fp8'"):
        ClipScore(str(clip_folder), precision="fp8")  # type: ignore[arg-type]


def test_prompts_are_encoded_once() -> None:
    asked: list[str] = []
    cache = PromptCache(lambda prompt, _: asked.append(prompt) or torch.zeros(1), size=2)
    device = torch.device("cpu")
    for prompt in ("a", "b", "a", "c", "a", "b"):
        cache(prompt, device)
    assert asked == ["a", "b", "c", "b"]


# The library's own processors, which work on 8-bit images, with its own forward passes.


def arrays(pictures: Tensor) -> list[np.ndarray]:
    return [np.asarray(p) for p in (255 * pictures).round().byte().permute(0, 2, 3, 1)]


def library_clip(folder: Path, pictures: Tensor, prompts: Sequence[str]) -> tuple[CLIPModel, Tensor, Tensor]:
    """Return the model, its pixels, and its logits of each pair."""
    model = CLIPModel.from_pretrained(folder).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(arrays(pictures), return_tensors="pt")[
        "pixel_values"
    ]
    tokens = CLIPTokenizer.from_pretrained(folder)(
        list(prompts), padding=True, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(pixel_values=pixels, **tokens).logits_per_image.diagonal()
    return model, pixels, logits


def assert_agree(found: Tensor, expected: Tensor, tolerance: float) -> None:
    spread = expected.std().item()
    assert spread > 1e-5
    difference = (found.detach() - expected).abs().max().item() / spread
    assert difference <= tolerance, f"{difference:.2g} of the spread"


def test_clip_scores_agree(
    clip_folder: Path, options: dict[str, Any], seen: tuple[Tensor, float], prompts: list[str]
) -> None:
    pictures, tolerance = seen
    model, _, logits = library_clip(clip_folder, pictures, prompts)
    cosine = logits / model.logit_scale.exp().item()
    assert_agree(ClipScore(str(clip_folder))(pictures, prompts), cosine, tolerance)
    assert_agree(PickScore(**options["pick_score"])(pictures, prompts), logits, tolerance)
    assert_agree(HPSv2(**options["hpsv2"])(pictures, prompts), cosine, tolerance)


def test_an_open_clip_checkpoint_scores_as_its_twin(
    options: dict[str, Any], pictures: Tensor, prompts: list[str]
) -> None:
    with torch.no_grad():
        twin = HPSv2(**options["hpsv2"])(pictures, prompts)
        torch.testing.assert_close(
            HPSv21(**options["hpsv2_1"])(pictures, prompts), twin, rtol=1e-5, atol=1e-6
        )


def test_aesthetic_agrees(
    clip_folder: Path,
    aesthetic_folder: Path,
    options: dict[str, Any],
    seen: tuple[Tensor, float],
    prompts: list[str],
) -> None:
    pictures, tolerance = seen
    model, pixels, _ = library_clip(clip_folder, pictures, prompts)
    with torch.no_grad():
        values = model.get_image_features(pixels).pooler_output
        values /= values.norm(dim=-1, keepdim=True)
        state = torch.load(aesthetic_folder / "aesthetic-model.pth", weights_only=True)
        for number in (0, 2, 4, 6, 7):
            values = values @ state[f"layers.{number}.weight"].T + state[f"layers.{number}.bias"]
    assert_agree(Aesthetic(**options["aesthetic"])(pictures), values[:, 0], tolerance)


@pytest.mark.parametrize("output", ["probability", "logit"])
def test_blip_agrees(blip_folder: Path, seen: tuple[Tensor, float], prompts: list[str], output: Any) -> None:
    pictures, tolerance = seen
    model = BlipForImageTextRetrieval.from_pretrained(blip_folder).eval()
    pixels = BlipImageProcessorPil.from_pretrained(blip_folder)(arrays(pictures), return_tensors="pt")
    tokens = BertTokenizer.from_pretrained(blip_folder)(
        prompts, padding=True, return_token_type_ids=False, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**tokens, **pixels).itm_score
    expected = logits.softmax(dim=1)[:, 1] if output == "probability" else logits[:, 1] - logits[:, 0]
    assert_agree(BlipItm(str(blip_folder), output)(pictures, prompts), expected, tolerance)


@pytest.mark.parametrize("output", ["probability", "logit"])
def test_blip2_agrees(
    blip2_folder: Path, seen: tuple[Tensor, float], prompts: list[str], output: Any
) -> None:
    pictures, tolerance = seen
    model = Blip2ForImageTextRetrieval.from_pretrained(blip2_folder).eval()
    pixels = BlipImageProcessorPil.from_pretrained(blip2_folder)(arrays(pictures), return_tensors="pt")
    tokens = BertTokenizer.from_pretrained(blip2_folder)(
        prompts, padding=True, return_token_type_ids=False, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**tokens, **pixels, use_image_text_matching_head=True).logits_per_image
    expected = logits.softmax(dim=1)[:, 1] if output == "probability" else logits[:, 1] - logits[:, 0]
    assert_agree(Blip2Itm(str(blip2_folder), output)(pictures, prompts), expected, tolerance)


def test_image_reward_agrees_with_a_transformer_written_out(
    image_reward_folder: Path, options: dict[str, Any], seen: tuple[Tensor, float], prompts: list[str]
) -> None:
    """No library has this architecture: here are its equations, on the checkpoint's own names."""
    pictures, tolerance = seen
    state = torch.load(image_reward_folder / "ImageReward.pt", weights_only=True)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor(arrays(pictures), return_tensors="pt")["pixel_values"]
    tokens = BertTokenizer.from_pretrained(image_reward_folder)(
        prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)) for x in (q, k, v))
        scores = einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None, :] == 0, -torch.inf)
        return einsum("bhij,bjhd->bihd", scores.softmax(dim=-1), v).flatten(2)

    eye, text = "blip.visual_encoder", "blip.text_encoder"
    with torch.no_grad():
        x = nn.functional.conv2d(
            pixels, state[f"{eye}.patch_embed.proj.weight"], state[f"{eye}.patch_embed.proj.bias"], stride=8
        )
        x = (
            torch.cat([state[f"{eye}.cls_token"].expand(4, 1, 64), x.flatten(2).mT], dim=1)
            + state[f"{eye}.pos_embed"]
        )
        for number in range(2):
            block = f"{eye}.blocks.{number}"
            parts = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x, 1e-6)).chunk(3, dim=-1)
            x = x + linear(f"{block}.attn.proj", attend(*parts, heads=1))
            hidden = nn.functional.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x, 1e-6)))
            x = x + linear(f"{block}.mlp.fc2", hidden)
        patches = norm(f"{eye}.norm", x, 1e-6)

        y = state[f"{text}.embeddings.word_embeddings.weight"][tokens.input_ids]
        y = y + state[f"{text}.embeddings.position_embeddings.weight"][:35]
        y = norm(f"{text}.embeddings.LayerNorm", y, 1e-12)
        for number in range(2):
            layer = f"{text}.encoder.layer.{number}"
            for name, source, mask in (
                ("attention", None, tokens.attention_mask),
                ("crossattention", patches, None),
            ):
                source = y if source is None else source  # noqa: PLW2901 - self-attention reads its own states
                q = linear(f"{layer}.{name}.self.query", y)
                k, v = (linear(f"{layer}.{name}.self.{part}", source) for part in ("key", "value"))
                out = linear(f"{layer}.{name}.output.dense", attend(q, k, v, 2, mask))
                y = norm(f"{layer}.{name}.output.LayerNorm", out + y, 1e-12)
            hidden = nn.functional.gelu(linear(f"{layer}.intermediate.dense", y))
            y = norm(f"{layer}.output.LayerNorm", linear(f"{layer}.output.dense", hidden) + y, 1e-12)
        score = y[:, 0]
        for number in (0, 2, 4, 6, 7):
            score = linear(f"mlp.layers.{number}", score)
    expected = (score[:, 0] - 0.16717) / 1.03334
    assert_agree(ImageReward(**options["image_reward"])(pictures, prompts), expected, tolerance)


def test_mps_agrees_with_its_head_written_out(
    clip_folder: Path,
    mps_folder: Path,
    options: dict[str, Any],
    seen: tuple[Tensor, float],
    prompts: list[str],
) -> None:
    """One prompt at a time, as the authors evaluate; the head's equations on the checkpoint's own names."""
    pictures, tolerance = seen
    state = load_file(mps_folder / "model.safetensors")
    reward = MPS(**options["mps"], condition="a cube of light", mask_threshold=0.6)
    model, pixels, _ = library_clip(clip_folder, pictures, prompts)
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)

    def encode(text: str) -> tuple[Tensor, Tensor]:
        numbers = tokenizer(text, padding="max_length", max_length=24, truncation=True, return_tensors="pt")
        states = model.text_model(numbers.input_ids)
        return model.text_projection(states.last_hidden_state), model.text_projection(states.pooler_output)

    def norm(name: str, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def gated(x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * gate * gate.sigmoid()

    def turn(x: Tensor) -> Tensor:  # rotary positions, as complex numbers of the two halves
        first, second = x.double().chunk(2, dim=-1)
        angles = torch.arange(x.shape[-2])[:, None] * 10000.0 ** (-torch.arange(0, 8, 2) / 8)
        result = torch.complex(first, second) * torch.polar(torch.ones_like(angles).double(), angles.double())
        return torch.cat([result.real, result.imag], dim=-1).float()

    expected, masked = [], 0
    with torch.no_grad():
        about, _ = encode("a cube of light")
        for picture, prompt in zip(pixels, prompts, strict=True):
            tokens, whole = encode(prompt)
            similarity = einsum("bid,bjd->bji", tokens, about).amax(dim=1, keepdim=True)
            mask = torch.where(similarity / similarity.max() > 0.6, 0.0, -torch.inf)
            masked += int(mask.isinf().sum())
            x = model.visual_projection(model.vision_model(picture[None]).last_hidden_state)
            for number in range(2):
                name = f"mps.cross_model.layers.{number}.0.fn"
                n = norm(f"{name}.norm", x)
                q = (n @ state[f"{name}.to_q.weight"].T).unflatten(-1, (3, 8)).transpose(1, 2) / 8**0.5
                k, v = (tokens @ state[f"{name}.to_kv.weight"].T).chunk(2, dim=-1)
                weights = (einsum("bhid,bjd->bhij", q, k) + mask[:, None]).softmax(dim=-1)
                out = einsum("bhij,bjd->bhid", weights, v).transpose(1, 2).flatten(2)
                ff = gated(n @ state[f"{name}.ff.0.weight"].T) @ state[f"{name}.ff.2.weight"].T
                x = x + out @ state[f"{name}.to_out.weight"].T + ff
                name = f"mps.cross_model.layers.{number}.1.fn"
                n = norm(f"{name}.norm", x)
                q, k, v, ff = (n @ state[f"{name}.fused_attn_ff_proj.weight"].T).split(
                    (24, 8, 8, 192), dim=-1
                )
                q = turn(q.unflatten(-1, (3, 8)).transpose(1, 2)) / 8**0.5
                weights = einsum("bhid,bjd->bhij", q, turn(k)).softmax(dim=-1)
                out = einsum("bhij,bjd->bhid", weights, v).transpose(1, 2).flatten(2)
                ff = gated(ff) @ state[f"{name}.ff_out.1.weight"].T
                x = x + out @ state[f"{name}.attn_out.weight"].T + ff
            cosine = nn.functional.cosine_similarity(x[:, 0], whole)
            expected.append(model.logit_scale.exp() * cosine)
    assert masked > 0, "some tokens do not count"
    assert_agree(reward(pictures, prompts), torch.cat(expected), tolerance)


def test_rewards_of_one_tower_look_at_images_once(
    options: dict[str, Any], pictures: Tensor, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together, each with its own score and gradient; other images, and the same later, are looked at again."""
    rewards = [CLASSES[name](**options[name]) for name in ("clip_score", "hpsv2", "aesthetic", "mps", "mps")]
    looks = []

    def look(network: Any, **arguments: Any) -> Any:
        looks.append(arguments["pixel_values"])
        return seen(network, **arguments)

    vision = type(rewards[0]._clip.network.vision_model)
    seen = vision.forward
    monkeypatch.setattr(vision, "forward", look)

    def slopes(*, shared: bool) -> list[Tensor]:
        images = pictures.clone().requires_grad_()
        with together() if shared else nullcontext():
            scores = [reward(images, prompts) for reward in rewards]
        found = [torch.autograd.grad(score.sum(), images, retain_graph=True)[0] for score in scores]
        return [score.detach() for score in scores] + found

    alone, apart = slopes(shared=False), len(looks)
    for shared, one in zip(slopes(shared=True), alone, strict=True):
        torch.testing.assert_close(shared, one, rtol=1e-6, atol=1e-9)
    assert (apart, len(looks) - apart) == (5, 2)  # a CLIP, and that of MPS
    with together():
        with torch.no_grad():
            rewards[0](pictures, prompts)
        gradient = pictures.clone().requires_grad_()
        assert rewards[0](gradient, prompts).requires_grad
        assert rewards[1](gradient, prompts).requires_grad
    assert len(looks) == apart + 4
