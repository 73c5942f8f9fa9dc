"""One composition trial: weights on the simplex by dual ascent, divergences by sampling. No network is trained.

    job -> models -> [ measure at λ -> Newton step on the dual, projected ]* -> evaluation -> outcome

Symbols: ``λ`` weights on the simplex, ``μ >= 0`` multipliers of reward thresholds, ``o`` offsets, ``u`` the radius.

* reverse (AND): ``min u s.t. KL(p‖q_i) <= u + o_i, E_p[r_j] >= b_j``; ``p ∝ Π q_i^{λ_i} exp(μ·r)``, dual
  ``−log Z(λ, μ) − λ·o + μ·b``, gradient ``KL_i − o_i`` (up to a constant) and ``b − E[r]``.
* forward (OR): ``min u s.t. KL(q_i‖p) <= u + o_i``; ``p = Σ λ_i q_i``, dual ``Σ λ_i (KL(q_i‖p) − o_i)``, gradient
  ``KL(q_i‖p) − o_i``.

Source: Khalafi et al. 2025 (arXiv 2508.19104), problem UR-C. What differs: samples of the product itself (a corrected
sampler), a step that knows the dual's curvature, exact Euclidean projection onto the simplex, and the mean of the
later iterates. Thresholds tilt by weighting samples of the product, so ``effective_samples`` falls with their price.
The KKT residual is the primal-dual gap ``max_i (KL_i − o_i) − Σ λ_i (KL_i − o_i)``, or a threshold's violation or
slackness where that is larger.
"""

import dataclasses
import time

import numpy as np

from trainers.composition.measure import Measure, Measured, Models
from trainers.composition.mixtures import Mixtures
from trainers.composition.outcome import outcome
from trainers.composition.solve import newton_target
from trainers.composition.state import Ascent
from trainers.composition.terms import Terms
from trainers.config import TrialConfig, TrialJob
from trainers.hosts.alone import Host
from trainers.trial_io import TrialIO
from trainers.types import Evaluation, Status, StepRecord, TrialOutcome
from trainers.workers.collective import Collective, Shard


class Composition:
    """The problem of a trial that composes; every worker computes the same."""

    def __init__(self, job: TrialJob, io: TrialIO, host: Host | None = None) -> None:
        """Build the models; continue from ``io``'s checkpoint if it has one.

        Raises:
            ValueError: the models do not go together, or it is put beside others.
        """
        if host is not None:
            raise ValueError(
                "resources.pack and resources.shard are of trials that train one network, and a composition has several"
            )
        self._io, self._terms = io, Terms(job)
        self._models = _models(job.config, io.device)
        self._state = self._terms.start()
        if (files := io.restore()) is not None:
            self._state.load(files)

    @staticmethod
    def pretrained(config: TrialConfig, share: Collective | Shard, device: str) -> dict[str, Evaluation]:
        """Sample each model alone, and what stands for the pretrained one: see ``networks.alone``."""
        from trainers.composition.networks.alone import sample_alone  # noqa: PLC0415 - see _models

        return sample_alone(config, share, device)

    def run(self) -> TrialOutcome:
        """Find the weights and evaluate."""
        terms, models, state, config = self._terms, self._models, self._state, self._terms.job.config
        status: Status = "succeeded"
        error: str | None = None
        if config.method != "weighted" and state.student is None:
            status, error = _ascend(terms, models.measure, state, self._io)
        weights, tilt = state.averaged()
        began = time.monotonic()
        measured = models.measure(
            weights, tilt, config.evaluation.images, config.evaluation.seed, held_out=True
        )
        extras = {} if error else models.extras(weights, measured, self._io, state)
        state.seconds += time.monotonic() - began
        found = outcome(terms, state, weights, tilt, measured, models.measure.estimator, status, error)
        return dataclasses.replace(found, **extras | {"notes": (*found.notes, *extras.get("notes", ()))})


def _models(config: TrialConfig, device: str) -> Models:
    """Return the models that a configuration composes.

    Raises:
        ValueError: they do not go together.
    """
    composition = config.model.composition
    if composition is None or not composition.networks:
        return Mixtures.build(config)
    # Here, because diffusers takes seconds to import and mixtures need none of it.
    from trainers.composition.networks.trial import NetworkTrial  # noqa: PLC0415

    return NetworkTrial.build(config, device)


