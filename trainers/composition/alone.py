"""Each model of a composition sampled alone, and the pretrained one: what a composition is held against.

The sets of samples, all of the same noise and prompts as the evaluation of a composition (but ``train``):

* ``train``: the pretrained model on the training prompts: the unit of thresholds,
* ``evaluate``: the pretrained model, held out; of concepts the one joint prompt stands for it, and of pipelines, which
  need no base, their equal weights,
* ``model:NAME``: a model that rewards judge, held out, where there is a base to improve on.
"""

from collections.abc import Mapping

import numpy as np

from trainers.collective import Collective, Shard
from trainers.composition.chains import Chains
from trainers.composition.judges import Judges
from trainers.composition.paths import PARTICLES, PathProduct
from trainers.composition.pipelines import build_chains
from trainers.config import CompositionConfig, TrialConfig
from trainers.evaluate import interval
from trainers.types import Evaluation, FloatArray, Interval

_TRAIN_SEED = 2_000_003
MODEL = "model:"
"""Before a model's name, a set of its samples."""


def sample_alone(config: TrialConfig, share: Collective | Shard) -> dict[str, Evaluation]:
    """Sample every set, the rows of this share; zeros elsewhere.

    Raises:
        ValueError: models or rewards cannot be used; says why.
    """
    composition = config.model.composition
    assert composition is not None, "a composition"
    chains, judges = build_chains(config), Judges(config.rewards)
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
    return "score" if all(model.pretrained is not None for model in composition.models) else "base"


def _sample(
    chains: Chains,
    judges: Judges,
    config: TrialConfig,
    driver: str | int,
    name: str,
    share: Collective | Shard,
) -> Evaluation:
    problem = PathProduct(chains, judges, driver=driver)
    equal = np.full(chains.count, 1.0 / chains.count)
    held_out = name != "train"
    drawn = problem(
        equal,
        np.zeros(judges.count),
        config.evaluation.images,
        config.evaluation.seed if held_out else _TRAIN_SEED,
        held_out=held_out,
        share=share,
    ).samples
    assert drawn is not None, "networks keep their samples"
    return Evaluation(
        kl=np.full(len(drawn.seeds), np.nan),
        rewards=dict(zip(judges.names, drawn.scores, strict=True)),
        seeds=drawn.seeds,
        prompts=drawn.prompts,
        images=drawn.images,
    )


def retention(
    kept: Mapping[str, FloatArray],
    alone: Mapping[str, FloatArray],
    pretrained: Mapping[str, FloatArray],
    rewards: tuple[str, ...],
) -> Interval | None:
    """Return the share of a model's improvement that is kept, the least over its rewards; None if it improves none.

    ``(E_p r − E_0 r) / (E_q r − E_0 r)`` with the jackknife's error over groups of samples that share a prompt.

    Args:
        kept: Rewards ``[n]`` of the composition.
        alone: Of the model alone, on the same noise and prompts.
        pretrained: Of the pretrained model, on the same.
        rewards: What the model is judged by.
    """
    found = []
    for name in rewards:
        rows = np.stack([kept[name], alone[name][: len(kept[name])], pretrained[name][: len(kept[name])]])
        groups = rows.reshape(3, -1, PARTICLES).mean(axis=2)  # [3, G]
        gained, possible = groups[0] - groups[2], groups[1] - groups[2]
        if possible.mean() <= 0:
            continue
        count = groups.shape[1]
        ratio = float(gained.mean() / possible.mean())
        left = (gained.sum() - gained) / (possible.sum() - possible)
        error = (
            float(np.sqrt((count - 1) / count * np.sum((left - left.mean()) ** 2))) if count > 1 else np.inf
        )
        found.append((ratio, error))
    return interval(*min(found)) if found else None
