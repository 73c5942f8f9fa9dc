"""How good the embedded pipeline is, measured on what it has not seen.

    python -m trainers.models.embedded.quality --out DIR

Prints and stores, as `DIR/quality.json` and pictures beside it: how well the autoencoder reconstructs,
how well the twin reads real images, and how often samples of held-out prompts show what the prompt
asked for, judged by a classifier that shares no weights with either. The same of the flow model, where
it is there, as `DIR/flow-quality.json`.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPModel

from trainers.models.embedded import classifier, texts, twin, vae, world

SEED = 71
REAL_IMAGES = 2048
GUIDANCES = (1.0, 3.0, 5.0)
STEPS = 15
PER_PROMPT = 8
FLOW_STEPS = (8, 16)
FLOW_GUIDANCES = (1.0, 2.0, 3.0)


def agreement(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of images whose attributes are right, one by one and all together."""
    right = predicted == labels
    shares = {name: float(right[:, i].float().mean()) for i, name in enumerate(world.ATTRIBUTES)}
    return {**shares, "all": float(right.all(1).float().mean())}


def spread(values: Tensor) -> dict[str, float]:
    """Mean, standard deviation and maximum."""
    return {"mean": float(values.mean()), "std": float(values.std()), "max": float(values.max())}


def appearance(images: Tensor) -> dict[str, dict[str, float]]:
    """The uncaptioned attributes of images in [-1, 1]: what attribute rewards have to work with."""
    images = (images + 1) / 2
    high, low = images.amax(1), images.amin(1)
    blurred = torch.nn.functional.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
    return {
        "brightness": spread(images.mean(dim=(1, 2, 3))),
        "saturation": spread(((high - low) / high.clamp(min=1e-3)).mean(dim=(1, 2))),
        "local_contrast": spread((images - blurred).square().mean(dim=(1, 2, 3)).sqrt()),
    }


