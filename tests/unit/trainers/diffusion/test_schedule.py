"""The step table, against another implementation of DDIM and against the formulas."""

import numpy as np
import pytest
import torch

from trainers.diffusion.schedule import Levels, cosine_alpha_bars, ddim_steps, gaussian_steps


@pytest.mark.parametrize("steps", [1, 2, 10, 64, 1000])
def test_every_step_of_the_cosine_schedule_has_noise(steps: int) -> None:
    alpha_bars = cosine_alpha_bars(steps)
    assert alpha_bars.shape == (steps + 1,)
    assert alpha_bars[0] == pytest.approx(1 - 1e-4)
    assert alpha_bars[-1] == pytest.approx(1e-5)
    assert (np.diff(alpha_bars) < 0).all()
    table = ddim_steps(alpha_bars, 1.0)
    assert (table.noise > 0).all()
    assert np.isfinite([table.gain(step) for step in range(steps)]).all()


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("steps", [5, 30])
def test_steps_are_those_of_diffusers(eta: float, steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    alpha_bars = cosine_alpha_bars(steps)
    table = ddim_steps(alpha_bars, eta)
    betas = 1 - alpha_bars / np.concatenate([[1.0], alpha_bars[:-1]])
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=steps + 1, trained_betas=betas, clip_sample=False, set_alpha_to_one=False
    )
    scheduler.alphas_cumprod = torch.tensor(alpha_bars)  # in float64
    scheduler.set_timesteps(steps + 1)

    generator = torch.Generator().manual_seed(0)
    for k, t in enumerate(scheduler.timesteps[:steps]):
        state, clean, noise = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
        predicted = (state - table.levels.alpha[k] * clean) / table.levels.sigma[k]
        theirs = scheduler.step(predicted, int(t), state, eta=eta, variance_noise=noise).prev_sample
        ours = table.from_state[k] * state + table.from_clean[k] * clean + table.noise[k] * noise
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.2, 1.0])
def test_steps_keep_the_marginals(eta: float) -> None:
    """If ``x = √ᾱ x_0 + √(1 − ᾱ) ε`` then so it is after the step, for every η."""
    alpha_bar = cosine_alpha_bars(20)[::-1].copy()
    table = ddim_steps(cosine_alpha_bars(20), eta)
    np.testing.assert_allclose(
        table.from_state * np.sqrt(alpha_bar[:-1]) + table.from_clean, np.sqrt(alpha_bar[1:])
    )
    np.testing.assert_allclose(table.from_state**2 * (1 - alpha_bar[:-1]) + table.noise**2, 1 - alpha_bar[1:])


def test_full_noise_is_the_ancestral_posterior() -> None:
    """At η = 1 the step is ``q(x_prev | x, x_0)`` of DDPM (Ho et al. 2020, equations 6 and 7)."""
    table = ddim_steps(cosine_alpha_bars(20), 1.0)
    before, after = cosine_alpha_bars(20)[:0:-1], cosine_alpha_bars(20)[-2::-1]
    alpha = before / after
    np.testing.assert_allclose(table.from_state, np.sqrt(alpha) * (1 - after) / (1 - before))
    np.testing.assert_allclose(table.from_clean, np.sqrt(after) * (1 - alpha) / (1 - before))
    np.testing.assert_allclose(table.noise**2, (1 - after) / (1 - before) * (1 - alpha))


@pytest.mark.parametrize("eta", [0.0, -0.5, 1.5, float("nan")])
def test_no_noise_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="path-wise KL is infinite"):
        ddim_steps(cosine_alpha_bars(5), eta)


def test_levels_that_do_not_become_cleaner_are_refused() -> None:
    """A chain has one level between two steps: the network is told the level that its state has."""
    for wrong in ([0.1, 0.5, 0.5], [0.9, 0.5], [0.1], [0.1, 0.5, 0.4], [0.0, 0.0, 1.0], [0.1, 1.0, 1.0]):
        with pytest.raises(ValueError, match="must end at a cleaner level than it begins"):
            Levels.variance_preserving(np.array(wrong))
    for outside in ([0.1, 1.1], [-0.1, 0.5], [0.1, float("nan")]):
        with pytest.raises(ValueError, match=r"alpha_bar must be within \[0, 1\]"):
            Levels.variance_preserving(np.array(outside))
    for times in ([0.1, 0.5], [1.1, 0.5], [0.5, -0.1], [0.5, float("nan")]):
        with pytest.raises(ValueError, match="must end at a cleaner level"):
            Levels.flow(np.array(times))
    with pytest.raises(ValueError, match="must end at a cleaner level"):
        ddim_steps(cosine_alpha_bars(5)[::-1].copy(), 1.0)  # noisy to clean


@pytest.mark.parametrize(
    ("eta", "order", "rule"), [(0.5, 2, "eta must be 1 with"), (1.0, 3, "order must be 1 or 2")]
)
def test_no_other_orders(eta: float, order: int, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        gaussian_steps(Levels.flow(np.array([1.0, 0.5, 0.0])), eta, order)
