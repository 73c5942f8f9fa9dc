"""Alignment: primal-dual training of a diffusion policy under constraints.

    job -> setup -> [ primal step -> dual step -> averages -> watch ]* -> evaluation -> outcome

Symbols: ``θ`` the trainable residual, ``λ`` multipliers, ``g`` violations (met iff ``g <= 0``), ``f`` the
objective, ``L(θ, λ) = f(θ) + Σ λ_i g_i(θ)``. Source: Khalafi et al. 2025 (arXiv 2508.19104), algorithm 1. What
differs: KL in nats on the sampler's own steps, λ updated once per optimiser step at most from violations
averaged over all workers and micro-batches, paired with the reference (``alignment.paired``), and rates that
fall to zero once the KKT residual is within tolerance. Where thresholds move in a box, each sample of a batch is asked
for its own, λ is a function of them and so is the residual (``alignment.boxed``); the rest is the same.
"""

import math
import time

import numpy as np
import torch

from trainers.alignment.gradient import StepMeans, add_gradient
from trainers.alignment.log import log_row
from trainers.alignment.outcome import failed, finished
from trainers.alignment.pretrained import sample_both
from trainers.alignment.setup import build_setup
from trainers.alignment.state import TrainState
from trainers.alignment.verdicts import must_be_finite, must_move, out_of_reach, tell_skipped
from trainers.config import TrialConfig, TrialJob
from trainers.duality.constraint import scaled_covariance, scaled_violations
from trainers.duality.lagrangian import KL
from trainers.failures import Diverged, OutOfMemory, Unscored
from trainers.hosts.alone import Host
from trainers.trial_io import TrialIO
from trainers.types import Evaluation, TrialOutcome
from trainers.workers.collective import Collective, Shard

_RATE_FLOOR = 0.02
_DUAL_RATE_FLOOR = 0.1


class Alignment:
    """The problem of a trial that trains: one model, rewards, and constraints on them or on the KL."""

    def __init__(self, job: TrialJob, io: TrialIO, host: Host | None = None) -> None:
        """Set everything up, at ``io``'s checkpoint if it has one; by default it is alone in its process.

        Raises:
            ValueError: the config names something unknown, or its micro-batches cannot be shared.
        """
        self._job, self._io = job, io
        host = host or Host()
        self._collective = Collective(io.rank, io.world_size, io.device, in_step=host.in_step)
        if (micro := job.config.training.accumulation * job.config.workers) % io.world_size:
            raise ValueError(f"{io.world_size} workers cannot share {micro} micro-batches evenly")
        setup, files = build_setup(job, io.device, io.sampled(), host), io.restore()
        if files is None and (adapter := io.initial()) is not None:
            setup.policy.load_adapter(adapter)
        self._state = TrainState.start(setup, job.config.training)
        if files is not None:
            self._state.unpack(files, self._collective)
            if self._state.ended and self._state.round < job.rounds:
                self._state.begin_round(job.density)

    @staticmethod
    def pretrained(config: TrialConfig, share: Collective | Shard, device: str) -> dict[str, Evaluation]:
        """Sample the pretrained model."""
        return sample_both(config, share, device)

    def run(self) -> TrialOutcome:
        """Train and evaluate."""
        job, state, io, collective = self._job, self._state, self._io, self._collective
        try:
            verdict = train(job, state, io, collective)
            if job.continuable and verdict is None and not state.ended:
                state.ended = True
                io.save(state.step, state.pack(collective), state.history)
            return finished(job, state, io, collective, verdict)
        except (Diverged, OutOfMemory, Unscored) as error:
            return failed(state, str(error))


