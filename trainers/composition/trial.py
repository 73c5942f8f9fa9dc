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
from dataclasses import dataclass, field

import numpy as np
import torch

from trainers import checkpoint
from trainers.composition.measure import Measured, Problem, build_problem
from trainers.composition.networks.trial import NetworkTrial
from trainers.composition.solve import gap, newton_target
from trainers.config import TrialJob
from trainers.estimates import Estimate, intervals
from trainers.rewards.base import build_reward
from trainers.trial_io import TrialIO
from trainers.types import Evaluation, FloatArray, Status, StepRecord, TrialOutcome

APART = 200.0
"""Nats of the least KL beyond which models count as disjoint: a sample of one has odds of e^-200 in the other."""

_FEW = 200
"""Effective samples below which an outcome says so."""


@dataclass(kw_only=True)
class _State:
    """What changes from step to step."""

    weights: FloatArray
    tilt: FloatArray
    step: int = 0
    seconds: float = 0.0
    rows: list[dict[str, list[float]]] = field(default_factory=list)
    """Weights, multipliers, KLs and rewards of every step."""
    history: list[StepRecord] = field(default_factory=list)

    def files(self) -> checkpoint.Files:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "rows": self.rows,
            "history": [dataclasses.asdict(record) for record in self.history],
        }
        return checkpoint.pack(
            {"weights": torch.tensor(self.weights), "tilt": torch.tensor(self.tilt)}, state
        )

    def load(self, files: checkpoint.Files) -> None:
        tensors, state = checkpoint.unpack(files)
        self.weights, self.tilt = tensors["weights"].numpy(), tensors["tilt"].numpy()
        self.step, self.seconds, self.rows = state["step"], state["seconds"], state["rows"]
        self.history = [StepRecord(**record) for record in state["history"]]

    def mean(self, key: str, last: int) -> FloatArray:
        return np.asarray(np.mean([row[key] for row in self.rows[-last:]], axis=0))


class _Trial:
    """The problem of a job, in arrays."""

    def __init__(self, job: TrialJob, device: str) -> None:
        config = job.config
        assert config.model.composition is not None
        self.job, self.composition = job, config.model.composition
        self.names = [model.name for model in self.composition.models]
        self.rewards = [reward.name for reward in config.rewards]
        self.networks = NetworkTrial.build(config, device) if self.composition.networks else None
        if self.networks is None:
            built = {reward.name: build_reward(reward) for reward in config.rewards}
            self.problem: Problem = build_problem(self.composition, built, config.sampling.steps)
        else:
            self.problem = self.networks.problem
        self.offsets = np.array([self.composition.offsets.get(name, 0.0) for name in self.names])
        bounds = {c.target: job.thresholds[c.name] for c in config.constraints}
        self.bounds = np.array([bounds.get(name, -np.inf) for name in self.rewards])
        """``[R]``; −∞ for rewards that are only measured."""

    def start(self) -> _State:
        if self.job.config.method == "weighted":
            weights = np.array([self.job.config.weights.get(name, 0.0) for name in self.names])
        else:
            weights = np.full(len(self.names), 1.0 / len(self.names))
        return _State(weights=weights, tilt=np.zeros(len(self.rewards)))

    def shortfall(self, rewards: FloatArray) -> FloatArray:
        """Return ``b − E[r]``, ``[R]``; −∞ where there is no threshold."""
        return np.asarray(self.bounds - rewards)

    def residual(self, state: _State) -> float:
        """Return the KKT residual over the window, of means."""
        last = self.job.config.convergence.window
        short = self.shortfall(state.mean("rewards", last))
        bounded = np.isfinite(short)
        scales = np.array([self.job.baseline.rewards[name].std for name in self.rewards])
        kl = state.mean("kl", last)
        # Relative below a nat: models that are near one another are held as equally near as others.
        parts = [gap(state.mean("weights", last), kl - self.offsets) / min(1.0, max(float(kl.max()), 1e-3))]
        if bounded.any():
            scaled = short[bounded] / scales[bounded]
            slack = np.abs(state.mean("tilt", last)[bounded] * short[bounded])
            parts += [float(np.maximum(scaled, 0.0).max()), float(slack.max())]
        return max(parts)


