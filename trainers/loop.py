"""One trial: primal-dual training of a diffusion policy under constraints.

    job -> setup -> [ primal step -> dual step -> averages -> watch ]* -> evaluation -> outcome

Symbols: ``θ`` the trainable residual, ``λ`` multipliers, ``g`` violations (met iff ``g <= 0``), ``f`` the
objective, ``L(θ, λ) = f(θ) + Σ λ_i g_i(θ)``. Source: Khalafi et al. 2025 (arXiv 2508.19104), algorithm 1. What
differs: KL in nats on the sampler's own steps, λ updated once per optimiser step at most from violations
averaged over all workers and micro-batches, paired with a reference rollout on the same noise, and rates that
fall to zero once the KKT residual is within tolerance.
"""

import dataclasses
import math
import time
from collections.abc import Mapping

import numpy as np
import torch

from trainers.alignment.backward import backward
from trainers.alignment.kl_floor import near_floor
from trainers.alignment.setup import build_setup
from trainers.alignment.state import Candidate, TrainState
from trainers.composition.trial import run_composition
from trainers.config import TrialJob
from trainers.diffusion.path_kl import ESTIMATOR
from trainers.duality.constraint import scaled_violations
from trainers.duality.covariance import RewardCovariance
from trainers.duality.lagrangian import KL
from trainers.duality.reach import least_violation
from trainers.evaluate import diversity, estimate, evaluate, feasible, first_feasible, mean_interval
from trainers.failures import Diverged, OutOfMemory
from trainers.trial_io import TrialIO
from trainers.types import Evaluation, FloatArray, Status, StepRecord, TrialOutcome
from trainers.workers.collective import Collective

_RATE_FLOOR = 0.02
_DUAL_RATE_FLOOR = 0.1
_EXPLODED_KL = 1.0e4
_MOST_SKIPPED = 20
"""Steps in a row whose float16 gradient may overflow: each halves the scale, 2^16 at first, so it fits by then."""
_MANY_SKIPPED = 0.1
"""Share of skipped steps from which an outcome says so."""


def run_trial(job: TrialJob, io: TrialIO) -> TrialOutcome:
    """Train, evaluate and return what the trial came to; continues from ``io``'s checkpoint if it has one.

    Raises:
        ValueError: the config names something unknown.
    """
    if job.config.model.composition is not None:
        return run_composition(job, io)
    collective = Collective(io.rank, io.world_size, io.device)
    if (micro := job.config.training.accumulation * job.config.workers) % io.world_size:
        raise ValueError(f"{io.world_size} workers cannot share {micro} micro-batches evenly")
    setup, files = build_setup(job, io.device), io.restore()
    if files is None and (adapter := io.initial()) is not None:
        setup.policy.load_adapter(adapter)
    state = TrainState.start(setup, job.config.training)
    if files is not None:
        state.unpack(files, collective)
    try:
        return _trained(job, state, io, collective)
    except (Diverged, OutOfMemory) as error:
        return _outcome(state, "failed", str(error), None, None, _last_good_adapter(state))


def _trained(job: TrialJob, state: TrainState, io: TrialIO, collective: Collective) -> TrialOutcome:
    """Train and evaluate.

    Raises:
        Diverged: the training did.
        OutOfMemory: the memory does not hold the least that can be computed at a time.
    """
    verdict = train(job, state, io, collective)
    status: Status = "succeeded" if verdict is None else "infeasible"
    reference = io.reference()
    # Where the end misses a threshold that an earlier state met in training, see whether that one meets it held out.
    chosen, evaluation = first_feasible(
        state.candidates(),
        lambda candidate: _evaluated(job, state, reference, collective, candidate),
        state.setup.lagrangian.constraints,
    )
    if chosen.step < state.step:
        state.notes.append(f"the last state missed a threshold; this is the best one, of step {chosen.step}")
    if (note := near_floor(float(evaluation.kl.mean()), job.baseline.kl_floor)) is not None:
        state.notes.append(note)
    return _outcome(state, status, verdict, chosen, evaluation, _adapter(state, chosen))


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
            setup.rewards,
            samples=job.config.evaluation.images,
            seed=job.config.evaluation.seed,
            collective=collective,
            embedder=setup.embedder,
            batch=job.config.evaluation.batch,
        )
        state.notes += [note for note in evaluation.notes if note not in state.notes]
        return dataclasses.replace(evaluation, reference=reference)