def train(job: TrialJob, state: TrainState, io: TrialIO, collective: Collective) -> str | None:
    """Run the primal-dual iteration to its end; returns why it was stopped early, or None.

    Raises:
        Diverged: NaN, explosion, or no step with a finite gradient; the last checkpoint stays.
        OutOfMemory: half a micro-batch does not fit either.
    """
    config, setup = job.config, state.setup
    training = config.training
    annealing = math.ceil(training.anneal * training.steps)
    averaging = math.ceil(training.average * training.steps)
    limit = state.round_from + training.steps
    before, began = state.seconds, time.monotonic()

    while (fraction := _anneal_fraction(state, limit, annealing)) < 1.0:
        falling = 0.5 * (1.0 + math.cos(math.pi * fraction))
        for group in state.optimizer.param_groups:
            group["lr"] = training.learning_rate * max(falling, _RATE_FLOOR)

        # 1. Primal: one optimiser step on ∇_θ L(θ, λ), averaged over micro-batches and workers.
        measured = _primal_step(job, state, collective)
        means = measured.means

        # 2. Dual: λ ← [λ + η g]₊ on the averaged violations, which are not all known where a reward had no score.
        if measured.complete:
            _dual_step(config, state, measured, max(falling, _DUAL_RATE_FLOOR))

        # 3. Averages of θ and λ over the last steps.
        state.step += 1
        if state.anneal_from is not None and state.step > state.anneal_from + annealing - averaging:
            state.average(setup.dual.multipliers)

        # 4. Watch: log, look for the end, save.
        state.pending.append(means)
        state.seconds = before + time.monotonic() - began
        last = _anneal_fraction(state, limit, annealing) >= 1.0
        if state.step % config.evaluation.every == 0 or last:
            log_row(job, state, io)
            state.keep_if_best()
        if state.anneal_from is None:
            if (evidence := out_of_reach(job, state)) is not None:
                log_row(job, state, io)
                return evidence
            if setup.monitor.converged() or state.step >= limit - annealing:
                state.anneal_from = min(state.step, limit - annealing)
        if state.step % training.checkpoint_every == 0 and not last:
            io.save(state.step, state.pack(collective), state.history)
            getattr(setup.estimator, "forget", lambda: None)()
    tell_skipped(state)
    return None


def _anneal_fraction(state: TrainState, limit: int, annealing: int) -> float:
    """Return how far the rates have fallen: 0 while constant, 1 at the end, step ``limit`` at the latest."""
    start = limit - annealing if state.anneal_from is None else state.anneal_from
    return max(0, state.step - start) / annealing


def _dual_step(config: TrialConfig, state: TrainState, measured: StepMeans, rate: float) -> None:
    """Move the multipliers, and show the monitor where they are. A weighted trial has none to move."""
    setup, means = state.setup, measured.means
    weighted = config.method == "weighted"
    constraints = () if weighted else setup.lagrangian.constraints
    violations = scaled_violations(constraints, means) if measured.gaps is None else measured.gaps
    covariance = measured.covariance()
    state.violations = violations.tolist()
    if (state.step + 1) % config.duals.steps_between == 0:
        if setup.frontier is None:  # the batch's covariance is that of no node
            setup.dual.observe(scaled_covariance(constraints, covariance))
        setup.dual.step(violations, rate)
    multipliers = setup.dual.multipliers
    if setup.frontier is None:
        lagrangian = setup.lagrangian.value(means, multipliers)
    else:
        lagrangian = setup.frontier.value(means, violations, multipliers)
    setup.monitor.observe(means[KL], violations, multipliers, covariance, lagrangian)


def _primal_step(job: TrialJob, state: TrainState, collective: Collective) -> StepMeans:
    """Take one optimiser step; returns what was measured on its micro-batches."""
    setup, training = state.setup, job.config.training
    last = None if state.violations is None else np.array(state.violations)
    state.optimizer.zero_grad(set_to_none=True)
    measured = add_gradient(job, state, collective, setup.dual.effective(last))
    # Of all workers by now: a float16 overflow on one must lower the loss scale, and skip the step, on all.
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(state.parameters.values(), training.gradient_clip)
    must_be_finite(state, measured.means, norm, training.learning_rate)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.count_step(skipped=not torch.isfinite(norm))
    must_move(state)
    return measured
