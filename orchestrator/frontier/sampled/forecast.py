"""What samples of the pretrained model say of a plan's thresholds: the document of ``cdsweep preview``."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.problems.exact import reward_form
from orchestrator.frontier.sampled.preview import PreviewPoint, preview, preview_within
from orchestrator.frontier.sampled.reweighting import Reweighting, settled
from orchestrator.frontier.sampled.samples import Samples, pretrained_samples
from orchestrator.frontier.sampled.tilted import BEYOND
from orchestrator.plan import resolve_thresholds, unit_of
from trainers.config import BaselineStatistics, MixtureConfig, RewardConfig, TrialConfig
from trainers.estimates import complete

FloatArray = NDArray[np.float64]


def arranged(
    config: TrialConfig, rewards: Mapping[str, FloatArray], prompts: Sequence[str] | None
) -> Samples:
    """Return samples ``[n]`` of each reward, grouped by prompt; without those that a score is missing of."""
    rewards = {reward.name: rewards[reward.name] for reward in config.rewards}
    rewards, prompts = complete(config, rewards, prompts)
    table = np.column_stack([rewards[reward.name] for reward in config.rewards])
    if prompts is None:
        return pretrained_samples(table)
    numbers = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    return pretrained_samples(table, np.array([numbers[prompt] for prompt in prompts]))


def mixture_rewards(
    mixture: MixtureConfig, rewards: Sequence[RewardConfig], count: int, seed: int = 0
) -> dict[str, FloatArray]:
    """Draw from a mixture, and score by linear and quadratic rewards: ``[count]`` each."""
    rng = np.random.default_rng(seed)
    picked = rng.choice(len(mixture.weights), size=count, p=np.array(mixture.weights) / sum(mixture.weights))
    roots = np.linalg.cholesky(np.array(mixture.covariances))[picked]
    noise = rng.standard_normal((count, mixture.dimension))
    drawn = np.array(mixture.means)[picked] + np.einsum("nij,nj->ni", roots, noise)
    found = {}
    for reward in rewards:
        direction, curvature, center = reward_form(reward, mixture.dimension)
        away = drawn - center
        found[reward.name] = drawn @ direction - 0.5 * np.einsum("ni,ij,nj->n", away, curvature, away)
    return found


def preview_document(
    configs: Sequence[TrialConfig], baseline: BaselineStatistics, samples: Samples | Reweighting
) -> dict[str, Any]:
    """Return the document of ``cdsweep preview``: one point for every combination of thresholds.

    Args:
        configs: Constrained trials of one sweep; others are left out.
        baseline: What thresholds refer to.
        samples: Of the pretrained model, and of trials with the density ratios of their paths; with the rewards of
            the sweep in their order.
    """
    settings = asked(configs, baseline)
    points = [_point(dict(key), config, baseline, samples) for key, config in settings.items()]
    units = {
        constraint.name: dict(
            zip(("unit", "origin", "size"), (constraint.unit, *unit_of(constraint, baseline)), strict=True)
        )
        for config in settings.values()
        for constraint in config.constraints
    }
    return {
        "samples": samples.count,
        "prompts": samples.prompts,
        "units": units,
        "points": points,
    }


def asked(
    configs: Sequence[TrialConfig], baseline: BaselineStatistics
) -> dict[tuple[tuple[str, float], ...], TrialConfig]:
    """Return the combinations of thresholds of constrained trials, reward units or nats, each with one trial."""
    settings: dict[tuple[tuple[str, float], ...], TrialConfig] = {}
    for config in configs:
        if config.method == "constrained":
            settings.setdefault(tuple(resolve_thresholds(config, baseline).items()), config)
    return settings


def threshold_row(thresholds: Mapping[str, float], config: TrialConfig) -> FloatArray:
    """Return the thresholds of each reward ``[m]``, the tightest where there are several; NaN where there is none."""
    names = [reward.name for reward in config.rewards]
    row = np.full(len(names), np.nan)
    for constraint in config.constraints:
        if constraint.kind == "reward":
            place = names.index(constraint.target)
            row[place] = np.fmax(row[place], thresholds[constraint.name])
    return row


def hopeless(document: Mapping[str, Any]) -> list[str]:
    """Return a line for every combination of thresholds that the samples do not reach, or not within the KL budget."""
    lines = []
    for point in document["points"]:
        thresholds = ", ".join(f"{name} {bound:.4g}" for name, bound in point["thresholds"].items())
        if point["verdict"] == BEYOND:
            lines.append(f"beyond {document['samples']} samples of the pretrained model: {thresholds}")
        elif point["over_budget"]:
            lines.append(f"costs {point['kl']:.3g} nats, above the KL budget: {thresholds}")
    return lines


def _point(
    thresholds: dict[str, float],
    config: TrialConfig,
    baseline: BaselineStatistics,
    samples: Samples | Reweighting,
) -> dict[str, Any]:
    names = [reward.name for reward in config.rewards]
    scale = np.array([baseline.rewards[name].std for name in names])
    row = threshold_row(thresholds, config)
    budgets = [thresholds[c.name] for c in config.constraints if c.kind == "kl"]
    document: dict[str, Any] = {"thresholds": thresholds}
    if config.objective.kind == "reward":
        objective = names.index(config.objective.target)
        wanted, row[objective] = row[objective], np.nan
        found = settled(
            samples,
            lambda drawn: preview_within(drawn, objective, [min(budgets)], row[None], scale=scale)[0],
            lambda found: found.point.tilt,
        )
        document["reward"] = _finite(found.reward)
        document |= {"reward_low": _finite(found.reward_low), "reward_high": _finite(found.reward_high)}
        point, over = found.point, bool(np.isneginf(found.reward) or found.reward < wanted)
    else:
        point = settled(
            samples, lambda drawn: preview(drawn, row[None], scale=scale)[0], lambda point: point.tilt
        )
        over = bool(budgets) and point.kl > min(budgets)
    return document | _figures(point, config, names) | {"over_budget": over}


def _figures(point: PreviewPoint, config: TrialConfig, names: list[str]) -> dict[str, Any]:
    """Return the figures of a point; multipliers are nats per reward unit, under a reward objective as well."""
    multipliers = {
        c.name: _finite(point.tilt[names.index(c.target)]) for c in config.constraints if c.kind == "reward"
    }
    return {
        "kl": _finite(point.kl),
        "kl_low": _finite(point.kl_low),
        "kl_high": _finite(point.kl_high),
        "multipliers": multipliers,
        "rewards": dict(zip(names, map(_finite, point.rewards.tolist()), strict=True)),
        "ess": _finite(point.ess),
        "least_ess": _finite(point.least_ess),
        "verdict": point.verdict,
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