def _adapter(state: TrainState, candidate: Candidate) -> dict[str, bytes]:
    """Return the files of the adapter in this state."""
    with state.using(candidate.parameters):
        return state.setup.policy.adapter()


def _last_good_adapter(state: TrainState) -> dict[str, bytes]:
    """Return the adapter of the best state of a trial that failed; none if it never met its thresholds."""
    if state.best is None:
        return {}
    if files := _adapter(state, state.best):
        state.notes.append(f"the adapter is of the best state, step {state.best.step}")
    return files


def train(job: TrialJob, state: TrainState, io: TrialIO, collective: Collective) -> str | None:
    """Run the primal-dual iteration to its end; returns why it was stopped early, or None.

    Raises:
        Diverged: NaN, explosion, or no step with a finite gradient; the last checkpoint stays.
        OutOfMemory: half a micro-batch does not fit either.
    """
    config, setup = job.config, state.setup
    training, duals = config.training, config.duals
    annealing = math.ceil(training.anneal * training.steps)
    averaging = math.ceil(training.average * training.steps)
    before, began = state.seconds, time.monotonic()

    while (fraction := _anneal_fraction(state, training.steps, annealing)) < 1.0:
        falling = 0.5 * (1.0 + math.cos(math.pi * fraction))
        for group in state.optimizer.param_groups:
            group["lr"] = training.learning_rate * max(falling, _RATE_FLOOR)

        # 1. Primal: one optimiser step on ∇_θ L(θ, λ), averaged over micro-batches and workers.
        means, covariance = _primal_step(job, state, collective)

        # 2. Dual: λ ← [λ + η g]₊ on the averaged violations. A weighted trial has none to move.
        weighted = config.method == "weighted"
        violations = np.zeros(0) if weighted else scaled_violations(setup.lagrangian.constraints, means)
        state.violations = violations.tolist()
        if (state.step + 1) % duals.steps_between == 0:
            setup.dual.step(violations, max(falling, _DUAL_RATE_FLOOR))

        # 3. Averages of θ and λ over the last steps.
        state.step += 1
        if state.anneal_from is not None and state.step > state.anneal_from + annealing - averaging:
            state.average(setup.dual.multipliers)

        # 4. Watch: log, look for the end, save.
        lagrangian = setup.lagrangian.value(means, setup.dual.multipliers)
        setup.monitor.observe(means[KL], violations, setup.dual.multipliers, covariance, lagrangian)
        state.pending.append(means)
        state.seconds = before + time.monotonic() - began
        last = _anneal_fraction(state, training.steps, annealing) >= 1.0
        if state.step % config.evaluation.every == 0 or last:
            _log(job, state, io)
            state.keep_if_best()
        if state.anneal_from is None:
            if (evidence := _out_of_reach(job, state)) is not None:
                _log(job, state, io)
                return evidence
            if setup.monitor.converged() or state.step >= training.steps - annealing:
                state.anneal_from = min(state.step, training.steps - annealing)
        if state.step % training.checkpoint_every == 0 and not last:
            io.save(state.step, state.pack(collective), state.history)
    _tell_skipped(state)
    return None


def _tell_skipped(state: TrainState) -> None:
    """Note how many steps changed nothing, where they are many.

    Raises:
        Diverged: all of them.
    """
    if state.skipped == state.step:
        raise _overflowed(state.step, state.step)
    if state.skipped > _MANY_SKIPPED * state.step:
        state.notes.append(
            f"{state.skipped} of {state.step} steps changed nothing, their gradient overflowed float16; "
            "training.precision bf16 or fp32 does not overflow"
        )


