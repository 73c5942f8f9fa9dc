"""The Gaussian steps of a diffusers scheduler, as DDIM with noise takes them."""

import math
from typing import Any

import numpy as np
from diffusers import DDIMScheduler

from trainers.diffusion.schedule import Levels, StepTable, ddim_steps, gaussian_steps

OVERRIDES: dict[str, Any] = {"set_alpha_to_one": False, "clip_sample": False, "thresholding": False}
"""What sampling changes of a pipeline's scheduler: a last step without noise would make the path-wise KL infinite,
and clipping belongs to pixels, not to latents."""


def ddim_scheduler(config: Any, spacing: str | None = None) -> DDIMScheduler:
    """Return DDIM on the noise levels of any scheduler's config, its timesteps spaced as the config says, or so."""
    spaced = {} if spacing is None else {"timestep_spacing": spacing}
    return DDIMScheduler.from_config(config, **OVERRIDES, **spaced)


def scheduler_steps(
    config: Any, steps: int, eta: float, *, order: int = 1, spacing: str | None = None
) -> tuple[list[int], StepTable]:
    """Return the timesteps ``[K]`` and the coefficients of the steps between them, noisiest first.

    Each step goes to the level of the next timestep, and the last one to the cleanest level of the model. (The step of
    diffusers goes down by ``num_train_timesteps // steps`` timesteps whatever their spacing: with ``linspace``, which
    Euler, Heun, DPM++ and UniPC save, not to where the next one begins.)

    There are as many as asked for, or one less: a spacing that ends at the cleanest level ("linspace") would stay
    there in its last step, without noise, and that step is left out. So is one below it, timestep -1, which rounding
    adds to "trailing" (61 steps of 1000), and which stands for the noisiest level where it is taken for an index.

    Args:
        config: Of the scheduler.
        steps: Asked for.
        eta: Noise of a step.
        order: Of a step.
        spacing: Of the timesteps: ``leading``, ``trailing`` or ``linspace``; None: as the config says.

    Raises:
        ValueError: more steps than the model has noise levels for, levels without noise, eta 0, or eta below 1 with
            second order.
    """
    scheduler = ddim_scheduler(config, spacing)
    trained = scheduler.config.num_train_timesteps
    if steps > trained:
        raise ValueError(
            f"sampling.steps must be at most {trained}, the noise levels of the model, got {steps}"
        )
    scheduler.set_timesteps(steps)
    timesteps = np.array([int(t) for t in scheduler.timesteps if t >= 0])
    if timesteps.max() >= trained:
        raise ValueError(
            f"sampling.steps: {steps} steps begin at level {timesteps.max()}, and the model has levels 0 to "
            f"{trained - 1} (its scheduler's steps_offset is {scheduler.config.steps_offset}): take fewer"
        )
    levels = scheduler.alphas_cumprod.double().numpy()
    cleanest = float(scheduler.final_alpha_cumprod)
    if cleanest >= 1.0:
        raise ValueError(
            "the scheduler's first beta is 0: its cleanest level has no noise, and without noise in the last step the "
            "path-wise KL is infinite"
        )
    timesteps = timesteps[levels[timesteps] < cleanest]
    if not timesteps.size:
        raise ValueError(
            f"sampling.steps: with {steps} the scheduler's only step is at the cleanest level: take more"
        )
    return timesteps.tolist(), ddim_steps(np.append(cleanest, levels[timesteps[::-1]]), eta, order)


def flow_steps(
    config: Any, steps: int, eta: float, *, order: int = 1, mu: float | None = None
) -> tuple[list[float], StepTable]:
    """Return what a flow's network is told of its levels, ``[K]``, and the steps between them, noisiest first.

    Levels are evenly spaced from 1 to ``1 / K``, shifted once, stretched to end where ``shift_terminal`` says, then 0:
    the last step has no noise. (The scheduler of diffusers shifts its own spacing a second time where no levels are
    given; with these given it has these.)

    Args:
        config: Of a ``FlowMatchEulerDiscreteScheduler``.
        steps: K.
        eta: Noise of a step.
        order: Of a step.
        mu: How far levels are shifted where ``use_dynamic_shifting`` says that images of other sizes have others.

    Raises:
        ValueError: eta 0, or eta below 1 with second order.
    """
    shift, times = float(config.get("shift", 1.0)), np.linspace(1.0, 1.0 / steps, steps)
    if config.get("use_dynamic_shifting"):
        assert mu is not None, "a family whose levels depend on the image says how"
        shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
    times = shift * times / (1.0 + (shift - 1.0) * times)
    if terminal := config.get("shift_terminal"):
        times = 1.0 - (1.0 - times) * (1.0 - terminal) / (1.0 - times[-1])
    told = float(config.get("num_train_timesteps", 1000)) * times
    return told.tolist(), gaussian_steps(Levels.flow(np.append(times, 0.0)), eta, order)
