"""Images from a trained adapter beside the pretrained model, in this process."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import PlacementError, SpecError, StorageError
from orchestrator.execution.trials.device import own
from trainers.config import PromptsConfig, TrialConfig
from trainers.failures import OutOfMemory


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One prompt and seed: what the pretrained model and the trial make of them."""

    prompt: str
    seed: int
    tuned: str
    """Path of the trial's image."""
    pretrained: str


def sample_trial(
    config: TrialConfig,
    adapters: Mapping[str, Mapping[str, bytes]],
    shares: Mapping[str, float],
    directory: Path,
    *,
    prompts: Sequence[str],
    seed: int,
    count: int,
) -> list[SampleRow]:
    """Write ``count`` images of a trial or mixture, and the pretrained model's at the same seeds; prompts take turns.

    Args:
        config: Of a trial of the sweep.
        adapters: Files by trial; a member of ``shares`` without any is the pretrained model.
        shares: Probability of each member, by which one is drawn for every image.
        directory: Where images go.
        prompts: In the order in which they are given; by default the held-out ones, as an evaluation asks for them.
        seed: Of the first image; also of the draw of members.
        count: Images.

    Raises:
        SpecError: model or adapter cannot be used; says why.
        StorageError: the directory cannot be made.
        PlacementError: the memory does not hold one image.
    """
    import torch
    from PIL import Image

    from orchestrator.report.images import strip
    from trainers.evaluate import pixels
    from trainers.models.pipeline_policy import Beside, PipelinePolicy
    from trainers.workers.memory import Batches

    config = config.tuned
    asked = tuple(prompts) or (config.prompts.in_turn("evaluate", seed) if config.prompts else ())
    settings = config.model, PromptsConfig(train=asked, evaluate=asked), config.sampling, config.training
    try:
        policy = PipelinePolicy.build(*settings, own())
        # Each in a place of its own: adapters of a mixture may have other ranks.
        tuned_by = {
            member: PipelinePolicy.build(
                *settings, own(), adapter=files, beside=Beside(parts=policy.parts, name=f"member{place}")
            )
            for place, (member, files) in enumerate(adapters.items())
        }
    except ValueError as error:
        raise SpecError(str(error)) from error
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {error.strerror or error}") from error
    members = list(shares)
    picks = np.random.default_rng(seed).choice(len(members), size=count, p=list(shares.values()))
    rows: list[SampleRow] = []
    shown: dict[str, list[Any]] = {"pretrained": [], "tuned": []}

    def sample(first: int, last: int) -> tuple[Any, dict[str, Any]]:
        draw = policy.fixed_draw(seed, first, last, asked)
        with torch.no_grad():
            pretrained = pixels(policy.rollout(draw, reference=True).samples)
            tuned = _of_members(policy, draw, [members[number] for number in picks[first:last]], tuned_by)
        return draw, {"pretrained": pretrained, "tuned": tuned}

    batches = Batches(config.evaluation.batch or policy.chunk, "sampling")
    try:
        for draw, shots in batches(count, sample):
            paths: dict[str, list[str]] = {}
            for name, images in shots.items():
                shown[name].append(images)
                paths[name] = [str(directory / f"{number}-{name}.png") for number in draw.seeds.tolist()]
                for path, image in zip(paths[name], images, strict=True):
                    out = io.BytesIO()
                    Image.fromarray(image).save(out, format="PNG")
                    Path(path).write_bytes(out.getvalue())
            assert draw.prompts is not None
            rows += [
                SampleRow(prompt=prompt, seed=number, tuned=tuned, pretrained=pretrained)
                for prompt, number, tuned, pretrained in zip(
                    draw.prompts, draw.seeds.tolist(), paths["tuned"], paths["pretrained"], strict=True
                )
            ]
    except OutOfMemory as error:
        raise PlacementError(str(error)) from error
    grid = strip(np.concatenate(shown["tuned"]), above=strip(np.concatenate(shown["pretrained"])))
    (directory / "grid.png").write_bytes(grid)
    return rows


def _of_members(policy: Any, draw: Any, picks: Sequence[str], tuned: Mapping[str, Any]) -> Any:
    """Return images ``[n, h, w, 3]``, each of the member that was drawn for it; without a policy, of the reference."""
    from dataclasses import replace

    from trainers.evaluate import pixels

    shots: Any = None
    for member in dict.fromkeys(picks):
        rows = [row for row, pick in enumerate(picks) if pick == member]
        part = replace(
            draw,
            noise=draw.noise[:, rows],
            seeds=draw.seeds[rows],
            prompts=tuple(draw.prompts[row] for row in rows),
        )
        asked = tuned.get(member, policy)
        found = pixels(asked.rollout(part, reference=member not in tuned).samples)
        if shots is None:
            shots = np.zeros((len(picks), *found.shape[1:]), dtype=found.dtype)
        shots[rows] = found
    return shots