def run_composition(job: TrialJob, io: TrialIO) -> TrialOutcome:
    """Find the weights, evaluate, and return what the trial came to; every worker computes the same.

    Raises:
        ValueError: the models do not go together.
    """
    trial = _Trial(job, io.device)
    state = trial.start()
    if (files := io.restore()) is not None:
        state.load(files)
    status: Status = "succeeded"
    error: str | None = None
    if job.config.method == "constrained":
        status, error = _ascend(trial, state, io)
    last = max(1, len(state.rows) // 2)
    weights = state.mean("weights", last) if state.rows else state.weights
    tilt = state.mean("tilt", last) if state.rows else state.tilt
    weights = weights / weights.sum()
    evaluation = job.config.evaluation
    began = time.monotonic()
    measured = trial.problem(weights, tilt, evaluation.images, evaluation.seed, held_out=True)
    extras = {} if trial.networks is None or error else trial.networks.extras(weights, measured, io)
    state.seconds += time.monotonic() - began
    outcome = _outcome(trial, state, weights, tilt, measured, status, error)
    extras["notes"] = (*outcome.notes, *extras.get("notes", ()))
    return dataclasses.replace(outcome, **extras)


def _ascend(trial: _Trial, state: _State, io: TrialIO) -> tuple[Status, str | None]:
    """Take dual steps until the gap is within tolerance; returns what came of it, and why."""
    config = trial.job.config
    training, rule = config.training, config.convergence
    before, began = state.seconds, time.monotonic()
    while state.step < training.steps:
        seed = int(np.random.SeedSequence((config.seed, state.step)).generate_state(1)[0])
        now = trial.problem(state.weights, state.tilt, training.batch_per_worker, seed)
        excess, short = now.kl - trial.offsets, trial.shortfall(now.rewards)
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
        residual = trial.residual(state)
        _log(trial, state, io, now, residual, damping)
        if state.step >= 2 * rule.window and residual <= rule.tolerance:
            break
        if state.step == rule.window and (evidence := _disjoint(trial, state)) is not None:
            return "infeasible", evidence
        if state.step % training.checkpoint_every == 0:
            io.save(state.step, state.files(), state.history)
    return "succeeded", None


def _disjoint(trial: _Trial, state: _State) -> str | None:
    """Say that the models hardly overlap, with the evidence, or return None."""
    if trial.networks is not None:
        return None  # path-wise KLs of concepts are hundreds of nats, and their chains still meet
    # The dual is a lower bound of the radius.
    bound = max(record.lagrangian for record in state.history)
    if bound <= APART:
        return None
    kl = dict(zip(trial.names, np.round(state.mean("kl", 1), 1).tolist(), strict=True))
    return (
        f"the models hardly overlap: whatever is composed of them is at least {bound:.0f} nats from one of them "
        f"(KLs {kl}); above {APART:g} nats a product has no samples to speak of. Compose models that share "
        "support, or use direction: forward"
    )


def _log(trial: _Trial, state: _State, io: TrialIO, now: Measured, residual: float, damping: float) -> None:
    """Append a row, and report it at the logged steps."""
    config = trial.job.config
    used = state.rows[-1]
    weights, tilt = np.array(used["weights"]), np.array(used["tilt"])
    bounded = np.isfinite(trial.bounds)
    dual = now.dual - float(weights @ trial.offsets) + float(tilt[bounded] @ trial.bounds[bounded])
    earlier = state.history[-1].seconds if state.history else 0.0
    record = StepRecord(
        step=state.step,
        kl=float(now.kl.max()),
        lagrangian=dual,
        kkt_residual=residual,
        learning_rate=damping,
        seconds=state.seconds,
        images_per_second=config.training.batch_per_worker / max(state.seconds - earlier, 1e-9),
        rewards=dict(zip(trial.rewards, now.rewards.tolist(), strict=True)),
        violations=_violations(trial, now.rewards),
        multipliers=_multipliers(trial, weights, tilt),
        constituents=dict(zip(trial.names, now.kl.tolist(), strict=True)),
    )
    state.history.append(record)
    if state.step % config.evaluation.every == 0:
        io.report(record)


def _violations(trial: _Trial, rewards: FloatArray) -> dict[str, float]:
    means = dict(zip(trial.rewards, rewards.tolist(), strict=True))
    return {c.name: trial.job.thresholds[c.name] - means[c.target] for c in trial.job.config.constraints}


def _multipliers(trial: _Trial, weights: FloatArray, tilt: FloatArray) -> dict[str, float]:
    prices = dict(zip(trial.rewards, tilt.tolist(), strict=True))
    constrained = {c.name: prices[c.target] for c in trial.job.config.constraints}
    return dict(zip(trial.names, weights.tolist(), strict=True)) | constrained


def _outcome(
    trial: _Trial,
    state: _State,
    weights: FloatArray,
    tilt: FloatArray,
    measured: Measured,
    status: Status,
    error: str | None,
) -> TrialOutcome:
    config = trial.job.config
    degrees = measured.degrees
    kls = intervals(trial.names, measured.kl, measured.kl_error, degrees)
    feasible = all(
        trial.job.thresholds[c.name] - mean + Estimate(mean=mean, error=error, degrees=degrees).margin()
        <= config.evaluation.allowance(
            c.kind, bound=trial.job.thresholds[c.name], std=trial.job.baseline.rewards[c.target].std
        )
        for c in config.constraints
        for name, mean, error in zip(
            trial.rewards, measured.rewards.tolist(), measured.reward_error.tolist(), strict=True
        )
        if name == c.target
    )
    return TrialOutcome(
        status=status,
        error=error,
        feasible=feasible,
        kl=kls[trial.names[int(np.argmax(measured.kl))]],
        kl_estimator=trial.problem.estimator,
        rewards=intervals(trial.rewards, measured.rewards, measured.reward_error, degrees),
        violations=_violations(trial, measured.rewards),
        multipliers=_multipliers(trial, weights, tilt),
        weights=dict(config.weights),
        steps=state.step,
        wall_seconds=state.seconds,
        evaluation=_evaluation(trial, measured),
        constituents=kls,
        sampler=trial.composition.sampler if trial.composition.direction == "reverse" else "exact",
        acceptance=measured.acceptance,
        effective_samples=measured.effective_samples,
        network_evaluations=measured.evaluations,
        notes=_notes(trial, measured),
        history=tuple(state.history),
    )


def _evaluation(trial: _Trial, measured: Measured) -> Evaluation:
    """Return one row per sample; networks know prompts, noise and pictures of theirs."""
    rewards = dict(zip(trial.rewards, measured.scores, strict=True))
    drawn, count = measured.samples, measured.scores.shape[1]
    if drawn is None:
        seeds = trial.job.config.evaluation.seed + np.arange(count, dtype=np.int64)
        return Evaluation(kl=np.full(count, np.nan), rewards=rewards, seeds=seeds)
    kl = np.full(count, np.nan) if drawn.kl is None else drawn.kl[int(np.argmax(measured.kl))]
    return Evaluation(kl=kl, rewards=rewards, seeds=drawn.seeds, prompts=drawn.prompts, images=drawn.images)


def _notes(trial: _Trial, measured: Measured) -> tuple[str, ...]:
    notes = []
    if trial.networks is None and (trial.composition.direction, trial.composition.sampler) == (
        "reverse",
        "score",
    ):
        notes.append(
            "objective.sampler: score does not correct its samples: rewards are theirs, while KLs are "
            "E[log product − log model] over them, too small by KL(samples‖product); fkc has neither error"
        )
    if (few := _few(trial, measured)) is not None:
        notes.append(few)
    return tuple(notes)


def _few(trial: _Trial, measured: Measured) -> str | None:
    count = measured.scores.shape[1] if trial.networks is not None else _FEW
    if measured.effective_samples >= min(_FEW, 0.25 * count):
        return None
    what = "the models" if not np.isfinite(trial.bounds).any() else "the thresholds"
    advice = "raise evaluation.images and training.batch_per_worker"
    if trial.networks is not None:
        advice += ", or take the uncorrected objective.sampler: score"
    return (
        f"only {measured.effective_samples:.0f} effective samples: {what} lie in the tail of the composition, and "
        f"figures are rough; {advice}"
    )
