"""What a training came to: the state that stands for it, evaluated, and its adapter."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from trainers.alignment.boxed.answers import answers
from trainers.alignment.boxed.stored import multipliers_file
from trainers.alignment.kl_floor import near_floor
from trainers.alignment.lagrangian import build_lagrangian
from trainers.alignment.pretrained import image_embedder
from trainers.alignment.state import Candidate, TrainState
from trainers.alignment.watch import watched
from trainers.config import BaselineStatistics, TrialJob
from trainers.diffusion.path_kl import ESTIMATOR
from trainers.duality.lagrangian import KL
from trainers.evaluate import (
    diversity,
    estimate,
    evaluate,
    feasible,
    first_feasible,
    mean_interval,
    noise_notes,
)
from trainers.models.build import build_deployed, build_policy
from trainers.rewards.base import build_rewards, missing_notes, must_be_same, versions
from trainers.trial_io import TrialIO
from trainers.types import Evaluation, FloatArray, Interval, Status, TrialOutcome
from trainers.workers.collective import Collective

if TYPE_CHECKING:
    from trainers.alignment.boxed.answering import Reply


def finished(
    job: TrialJob, state: TrainState, io: TrialIO, collective: Collective, verdict: str | None
) -> TrialOutcome:
    """Evaluate a training that ended, or whose thresholds a verdict says are out of reach.

    Raises:
        OutOfMemory: the memory does not hold a single sample.
    """
    status: Status = "succeeded" if verdict is None else "infeasible"
    reference = io.reference()
    replies: tuple[Reply, ...] = ()
    looks: dict[str, bytes] = {}
    if state.setup.frontier is None:
        # Where the end misses a threshold that an earlier state met in training, see if that one meets it held out.
        chosen, evaluation = first_feasible(
            state.candidates(),
            lambda candidate: _evaluated(job, state, reference, collective, candidate),
            state.setup.lagrangian.constraints,
        )
    else:
        chosen = state.last()
        replies, looks = answers(job, state, collective, chosen, reference)
        assert replies[0].answer.evaluation is not None, "it was measured"
        evaluation = replies[0].answer.evaluation
    if chosen.step < state.step:
        state.notes.append(f"the last state missed a threshold; this is the best one, of step {chosen.step}")
    state.notes += missing_notes(state.setup.scored) + noise_notes(evaluation)
    state.notes += watched(evaluation, job.baseline)
    state.notes += _floor_notes(evaluation, job.baseline)
    multipliers = replies[0].multipliers.tolist() if replies else chosen.multipliers
    files = _adapter(state, chosen) | looks
    outcome = _outcome(state, status, verdict, multipliers, evaluation, files)
    return dataclasses.replace(
        outcome,
        deployed=_deployed(job, state, collective, chosen),
        answers=tuple(reply.answer for reply in replies),
    )


def measured(
    job: TrialJob,
    adapter: Mapping[str, bytes],
    *,
    reference: Mapping[str, FloatArray] | None,
    looks: int,
    device: str = "cpu",
) -> TrialOutcome:
    """Evaluate an adapter that is there as that of a trial, on the same prompts and noise, and train nothing.

    Args:
        job: Of the point that it is measured as.
        adapter: Files of a plain LoRA of any ranks.
        reference: Rewards of the pretrained model, where it was sampled before.
        looks: Adapters that may be measured before one is taken; intervals are so much wider.
        device: Where networks compute.

    Raises:
        ValueError: model, adapter or rewards cannot be used; says why.
        OutOfMemory: the memory does not hold a single sample.
    """
    config, began = job.config, time.monotonic()
    policy = build_policy(config, device, adapter=adapter)
    rewards = build_rewards(config.rewards, config.prompts)
    must_be_same(job.baseline.versions, versions(rewards))
    scored = {**rewards, **build_rewards(config.measured, config.prompts)}
    drawn = partial(
        evaluate,
        rewards=scored,
        samples=config.evaluation.images,
        seed=config.evaluation.seed,
        collective=Collective(),
        batch=config.evaluation.batch,
    )
    found = drawn(policy, embedder=image_embedder(config, rewards))
    found = dataclasses.replace(found, reference=reference, looks=looks)
    deployed = build_deployed(config, policy)
    judged = None if deployed is None else drawn(deployed)
    lagrangian = build_lagrangian(job)
    return TrialOutcome(
        status="succeeded",
        error=None,
        feasible=feasible(found, lagrangian.constraints),
        kl=mean_interval(found, KL),
        kl_estimator=ESTIMATOR,
        rewards={name: mean_interval(found, name) for name in found.rewards},
        violations=lagrangian.violations({n: estimate(found, n).mean for n in (KL, *found.rewards)}),
        multipliers={},
        weights={},
        steps=0,
        wall_seconds=time.monotonic() - began,
        evaluation=found,
        deployed={} if judged is None else {n: mean_interval(judged, n) for n in judged.rewards},
        diversity=diversity(found),
        adapter=adapter,
        notes=(
            *found.notes,
            *missing_notes(scored),
            *noise_notes(found),
            *watched(found, job.baseline),
            *_floor_notes(found, job.baseline),
        ),
        history=(),
    )


def _floor_notes(evaluation: Evaluation, baseline: BaselineStatistics) -> list[str]:
    """Say where a KL is near that which rounding alone makes."""
    note = near_floor(float(evaluation.kl.mean()), baseline.kl_floor)
    return [] if note is None else [note]


def failed(state: TrainState, error: str) -> TrialOutcome:
    """Say what there is of a training that failed: history, and the adapter of its best state if it had one."""
    adapter = {} if state.best is None else _adapter(state, state.best)
    if state.best is not None and adapter:
        state.notes.append(f"the adapter is of the best state, step {state.best.step}")
    return _outcome(state, "failed", error, None, None, adapter)


def _evaluated(
    job: TrialJob,
    state: TrainState,
    reference: Mapping[str, FloatArray] | None,
    collective: Collective,
    candidate: Candidate,
) -> Evaluation:
    """Evaluate the policy in this state."""
    setup = state.setup
    with state.using(candidate.parameters):
        evaluation = evaluate(
            setup.policy,
            setup.scored,
            samples=job.config.evaluation.images,
            seed=job.config.evaluation.seed,
            collective=collective,
            embedder=setup.embedder,
            batch=job.config.evaluation.batch,
        )
        state.notes += [note for note in evaluation.notes if note not in state.notes]
        return dataclasses.replace(evaluation, reference=reference)


def _deployed(
    job: TrialJob, state: TrainState, collective: Collective, candidate: Candidate
) -> dict[str, Interval]:
    """Return the rewards of this state under the sampler that will be used; none where that is not asked for."""
    setup, asked = state.setup, job.config.evaluation
    if setup.deployed is None:
        return {}
    with state.using(candidate.parameters):
        found = evaluate(
            setup.deployed,
            setup.scored,
            samples=asked.images,
            seed=asked.seed,
            collective=collective,
            batch=asked.batch,
        )
    return {name: mean_interval(found, name) for name in found.rewards}


def _adapter(state: TrainState, candidate: Candidate) -> dict[str, bytes]:
    """Return the files of the adapter in this state; where thresholds move, with its multipliers."""
    with state.using(candidate.parameters):
        files = state.setup.policy.adapter()
    if state.setup.frontier is not None and candidate.multipliers is not None:
        files |= multipliers_file(state.setup.frontier, np.array(candidate.multipliers))
    return files


def _outcome(
    state: TrainState,
    status: Status,
    error: str | None,
    multipliers: Sequence[float] | None,
    evaluation: Evaluation | None,
    adapter: Mapping[str, bytes],
) -> TrialOutcome:
    """Collect what the trial came to: multipliers ``[m]``, evaluation and adapter of the state that was chosen."""
    lagrangian = state.setup.lagrangian
    means: dict[str, float] = {}
    if evaluation is not None:
        means = {name: estimate(evaluation, name).mean for name in (KL, *evaluation.rewards)}
    return TrialOutcome(
        status=status,
        error=error,
        feasible=None if evaluation is None else feasible(evaluation, lagrangian.constraints),
        kl=None if evaluation is None else mean_interval(evaluation, KL),
        kl_estimator=ESTIMATOR,
        rewards={} if evaluation is None else {n: mean_interval(evaluation, n) for n in evaluation.rewards},
        violations=lagrangian.violations(means) if means else {},
        multipliers={} if multipliers is None else lagrangian.prices(multipliers),
        weights=dict(lagrangian.fixed),
        steps=state.step,
        wall_seconds=state.seconds,
        evaluation=evaluation,
        diversity=None if evaluation is None else diversity(evaluation),
        velocity=None
        if evaluation is None or evaluation.velocity is None
        else float(evaluation.velocity.mean()),
        adapter=adapter,
        notes=tuple(state.notes),
        history=tuple(state.history),
    )
