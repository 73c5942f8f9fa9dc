"""Records that leave the trainers: plain numbers and numpy arrays, no torch, no Ray.

Signs: a violation is ``g = b − E[r]`` (or ``KL − budget``), feasible iff ``g <= 0``.
Units: KL in nats, rewards, thresholds and violations in reward units, multipliers and weights in nats
per reward unit, time in seconds. Dictionaries are keyed by the names of rewards and constraints.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Status = Literal["succeeded", "failed", "infeasible"]
WATCH = "watch"
"""Begins a note about what moved though nothing is trained on it."""
DEPLOYED = "deployed"
"""Set of samples of the pretrained model under the sampler that will be used."""
FloatArray = NDArray[np.float64]
ImageArray = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its two-sided 95 % confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def ends(self) -> list[float | None]:
        """``[mean, low, high]``, None for what is not known."""
        return [float(x) if np.isfinite(x) else None for x in (self.mean, self.low, self.high)]


UNKNOWN = Interval(mean=np.nan, low=np.nan, high=np.nan)


def largest(figures: Iterable[Interval]) -> Interval:
    """Return the one of the largest mean, or ``UNKNOWN`` where one is not known, or there is none."""
    found = list(figures)
    if not found or not all(np.isfinite(one.mean) for one in found):
        return UNKNOWN
    return max(found, key=lambda one: one.mean)


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One logged optimiser step, averaged over all workers and micro-batches."""

    step: int
    """Optimiser steps done, from 1."""
    kl: float
    """Path-wise KL to the pretrained model, nats."""
    lagrangian: float
    """``f + Σ λ g``, nats for a KL objective, σ for a reward."""
    kkt_residual: float
    """Largest of violation, complementary slackness and drift, in σ and nats."""
    learning_rate: float
    seconds: float
    """Since the start of the trial, restarts included."""
    images_per_second: float
    rewards: Mapping[str, float]
    violations: Mapping[str, float]
    multipliers: Mapping[str, float]
    constituents: Mapping[str, float] = field(default_factory=dict)
    """KL to each model of a composition, nats."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One row per evaluation sample, ``n`` rows."""

    kl: FloatArray
    """``[n]``, path-wise, nats."""
    rewards: Mapping[str, FloatArray]
    """``[n]`` each, reward units."""
    seeds: NDArray[np.int64]
    """``[n]``, the number of the noise that the sample was drawn from."""
    log_ratio: FloatArray | None = None
    """``[n]``, nats: log density of the sample's path under what drew it less that under the model that the KL is to,
    ``Σ ½‖u‖² + u·ε``; None where it is known but for a constant, or not at all."""
    prompts: tuple[str, ...] | None = None
    """``[n]``; None where the model has no prompts."""
    paired: bool = False
    """Neighbours share their noise with opposite sign."""
    reference: Mapping[str, FloatArray] | None = None
    """Rewards of the pretrained model on the same noise and prompts, and on more after them, ``[N]``, N >= n;
    None where it was not sampled."""
    embeddings: FloatArray | None = None
    """``[n, d]``, unit CLIP embeddings of images; None where nothing embeds."""
    velocity: FloatArray | None = None
    """``[n]``, root mean square of the velocity along each path, over steps and latents; None where paths have none."""
    images: ImageArray | None = None
    """The first images, ``[shown, h, w, 3]``."""
    noise: Mapping[str, FloatArray] = field(default_factory=dict)
    """Standard errors of the scores of single samples, ``[n]``, of the rewards that know of some; NaN elsewhere."""
    looks: int = 1
    """States judged on this sample, of which this is one: intervals are wide enough to choose between them."""
    notes: tuple[str, ...] = ()
    """What happened on the way that a reader should know, such as a halved batch."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the rewards that servers gave, by name."""
    gaps: frozenset[str] = frozenset()
    """Rewards of which scores may be missing, or that are of a group of prompts: NaN, and in no mean."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an adapter for a whole box of thresholds comes to at some of them, or one for a simplex of weights."""

    thresholds: Mapping[str, float]
    """By constraint, reward units, or nats for a KL."""
    multipliers: Mapping[str, float]
    """The prices at which it answers, nats per reward unit; for a KL constraint, reward units of the objective per
    nat; of a composition the weights of its models."""
    kl: Interval
    """Of a composition the largest one to a model; NaN where one is not known."""
    rewards: Mapping[str, Interval]
    violations: Mapping[str, float]
    """By constraint, units of the quantity; met iff at most 0."""
    feasible: bool
    """Every violation's one-sided 95 % bound is within tolerance."""
    images: int
    """Held-out samples that were drawn for it; fewer than of an evaluation where these and whole evaluations at other
    multipliers, on the same noise, tell as much."""
    constituents: Mapping[str, Interval] = field(default_factory=dict)
    """KL to each model of a composition, nats."""
    retention: Mapping[str, Interval] = field(default_factory=dict)
    """Of each of these models: the share of its improvement over the pretrained model that is kept."""
    evaluation: Evaluation | None = field(default=None, compare=False, repr=False)
    """Those samples, at the same noise and prompts for all answers; None of one that is only told."""


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """What a trial came to. Ran (``status``) and ``feasible`` are two things."""

    status: Status
    error: str | None
    """Why it failed or is infeasible, with the evidence; None if it succeeded."""
    feasible: bool | None
    """Every violation's one-sided 95 % bound is within tolerance; None without an evaluation."""
    kl: Interval | None
    kl_estimator: str
    rewards: Mapping[str, Interval]
    violations: Mapping[str, float]
    multipliers: Mapping[str, float]
    """Of the state that was evaluated, time-averaged as its parameters were, nats per reward unit; for a KL constraint,
    reward units of the objective per nat. Empty where that state has none of its own: it was best long before the
    multipliers had settled, or nothing was evaluated."""
    weights: Mapping[str, float]
    """Fixed weights of a weighted trial, nats per reward unit."""
    steps: int
    wall_seconds: float
    """Over all attempts."""
    evaluation: Evaluation | None
    constituents: Mapping[str, Interval] = field(default_factory=dict)
    """KL to each model of a composition, in the direction of its problem, nats."""
    sampler: str | None = None
    """Of a composition."""
    acceptance: float | None = None
    """Mean probability of acceptance of the sampler's proposals; None without Metropolis."""
    effective_samples: float | None = None
    """Of the evaluation of a composition: as many independent ones would say as much."""
    network_evaluations: float | None = None
    """Scores per sample, summed over the models of a composition."""
    retention: Mapping[str, Interval] = field(default_factory=dict)
    """Of each model of a composition: the share of its improvement over the pretrained model that is kept,
    1 for sampling the model alone; the least over its rewards."""
    pointwise: Mapping[str, Interval] = field(default_factory=dict)
    """Point-wise KL to each model of a composition of networks, by scores, nats."""
    distilled: Mapping[str, Interval] = field(default_factory=dict)
    """Of the adapter that a composition was distilled into: its KLs and rewards, ``kl_NAME`` and ``reward_NAME``."""
    deployed: Mapping[str, Interval] = field(default_factory=dict)
    """Rewards under the sampler that will be used; empty where that was not asked for."""
    diversity: float | None = None
    """Variance of CLIP embeddings within a prompt; None where nothing embeds."""
    velocity: float | None = None
    """Mean root mean square of the velocity along paths; None where they have none."""
    adapter: Mapping[str, bytes] = field(default_factory=dict)
    """Files of what was trained, in the diffusers LoRA format; none for a mixture."""
    answers: tuple[Answer, ...] = ()
    """Of an adapter for a whole box of thresholds, on the same noise; the first, at the loosest ones, is what stands
    above. Of one for all weights of a composition, the first at those that were found. Empty for all others."""
    notes: tuple[str, ...] = ()
    """What happened on the way that a reader should know, such as a halved batch."""
    history: tuple[StepRecord, ...]
    """Every logged step, those before a restart included."""
