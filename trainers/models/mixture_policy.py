"""A mixture with its trainable control, as a policy.

A step draws ``z ← μ_q(z) + R_q(z) (u(z) + ε)`` with ``R_q R_qᵀ`` the covariance that policy and reference share. The
control is free: in a chain of second order only ``μ_q`` extrapolates.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from trainers.adapters.files import CONTROL
from trainers.config import MixtureConfig, SamplingConfig
from trainers.diffusion.path_kl import along_noise, path_kl_from_controls
from trainers.models.base import Draw, Guesses, Rollout, Start, Tap
from trainers.models.conditional.control import control_file, load_control
from trainers.models.mixture import ControlNetwork, MixtureModel, antithetic_noise
from trainers.types import FloatArray


class MixturePolicy:
    """The analytic model with a small network on top."""

    chunk = 4096
    paired_samples = True

    def __init__(self, model: MixtureModel, network: ControlNetwork, tilt: FloatArray | None = None) -> None:
        """Take the frozen model and its residual, and the tilt ``[R]`` of all draws, where they have none."""
        self.model, self.network = model, network
        self._tilt = None if tilt is None else torch.as_tensor(tilt, dtype=model.dtype)

    @classmethod
    def build(
        cls, mixture: MixtureConfig, sampling: SamplingConfig, width: int, tilts: int = 0
    ) -> "MixturePolicy":
        """Return a fresh policy with ``width`` hidden units per layer, for one optimum or by the tilt of several."""
        model = MixtureModel(mixture, steps=sampling.steps, eta=sampling.eta, order=sampling.order)
        return cls(model, ControlNetwork(model, width, tilts))

    def at(self, tilt: FloatArray) -> "MixturePolicy":
        """Return the policy at one tilt; it shares the network."""
        return MixturePolicy(self.model, self.network, tilt)

    def expect(self, tilts: FloatArray) -> None:
        """Nothing: its network sees tilts of all sizes."""

    @property
    def steps(self) -> int:
        """Gaussian steps K of the sampler."""
        return self.model.steps

    @property
    def active_steps(self) -> int:
        """Every step."""
        return self.model.steps

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the network's parameters."""
        return dict(self.network.named_parameters())

    def draw(self, count: int, seed: int, *, first: int = 0, last: int | None = None) -> Draw:
        """Return part of a batch of antithetic pairs."""
        noise = antithetic_noise(self.model, count, seed, first=first, last=last)
        seeds = np.full(noise.shape[1], seed, dtype=np.int64)
        tilt = self._tilts(len(seeds))
        return Draw(noise=noise, seeds=seeds, seed=seed, first=first, count=count, tilt=tilt)

    def fixed_draw(self, seed: int, first: int, last: int, prompts: Sequence[str] | None = None) -> Draw:
        """Return part of the sequence; its chunk ``k``, of antithetic pairs, has the noise of ``seed + k``."""
        assert prompts is None, "a mixture has no prompts"
        size = self.chunk
        pieces = [
            self.draw(
                size, seed + chunk, first=max(first - chunk * size, 0), last=min(last - chunk * size, size)
            ).noise
            for chunk in range(first // size, -(-last // size))
        ]
        seeds = seed + np.arange(first, last)
        return Draw(noise=torch.cat(pieces, dim=1), seeds=seeds, seed=seed, tilt=self._tilts(len(seeds)))

    def _tilts(self, count: int) -> Tensor | None:
        """Return the tilt of every one of ``count`` samples."""
        return None if self._tilt is None else self._tilt.expand(count, -1)

    def rollout(
        self,
        draw: Draw,
        *,
        reference: bool = False,
        through: int | None = None,
        keep: bool = False,
        start: Start | None = None,
        tap: Tap | None = None,
    ) -> Rollout:
        """Sample from the policy, or from the reference."""
        conditioning = None if reference else self.network.conditioning(draw.tilt)
        start = start or Start(step=0, state=draw.noise[0])
        state, before, redo = start.state, None if start.before is None else start.before.clean, None
        controls, inputs, shifts = [], [], []
        for step in range(start.step, self.steps):
            if step == self.active_steps - 1 and before is not None:
                redo = Guesses(clean=before.detach())
            clean, mean, root = self.model.step(step, state, before)
            before = clean
            shift = draw.noise[step + 1]
            if conditioning is not None:
                seen = torch.cat([state, clean], dim=1)
                control = self.network(seen, conditioning, step)
                shift = control + shift
                controls.append(control)
                if keep:
                    inputs.append(seen)
                    shifts.append(shift)
            state = mean + (root @ shift[:, :, None])[:, :, 0]
            if through is not None and step + 1 <= self.steps - through:
                state = state.detach()
            if tap is not None and conditioning is not None:
                tap(state, root)
        taken = torch.stack(controls) if controls else draw.noise[1:1]
        path_kl = path_kl_from_controls(taken)
        return Rollout(
            samples=self.model.decode(state),
            path_kl=path_kl,
            log_ratio=path_kl.detach() + along_noise(taken, draw.noise[self.steps + 1 - len(taken) :]),
            final=state,
            before=redo,
            inputs=torch.stack(inputs) if keep else None,
            controls=taken if keep else None,
            shifts=torch.stack(shifts) if keep else None,
        )

    def traced(self, draw: Draw) -> tuple[Rollout, Tensor]:
        """Sample, then ask for the controls of all steps in one call of the network."""
        with torch.no_grad():
            drawn = self.rollout(draw, keep=True)
        assert drawn.inputs is not None
        return drawn, self.controls(draw, drawn.inputs)

    def controls(self, draw: Draw, inputs: Tensor) -> Tensor:
        """Return the controls of all steps in one call of the network; inputs are states and denoised guesses."""
        output: Tensor = self.network(inputs, self.network.conditioning(draw.tilt))
        return output

    def noised(self, final: Tensor, step: int, noise: Tensor) -> Tensor:
        """Return final states noised to the start of a step."""
        return self.model.table.noised(step, final, noise)

    def adapter(self) -> dict[str, bytes]:
        """Return the file of a residual for several optima; of one for a single optimum nothing."""
        return _files(self.network) if self.network.tilts else {}

    def folded(self, tilt: FloatArray) -> dict[str, bytes]:
        """Return the file of the residual at one tilt ``[R]``: that of a policy for a single optimum."""
        return _files(self.network.folded(torch.as_tensor(tilt, dtype=self.model.dtype)))

    def load_adapter(self, files: Mapping[str, bytes]) -> None:
        """Take the parameters of a residual of the same form; without files the residual stays as it is.

        Raises:
            ValueError: there is another file, or its parameters are those of another residual.
        """
        if not files:
            return
        if other := sorted(set(files) - {CONTROL}):
            raise ValueError(f"a mixture takes no adapter but {CONTROL}, got {', '.join(other)}")
        load_control(dict(self.network.named_parameters()), files[CONTROL])


def _files(network: ControlNetwork) -> dict[str, bytes]:
    return control_file(dict(network.named_parameters()), network.tilts)
