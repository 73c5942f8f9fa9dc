"""Verdicts on a training that will not come to its end, with the evidence."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from trainers.alignment.state import TrainState
from trainers.config import TrialJob
from trainers.duality.lagrangian import KL
from trainers.duality.reach import least_violation
from trainers.failures import Diverged

_EXPLODED_KL = 1.0e4
_MOST_SKIPPED = 20
"""Steps in a row whose float16 gradient may overflow: each halves the scale, 2^16 at first, so it fits by then."""
_MANY_SKIPPED = 0.1
"""Share of skipped steps from which an outcome says so."""


def must_be_finite(state: TrainState, means: Mapping[str, float], norm: Tensor, rate: float) -> None:
    """Check a step before it is taken: its gradient, whose norm is given, and the means of KL and rewards.

    In float16 an overflowing gradient lowers the loss scale and skips the step; elsewhere it is the end.

    Raises:
        Diverged: they are not finite, or the KL exploded.
    """
    usable = bool(torch.isfinite(norm)) or state.scaler.is_enabled()
    if not (usable and np.isfinite(list(means.values())).all() and means[KL] < _EXPLODED_KL):
        raise Diverged(
            f"diverged at step {state.step + 1}: gradient norm {float(norm):.3g}, KL {means[KL]:.3g} nats, "
            f"rewards { ({name: means.get(name) for name in state.setup.rewards}) }; the last good state is the "
            f"checkpoint before. A smaller training.learning_rate (now {rate:g}) often helps."
        )


def must_move(state: TrainState) -> None:
    """Check that not too many steps in a row changed nothing.

    Raises:
        Diverged: they did.
    """
    if state.skipped_in_row >= _MOST_SKIPPED:
        raise _overflowed(state.step + 1, state.skipped_in_row)


def tell_skipped(state: TrainState) -> None:
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


def out_of_reach(job: TrialJob, state: TrainState) -> str | None:
    """Say why a threshold cannot be met, or return None.

    A constraint must have been stuck for a window, and the response of the policy's own samples must leave
    one violated even at ``multiplier_limit``.
    """
    setup, rule = state.setup, job.config.convergence
    if setup.frontier is not None or (stuck := setup.monitor.stuck()) is None:
        return None  # a node out of reach is one corner of a box, whose other thresholds are still answered
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
