"""What one residual for a whole box of thresholds answers at some of them, on the same noise."""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np

from trainers.alignment.state import Candidate, TrainState
from trainers.config import TrialJob
from trainers.duality.box import moved
from trainers.duality.lagrangian import KL
from trainers.evaluate import estimate, evaluate, feasible, mean_interval
from trainers.models.base import Conditional, Policy
from trainers.types import Answer, Evaluation, FloatArray
from trainers.workers.collective import Collective


def policy_at(state: TrainState, candidate: Candidate, thresholds: FloatArray) -> Policy:
    """Return the policy of a state that answers thresholds ``[m]``: at the tilt of the multipliers there."""
    frontier = state.setup.frontier
    assert frontier is not None, "thresholds move"
    assert candidate.multipliers is not None, "the state has multipliers of its own"
    found = frontier.coefficients(np.array(candidate.multipliers), thresholds[None])
    return cast("Conditional", state.setup.policy).at(frontier.tilts(found, 1)[0])


def answers(
    job: TrialJob, state: TrainState, collective: Collective, candidate: Candidate, first: Evaluation
) -> tuple[Answer, ...]:
    """Evaluate a state at a design of thresholds.

    Every point has the noise of every evaluation, so that differences between points are far better known than the
    points themselves.

    Args:
        job: Of the trial.
        state: Of its end.
        collective: The workers.
        candidate: What is evaluated.
        first: Evaluation at the loosest thresholds, the first of the design.
    """
    frontier, asked = state.setup.frontier, job.config.evaluation
    if frontier is None or job.config.frontier is None:
        return ()
    found = []
    for place, thresholds in enumerate(frontier.design(job.config.frontier.points)):
        evaluation = first
        if place:
            with state.using(candidate.parameters):
                evaluation = evaluate(
                    policy_at(state, candidate, thresholds),
                    state.setup.scored,
                    samples=asked.images,
                    seed=asked.seed,
                    collective=collective,
                    batch=asked.batch,
                )
        found.append(_answer(state, candidate, thresholds, evaluation, first.reference))
    return tuple(found)


def _answer(
    state: TrainState,
    candidate: Candidate,
    thresholds: FloatArray,
    evaluation: Evaluation,
    reference: Mapping[str, FloatArray] | None,
) -> Answer:
    """Return what an evaluation at thresholds ``[m]`` says."""
    frontier = state.setup.frontier
    assert frontier is not None, "thresholds move"
    there = moved(frontier.lagrangian, thresholds)
    evaluation = replace(evaluation, reference=reference)
    means = {name: estimate(evaluation, name).mean for name in (KL, *evaluation.rewards)}
    multipliers = frontier.box.at(np.array(candidate.multipliers), thresholds[None])[0]
    return Answer(
        thresholds={c.name: c.bound for c in there.constraints},
        multipliers=there.prices(multipliers),
        kl=mean_interval(evaluation, KL),
        rewards={name: mean_interval(evaluation, name) for name in evaluation.rewards},
        violations=there.violations(means),
        feasible=feasible(evaluation, there.constraints),
    )
