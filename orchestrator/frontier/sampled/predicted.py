"""The least KL as samples tell it where no closed form does: samples of the pretrained model, and of trials.

It answers the same question as ``ExactProblem``, with noise. Of trials only those join that are
the tilt of their multipliers (``reweighting``); chains of few steps and small adapters often are not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.frontier.comparison.priced import reward_prices
from orchestrator.frontier.problems.least import Kind, LeastKL, Optimum
from orchestrator.frontier.sampled.dual import SampledDual
from orchestrator.frontier.sampled.forecast import preview_document
from orchestrator.frontier.sampled.reweighting import JOINED, TrialSamples, joined_samples
from orchestrator.frontier.sampled.samples import Samples
from orchestrator.frontier.sampled.tilted import REACHABLE, TiltedSamples
from orchestrator.frontier.trials import Trials, real, spread
from trainers.config import BaselineStatistics, TrialConfig

FloatArray = NDArray[np.float64]

MOST_TRIALS = 24
"""Trials whose samples are asked to join; more teach little, and the time grows with their square."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedProblem(LeastKL):
    """What samples say of the least KL."""

    kind: ClassVar[Kind] = "estimated"
    word: ClassVar[str] = "predicted least KL"
    known: ClassVar[str] = "that samples of the pretrained model predict"

    samples: Samples
    """Weighed as samples of the pretrained model."""
    names: tuple[str, ...]
    """Of the rewards ``[m]``."""
    scale: FloatArray
    """``[m]``, σ of the rewards, reward units."""
    joined: tuple[str, ...] = ()
    """Trials whose samples are among them."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Trials whose samples were looked at and are not, with the reason."""

    @cached_property
    def _tilted(self) -> TiltedSamples:
        return TiltedSamples(self.samples, self.scale)

    def least_kl(self, thresholds: Mapping[str, float]) -> Optimum:
        """The least KL of any policy with ``E[r] >= thresholds``, over the prompts of the samples.

        Args:
            thresholds: By reward name, reward units; a reward that is absent is free.

        Returns:
            The optimum; not reachable where too few samples carry the estimate.
        """
        tilted = self._tilted
        row = np.array([thresholds.get(name, np.nan) for name in self.names])
        tilt, value, inside = SampledDual(tilted, row).maximised(tilted.corrected)
        reachable = inside and tilted.verdict(tilt) == REACHABLE
        here = tilted.corrected(tilted.block_sums(tilt, np.arange(len(tilt))))
        prices = dict(zip(self.names, (tilt / tilted.scale).tolist(), strict=True))
        means = tilted.center + tilted.scale * here.gradient
        return Optimum(
            reachable=reachable,
            kl=max(value, 0.0) if reachable else math.inf,
            rewards=dict(zip(self.names, means.tolist(), strict=True)),
            multipliers={name: prices[name] for name in thresholds},
            tilt=prices,
        )

    @property
    def renewed(self) -> bool:
        """Whether samples of trials have joined those of the pretrained model."""
        return bool(self.joined)

    def forecast(self, configs: Sequence[TrialConfig], baseline: BaselineStatistics) -> dict[str, Any] | None:
        """Return the document of the preview from all samples that there are now; None without thresholds."""
        if not configs:
            return None
        return {
            **preview_document(configs, baseline, self.samples),
            "joined": list(self.joined),
            "left_out": dict(self.left_out),
        }


def predicted_problem(
    config: TrialConfig,
    baseline: BaselineStatistics,
    pretrained: pa.Table,
    trials: Trials | None = None,
    evaluations: Mapping[str, pa.Table] | None = None,
    replicates: int = 0,
) -> PredictedProblem:
    """Weigh samples of the pretrained model, and of finished trials, on the prompts of the evaluation.

    Args:
        config: Any trial of the sweep.
        baseline: σ of the rewards.
        pretrained: Its samples on the evaluation's prompts: ``prompt`` and ``reward_NAME``.
        trials: Those that may join.
        evaluations: Rows of ``evaluations/*.parquet`` by trial id.
        replicates: Of the bootstrap; none are needed without intervals.

    Raises:
        ValueError: Too few samples of a prompt.
    """
    names = tuple(reward.name for reward in config.rewards)
    numbers = {
        prompt: number for number, prompt in enumerate(dict.fromkeys(pretrained["prompt"].to_pylist()))
    }
    found: dict[str, TrialSamples] = {}
    if trials is not None and evaluations:
        for row, tilt in zip(trials.ids.tolist(), _tilts(trials), strict=True):
            drawn = evaluations.get(row)
            if drawn is None or not np.isfinite(tilt).all():
                continue
            known = drawn.filter(pc.is_in(drawn["prompt"], pretrained["prompt"].combine_chunks()))
            if known.num_rows:
                found[row] = TrialSamples(
                    rewards=_rewards(known, config),
                    multipliers=np.maximum(tilt, 0.0),
                    prompts=np.array([numbers[prompt] for prompt in known["prompt"].to_pylist()]),
                )
    samples, checks = joined_samples(
        _rewards(pretrained, config),
        list(found.values()),
        np.array([numbers[prompt] for prompt in pretrained["prompt"].to_pylist()]),
        replicates=replicates,
    )
    standings = dict(zip(found, (check.standing for check in checks), strict=True))
    return PredictedProblem(
        samples=samples,
        names=names,
        scale=np.array([baseline.rewards[name].std for name in names]),
        joined=tuple(name for name, standing in standings.items() if standing == JOINED),
        left_out={name: standing for name, standing in standings.items() if standing != JOINED},
    )


def may_join(trials: Trials) -> Trials:
    """Return the trials to be asked: all that succeeded, or an even sample of them by KL."""
    ran = trials.take(trials.succeeded)
    order = np.lexsort((ran.ids.astype(str), ran.kl.mean))
    return ran.take(order[spread(len(order), MOST_TRIALS)])


def _tilts(trials: Trials) -> FloatArray:
    """λ of every trial ``[t, m]``, nats per reward unit: multipliers that were found, or fixed weights."""
    weighted = trials.methods == "weighted"
    weights = np.column_stack([np.nan_to_num(trials.weights[name]) for name in trials.rewards])
    prices = reward_prices(trials.multipliers, trials.config, list(trials.rewards))
    return np.where(weighted[:, None], weights, prices)


def _rewards(table: pa.Table, config: TrialConfig) -> FloatArray:
    return np.column_stack([real(table, f"reward_{reward.name}") for reward in config.rewards])