def _ascend(terms: Terms, measure: Measure, state: Ascent, io: TrialIO) -> tuple[Status, str | None]:
    """Take dual steps until the gap is within tolerance; returns what came of it, and why."""
    config = terms.job.config
    training, rule = config.training, config.convergence
    before, began = state.seconds, time.monotonic()
    while state.step < training.steps:
        seed = int(np.random.SeedSequence((config.seed, state.step)).generate_state(1)[0])
        now = measure(state.weights, state.tilt, training.batch_per_worker, seed)
        excess, short = now.kl - terms.offsets, terms.shortfall(now.rewards)
        if not np.isfinite(excess).all():
            return "failed", f"diverged at step {state.step + 1}: KLs {now.kl.tolist()}"
        state.rows.append(
            {
                "weights": state.weights.tolist(),
                "tilt": state.tilt.tolist(),
                "kl": now.kl.tolist(),
                "rewards": now.rewards.tolist(),
            }
        )

        # The model of the dual around here; damped while far from its maximum (its curvature is local).
        bounded = np.isfinite(short)
        kept = np.concatenate([np.ones(len(excess), dtype=bool), bounded])
        gradient = np.concatenate([excess, short[bounded]])
        target, priced, decrement = newton_target(
            state.weights, state.tilt[bounded], gradient, now.curvature[np.ix_(kept, kept)]
        )
        damping = 1.0 / (1.0 + decrement) if decrement > 0.25 else 1.0
        state.weights = state.weights + damping * (target - state.weights)
        state.tilt = state.tilt.copy()
        state.tilt[bounded] += damping * (priced - state.tilt[bounded])

        state.step += 1
        state.seconds = before + time.monotonic() - began
        residual = terms.residual(state)
        _log(terms, state, io, now, residual, damping)
        if state.step >= 2 * rule.window and residual <= rule.tolerance:
            break
        if state.step == rule.window and (evidence := _disjoint(terms, measure.apart, state)) is not None:
            return "infeasible", evidence
        if state.step % training.checkpoint_every == 0:
            io.save(state.step, state.files(), state.history)
    return "succeeded", None


def _disjoint(terms: Terms, apart: float, state: Ascent) -> str | None:
    """Say that the models hardly overlap, with the evidence, or return None."""
    # The dual is a lower bound of the radius.
    bound = max(record.lagrangian for record in state.history)
    if bound <= apart:
        return None
    kl = dict(zip(terms.names, np.round(state.mean("kl", 1), 1).tolist(), strict=True))
    return (
        f"the models hardly overlap: whatever is composed of them is at least {bound:.0f} nats from one of them "
        f"(KLs {kl}); above {apart:g} nats a product has no samples to speak of. Compose models that share "
        "support, or use direction: forward"
    )


def _log(terms: Terms, state: Ascent, io: TrialIO, now: Measured, residual: float, damping: float) -> None:
    """Append a row, and report it at the logged steps."""
    config = terms.job.config
    used = state.rows[-1]
    weights, tilt = np.array(used["weights"]), np.array(used["tilt"])
    bounded = np.isfinite(terms.bounds)
    dual = now.dual - float(weights @ terms.offsets) + float(tilt[bounded] @ terms.bounds[bounded])
    earlier = state.history[-1].seconds if state.history else 0.0
    record = StepRecord(
        step=state.step,
        kl=float(now.kl.max()),
        lagrangian=dual,
        kkt_residual=residual,
        learning_rate=damping,
        seconds=state.seconds,
        images_per_second=config.training.batch_per_worker / max(state.seconds - earlier, 1e-9),
        rewards=dict(zip(terms.rewards, now.rewards.tolist(), strict=True)),
        violations=terms.violations(now.rewards),
        multipliers=terms.multipliers(weights, tilt),
        constituents=dict(zip(terms.names, now.kl.tolist(), strict=True)),
    )
    state.history.append(record)
    if state.step % config.evaluation.every == 0:
        io.report(record)
