"""Chains of first and second order on any noise levels: exact answers for Gaussian data, and another implementation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from trainers.diffusion.schedule import Levels, StepTable, cosine_alpha_bars, ddim_steps, gaussian_steps
from trainers.diffusion.scheduler import scheduler_steps
from trainers.types import FloatArray


def shifted(steps: int, shift: float) -> Levels:
    """Return the usual levels of a flow: ``linspace(1, 1/K, K)`` shifted, then 0."""
    times = np.linspace(1.0, 1.0 / steps, steps)
    return Levels.flow(np.append(shift * times / (1.0 + (shift - 1.0) * times), 0.0))


def slopes(table: StepTable, variance: float = 1.0) -> FloatArray:
    """Return ``k`` of ``x̂_0 = k x``, the guess at data of ``N(0, S²)``, ``[K]``."""
    alpha, sigma = table.levels.alpha[:-1], table.levels.sigma[:-1]
    return np.asarray(alpha * variance / (alpha**2 * variance + sigma**2))


def law(table: StepTable, variance: float = 1.0) -> tuple[FloatArray, FloatArray]:
    """Return what maps ``(ε_0, …, ε_K)`` to the final state, ``[K + 1]``, and to every state, ``[K + 1, K + 1]``.

    The chain of a linear guess is linear, also where it remembers one.
    """
    gains, states = slopes(table, variance), [np.eye(table.steps + 1)[0]]
    before: FloatArray | None = None
    for step in range(table.steps):
        guess = gains[step] * states[-1]
        factor = table.extrapolation[step]
        moved = guess if before is None else guess + factor * (guess - before)
        fresh = table.noise[step] * np.eye(table.steps + 1)[step + 1]
        states.append(table.from_state[step] * states[-1] + table.from_clean[step] * moved + fresh)
        before = guess
    return states[-1], np.stack(states)


# First order, on flow levels: A, B and C.


@pytest.mark.parametrize(("steps", "shift", "deviation"), [(4, 3, 0.5606), (8, 3, 0.7003), (8, 1, 0.7684)])
def test_the_law_of_a_coarse_flow_is_too_narrow_by_this_much(
    steps: int, shift: float, deviation: float
) -> None:
    table = gaussian_steps(shifted(steps, shift), 1.0)
    variance = 1.0
    for a, b, c, k in zip(table.from_state, table.from_clean, table.noise, slopes(table), strict=True):
        variance = (a + b * k) ** 2 * variance + c**2
    assert np.sqrt(variance) == pytest.approx(deviation, abs=5e-5)
    assert np.linalg.norm(law(table)[0]) == pytest.approx(np.sqrt(variance))


@pytest.mark.parametrize(("steps", "shift", "optimum"), [(4, 1, -0.12765), (8, 3, -0.15324)])
def test_the_least_of_a_quadratic_reward(steps: int, shift: float, optimum: float) -> None:
    """The reward ``−x²/2`` with λ = .7: the value of a state is ``−a x²/2 + const`` at every step, by recursion."""
    table = gaussian_steps(shifted(steps, shift), 1.0)
    curvature, constant = 0.7, 0.0
    for a, b, c, k in reversed(
        list(zip(table.from_state, table.from_clean, table.noise, slopes(table), strict=True))
    ):
        constant -= 0.5 * curvature * c**2  # of the step's noise, which the control does not foresee
        curvature = (a + b * k) ** 2 * curvature / (1.0 + curvature * c**2)
    start = -0.5 * curvature  # of x ~ N(0, 1), which no control moves
    assert start + constant == pytest.approx(optimum, abs=5e-6)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_data_of_another_scale_is_data_of_scale_one_under_another_shift(scale: float) -> None:
    """Scale S under shift m is scale 1 under m / S, in coordinates that are scaled at every level."""
    ours = law(gaussian_steps(shifted(6, 3.0), 1.0, 2), scale**2)[0]
    other = law(gaussian_steps(shifted(6, 3.0 / scale), 1.0, 2))[0]
    np.testing.assert_allclose(ours, scale * other, rtol=1e-10)


def test_the_kernel_is_finite_from_pure_noise_to_clean() -> None:
    table = gaussian_steps(shifted(5, 3.0), 1.0, 2)
    assert (table.levels.alpha[0], table.levels.sigma[-1]) == (0.0, 0.0)
    assert (table.from_state[0], table.noise[-1], table.from_state[-1]) == (0.0, 0.0, 0.0)
    assert table.from_clean[-1] == 1.0
    for values in (table.from_state, table.from_clean, table.noise, table.extrapolation):
        assert np.isfinite(values).all()
    snr = (table.levels.alpha[:-1] / table.levels.sigma[:-1]) ** 2
    assert [table.gain(step) ** 2 for step in range(4)] == pytest.approx(np.diff(snr))


# Second order.


def test_extrapolation_is_by_half_the_ratio_of_spans() -> None:
    """First order in the first two steps from pure noise, in the last, and in a chain of two; never more than 1."""
    table = gaussian_steps(shifted(6, 3.0), 1.0, 2)
    span = np.diff(np.log(table.levels.alpha[1:-1] / table.levels.sigma[1:-1]))
    assert table.extrapolation[[0, 1, -1]].tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(table.extrapolation[2:-1], span[1:] / (2 * span[:-1]))
    noisy = ddim_steps(cosine_alpha_bars(6), 1.0, 2)
    spans = np.diff(np.log(noisy.levels.alpha / noisy.levels.sigma))
    np.testing.assert_allclose(noisy.extrapolation[1:-1], np.minimum(spans[1:-1] / (2 * spans[:-2]), 1.0))
    uneven = gaussian_steps(Levels.flow(np.array([0.9, 0.89, 0.5, 0.1])), 1.0, 2)
    assert uneven.extrapolation.tolist() == [0.0, 1.0, 0.0]
    for steps in (1, 2):
        assert not ddim_steps(cosine_alpha_bars(steps), 1.0, 2).extrapolation.any()
    assert not ddim_steps(cosine_alpha_bars(9), 1.0).extrapolation.any()


def test_second_order_comes_nearer_to_the_data() -> None:
    for steps in (8, 15, 30):
        first, second = (np.linalg.norm(law(gaussian_steps(shifted(steps, 3.0), 1.0, o))[0]) for o in (1, 2))
        assert first < 0.9
        assert abs(1.0 - second) < 0.5 * (1.0 - first)


def run(table: StepTable, guess: Callable[[Tensor, int], Tensor], noise: Tensor) -> Tensor:
    """Sample as policies do, noise ``[K + 1, …]``."""
    state, before = noise[0], None
    for step in range(table.steps):
        clean = guess(state, step)
        mean = table.mean(step, state, table.extrapolated(step, clean, before))
        state, before = mean + float(table.noise[step]) * noise[step + 1], clean
    return state


def curved(state: Tensor, step: int) -> Tensor:
    return torch.tanh(state) * (1.0 + 0.1 * step) + 0.3 * torch.sin(3.0 * state)


def by_diffusers(scheduler: Any, noise: Tensor, output: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Sample with a scheduler of diffusers, in double precision, whose network gives ``output``."""
    scheduler.sigmas = scheduler.sigmas.double()
    state = noise[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)  # to which its step rounds the state
        for step, t in enumerate(scheduler.timesteps):
            state = scheduler.step(output(state, step), t, state, variance_noise=noise[step + 1]).prev_sample
    return state


