"""An independent judge of attributes: a small CNN that shares nothing with pipeline or twin."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.models.embedded import world
from trainers.models.embedded.loop import Run, Schedule

SCHEDULE = Schedule(steps=2500, learning_rate=2e-3, average=0.995, weight_decay=0.01)
BATCH = 64
IMAGES = 40_000
SEED = 53


def build() -> nn.Sequential:
    """Images in [-1, 1] to the logits of all attributes side by side, [batch, 24]."""
    torch.manual_seed(SEED)
    layers: list[nn.Module] = []
    before = 3
    for width, stride in ((24, 1), (48, 2), (96, 2), (128, 2)):
        layers += [nn.Conv2d(before, width, 3, stride, 1), nn.GroupNorm(8, width), nn.GELU()]
        before = width
    layers += [nn.Flatten(), nn.Linear(before * 16, 128), nn.GELU(), nn.Linear(128, sum(world.CLASSES))]
    model = nn.Sequential(*layers)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # torch's stubs lack it


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """The most likely index of each attribute, [images, 4], for images in [-1, 1]."""
    logits = torch.cat([model(part) for part in torch.split(images, 256)])
    return torch.stack([head.argmax(1) for head in torch.split(logits, list(world.CLASSES), dim=1)], dim=1)


def train(work: Path) -> nn.Module:
    """Trains, or continues, and returns the classifier."""
    model = build()
    run = Run([model], SCHEDULE, work / "classifier.safetensors")
    images, labels = world.draw(world.scenes(), 0 if run.finished else IMAGES, SEED)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        del step
        chosen = torch.randint(IMAGES, (BATCH,), generator=generator)
        pixels = world.as_float(images[chosen])
        # Slight noise, so that it judges forms and not the exact anti-aliasing of the renderer.
        pixels = pixels + 0.06 * torch.randn(pixels.shape, generator=generator)
        heads = torch.split(model(pixels), list(world.CLASSES), dim=1)
        targets = labels[chosen].unbind(1)
        pairs = list(zip(heads, targets, strict=True))
        value = torch.stack([functional.cross_entropy(head, target) for head, target in pairs]).sum()
        right = torch.stack([(head.argmax(1) == target).float().mean() for head, target in pairs]).mean()
        return value, {"loss": float(value.detach()), "right": float(right)}

    run.train("classifier", loss, SEED)
    return model.eval().requires_grad_(requires_grad=False)
