"""A preview of a plan: samples of the pretrained model, drawn or found, and what they say of the thresholds."""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from rich.console import Console

from orchestrator.errors import UsageError
from orchestrator.execution.cluster.capacity import look
from orchestrator.execution.cluster.placement import place
from orchestrator.execution.cluster.session import connected
from orchestrator.execution.sampling.baseline import draw_samples
from orchestrator.execution.signals import Stop
from orchestrator.frontier.problems import exact_problem
from orchestrator.frontier.sampled import Samples, arranged, calibrated, mixture_rewards, preview_document
from orchestrator.plan import Plan, base_config, constrained_trial
from orchestrator.results.sample_cache import SampleCache
from orchestrator.results.schema import prompts_of, samples_of
from orchestrator.spec import RewardConstraint, SweepSpec, ThresholdRange
from trainers.config import BaselineStatistics, TrialConfig

MIXTURE_SAMPLES = 20_000
"""Of a mixture, which are drawn in a moment."""
FEW_TO_CALIBRATE = 200
"""Samples below which known moments are of no use: so few can hardly be reweighted to meet them."""


def previewed(spec: SweepSpec, plan: Plan) -> list[TrialConfig]:
    """Return the constrained trials that a preview looks at: those of the plan, and of ranges ends and middle."""
    planned = [trial.config for trial in plan.trials if trial.config.method == "constrained"]
    ranges = {
        c.label: c.at_least
        for c in spec.constraints
        if isinstance(c, RewardConstraint) and isinstance(c.at_least, ThresholdRange)
    }
    if not ranges:
        return planned
    base = base_config(spec)
    points: list[Sequence[float]] = [(0.5,) * len(ranges), *itertools.product((0.0, 1.0), repeat=len(ranges))]
    return planned + [
        constrained_trial(
            base,
            {
                name: ends.low + share * (ends.high - ends.low)
                for (name, ends), share in zip(ranges.items(), point, strict=True)
            },
            seed=0,
        ).config
        for point in points
    ]


def preview_of_samples(
    configs: Sequence[TrialConfig], baseline: BaselineStatistics, table: pa.Table | None
) -> dict[str, Any]:
    """Return the document of ``cdsweep preview``.

    Args:
        configs: See ``previewed``.
        baseline: What thresholds refer to.
        table: Samples of the pretrained model; None draws from the mixture, whose rewards are known.
    """
    config = configs[0]
    if table is None:
        return preview_document(configs, baseline, _of_mixture(config, baseline, MIXTURE_SAMPLES))
    drawn = arranged(config, samples_of(table, "train"), prompts_of(table, "train"))
    return preview_document(configs, baseline, drawn)


def preview_spec(
    spec: SweepSpec,
    plan: Plan,
    *,
    samples: int | None,
    address: str | None,
    console: Console,
    fresh: bool = False,
) -> dict[str, Any]:
    """Preview a sweep that has not been started; samples of pipelines are kept for it, and drawn anew if ``fresh``.

    Raises:
        UsageError: a composition of networks, in which nothing is trained.
        SpecError: model or rewards cannot be used; says why.
    """
    config = base_config(spec)
    if samples is not None:
        evaluation = config.evaluation.model_copy(update={"baseline_images": samples})
        config = config.model_copy(update={"evaluation": evaluation})
    if config.model.composition is not None:
        raise UsageError(
            "a composition trains nothing: its sweep is its own preview, start it with cdsweep run"
        )
    configs = previewed(spec, plan)
    if not configs:
        raise UsageError("there is nothing to preview: no method of this spec has thresholds")
    if (exact := exact_problem(config)) is not None:
        baseline = exact.baseline()
        return preview_document(configs, baseline, _of_mixture(config, baseline, samples or MIXTURE_SAMPLES))
    stop = Stop(partial(console.print, soft_wrap=True))
    with stop.listening(), connected(address):
        placement = place(plan.resources, look(), 1)
        found = draw_samples(
            config, plan.resources, SampleCache(spec.storage), placement, console, fresh=fresh
        )
    try:
        return preview_of_samples(configs, BaselineStatistics.model_validate(found.baseline), found.table)
    except ValueError as error:
        raise UsageError(f"{error}; --samples takes more") from error


def _of_mixture(config: TrialConfig, baseline: BaselineStatistics, count: int) -> Samples:
    """Return samples of a mixture; its known moments are a control variate."""
    known = [baseline.rewards[reward.name] for reward in config.rewards]
    drawn = arranged(config, mixture_rewards(config.model.exact, config.rewards, count), None)
    if count < FEW_TO_CALIBRATE:
        return drawn
    return calibrated(drawn, [k.mean for k in known], [k.std for k in known])
