"""The steps of a diffusers scheduler: the levels that its timesteps stand for, and where DDIM goes there, its steps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from trainers.diffusion.schedule import StepTable
from trainers.diffusion.scheduler import ddim_scheduler, scheduler_steps
from trainers.models.families.base import CLEAN
from trainers.types import FloatArray

LEVELS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STABLE_DIFFUSION: dict[str, Any] = {
    **LEVELS,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def by_diffusers(config: Any, steps: int) -> DDIMScheduler:
    """DDIM as diffusers makes it of a config, in double precision."""
    scheduler = DDIMScheduler.from_config(
        config, set_alpha_to_one=False, clip_sample=False, thresholding=False
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(steps)
    return scheduler


def levels_of(betas: FloatArray) -> FloatArray:
    """``ᾱ`` of every timestep, by the definition."""
    return np.cumprod(1.0 - betas)


SCALED = levels_of(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
"""Of Stable Diffusion 1.x."""


def check_levels(timesteps: list[int], table: StepTable, levels: FloatArray = SCALED) -> None:
    """The network is told the level that its state has, and the chain ends at the cleanest level."""
    np.testing.assert_allclose(
        table.levels.alpha**2, levels[[*timesteps, 0]], rtol=2e-5
    )  # diffusers: float32
    np.testing.assert_allclose(table.levels.sigma**2, 1 - levels[[*timesteps, 0]], rtol=2e-4)
    assert (table.noise > 0).all()
    assert np.isfinite([table.gain(step) for step in range(table.steps)]).all()


def check(config: Any, steps: int, eta: float) -> int:
    """Compare mean and deviation of every step with diffusers'; returns how many there are."""
    prediction = config["prediction_type"]
    scheduler = by_diffusers(config, steps)
    timesteps, table = scheduler_steps(config, steps, eta)
    assert timesteps == scheduler.timesteps.tolist()[: len(timesteps)]
    generator = torch.Generator().manual_seed(0)
    for step, t in enumerate(timesteps):
        state, output = torch.randn(2, 2, 4, 3, 3, generator=generator, dtype=torch.float64)

        def after(noise: float, t: int = t, state: Any = state, output: Any = output) -> torch.Tensor:
            return scheduler.step(
                output, t, state, eta=eta, variance_noise=torch.full_like(state, noise)
            ).prev_sample

        alpha, sigma = float(table.levels.alpha[step]), float(table.levels.sigma[step])
        clean = CLEAN[prediction](state, output, alpha, sigma)
        mean = table.from_state[step] * state + table.from_clean[step] * clean
        torch.testing.assert_close(mean, after(0.0), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            torch.full_like(state, table.noise[step]), after(1.0) - after(0.0), rtol=1e-9, atol=1e-9
        )
    check_levels(timesteps, table)
    return len(timesteps)


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_mean_and_noise_are_those_of_diffusers(prediction: str, eta: float) -> None:
    config = DDIMScheduler(**STABLE_DIFFUSION, prediction_type=prediction).config
    for steps in (1, 8, 30):
        assert check(config, steps, eta) == steps


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 7), ("leading", 48), ("trailing", 10)])
def test_spacings_that_diffusers_follows(spacing: str, steps: int, eta: float) -> None:
    config = DDIMScheduler(**STABLE_DIFFUSION, timestep_spacing=spacing).config
    assert check(config, steps, eta) == steps


@pytest.mark.parametrize("steps", [2, 3, 4, 6, 7, 8, 10, 13, 30, 48, 50, 333])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_spacing_is_a_chain(spacing: str, steps: int) -> None:
    """DDIM of diffusers leaves the next step's level with linspace, and where the steps do not divide the 1000."""
    config = DDIMScheduler(**STABLE_DIFFUSION, timestep_spacing=spacing).config
    timesteps, table = scheduler_steps(config, steps, 1.0)
    assert timesteps == by_diffusers(config, steps).timesteps.tolist()[: len(timesteps)]
    assert len(timesteps) == steps - (spacing == "linspace")
    check_levels(timesteps, table)


@pytest.mark.parametrize("steps", [4, 8, 20])
@pytest.mark.parametrize(
    "cls",
    [
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
        LMSDiscreteScheduler,
        DEISMultistepScheduler,
    ],
)
def test_a_scheduler_that_was_saved(cls: Any, steps: int, tmp_path: Path) -> None:
    """On disk they carry their default, linspace; ᾱ is that of their own tables at the timesteps."""
    saved = cls(**LEVELS)
    saved.save_pretrained(tmp_path)
    config = DDIMScheduler.load_config(tmp_path)
    assert config["timestep_spacing"] == "linspace"
    timesteps, table = scheduler_steps(config, steps, 1.0)
    assert timesteps == np.linspace(0, 999, steps).round().astype(int)[:0:-1].tolist()
    check_levels(timesteps, table)
    np.testing.assert_allclose(
        table.levels.alpha[:-1] ** 2, saved.alphas_cumprod.double()[timesteps], rtol=1e-6
    )
    assert table.levels.alpha[-1] ** 2 == pytest.approx(1 - 0.00085)