@torch.no_grad()
def twin_report(model: CLIPModel, tokens: Tensor, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """The twin on images in [-1, 1]: its best caption of all 480, and the similarity to the true one."""
    features = torch.cat([twin.image_features(model, part) for part in torch.split(images, 256)])
    similarities = features @ twin.text_features(model, tokens).T
    table = torch.tensor([scene.labels for scene in world.scenes()])
    true = (labels[:, None] == table[None]).all(2).float().argmax(1)
    own = similarities.gather(1, true[:, None])[:, 0]
    return {"accuracy": agreement(table[similarities.argmax(1)], labels), "similarity": spread(own)}


@torch.no_grad()
def sample_flow(
    pipeline: StableDiffusion3Pipeline, prompts: list[str], guidance: float, steps: int, seed: int
) -> Tensor:
    """Images in [-1, 1] of the pipeline's own steps, without noise."""
    settings = {"num_inference_steps": steps, "guidance_scale": guidance, "max_sequence_length": 0}
    return _in_parts(pipeline, prompts, seed, settings)


@torch.no_grad()
def sample(pipeline: StableDiffusionPipeline, prompts: list[str], guidance: float, seed: int) -> Tensor:
    """Images in [-1, 1] of 15 stochastic DDIM steps (eta 1)."""
    settings = {"num_inference_steps": STEPS, "guidance_scale": guidance, "eta": 1.0}
    return _in_parts(pipeline, prompts, seed, settings)


def _in_parts(pipeline: Any, prompts: list[str], seed: int, settings: dict[str, Any]) -> Tensor:
    """Images in [-1, 1], a few at a time; all noise is of one generator."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        pipeline(prompts[start : start + 64], generator=generator, output_type="pt", **settings).images
        for start in range(0, len(prompts), 64)
    ]
    return torch.cat(parts) * 2 - 1


def save_grid(images: Tensor, columns: int, path: Path, zoom: int = 2) -> None:
    """Stores images in [-1, 1] as one PNG, row by row."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    rows = len(pixels) // columns
    table = pixels.view(rows, columns, *pixels.shape[1:]).permute(0, 3, 1, 4, 2)  # [rows, y, columns, x, 3]
    picture = Image.fromarray(table.reshape(rows * world.IMAGE_SIZE, columns * world.IMAGE_SIZE, 3).numpy())
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(path)


def measure(out: Path, judge: nn.Module) -> dict[str, Any]:
    """All figures of the pipeline and the twin exported to a directory."""
    pipeline = StableDiffusionPipeline.from_pretrained(out / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    reward = CLIPModel.from_pretrained(out / "clip").eval()
    tokens = texts.tokenise(pipeline.tokenizer, [scene.caption for scene in world.scenes()])
    _, held_out = world.splits()
    real, labels = world.draw(held_out, REAL_IMAGES, SEED)
    pixels = world.as_float(real)
    with torch.no_grad():
        decoded = pipeline.vae.decode(vae.encode(pipeline.vae, real)).sample.clamp(-1, 1)
    figures: dict[str, Any] = {
        "images": {"real": REAL_IMAGES, "sampled": PER_PROMPT * len(held_out), "steps": STEPS, "eta": 1.0},
        "vae_psnr_db": vae.psnr(pipeline.vae, real),
        "classifier_on_real": agreement(classifier.predict(judge, pixels), labels),
        "classifier_on_reconstructions": agreement(classifier.predict(judge, decoded), labels),
        "twin_on_real": twin_report(reward, tokens, pixels, labels),
        "appearance_of_real": appearance(pixels),
    }
    sets = world.prompt_sets()
    for name in ("shapes.txt", "shapes-held-out.txt"):
        prompts = sets[name]
        asked = [prompt for prompt in prompts for _ in range(PER_PROMPT)]
        wanted = torch.tensor([world.parse(prompt).labels for prompt in asked])
        for guidance in GUIDANCES:
            images = sample(pipeline, asked, guidance, SEED)
            save_grid(images[: 16 * 16], 16, out / f"{Path(name).stem}-guidance-{guidance:g}.png")
            figures[f"{Path(name).stem} at guidance {guidance:g}"] = {
                "follows": agreement(classifier.predict(judge, images), wanted),
                "twin": twin_report(reward, tokens, images, wanted),
                "appearance": appearance(images),
            }
    return figures


def measure_flow(out: Path, judge: nn.Module) -> dict[str, Any]:
    """The figures of samples of the exported flow model."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(out / "flow", text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    reward = CLIPModel.from_pretrained(out / "clip").eval()
    tokens = texts.tokenise(pipeline.tokenizer, [scene.caption for scene in world.scenes()])
    figures: dict[str, Any] = {}
    for name in ("shapes.txt", "shapes-held-out.txt"):
        asked = [prompt for prompt in world.prompt_sets()[name] for _ in range(PER_PROMPT)]
        wanted = torch.tensor([world.parse(prompt).labels for prompt in asked])
        for steps, guidance in itertools.product(FLOW_STEPS, FLOW_GUIDANCES):
            images = sample_flow(pipeline, asked, guidance, steps, SEED)
            told = f"{Path(name).stem} at guidance {guidance:g}, {steps} steps"
            save_grid(images[: 16 * 16], 16, out / f"flow-{told.replace(' ', '-').replace(',', '')}.png")
            figures[told] = {
                "follows": agreement(classifier.predict(judge, images), wanted),
                "twin": twin_report(reward, tokens, images, wanted),
                "appearance": appearance(images),
            }
    return figures


def report(out: Path, judge: nn.Module) -> None:
    """Measures, prints and stores what has been exported."""
    measures = {"pipeline": ("quality.json", measure), "flow": ("flow-quality.json", measure_flow)}
    for folder, (file, measured) in measures.items():
        if (out / folder).is_dir():
            text = json.dumps(measured(out, judge), indent=2)
            (out / file).write_text(text + "\n")
            print(text, flush=True)


def main() -> None:
    """Measures an exported directory; trains the classifier first when its state is not there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory with pipeline/ and clip/")
    parser.add_argument("--work", type=Path, help="directory of the training state (default: OUT/work)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report(arguments.out, classifier.train(arguments.work or arguments.out / "work"))


if __name__ == "__main__":
    main()
