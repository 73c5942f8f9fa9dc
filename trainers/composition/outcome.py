"""What a composition came to."""

from collections.abc import Sequence

import numpy as np

from trainers.composition.measure import Measured
from trainers.composition.state import Ascent
from trainers.composition.terms import Terms
from trainers.estimates import Estimate, intervals
from trainers.types import Evaluation, FloatArray, Status, TrialOutcome

_FEW = 200
"""Effective samples below which an outcome says so."""


def outcome(
    terms: Terms,
    state: Ascent,
    weights: FloatArray,
    tilt: FloatArray,
    measured: Measured,
    estimator: str,
    status: Status,
    error: str | None,
) -> TrialOutcome:
    """Collect what the trial came to.

    Args:
        terms: Of the job.
        state: At the end.
        weights: That were evaluated, ``[m]``.
        tilt: Multipliers of rewards that were evaluated, ``[R]``.
        measured: The evaluation.
        estimator: Of its KLs.
        status: What came of the search.
        error: Why, or None if it succeeded.
    """
    config = terms.job.config
    degrees = measured.degrees
    kls = intervals(terms.names, measured.kl, measured.kl_error, degrees)
    feasible = all(
        terms.job.thresholds[c.name] - mean + Estimate(mean=mean, error=error, degrees=degrees).margin()
        <= config.evaluation.allowance(
            c.kind, bound=terms.job.thresholds[c.name], std=terms.job.baseline.rewards[c.target].std
        )
        for c in config.constraints
        for name, mean, error in zip(
            terms.rewards, measured.rewards.tolist(), measured.reward_error.tolist(), strict=True
        )
        if name == c.target
    )
    return TrialOutcome(
        status=status,
        error=error,
        feasible=feasible,
        kl=kls[terms.names[int(np.argmax(measured.kl))]],
        kl_estimator=estimator,
        rewards=intervals(terms.rewards, measured.rewards, measured.reward_error, degrees),
        violations=terms.violations(measured.rewards),
        multipliers=terms.multipliers(weights, tilt),
        weights=dict(config.weights),
        steps=state.step,
        wall_seconds=state.seconds,
        evaluation=evaluated(measured, terms.rewards, config.evaluation.seed),
        constituents=kls,
        sampler=terms.composition.sampler if terms.composition.direction == "reverse" else "exact",
        acceptance=measured.acceptance,
        effective_samples=measured.effective_samples,
        network_evaluations=measured.evaluations,
        notes=_notes(terms, measured),
        history=tuple(state.history),
    )


def evaluated(measured: Measured, names: Sequence[str], seed: int) -> Evaluation:
    """Return one row per sample; networks know prompts, noise and pictures of theirs.

    Args:
        measured: Of the evaluation.
        names: Of its rewards, ``[R]``.
        seed: Of the evaluation.
    """
    rewards = dict(zip(names, measured.scores, strict=True))
    drawn, count, farthest = measured.samples, measured.scores.shape[1], int(np.argmax(measured.kl))
    kl = np.full(count, np.nan)
    log_ratio = None if measured.log_ratio is None else measured.log_ratio[farthest]
    if drawn is None:
        seeds = seed + np.arange(count, dtype=np.int64)
        return Evaluation(kl=kl, log_ratio=log_ratio, rewards=rewards, seeds=seeds)
    return Evaluation(
        kl=kl if drawn.kl is None else drawn.kl[farthest],
        log_ratio=log_ratio,
        rewards=rewards,
        seeds=drawn.seeds,
        prompts=drawn.prompts,
        images=drawn.images,
    )


def _notes(terms: Terms, measured: Measured) -> tuple[str, ...]:
    notes = []
    if not terms.composition.networks and (terms.composition.direction, terms.composition.sampler) == (
        "reverse",
        "score",
    ):
        notes.append(
            "objective.sampler: score does not correct its samples: rewards are theirs, while KLs are "
            "E[log product − log model] over them, too small by KL(samples‖product); fkc has neither error"
        )
    if (few := _few(terms, measured)) is not None:
        notes.append(few)
    return tuple(notes)


def _few(terms: Terms, measured: Measured) -> str | None:
    count = measured.scores.shape[1] if measured.samples is not None else _FEW
    if measured.effective_samples >= min(_FEW, 0.25 * count):
        return None
    what = "the models" if not np.isfinite(terms.bounds).any() else "the thresholds"
    advice = "raise evaluation.images and training.batch_per_worker"
    if measured.samples is not None:
        advice += ", or take the uncorrected objective.sampler: score"
    return (
        f"only {measured.effective_samples:.0f} effective samples: {what} lie in the tail of the composition, and "
        f"figures are rough; {advice}"
    )
