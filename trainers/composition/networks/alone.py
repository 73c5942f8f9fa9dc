"""Each model of a composition sampled alone, and the pretrained one: what a composition is held against.

The sets of samples, all of the same noise and prompts as the evaluation of a composition (but ``train``):

* ``train``: the pretrained model on the training prompts: the unit of thresholds,
* ``evaluate``: the pretrained model, held out; of concepts the one joint prompt stands for it, and of pipelines
  without a base their equal weights,
* ``model:NAME``: a model that rewards judge, held out, where there is a base to improve on.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from trainers.composition.networks.chains import Chains
from trainers.composition.networks.dealing import Deal
from trainers.composition.networks.judges import Judges
from trainers.composition.networks.paths import group_size
from trainers.composition.networks.pipelines import build_chains
from trainers.config import PARTICLES, CompositionConfig, TrialConfig
from trainers.estimates import Estimate
from trainers.evaluate import SHOWN, pixels
from trainers.models.base import Draw
from trainers.types import Evaluation, FloatArray, ImageArray, Interval
from trainers.workers.collective import Collective, Shard
from trainers.workers.memory import Batches

Reference = Callable[[str], Mapping[str, FloatArray] | None]
_TRAIN_SEED = 2_000_003
MODEL = "model:"
"""Before a model's name, a set of its samples."""


def sample_alone(
    config: TrialConfig, share: Collective | Shard, device: str = "cpu"
) -> dict[str, Evaluation]:
    """Sample every set, the rows of this share; zeros elsewhere.

    Raises:
        ValueError: models or rewards cannot be used; says why.
    """
    composition = config.model.composition
    assert composition is not None, "a composition"
    chains, judges = build_chains(config, device), Judges(config.rewards)
    base = pretrained_driver(composition)
    drivers: dict[str, str | int] = {"train": base, "evaluate": base}
    for index, model in enumerate(composition.models if base == "base" else ()):
        if model.rewards and model.prompt is None:
            drivers[MODEL + model.name] = index
    return {name: _sample(chains, judges, config, driver, name, share) for name, driver in drivers.items()}


def pretrained_driver(composition: CompositionConfig) -> str:
    """Return what stands for the pretrained model: the base, one joint prompt of concepts, or equal weights."""
    if all(model.prompt is not None for model in composition.models):
        return "joint"
    if composition.base is None and all(model.pretrained is not None for model in composition.models):
        return "score"
    return "base"


@torch.no_grad()
def _sample(
    chains: Chains,
    judges: Judges,
    config: TrialConfig,
    driver: str | int,
    name: str,
    share: Collective | Shard,
) -> Evaluation:
    """Sample one chain; the other models are not asked. Groups and noise are those of a composition's evaluation."""
    composition = config.model.composition
    assert composition is not None, "a composition"
    size = group_size(chains.count) if composition.direction == "forward" else PARTICLES
    held_out = name != "train"
    seed = config.evaluation.seed if held_out else _TRAIN_SEED
    groups = -(-config.evaluation.images // size)
    equal = [1.0 / chains.count] * chains.count
    batches = Batches(chains.chunk, "sampling the pretrained model")
    scores = np.zeros((judges.count, groups * size))
    images = list[ImageArray]()

    def sample(draw: Draw, first: int, last: int) -> tuple[Tensor, Tensor]:
        part = draw.part(first * size, last * size)
        state = part.noise[0]
        for step in range(chains.steps):
            if driver == "score":
                control = chains.controls(step, state, part).mean(dim=0)
            else:
                control = chains.control(driver, step, state, part, equal)
            state = chains.advance(step, state, control, part.noise[step + 1])
        drawn = chains.decode(state)
        return drawn, judges(drawn, part.prompts)

    dealt = Deal(chains, groups, size, seed, held_out=held_out, share=share)
    for start, draw in dealt:
        first = start * size
        for drawn, judged in batches(len(draw) // size, partial(sample, draw), each=size):
            scores[:, first : first + len(drawn)] = judged.numpy()
            if start == 0 and drawn.ndim == 4 and first < SHOWN:
                images.append(pixels(drawn[: SHOWN - first]))
            first += len(drawn)
    return Evaluation(
        kl=np.full(groups * size, np.nan),
        rewards=dict(zip(judges.names, scores, strict=True)),
        seeds=dealt.seeds,
        prompts=dealt.prompts,
        images=np.concatenate(images) if images else None,
        notes=batches.notes(share),
    )


def retentions(
    composition: CompositionConfig, kept: Mapping[str, FloatArray], reference: Reference, size: int
) -> dict[str, Interval]:
    """Return the ``retention`` of every model that improves the pretrained one and was sampled alone.

    Args:
        composition: Of the models.
        kept: Rewards ``[n]`` of what is in their place.
        reference: Rewards of a set of samples (see above), None where there are none.
        size: Samples of a group.
    """
    pretrained = reference("evaluate")
    if pretrained is None:
        return {}
    found = {}
    for model in composition.models:
        alone = reference(MODEL + model.name)
        share = None if alone is None else retention(kept, alone, pretrained, model.rewards, size)
        if share is not None:
            found[model.name] = share
    return found


def retention(
    kept: Mapping[str, FloatArray],
    alone: Mapping[str, FloatArray],
    pretrained: Mapping[str, FloatArray],
    rewards: tuple[str, ...],
    size: int = PARTICLES,
) -> Interval | None:
    """Return the share of a model's improvement that is kept, the least over its rewards; None if it improves none.

    ``(E_p r − E_0 r) / (E_q r − E_0 r)`` with the jackknife's error over groups of samples that share a prompt.

    Args:
        kept: Rewards ``[n]`` of the composition.
        alone: Of the model alone, on the same noise and prompts.
        pretrained: Of the pretrained model, on the same.
        rewards: What the model is judged by.
        size: Samples of a group.
    """
    found = []
    for name in rewards:
        rows = np.stack([kept[name], alone[name][: len(kept[name])], pretrained[name][: len(kept[name])]])
        groups = rows.reshape(3, -1, size).mean(axis=2)  # [3, G]
        gained, possible = groups[0] - groups[2], groups[1] - groups[2]
        if possible.mean() <= 0:
            continue
        count = groups.shape[1]
        ratio = float(gained.mean() / possible.mean())
        error = np.inf
        if count > 1:
            left = (gained.sum() - gained) / (possible.sum() - possible)
            error = float(np.sqrt((count - 1) / count * np.sum((left - left.mean()) ** 2)))
        found.append(Estimate(mean=ratio, error=error, degrees=max(count - 1, 1)))
    return min(found, key=lambda share: share.mean).interval() if found else None
