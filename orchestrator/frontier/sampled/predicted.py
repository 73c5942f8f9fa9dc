"""The least KL as samples tell it where no closed form does: samples of the pretrained model, and of trials.

It answers the same question as ``ExactProblem``, with noise. Samples of a trial join by the density ratios of their
paths (``reweighting``), whatever its training reached; those that were stored without stay out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.frontier.paths.gaps import CertifiedGap, Gaps
from orchestrator.frontier.paths.sources import PathSamples
from orchestrator.frontier.problems.least import BoundKind, Documents, Kind, LeastKL, Optimum
from orchestrator.frontier.sampled.dual import SampledDual
from orchestrator.frontier.sampled.forecast import asked, preview_document, threshold_row
from orchestrator.frontier.sampled.preview import supported
from orchestrator.frontier.sampled.reweighting import Reweighting, settled
from orchestrator.frontier.sampled.samples import Samples
from orchestrator.frontier.sampled.tilted import BEYOND, REACHABLE, TiltedSamples
from orchestrator.frontier.trials import Trials, real, spread
from trainers.config import BaselineStatistics, TrialConfig
from trainers.estimates import over_all_prompts, without_gaps

FloatArray = NDArray[np.float64]

MOST_TRIALS = 24
"""Trials whose samples join; more teach little."""
MOST_THRESHOLDS = 32
"""Combinations of thresholds that are certified."""
PRETRAINED = "pretrained"
"""Stands in a mixture for the model before training, at KL 0."""
MOST_PLANES = 12
"""Thresholds whose multipliers bound the least KL at all others, too."""
WITHOUT_RATIO = "stored without log_ratio"
"""Why the samples of a trial stay out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedProblem(LeastKL):
    """What samples say of the least KL."""

    kind: ClassVar[Kind] = "estimated"
    word: ClassVar[str] = "predicted least KL"
    known: ClassVar[str] = "that samples predict"

    sources: tuple[PathSamples, ...]
    """The pretrained model's samples, and those of the trials that joined, in the order of ``joined``."""
    names: tuple[str, ...]
    """Of the rewards ``[m]``."""
    scale: FloatArray
    """``[m]``, σ of the rewards, reward units."""
    joined: tuple[str, ...] = ()
    """Trials whose samples are among them."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Trials whose samples were looked at and are not, with the reason."""
    replicates: int = 0
    """Of the bootstrap; none are needed without intervals."""

    @cached_property
    def samples(self) -> Reweighting:
        """Of all sources, to be weighed."""
        return Reweighting(self.sources, replicates=self.replicates)

    @cached_property
    def gaps(self) -> Gaps:
        """What the same samples prove."""

        def predict(row: FloatArray) -> float:
            wanted = zip(self.names, row.tolist(), strict=True)
            return self.least_kl({name: bound for name, bound in wanted if np.isfinite(bound)}).kl

        return Gaps(self.sources, predict=predict)

    def least_kl(self, thresholds: Mapping[str, float]) -> Optimum:
        """The least KL of any policy with ``E[r] >= thresholds``, over the prompts of the samples.

        Args:
            thresholds: By reward name, reward units; a reward that is absent is free.

        Returns:
            The optimum; not reachable where too few samples carry the estimate.
        """
        row = np.array([thresholds.get(name, np.nan) for name in self.names])

        def solved(samples: Samples) -> Optimum:
            tilted = TiltedSamples(samples, self.scale)
            tilt, value, inside = SampledDual(tilted, row).maximised(tilted.corrected)
            verdict = tilted.verdict(tilt)
            reachable = inside and verdict == REACHABLE
            tilt = tilt if inside and verdict != BEYOND else supported(tilted, tilt)
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

        return settled(self.samples, solved, lambda found: np.array(list(found.tilt.values())))

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

    def proven(self, thresholds: Mapping[str, float]) -> tuple[float, BoundKind] | None:
        """Return what the samples prove at 95 %; None where they do not carry a bound."""
        row = np.array([thresholds.get(name, np.nan) for name in self.names])
        found = self.gaps.certifier.certificate(row)
        return (found.lower, "95%") if found.carried else None

    def planes(self, names: Sequence[str], thresholds: FloatArray) -> tuple[FloatArray, FloatArray] | None:
        """Return the dual values at the multipliers of an even sample of the thresholds, as functions of thresholds."""
        order = [self.names.index(name) for name in names]
        kept = thresholds[spread(len(thresholds), MOST_PLANES)]
        slopes, offsets = [], []
        for row in kept:
            whole = np.full(len(self.names), np.nan)
            whole[order] = row
            found = self.gaps.certifier.certificate(whole, confidence=1.0 - 0.05 / len(kept))
            if found.carried:
                slopes.append(found.tilt[order])
                offsets.append(-found.log_partition)
        return (np.array(slopes), np.array(offsets)) if slopes else None

    def certified(self, configs: Sequence[TrialConfig], baseline: BaselineStatistics) -> Documents | None:
        """Return both bounds at the thresholds of trials and the parts of their distance, nats.

        Of very many combinations of thresholds an even sample; None without any, or where the KL is no objective.
        """
        settings = list(asked(configs, baseline).items()) if self.joined else []
        if not settings or settings[0][1].objective.kind != "kl":
            return None
        rows = []
        for place in spread(len(settings), MOST_THRESHOLDS):
            thresholds, config = dict(settings[place][0]), settings[place][1]
            found = self.gaps.at(threshold_row(thresholds, config))
            rows.append({"thresholds": thresholds} | self._told(found))
        return rows

    def _told(self, found: CertifiedGap) -> dict[str, Any]:
        ids = (PRETRAINED, *self.joined)
        shares = np.nan_to_num(found.mixed.probabilities)
        return {
            "lower": found.proof.lower,
            "upper": found.mixed.upper,
            "gap": found.gap,
            "predicted": found.least,
            "mixture_kl": found.mixed.estimate,
            "kind": found.proof.kind,
            "few_trials": found.few_trials,
            "training": found.training,
            "rest": found.rest,
            "largest": found.largest,
            "ess": found.proof.ess,
            "pareto_k": found.proof.pareto_k,
            "reason": found.proof.reason,
            "mixture": [
                {"trial_id": ids[k], "probability": float(shares[k])} for k in np.flatnonzero(shares)
            ],
        }