def _overflowed(step: int, row: int) -> Diverged:
    """Say that the last ``row`` steps to ``step`` changed nothing."""
    return Diverged(
        f"diverged at step {step}: the gradient of the last {row} steps was not finite in float16 however small its "
        "scale, so they changed nothing. Set training.precision: bf16 or fp32; if it is not finite there either, a "
        "reward's gradient is the cause."
    )


def _anneal_fraction(state: TrainState, steps: int, annealing: int) -> float:
    """Return how far the rates have fallen: 0 while constant, 1 at the end."""
    start = steps - annealing if state.anneal_from is None else state.anneal_from
    return max(0, state.step - start) / annealing


def _primal_step(
    job: TrialJob, state: TrainState, collective: Collective
) -> tuple[dict[str, float], RewardCovariance]:
    """Take one optimiser step on micro-batches of all workers.

    Returns:
        KL and rewards, averaged; with paired duals a reward's mean is that of ``r_θ − r_ref`` on the same noise
        plus the reference's mean. And the covariance of the rewards.
    """
    config, setup = job.config, state.setup
    training = config.training
    last = None if state.violations is None else np.array(state.violations)
    coefficients = setup.lagrangian.coefficients(setup.dual.effective(last))
    # An optimiser step is accumulation × workers micro-batches, however many workers there are to share them.
    batch = training.batch_per_worker * config.workers
    mine = range(collective.rank, training.accumulation * config.workers, collective.world_size)

    state.optimizer.zero_grad(set_to_none=True)
    count = len(setup.rewards)
    sums = torch.zeros(1 + count, dtype=torch.float64)
    moments = torch.zeros(1 + count, 1 + count, dtype=torch.float64)
    for number in mine:
        micro, part = divmod(number, config.workers)
        seed = _noise_seed(config.seed, state.step, micro)
        first = part * training.batch_per_worker
        draw = setup.policy.draw(batch, seed, first=first, last=first + training.batch_per_worker)
        measured = backward(job, state, collective, coefficients, draw, len(mine))
        scores = measured.rewards
        centred = [scores[name].double() - setup.reference_means[name] for name in setup.rewards]
        ones = torch.ones(len(draw), dtype=torch.float64)
        rows = torch.stack([ones, *(c.cpu() for c in centred)])  # [1 + R, batch]
        moments += rows @ rows.T / len(draw)
        if config.duals.paired:
            scores = {
                name: scores[name] - measured.reference[name] + setup.reference_means[name]
                for name in setup.rewards
            }
        sums += torch.stack([value.double().mean().cpu() for value in (measured.path_kl, *scores.values())])

    # Averaged first: a float16 overflow on one worker must lower the loss scale, and skip the step, on all.
    collective.average_gradients(state.parameters.values())
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(state.parameters.values(), training.gradient_clip)
    values = (collective.mean(sums) / len(mine)).tolist()
    second = (collective.mean(moments) / len(mine)).numpy()
    means = dict(zip((KL, *setup.rewards), values, strict=True))
    # In float16 an overflowing gradient lowers the loss scale and skips the step; elsewhere it is the end.
    finite = bool(torch.isfinite(norm))
    usable = finite or state.scaler.is_enabled()
    if not (usable and np.isfinite(values).all() and means[KL] < _EXPLODED_KL):
        raise Diverged(
            f"diverged at step {state.step + 1}: gradient norm {float(norm):.3g}, KL {means[KL]:.3g} nats, "
            f"rewards { ({name: means[name] for name in setup.rewards}) }; the last good state is the checkpoint "
            f"before. A smaller training.learning_rate (now {training.learning_rate:g}) often helps."
        )
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.count_step(skipped=not finite)
    if state.skipped_in_row >= _MOST_SKIPPED:
        raise _overflowed(state.step + 1, state.skipped_in_row)
    spread = second[1:, 1:] - np.outer(second[0, 1:], second[0, 1:])
    return means, RewardCovariance(names=tuple(setup.rewards), values=spread)