@pytest.mark.parametrize(("steps", "shift"), [(3, 1.0), (5, 3.0), (8, 3.0), (13, 1.0)])
def test_on_a_flow_it_is_diffusers_dpm_solver(steps: int, shift: float) -> None:
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++",
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    levels = Levels.flow(scheduler.sigmas.double().numpy())
    noise = torch.randn(steps + 1, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def velocity(state: Tensor, step: int) -> Tensor:
        return (state - curved(state, step)) / levels.sigma[step]

    expected = by_diffusers(scheduler, noise, velocity)
    found = run(gaussian_steps(levels, 1.0, 2), curved, noise)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert (found - run(gaussian_steps(levels, 1.0), curved, noise)).abs().max() > 0.01


@pytest.mark.parametrize("steps", [3, 5, 8, 20])
def test_on_stable_diffusions_levels_it_is_too(steps: int) -> None:
    """Trailing timesteps to the model's cleanest level, where ``κ`` stays below 1."""
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        algorithm_type="sde-dpmsolver++",
        timestep_spacing="trailing",
        final_sigmas_type="sigma_min",
        euler_at_final=True,
    )
    scheduler.set_timesteps(steps)
    timesteps, table = scheduler_steps(scheduler.config, steps, 1.0, order=2, spacing="trailing")
    assert timesteps == scheduler.timesteps.tolist()
    assert table.extrapolation.max() < 1.0
    noise = torch.randn(steps + 1, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    levels = table.levels

    def predicted(state: Tensor, step: int) -> Tensor:
        return (state - float(levels.alpha[step]) * curved(state, step)) / float(levels.sigma[step])

    found, expected = run(table, curved, noise), by_diffusers(scheduler, noise, predicted)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # its levels are of float32


# The path-wise KL.


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "levels",
    [shifted(6, 3.0), Levels.variance_preserving(cosine_alpha_bars(6)[::-1].copy())],
    ids=["flow", "vp"],
)
def test_of_a_linear_reward_the_least_kl_is_that_of_the_chains_own_law(levels: Levels, order: int) -> None:
    """Shifting every noise along the gradient of a linear final state is the tilt of the path's law: nothing is lost.

    For a shift ``δ`` of the mean the law ``N(0, v)`` needs ``δ² / 2v``; no control moves the share of the first noise.
    """
    table = gaussian_steps(levels, 1.0, order)
    final, _ = law(table)
    controls = 0.8 * final[1:]
    shift = float(final[1:] @ controls)
    movable = float(final[1:] @ final[1:])
    assert 0.5 * controls @ controls == pytest.approx(shift**2 / (2 * movable))
    assert movable == pytest.approx(final @ final, rel=1e-9 if levels.alpha[0] == 0 else 1e-3)
