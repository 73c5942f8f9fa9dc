"""The step table, against another implementation of DDIM and against the formulas."""

import numpy as np
import pytest
import torch

from trainers.diffusion.schedule import cosine_alpha_bars, ddim_steps, gaussian_steps


@pytest.mark.parametrize("steps", [1, 2, 10, 64, 1000])
def test_every_step_of_the_cosine_schedule_has_noise(steps: int) -> None:
    alpha_bars = cosine_alpha_bars(steps)
    assert alpha_bars.shape == (steps + 1,)
    assert alpha_bars[0] == pytest.approx(1 - 1e-4)
    assert alpha_bars[-1] == pytest.approx(1e-5)
    assert (np.diff(alpha_bars) < 0).all()
    table = ddim_steps(alpha_bars, 1.0)
    assert (table.sigma > 0).all()
    assert np.isfinite(table.kl_weights()).all()


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
        root = np.sqrt(table.alpha_bar[k])
        predicted = (state - root * clean) / np.sqrt(1 - table.alpha_bar[k])
        theirs = scheduler.step(predicted, int(t), state, eta=eta, variance_noise=noise).prev_sample
        ours = table.from_state[k] * state + table.from_clean[k] * clean + table.sigma[k] * noise
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.2, 1.0])
def test_steps_keep_the_marginals(eta: float) -> None:
    """If ``x = √ᾱ x_0 + √(1 − ᾱ) ε`` then so it is after the step, for every η."""
    table = ddim_steps(cosine_alpha_bars(20), eta)
    np.testing.assert_allclose(
        table.from_state * np.sqrt(table.alpha_bar) + table.from_clean, np.sqrt(table.alpha_bar_prev)
    )
    np.testing.assert_allclose(
        table.from_state**2 * (1 - table.alpha_bar) + table.sigma**2, 1 - table.alpha_bar_prev
    )


def test_full_noise_is_the_ancestral_posterior() -> None:
    """At η = 1 the step is ``q(x_prev | x, x_0)`` of DDPM (Ho et al. 2020, equations 6 and 7)."""
    table = ddim_steps(cosine_alpha_bars(20), 1.0)
    alpha = table.alpha_bar / table.alpha_bar_prev
    np.testing.assert_allclose(
        table.from_state, np.sqrt(alpha) * (1 - table.alpha_bar_prev) / (1 - table.alpha_bar)
    )
    np.testing.assert_allclose(
        table.from_clean, np.sqrt(table.alpha_bar_prev) * (1 - alpha) / (1 - table.alpha_bar)
    )
    np.testing.assert_allclose(
        table.sigma**2, (1 - table.alpha_bar_prev) / (1 - table.alpha_bar) * (1 - alpha)
    )


@pytest.mark.parametrize("eta", [0.0, -0.5, 1.5, float("nan")])
def test_no_noise_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="path-wise KL is infinite"):
        ddim_steps(cosine_alpha_bars(5), eta)


def test_steps_that_are_no_chain_are_refused() -> None:
    """The network would be told another level than its state has."""
    before, after = np.array([0.1, 0.5, 0.8]), np.array([0.5, 0.8, 0.99])
    assert len(gaussian_steps(before, after, 1.0).sigma) == 3
    with pytest.raises(ValueError, match=r"step 1 ends at alpha_bar 0\.79 and step 2 begins at 0\.8"):
        gaussian_steps(before, np.array([0.5, 0.79, 0.99]), 1.0)
    for wrong in (after[::-1].copy(), after[:2], np.array([0.5, 0.8, 1.1]), np.array([0.1, 0.8, 0.99])):
        with pytest.raises(ValueError, match="must end at a cleaner level than it begins"):
            gaussian_steps(before, wrong, 1.0)
    with pytest.raises(ValueError, match="must end at a cleaner level"):
        ddim_steps(cosine_alpha_bars(5)[::-1].copy(), 1.0)  # noisy to clean