def predicted_problem(
    config: TrialConfig,
    baseline: BaselineStatistics,
    pretrained: pa.Table,
    evaluations: Mapping[str, pa.Table] | None = None,
    replicates: int = 0,
) -> PredictedProblem:
    """Weigh samples of the pretrained model, and of finished trials, on the prompts of the evaluation.

    Args:
        config: Any trial of the sweep.
        baseline: σ of the rewards.
        pretrained: Its samples on the evaluation's prompts: ``prompt``, ``seed`` and ``reward_NAME``.
        evaluations: Rows of ``evaluations/*.parquet`` by trial id, of those that may join.
        replicates: Of the bootstrap; none are needed without intervals.

    Raises:
        ValueError: Too few samples of a prompt.
    """
    names = tuple(reward.name for reward in config.rewards)
    numbers = {
        prompt: number for number, prompt in enumerate(dict.fromkeys(pretrained["prompt"].to_pylist()))
    }
    joined: dict[str, PathSamples] = {}
    left_out: dict[str, str] = {}
    for name, drawn in (evaluations or {}).items():
        known = drawn.filter(pc.is_in(drawn["prompt"], pretrained["prompt"].combine_chunks()))
        if not known.num_rows:
            continue
        found = path_samples(known, config, numbers)
        if np.isfinite(np.asarray(found.log_ratio)).all():
            joined[name] = found
        else:
            left_out[name] = WITHOUT_RATIO
    own = replace(path_samples(pretrained, config, numbers), log_ratio=None)
    problem = PredictedProblem(
        sources=(own, *joined.values()),
        names=names,
        scale=np.array([baseline.rewards[name].std for name in names]),
        joined=tuple(joined),
        left_out=left_out,
        replicates=replicates,
    )
    problem.samples.shares(None)  # complains of too few samples now, not when it is asked
    return problem


def path_samples(table: pa.Table, config: TrialConfig, numbers: Mapping[str | None, int]) -> PathSamples:
    """Return rows of ``evaluations/*.parquet``, or samples of the pretrained model, as a source.

    Those that a score is missing of are left out.

    Args:
        table: ``prompt``, ``seed``, ``reward_NAME`` and, of a trial, ``log_ratio``: NaN where it has none.
        config: Any trial of the sweep.
        numbers: Of the prompts.
    """
    asked = table["prompt"].to_pylist()
    scores = {reward.name: real(table, f"reward_{reward.name}") for reward in config.rewards}
    # Of a group alike in every source: its share is that of all prompts.
    scores = over_all_prompts(config, scores, asked, known=[prompt for prompt in numbers if prompt])
    kept = without_gaps(list(scores.values()), asked)
    if len(kept):  # or a reward was not measured at all
        table = table.take(pa.array(kept))
        scores = {name: values[kept] for name, values in scores.items()}
    path_kl = real(table, "kl")
    units = table["seed"].to_numpy() if "seed" in table.column_names else None
    if config.model.mixture is not None:  # neighbours share their noise, with opposite sign
        units = np.arange(table.num_rows) // 2
    return PathSamples(
        rewards=np.column_stack(list(scores.values())),
        log_ratio=real(table, "log_ratio"),
        path_kl=path_kl if np.isfinite(path_kl).all() else None,
        prompts=np.array([numbers[prompt] for prompt in table["prompt"].to_pylist()]),
        units=units,
    )


def may_join(trials: Trials) -> Trials:
    """Return the trials to be asked: all that succeeded, or an even sample of them by KL."""
    ran = trials.take(trials.succeeded)
    order = np.lexsort((ran.ids.astype(str), ran.kl.mean))
    return ran.take(order[spread(len(order), MOST_TRIALS)])