def _noise_seed(seed: int, step: int, micro: int) -> int:
    """Return the seed of a micro-batch's noise, so that it does not depend on how the trial got there."""
    return int(np.random.SeedSequence((seed, step, micro)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _log(job: TrialJob, state: TrainState, io: TrialIO) -> None:
    """Append and report one row: means over the steps since the last one, if there were any."""
    setup, rows = state.setup, state.pending
    if not rows:
        return
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    earlier = state.history[-1].seconds if state.history else 0.0
    samples = (
        len(rows)
        * job.config.training.batch_per_worker
        * job.config.training.accumulation
        * job.config.workers
    )
    multipliers = setup.dual.multipliers
    record = StepRecord(
        step=state.step,
        kl=means[KL],
        lagrangian=setup.lagrangian.value(means, multipliers),
        kkt_residual=setup.monitor.residual(),
        learning_rate=float(state.optimizer.param_groups[0]["lr"]),
        seconds=state.seconds,
        images_per_second=samples / max(state.seconds - earlier, 1e-9),
        rewards={name: means[name] for name in setup.rewards},
        violations=_violations(state, means),
        multipliers=setup.lagrangian.prices(multipliers),
    )
    state.history.append(record)
    state.pending = []
    io.report(record)


def _violations(state: TrainState, means: Mapping[str, float]) -> dict[str, float]:
    return {c.name: c.violation(means[c.quantity]) for c in state.setup.lagrangian.constraints}


def _out_of_reach(job: TrialJob, state: TrainState) -> str | None:
    """Say why a threshold cannot be met, or return None.

    A constraint must have been stuck for a window, and the response of the policy's own samples must leave
    one violated even at ``multiplier_limit``.
    """
    setup, rule = state.setup, job.config.convergence
    if (stuck := setup.monitor.stuck()) is None:
        return None
    lagrangian, multipliers = setup.lagrangian, setup.dual.multipliers
    left = least_violation(
        lagrangian,
        lagrangian.coefficients(multipliers),
        stuck.violations,
        stuck.covariance,
        rule.multiplier_limit,
    )
    if left <= rule.tolerance:
        return None
    constraint = lagrangian.constraints[stuck.index]
    return (
        f"infeasible: constraint {constraint.name!r} ({constraint.quantity} bound {constraint.bound:.6g}) stayed "
        f"violated by {stuck.violations[stuck.index] * constraint.scale:.4g} for {rule.window} steps while its "
        f"multiplier rose to {lagrangian.prices(multipliers)[constraint.name]:.4g} nats per unit (step "
        f"{state.step}); at {rule.multiplier_limit:g} nats per σ the worst violation would still be {left:.2g} σ"
    )


def _outcome(
    state: TrainState,
    status: Status,
    error: str | None,
    chosen: Candidate | None,
    evaluation: Evaluation | None,
    adapter: Mapping[str, bytes],
) -> TrialOutcome:
    """Collect what the trial came to: the state that was chosen, its evaluation and adapter."""
    lagrangian = state.setup.lagrangian
    means: dict[str, float] = {}
    if evaluation is not None:
        means = {name: estimate(evaluation, name).mean for name in (KL, *evaluation.rewards)}
    multipliers = None if chosen is None else chosen.multipliers
    return TrialOutcome(
        status=status,
        error=error,
        feasible=None if evaluation is None else feasible(evaluation, lagrangian.constraints),
        kl=None if evaluation is None else mean_interval(evaluation, KL),
        kl_estimator=ESTIMATOR,
        rewards={} if evaluation is None else {n: mean_interval(evaluation, n) for n in evaluation.rewards},
        violations=_violations(state, means) if means else {},
        multipliers={} if multipliers is None else lagrangian.prices(multipliers),
        weights=dict(lagrangian.fixed),
        steps=state.step,
        wall_seconds=state.seconds,
        evaluation=evaluation,
        diversity=None if evaluation is None else diversity(evaluation),
        adapter=adapter,
        notes=tuple(state.notes),
        history=tuple(state.history),
    )
