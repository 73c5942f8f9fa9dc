"""What training asks of a model: a frozen sampler with a trainable residual, on noise that can be drawn again.

A *policy* samples ``z ← μ_p(z) + R(z) ε`` where its reference samples ``z ← μ_q(z) + R(z) ε``; both share ``R``, so
a step's KL is ``½ ‖u‖²`` of the control ``u = R⁻¹ (μ_p − μ_q)``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from trainers.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The randomness of one batch, or of a worker's part of one: noise, and the prompts that it goes with."""

    noise: Tensor
    """``[K + 1, batch, …]``; the first is the initial state."""
    seeds: NDArray[np.int64]
    """``[batch]``, the number of the noise of each sample."""
    prompts: tuple[str, ...] | None = None
    """``[batch]``; None where the model has no prompts."""
    seed: int = 0
    """Of the whole batch."""
    first: int = 0
    """Place of the first sample in the whole batch."""
    count: int = 0
    """Samples of the whole batch."""
    batch: int = 0
    """Number of the micro-batch in its optimiser step."""
    tilt: Tensor | None = None
    """``[batch, R]``, nats per σ of each reward that acts: the optimum that the residual is asked for; None where it
    is trained for one alone."""

    def part(self, first: int, last: int) -> "Draw":
        """Return samples ``first`` to ``last`` of this part."""
        return replace(
            self,
            noise=self.noise[:, first:last],
            seeds=self.seeds[first:last],
            prompts=None if self.prompts is None else self.prompts[first:last],
            first=self.first + first,
            tilt=None if self.tilt is None else self.tilt[first:last],
        )

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.noise.shape[1]


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """What a step of second order takes from the step before: its guesses at the clean sample, ``[batch, …]``."""

    clean: Tensor
    """The reference's."""
    shift: Tensor | None = None
    """How far the policy's is from it; None where the residual did not act, or is no guess."""

    def detached(self) -> "Guesses":
        """Return them without gradients."""
        return Guesses(clean=self.clean.detach(), shift=None if self.shift is None else self.shift.detach())


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a rollout begins, if not with the first noise."""

    step: int
    """From 0."""
    state: Tensor
    """``[batch, …]``, at the start of that step."""
    before: Guesses | None = None
    """Of the step before. Without them a chain of second order begins there: its first step is of first order."""


Tap = Callable[[Tensor, float | Tensor], None]
"""Is told the states ``[batch, …]`` that an active step ends in, as the next one takes them, and the root of its noise:
a number, or matrices ``[batch, d, d]``."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One batch of trajectories."""

    samples: Tensor
    """``[batch, d]`` of a mixture; images ``[batch, 3, h, w]`` in [0, 1] of a pipeline."""
    path_kl: Tensor
    """``[batch]``, nats; zeros for the reference."""
    log_ratio: Tensor
    """``[batch]``, nats: log density of the path under the policy less that under the reference, ``Σ ½‖u‖² + u·ε`` of
    the very controls and noise that drew it; without gradients, zeros for the reference."""
    final: Tensor
    """Last state, ``[batch, …]``."""
    before: Guesses | None = None
    """Of the step before the last active one, without gradients: with them that step can be done again."""
    inputs: Tensor | None = None
    """What the controls of the active steps are functions of, ``[J, batch, …]``; only the policy reads it."""
    controls: Tensor | None = None
    """``u`` of those steps, ``[J, batch, d]``."""
    shifts: Tensor | None = None
    """``u + ε`` of those steps, ``[J, batch, d]``: the realised residual in units of the step's noise."""
    velocity: Tensor | None = None
    """``[batch]``, without gradients: root mean square, over steps and latents, of the velocity its guesses mean."""


class Policy(Protocol):
    """A frozen model with a trainable residual."""

    @property
    def steps(self) -> int:
        """Gaussian steps K of the sampler."""

    @property
    def active_steps(self) -> int:
        """Steps J <= K, the first ones, in which the residual acts."""

    @property
    def chunk(self) -> int:
        """Samples that an evaluation draws at a time unless told otherwise."""

    @property
    def paired_samples(self) -> bool:
        """Whether neighbouring evaluation samples share their noise with opposite sign."""

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the trainable parameters by name."""

    def draw(self, count: int, seed: int, *, first: int = 0, last: int | None = None) -> Draw:
        """Return samples ``first`` to ``last`` of a training batch of ``count``, a function of the seed."""

    def fixed_draw(self, seed: int, first: int, last: int, prompts: Sequence[str] | None = None) -> Draw:
        """Return samples ``first`` to ``last`` of the endless sequence of a seed; prompts take turns.

        They do in the order in which they are given, and the held-out ones in that of ``PromptsConfig.in_turn``.
        """

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
        """Sample from the policy, or from the reference.

        Args:
            draw: Noise and prompts.
            reference: Leave the residual out.
            through: Last active steps through whose states gradients flow; before them a step's KL keeps only its
                direct gradient. All by default.
            keep: Return inputs and shifts too.
            start: Begin there.
            tap: Is told every active step's end.
        """

    def traced(self, draw: Draw) -> tuple[Rollout, Tensor]:
        """Sample from the policy with ``keep``; returns also the controls ``[J, batch, d]`` that it took.

        They alone have gradients, those at the states that were visited.
        """

    def controls(self, draw: Draw, inputs: Tensor) -> Tensor:
        """Return the controls ``[J, batch, d]`` of the active steps, with gradients, for a rollout's inputs."""

    def noised(self, final: Tensor, step: int, noise: Tensor) -> Tensor:
        """Return final states ``[batch, …]`` noised to the start of a step."""

    def adapter(self) -> dict[str, bytes]:
        """Return the files of the trained residual, in a format that other programs read; none for a mixture."""

    def load_adapter(self, files: Mapping[str, bytes]) -> None:
        """Take the files of ``adapter()``.

        Raises:
            ValueError: they do not fit.
        """


class Conditional(Policy, Protocol):
    """A policy whose residual is a function of the tilt of the optimum that it is asked for.

    At a tilt of 0 it is the reference. Its draws need a tilt, but for rollouts of the reference.
    """

    def expect(self, tilts: FloatArray) -> None:
        """Take the tilts ``[n, R]`` that training begins with; those to come are of their size."""

    def at(self, tilt: FloatArray) -> Policy:
        """Return the policy at one tilt ``[R]``, nats per σ; its draws are the same noise, and need none."""

    def folded(self, tilt: FloatArray) -> dict[str, bytes]:
        """Return the files of the adapter that this one is at one tilt ``[R]``, to be read without conditions."""
