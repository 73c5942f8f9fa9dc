"""What a trial solves: a problem that runs itself, held against samples of the pretrained model.

    config -> sample_pretrained -> statistics -> job -> run_trial -> outcome

There are two: ``loop.Alignment`` trains one model, ``composition.trial.Composition`` weighs several.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from trainers.config import BaselineStatistics, MeanStatistics, RewardStatistics, TrialConfig, TrialJob
from trainers.evaluate import diversities, diversity, mean_interval
from trainers.hosts.alone import Host
from trainers.loop import Alignment
from trainers.trial_io import TrialIO
from trainers.types import DEPLOYED, Evaluation, FloatArray, TrialOutcome
from trainers.workers.collective import Collective, Shard


class Problem(Protocol):
    """What a kind of trial is made of."""

    def __init__(self, job: TrialJob, io: TrialIO, host: Host | None = None) -> None:
        """Set everything up, at ``io``'s checkpoint if it has one.

        Args:
            job: The trial.
            io: Its port.
            host: Where it computes beside others, or split among workers; by default alone.

        Raises:
            ValueError: the config names something unknown, does not fit together, or has nothing for a host.
        """

    @staticmethod
    def pretrained(config: TrialConfig, share: Collective | Shard, device: str) -> dict[str, Evaluation]:
        """Return samples of the pretrained model, those of this share; zeros elsewhere.

        The sets ``train`` and ``evaluate``, on the prompts of each; a problem may add others, such as ``DEPLOYED``.

        Raises:
            ValueError: model or rewards cannot be used; says why.
        """

    def run(self) -> TrialOutcome:
        """Solve, evaluate and return what the trial came to, on every worker."""


def run_trial(job: TrialJob, io: TrialIO, host: Host | None = None) -> TrialOutcome:
    """Run a trial; continues from ``io``'s checkpoint if it has one.

    Args:
        job: The trial.
        io: Its port.
        host: Where others compute beside it; by default it is alone.

    Raises:
        ValueError: the config names something unknown, does not fit together, or has nothing for a host.
    """
    return _kind(job.config)(job, io, host).run()


def sample_pretrained(
    config: TrialConfig, share: Collective | Shard | None = None, device: str = "cpu"
) -> dict[str, Evaluation]:
    """Return ``Problem.pretrained`` of a configuration.

    Raises:
        ValueError: model or rewards cannot be used; says why.
    """
    return _kind(config).pretrained(config, share or Collective(), device)


def statistics(samples: Mapping[str, Evaluation], floor: float | None = None) -> BaselineStatistics:
    """Return what thresholds refer to, from the samples of the pretrained model, and the floor of the KL."""
    drawn, held_out = samples["train"], samples["evaluate"]
    spreads, speed = diversities(held_out), held_out.velocity
    measured = {name: values for name, values in held_out.rewards.items() if name not in drawn.rewards}
    return BaselineStatistics(
        rewards={name: _statistics(values) for name, values in drawn.rewards.items()},
        measured={
            name: _statistics(values)
            for name, values in measured.items()
            if np.isfinite(values).sum() > 1 and np.nanstd(values) > 0
        },
        samples=len(drawn.kl),
        diversity=diversity(held_out),
        diversity_std=float(np.std(spreads, ddof=1)) if len(spreads) > 1 else None,
        velocity=_statistics(speed) if speed is not None and len(speed) > 1 and speed.std() > 0 else None,
        kl_floor=floor,
        versions={**held_out.versions, **drawn.versions},
        deployed={} if (used := samples.get(DEPLOYED)) is None else _means(used),
    )


def _means(drawn: Evaluation) -> dict[str, MeanStatistics]:
    """Return the mean of every reward with its interval."""
    found = {name: mean_interval(drawn, name) for name in drawn.rewards}
    return {
        name: MeanStatistics(
            mean=each.mean,
            low=each.low if np.isfinite(each.low) else None,
            high=each.high if np.isfinite(each.high) else None,
        )
        for name, each in found.items()
        if np.isfinite(each.mean)
    }


def _statistics(values: FloatArray) -> RewardStatistics:
    """Return what is known of a reward by its scores ``[n]``, without those that are missing."""
    return RewardStatistics(mean=float(np.nanmean(values)), std=float(np.nanstd(values, ddof=1)))


def _kind(config: TrialConfig) -> type[Problem]:
    """Return the problem that a configuration describes."""
    if config.model.composition is None:
        return Alignment
    # Here, because diffusers takes seconds to import and the training of a mixture needs none of it.
    from trainers.composition.trial import Composition  # noqa: PLC0415

    return Composition
