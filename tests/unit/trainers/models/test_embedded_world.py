"""The embedded pipeline's world, and the weights that were trained on it."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from trainers.models.embedded import export, quality, texts, tokenizer, twin, world

HERE = Path(world.__file__).parent
WEIGHTS = HERE / "weights"


def rendering(count: int = 64, seed: int = 0) -> tuple[world.Rendering, torch.Tensor]:
    table = torch.tensor([scene.labels for scene in world.scenes()])
    labels = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))[:count]]
    return world.render(labels, torch.Generator().manual_seed(seed)), labels


def hue(rgb: torch.Tensor) -> torch.Tensor:
    """Hue in degrees of colours [batch, 3], by the usual circular mean of the channels."""
    angles = torch.tensor([0.0, 120.0, 240.0]).deg2rad()
    return torch.atan2((rgb * angles.sin()).sum(1), (rgb * angles.cos()).sum(1)).rad2deg() % 360


def mean_colour(images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (images * weights).sum(dim=(2, 3)) / weights.sum(dim=(2, 3))


def nearest_name(rgb: torch.Tensor) -> torch.Tensor:
    distance = (hue(rgb)[:, None] - torch.tensor(world.HUES)[None]).abs()
    return torch.minimum(distance, 360 - distance).argmin(1)


def test_same_seed_same_pixels() -> None:
    pool = world.scenes()
    images, labels = world.draw(pool, 32, seed=3)
    again, same = world.draw(pool, 32, seed=3)
    other, _ = world.draw(pool, 32, seed=4)
    assert torch.equal(images, again)
    assert torch.equal(labels, same)
    assert not torch.equal(images, other)


def test_images_are_in_range() -> None:
    drawn, _ = rendering()
    assert drawn.images.shape == (64, 3, 32, 32)
    assert drawn.masks.shape == (64, 1, 32, 32)
    for tensor in (drawn.images, drawn.masks):
        assert float(tensor.min()) >= 0
        assert float(tensor.max()) <= 1


def test_pixels_have_the_captioned_colours() -> None:
    drawn, labels = rendering(256)
    shape_colour = nearest_name(mean_colour(drawn.images, (drawn.masks > 0.99).float()))
    ground_colour = nearest_name(mean_colour(drawn.images, (drawn.masks < 0.01).float()))
    assert torch.equal(shape_colour, labels[:, 1])
    assert torch.equal(ground_colour, labels[:, 3])


def test_masks_have_the_captioned_size() -> None:
    drawn, labels = rendering(256)
    areas = drawn.masks.mean(dim=(1, 2, 3))
    for shape in range(len(world.SHAPES)):
        small = areas[(labels[:, 2] == shape) & (labels[:, 0] == 0)]
        large = areas[(labels[:, 2] == shape) & (labels[:, 0] == 1)]
        assert float(small.max()) < float(large.min()), world.SHAPES[shape]


def test_shapes_do_not_touch_the_border() -> None:
    drawn, _ = rendering(256)
    border = torch.ones(32, 32)
    border[1:-1, 1:-1] = 0
    assert float((drawn.masks * border).mean()) < 1e-3


def test_splits_are_disjoint_and_cover_every_attribute() -> None:
    train, held_out = world.splits()
    assert not set(train) & set(held_out)
    assert set(train) | set(held_out) == set(world.scenes())
    for position, count in enumerate(world.CLASSES):
        assert {scene.labels[position] for scene in train} == set(range(count))


def test_captions_are_unique_and_parse_back() -> None:
    pool = world.scenes()
    assert len({scene.caption for scene in pool}) == len(pool)
    assert [world.parse(scene.caption) for scene in pool] == pool


@pytest.mark.parametrize("name", ["shapes.txt", "shapes-held-out.txt", "shapes-tune.txt", "shapes-check.txt"])
def test_shipped_prompts_are_the_worlds(name: str) -> None:
    shipped = (HERE / "prompts" / name).read_text().splitlines()
    assert shipped == world.prompt_sets()[name]


def test_uncaptioned_attributes_vary_for_one_caption() -> None:
    labels = torch.tensor([world.scenes()[0].labels] * 256)
    figures = quality.appearance(world.render(labels, torch.Generator().manual_seed(0)).images * 2 - 1)
    assert figures["saturation"]["std"] > 0.1
    assert figures["brightness"]["std"] > 0.05
    assert figures["local_contrast"]["std"] > 0.01


def test_every_word_is_one_token_and_no_text_is_refused() -> None:
    words = tokenizer.build()
    caption = world.scenes()[0].caption
    pieces = words.tokenize(caption)
    assert pieces == [f"{word}</w>" for word in caption.split()]
    assert texts.tokenise(words, [caption, "", "Überraschung, 42!"]).shape == (3, tokenizer.LENGTH)
    assert words.decode(words("xyz four").input_ids, skip_special_tokens=True).strip() == "xyz four"


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    loaded = StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline", local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_weights_fit_the_limit_and_hold_no_pickle() -> None:
    assert export.check_size(WEIGHTS) <= export.LIMIT
    assert {path.suffix for path in WEIGHTS.rglob("*") if path.is_file()} <= {
        ".safetensors",
        ".json",
        ".md",
        ".png",
    }


def test_shipped_pipeline_generates(pipeline: StableDiffusionPipeline) -> None:
    images = quality.sample(pipeline, [world.scenes()[0].caption] * 2, guidance=3.0, seed=0)
    assert images.shape == (2, 3, 32, 32)
    assert bool(torch.isfinite(images).all())
    assert torch.equal(
        images, quality.sample(pipeline, [world.scenes()[0].caption] * 2, guidance=3.0, seed=0)
    )


def test_shipped_latents_are_whitened(pipeline: StableDiffusionPipeline) -> None:
    images, _ = world.draw(world.splits()[0], 512, seed=1)
    with torch.no_grad():
        latents = pipeline.vae.encode(world.as_float(images)).latent_dist.mode()
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=0.1, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=0.1, rtol=0)


@torch.no_grad()
def test_shipped_twin_prefers_the_true_caption() -> None:
    model = CLIPModel.from_pretrained(WEIGHTS / "clip", local_files_only=True).eval()
    words = CLIPTokenizer.from_pretrained(WEIGHTS / "clip", local_files_only=True)
    images, labels = world.draw(world.splits()[1], 256, seed=2)
    tokens = texts.tokenise(words, [scene.caption for scene in world.scenes()])
    figures = quality.twin_report(model, tokens, world.as_float(images), labels)
    assert figures["accuracy"]["all"] > 0.7
    # The model's own forward agrees with the two towers used in training.
    output = model(input_ids=tokens[:5], pixel_values=world.as_float(images[:3]))
    own = twin.image_features(model, world.as_float(images[:3])) @ twin.text_features(model, tokens[:5]).T
    torch.testing.assert_close(output.logits_per_image, own * model.logit_scale.exp())
