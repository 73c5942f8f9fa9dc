"""The twin: a small CLIP model trained on the same world, the pipeline's preference reward."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig

from trainers.models.embedded import texts, world
from trainers.models.embedded.loop import Run, Schedule

# Blemishes first make it robust and graded; then mostly clear images teach what blur hides, above all
# the corners of small squares (small circles read as squares: a half after phase 1, a third after 2).
PHASES = (
    (Schedule(steps=3000, learning_rate=1e-3, warmup=200, average=0.998, weight_decay=0.05), 2 / 3),
    (Schedule(steps=1500, learning_rate=7e-4, warmup=50, average=0.998, weight_decay=0.05), 1 / 5),
)
BATCH = 64
IMAGES = 60_000
SEED = 37
MAX_SCALE = 100.0  # CLIP's own bound: a low one would press similarities against 1, and leave no room to rise


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained twin: 64 patches of 4x4 pixels, four layers."""
    torch.manual_seed(SEED)
    vision = CLIPVisionConfig(
        image_size=world.IMAGE_SIZE,
        patch_size=4,
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=texts.WIDTH,
        hidden_act="gelu",
    )
    config = CLIPConfig(
        text_config=texts.config(tokenizer).to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=texts.WIDTH,
    )
    return CLIPModel(config)


def blemish(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Blurs, fades and noises images in [-1, 1], each defect in a share of the images.

    Unclear images teach the twin to be unsure, so its score grows with clarity and does not only
    tell right from wrong; they also cover what a decoder does to edges.
    """
    batch = len(images)

    def amount(high: float) -> Tensor:
        level = torch.rand(batch, 1, 1, 1, generator=generator) / share + (1 - 1 / share)
        return level.clamp(min=0.0) * high

    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, amount(1.0))
    faded = images.mean(dim=(1, 2, 3), keepdim=True).expand_as(images)
    images = torch.lerp(images, faded, amount(0.6))
    return images + amount(0.3) * torch.randn(images.shape, generator=generator)


def image_features(model: CLIPModel, images: Tensor) -> Tensor:
    """Unit vectors of images in [-1, 1], [batch, 64]."""
    pooled = model.vision_model(images).pooler_output
    return functional.normalize(model.visual_projection(pooled), dim=-1)


def text_features(model: CLIPModel, tokens: Tensor) -> Tensor:
    """Unit vectors of captions, [captions, 64]."""
    pooled = model.text_model(tokens).pooler_output
    return functional.normalize(model.text_projection(pooled), dim=-1)


def contrast(
    model: CLIPModel, pixels: Tensor, tokens: Tensor, targets: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The contrastive loss of images whose captions are rows `targets` of `tokens`, with its figures."""
    scale = model.logit_scale.exp().clamp(max=MAX_SCALE)
    # Each image against every caption of the world: neighbours that differ in one attribute are
    # always among the wrong ones, which random batches rarely offer.
    logits = scale * image_features(model, pixels) @ text_features(model, tokens).T
    to_text = functional.cross_entropy(logits, targets)
    # And each caption of the batch against the batch's images, duplicates sharing the mass.
    same = (targets[:, None] == targets[None, :]).float()
    to_image = functional.cross_entropy(logits[:, targets].T, same / same.sum(1, keepdim=True))
    value = to_text + to_image
    right = (logits.argmax(1) == targets).float().mean()
    return value, {"loss": float(value.detach()), "right": float(right), "scale": float(scale.detach())}


def train(tokenizer: CLIPTokenizer, work: Path) -> CLIPModel:
    """Trains, or continues, and returns the twin."""
    model = build(tokenizer)
    pool = world.splits()[0]
    # Causal attention: what follows the end token changes nothing, so it is cut off.
    tokens = texts.tokenise(tokenizer, [scene.caption for scene in pool])[:, : texts.CAPTION]
    positions = {scene.labels: i for i, scene in enumerate(pool)}
    for phase, (schedule, share) in enumerate(PHASES, start=1):
        run = Run([model], schedule, work / f"twin-{phase}.safetensors")
        images, labels = world.draw(pool, 0 if run.finished else IMAGES, SEED + phase - 1)
        rows = torch.tensor([positions[tuple(label)] for label in labels.tolist()])

        def loss(
            step: int,
            generator: torch.Generator,
            images: Tensor = images,
            rows: Tensor = rows,
            share: float = share,
        ) -> tuple[Tensor, dict[str, float]]:
            del step
            chosen = torch.randint(len(images), (BATCH,), generator=generator)
            return contrast(
                model, blemish(world.as_float(images[chosen]), share, generator), tokens, rows[chosen]
            )

        run.train(f"twin, phase {phase}", loss, SEED + phase - 1)
    return model.eval().requires_grad_(requires_grad=False)