@pytest.mark.parametrize(("steps", "first_gap"), [(8, (0.0184, 0.0220))])
def test_the_level_that_diffusers_tells_with_linspace(steps: int, first_gap: tuple[float, float]) -> None:
    """What was wrong: the state of step 2 is at ᾱ .0184, and its timestep stands for .0220 (or the other way)."""
    config = DDIMScheduler(**STABLE_DIFFUSION, timestep_spacing="linspace").config
    scheduler = by_diffusers(config, steps)
    first, second = scheduler.timesteps.tolist()[:2]
    gap = sorted((SCALED[first - 1000 // steps], SCALED[second]))
    assert gap == pytest.approx(first_gap, abs=1e-4)


def test_the_step_that_linspace_leaves_out_has_no_noise() -> None:
    config = DDIMScheduler(**STABLE_DIFFUSION, timestep_spacing="linspace").config
    scheduler = by_diffusers(config, 10)
    assert int(scheduler.timesteps[-1]) == 0
    state, output, noise = torch.randn(3, 1, 4, 2, 2, dtype=torch.float64)
    after = scheduler.step(output, 0, state, eta=1.0, variance_noise=noise).prev_sample
    torch.testing.assert_close(after, state, rtol=1e-12, atol=1e-12)


def test_no_offset_leaves_it_out_too() -> None:
    config = DDIMScheduler(**{**STABLE_DIFFUSION, "steps_offset": 0}).config
    assert check(config, 10, 1.0) == 9


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_levels_of_another_scheduler(prediction: str) -> None:
    settings = {**LEVELS, "prediction_type": prediction}
    multistep = PNDMScheduler(**settings, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1).config
    assert check(multistep, 12, 1.0) == 12
    timesteps, table = scheduler_steps(multistep, 12, 1.0)
    same, expected = scheduler_steps(
        DDIMScheduler(**STABLE_DIFFUSION, prediction_type=prediction).config, 12, 1.0
    )
    assert timesteps == same
    assert np.array_equal(table.noise, expected.noise)


@pytest.mark.parametrize("cls", [DDIMScheduler, PNDMScheduler])
def test_the_last_step_has_noise_whatever_the_config_says(cls: type[Any]) -> None:
    config = cls(**LEVELS, steps_offset=1, set_alpha_to_one=True).config
    assert config["set_alpha_to_one"]
    assert check(config, 8, 1.0) == 8
    _, table = scheduler_steps(config, 8, 1.0)
    assert table.noise[-1] > 0.01
    assert table.levels.alpha[-1] < 1.0


def test_latents_are_not_clipped() -> None:
    config = DDIMScheduler(**{**STABLE_DIFFUSION, "clip_sample": True, "thresholding": True}).config
    scheduler = ddim_scheduler(config)
    assert not scheduler.config.clip_sample
    assert not scheduler.config.thresholding


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_no_signal_at_the_first_level(spacing: str, eta: float) -> None:
    """Zero terminal signal-to-noise: its noise prediction says nothing, its velocity does.

    With eta 1 the first step keeps nothing of the state: its new state is new noise around the clean guess.
    """
    config = DDIMScheduler(
        **STABLE_DIFFUSION,
        timestep_spacing=spacing,
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
    ).config
    for steps in range(3, 51):
        timesteps, table = scheduler_steps(config, steps, eta)
        assert timesteps[0] == 999
        assert table.levels.alpha[0] < 1e-3
        after = table.levels.alpha[1] ** 2
        kept = np.sqrt((1 - eta**2) * (1 - after))
        np.testing.assert_allclose(table.from_state[0], kept, rtol=1e-9, atol=1e-7)
        np.testing.assert_allclose(table.from_clean[0], np.sqrt(after), rtol=1e-9)
        np.testing.assert_allclose(table.noise[0], eta * np.sqrt(1 - after), rtol=1e-9)
        for coefficients in (table.from_state, table.from_clean, table.noise):
            assert np.isfinite(coefficients).all()


@pytest.mark.parametrize("steps", [61, 103, 121, 122])
def test_a_step_that_rounding_adds_is_left_out(steps: int) -> None:
    """Diffusers' trailing timesteps are one more, and end at -1, where 1000 / steps is rounded down."""
    config = DDIMScheduler(**STABLE_DIFFUSION, timestep_spacing="trailing").config
    assert by_diffusers(config, steps).timesteps.tolist()[steps:] == [-1]
    timesteps, table = scheduler_steps(config, steps, 1.0)
    assert len(timesteps) == steps
    check_levels(timesteps, table)


def test_levels_without_noise_are_refused() -> None:
    config = DDIMScheduler(**{**STABLE_DIFFUSION, "trained_betas": [0.0, *[0.01] * 999]}).config
    with pytest.raises(ValueError, match="its cleanest level has no noise"):
        scheduler_steps(config, 8, 1.0)


def test_a_chain_without_noise_is_refused() -> None:
    config = DDIMScheduler(**STABLE_DIFFUSION).config
    with pytest.raises(
        ValueError, match=r"eta must be in \(0, 1\], got 0\.0; at 0 the path-wise KL is infinite"
    ):
        scheduler_steps(config, 8, 0.0)


def test_more_steps_than_levels_are_refused() -> None:
    config = DDIMScheduler(**STABLE_DIFFUSION).config
    with pytest.raises(ValueError, match=r"sampling\.steps must be at most 1000, .* got 1001"):
        scheduler_steps(config, 1001, 1.0)
    with pytest.raises(
        ValueError, match=r"begin at level 1000, and the model has levels 0 to 999 .*take fewer"
    ):
        scheduler_steps(config, 1000, 1.0)
    linspace = DDIMScheduler(**STABLE_DIFFUSION, timestep_spacing="linspace").config
    with pytest.raises(ValueError, match="only step is at the cleanest level: take more"):
        scheduler_steps(linspace, 1, 1.0)
