"""What changes while a trial trains: averages, the parameters that are evaluated, the checkpoint."""

import sys
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch

from trainers.alignment.setup import build_setup
from trainers.alignment.state import TrainState
from trainers.duality.covariance import RewardCovariance
from trainers.testing import gaussian_job
from trainers.workers.collective import Collective

SPREAD = RewardCovariance(names=("x",), values=np.eye(1))


def started(**training: Any) -> TrainState:
    job = gaussian_job(
        {"x": 1.0},
        sampling={"steps": 4},
        training={"width": 4} | training,
        evaluation={"baseline_images": 256},
    )
    return TrainState.start(build_setup(job), job.config.training)


def set_all(state: TrainState, value: float) -> None:
    with torch.no_grad():
        for parameter in state.parameters.values():
            parameter.fill_(value)


def averages(state: TrainState, values: np.ndarray) -> list[float]:
    """Average over parameters that take these values in turn; returns the average after each."""
    found = []
    for value in values:
        set_all(state, value)
        state.average(np.array([value]))
        (only,) = {float(v) for tensor in state.averaged.values() for v in tensor.unique()}
        found.append(only)
    return found


VALUES = np.random.default_rng(0).normal(size=12)


def test_the_plain_average_is_the_mean_of_all_steps() -> None:
    state = started()
    means = [VALUES[: n + 1].mean() for n in range(12)]
    np.testing.assert_allclose(averages(state, VALUES), means, rtol=1e-5)
    assert state.last().multipliers == pytest.approx((VALUES.mean(),))


def test_the_moving_average_forgets_and_begins_as_a_mean() -> None:
    """With decay 3/4 the first four count alike, then each new one a quarter: nothing of the start lingers."""
    decay, first = 0.75, 4
    found = averages(started(ema=decay), VALUES)
    for n in range(12):
        if n < first:
            weights = np.full(n + 1, 1 / (n + 1))
        else:
            weights = (1 - decay) * decay ** np.arange(n, -1.0, -1.0)
            weights[:first] = decay ** (n + 1 - first) / first
        assert weights.sum() == pytest.approx(1.0)
        assert found[n] == pytest.approx(float(weights @ VALUES[: n + 1]), rel=1e-5)


@pytest.mark.parametrize("ema", [None, 0.5, 0.9])
def test_multipliers_are_averaged_as_the_parameters_are(ema: float | None) -> None:
    state = started(ema=ema)
    assert state.last().multipliers == tuple(state.setup.dual.multipliers)
    found = averages(state, VALUES)
    assert state.last().multipliers == pytest.approx((found[-1],), rel=1e-5)


def test_before_averaging_began_the_current_parameters_are_final() -> None:
    state = started()
    set_all(state, 3.0)
    with state.using(state.last().parameters):
        assert all(bool((p == 3.0).all()) for p in state.setup.policy.parameters().values())
    assert state.last().multipliers == tuple(state.setup.dual.multipliers)


@pytest.mark.parametrize("fails", [False, True])
def test_the_averaged_parameters_are_put_in_and_the_current_ones_back(fails: bool) -> None:
    state = started()
    averages(state, np.array([1.0, 3.0]))
    held = list(state.setup.policy.parameters().values())
    with suppress(KeyError), state.using(state.last().parameters):
        assert all(bool((p == 2.0).all()) for p in held)
        if fails:
            raise KeyError
    assert all(bool((p == 3.0).all()) for p in held)
    assert all(bool((mean == 2.0).all()) for mean in state.averaged.values())
    # The same objects all along, or the optimiser would move others than the policy's.
    assert [id(p) for p in held] == [id(p) for p in state.setup.policy.parameters().values()]
    assert [id(p) for p in held] == [id(p) for g in state.optimizer.param_groups for p in g["params"]]


def test_a_checkpoint_holds_parts_and_notes() -> None:
    state, other = started(), started()
    averages(state, VALUES)
    state.splits = 2
    state.notes.append("half")
    other.unpack(state.pack(Collective()), Collective())
    assert (other.splits, other.notes, other.averaged_steps) == (2, ["half"], 12)
    for name, parameter in state.parameters.items():
        assert torch.equal(other.parameters[name], parameter)
        assert torch.equal(other.averaged[name], state.averaged[name])


def test_the_optimiser_in_8_bits_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"adam_8bit needs the package bitsandbytes.*cdsweep\[quantise\]"):
        started(optimizer="adam_8bit")


def watched(state: TrainState, violation: float, kl: float) -> None:
    """Fill the monitor's window with one violation and KL."""
    window = state.setup.monitor._config.window
    for _ in range(window):
        state.setup.monitor.observe(kl, np.array([violation]), np.array([1.0]), SPREAD, 0.0)


def test_the_best_state_meets_the_threshold_at_the_least_kl() -> None:
    state = started()
    for value, violation, kl in [(1.0, 0.0, 2.0), (2.0, 0.3, 0.5), (3.0, -0.1, 1.0), (4.0, 0.01, 1.5)]:
        set_all(state, value)
        state.step += 1
        watched(state, violation, kl)
        state.keep_if_best()
    assert state.best is not None
    assert (state.best.step, state.best.kl) == (3, pytest.approx(1.0))
    assert all(bool((p == 3.0).all()) for p in state.best.parameters.values())

    other = started()
    other.unpack(state.pack(Collective()), Collective())
    assert other.best is not None
    assert (other.best.step, other.best.kl) == (3, state.best.kl)
    assert all(torch.equal(p, other.best.parameters[n]) for n, p in state.best.parameters.items())


def test_the_best_state_has_multipliers_of_its_own_or_none() -> None:
    """Before averaging the multipliers still move, and the parameters lag behind them: no price stands beside them."""
    state = started()
    state.step = 5
    watched(state, 0.0, 2.0)
    state.keep_if_best()
    state.step = 9
    averages(state, VALUES)
    last, best = state.candidates()
    assert (best.step, best.multipliers) == (5, None)
    assert last.multipliers == pytest.approx((VALUES.mean(),))

    watched(state, 0.0, 1.0)
    state.keep_if_best()
    assert state.candidates() == (state.last(),)  # the last state is the best: nothing else to look at
    state.step = 10
    averages(state, np.array([100.0]))
    other = started()
    other.unpack(state.pack(Collective()), Collective())
    for candidates in (state.candidates(), other.candidates()):
        assert [c.step for c in candidates] == [10, 9]
        assert candidates[1].multipliers == pytest.approx((VALUES.mean(),))


def test_no_state_is_best_before_the_window_is_full_or_without_thresholds() -> None:
    state = started()
    state.setup.monitor.observe(1.0, np.array([-1.0]), np.array([1.0]), SPREAD, 0.0)
    state.keep_if_best()
    assert state.best is None
    for _ in range(state.setup.monitor._config.window):
        state.setup.monitor.observe(1.0, np.zeros(0), np.zeros(0), SPREAD, 0.0)
    state.keep_if_best()
    assert state.best is None
