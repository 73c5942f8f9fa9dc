"""A Gaussian mixture as a pretrained diffusion model: analytic scores, and a small trainable residual on top.

Symbols: ``x`` sample, ``z`` its whitened coordinates, ``z_t`` a noisy state, ``x̂_0`` (``clean``) the posterior
mean E[z_0 | z_t], ``u`` the control: the shift of a step's mean in units of its noise.

The mixture is whitened first (zero mean, unit covariance), so that any scale and correlation fits the
variance-preserving schedule; KL and rewards do not change under that map. Under the schedule the noised mixture
is again a mixture, with component means ``√ᾱ m_c`` and covariances ``ᾱ S_c + (1 − ᾱ) I``, and ``E[z_0 | z_t]``
is exact. A step's mean is DDIM's; its covariance is the exact one, ``C² I + B² Cov(z_0 | z_t)`` with ``B`` the
factor of ``x̂_0``, so that every step has the first two moments of the reversed diffusion (Bao et al. 2022,
arXiv 2206.07309, theorem 1, there per coordinate and learned). With the bare DDIM variance ``C²`` a coarse chain is too
narrow: its samples are not the mixture's, and every nat of reward costs more path-wise KL than it should. Steps of
second order are those of networks, where covariances are not known: they have the bare variance, and a mean that makes
up for some of it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from trainers.config import MixtureConfig
from trainers.diffusion.schedule import Levels, cosine_alpha_bars, gaussian_steps
from trainers.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class _Whitened:
    """The mixture in coordinates of zero mean and unit covariance."""

    weights: FloatArray  # [C]
    means: FloatArray  # [C, d]
    covariances: FloatArray  # [C, d, d]
    shift: FloatArray  # [d]
    scale: FloatArray  # [d, d], x = shift + scale @ z


def _whiten(config: MixtureConfig) -> _Whitened:
    weights = np.array(config.weights) / np.sum(config.weights)
    means, covariances = np.array(config.means), np.array(config.covariances)
    shift = weights @ means
    spread = means - shift
    total = np.einsum("c,cij->ij", weights, covariances + np.einsum("ci,cj->cij", spread, spread))
    scale = np.linalg.cholesky(total)
    inverse = np.linalg.inv(scale)
    return _Whitened(
        weights=weights,
        means=spread @ inverse.T,
        covariances=inverse @ covariances @ inverse.T,
        shift=shift,
        scale=scale,
    )


_LEAST_SIGNAL = 1e-5
"""``ᾱ`` at which a cosine begins."""


class MixtureModel:
    """The frozen model ``q``: its steps, and the map from whitened states to samples.

    Every per-step array is stacked over the K steps of the sampler, noisiest first.
    """

    def __init__(
        self,
        config: MixtureConfig,
        *,
        steps: int,
        eta: float,
        order: int = 1,
        levels: Levels | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Tabulate the noised mixture at every step.

        Args:
            config: The mixture.
            steps: K, of the sampler.
            eta: Of its steps.
            order: Of its steps.
            levels: Of its ``K + 1`` grid points, ending nearly without noise; by default those of a cosine.
            dtype: Of all tensors.

        Raises:
            ValueError: ``eta`` is 0, or not 1 with second order.
        """
        white = _whiten(config)
        self.dimension = config.dimension
        self.components = len(white.weights)
        self.steps = steps
        cosine = Levels.variance_preserving(cosine_alpha_bars(steps)[::-1].copy())
        self.table = gaussian_steps(levels or cosine, eta, order)
        self._exact_covariance = order == 1
        self._tabulate(white, self.table.levels, dtype)
        self._identity = torch.eye(self.dimension, dtype=dtype)
        self._shift = torch.tensor(white.shift, dtype=dtype)
        self._scale = torch.tensor(white.scale, dtype=dtype)
        self.dtype = dtype

    def _tabulate(self, white: _Whitened, levels: Levels, dtype: torch.dtype) -> None:
        """Store, per step and component, the whitening of ``z_t`` and the affine map to ``E[z_0 | z_t, c]``."""
        identity = np.eye(self.dimension)
        root = levels.alpha[:-1, None, None]
        centers = root * white.means  # [K, C, d]
        noised = (
            root[..., None] ** 2 * white.covariances + levels.sigma[:-1, None, None, None] ** 2 * identity
        )
        precision = np.linalg.inv(noised)
        factor = np.swapaxes(
            np.linalg.cholesky(precision), -1, -2
        )  # [K, C, d, d], ‖factor @ δ‖² = δᵀ precision δ
        gain = root[..., None] * white.covariances @ precision
        log_weight = np.log(white.weights) + 0.5 * np.linalg.slogdet(precision)[1]

        def stack(matrix: FloatArray) -> Tensor:  # [K, C, d, d] -> [K, d, C·d], for row vectors
            rows = matrix.reshape(len(matrix), -1, self.dimension)
            return torch.tensor(np.swapaxes(rows, 1, 2), dtype=dtype).contiguous()

        def offset(vector: FloatArray) -> Tensor:  # [K, C, d] -> [K, C·d]
            return torch.tensor(vector.reshape(len(vector), -1), dtype=dtype)

        self._factor, self._factor_bias = stack(factor), offset(-np.einsum("kcij,kcj->kci", factor, centers))
        self._gain = stack(gain)
        self._gain_bias = offset(white.means - np.einsum("kcij,kcj->kci", gain, centers))
        self._log_weight = torch.tensor(log_weight, dtype=dtype)  # [K, C]
        remaining = (
            white.covariances - root[..., None] * gain @ white.covariances
        )  # [K, C, d, d], Cov(z_0 | z_t, c)
        self._remaining = torch.tensor(remaining.reshape(len(remaining), self.components, -1), dtype=dtype)

    def _posterior(self, step: int, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``p(c | z_t)``, ``[batch, C]``, and ``E[z_0 | z_t, c]``, ``[batch, C, d]``."""
        shape = (-1, self.components, self.dimension)
        distance = (
            torch.addmm(self._factor_bias[step], state, self._factor[step]).view(shape).square().sum(dim=2)
        )
        responsibility = torch.softmax(self._log_weight[step] - 0.5 * distance, dim=1)
        return responsibility, torch.addmm(self._gain_bias[step], state, self._gain[step]).view(shape)

    def denoise(self, step: int, state: Tensor) -> Tensor:
        """Return ``E[z_0 | z_t]``, ``[batch, d]``, for states ``[batch, d]`` at the start of ``step``."""
        responsibility, guesses = self._posterior(step, state)
        return (responsibility[:, :, None] * guesses).sum(dim=1)

    def step(self, step: int, state: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return what one step of the reference does at states ``[batch, d]``.

        Args:
            step: Number of the step, from 0.
            state: At its start.
            before: The denoised guess of the step before, from which one of second order extrapolates.

        Returns:
            The denoised guess ``[batch, d]``, the step's mean ``[batch, d]``, and the lower triangular root
            ``[batch, d, d]`` of its covariance: it draws ``mean + root @ ε``.
        """
        responsibility, guesses = self._posterior(step, state)
        weighted = responsibility[:, :, None] * guesses
        clean = weighted.sum(dim=1)
        mean = self.table.mean(step, state, self.table.extrapolated(step, clean, before))
        factor, noise = float(self.table.from_clean[step]), float(self.table.noise[step])
        if not self._exact_covariance:
            return clean, mean, (noise * self._identity).expand(len(state), -1, -1)
        within = (responsibility @ self._remaining[step]).view(-1, self.dimension, self.dimension)
        between = (responsibility[:, :, None] * (guesses - clean[:, None])).mT @ (guesses - clean[:, None])
        covariance = factor**2 * (within + between) + noise**2 * self._identity
        return clean, mean, torch.linalg.cholesky_ex(covariance)[0]

    def decode(self, state: Tensor) -> Tensor:
        """Map final states ``[batch, d]`` to samples ``[batch, d]``."""
        return state @ self._scale.T + self._shift


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What the hidden layers add that does not depend on the state."""

    enter: Tensor
    """``[K, width]``, of every step."""
    hidden: Tensor
    """The same."""
    enter_tilt: Tensor | None = None
    """``[batch, width]``, of every sample; None without tilts."""
    hidden_tilt: Tensor | None = None
    """The same."""
    shares: Tensor | None = None
    """``[batch, R]`` in [0, 1), of each reward in the control: none at a tilt of 0."""


class ControlNetwork(nn.Module):
    """The trainable residual: two hidden layers that output the control ``u``, zero at the start.

    It sees the state, the pretrained model's denoised guess, and the step's log signal-to-noise ratio. One for a whole
    family of optima ``q exp(Σ_j t_j r_j)`` sees the tilt ``t`` as well, and has an output ``v_j`` per reward:
    ``u = Σ_j t_j v_j / (1 + Σ_k t_k)``, which is 0 where ``t`` is, and linear beside it.
    """

    def __init__(self, model: MixtureModel, width: int, tilts: int = 0) -> None:
        """Build for the model's steps; ``width`` hidden units per layer; ``tilts`` is R, 0 for one optimum alone."""
        super().__init__()
        self._model, self._width = model, width
        # Of the same signal-to-noise ratio in a variance-preserving chain; a chain may begin without signal.
        alpha, sigma = model.table.levels.alpha[:-1] ** 2, model.table.levels.sigma[:-1] ** 2
        alpha_bar = torch.tensor(np.maximum(alpha / (alpha + sigma), _LEAST_SIGNAL), dtype=model.dtype)
        level = torch.log(alpha_bar / (1 - alpha_bar))[:, None] / 9.0
        waves = 0.5 * torch.pi * torch.tensor([1.0, 2.0, 4.0], dtype=model.dtype)
        self.register_buffer(
            "times",
            torch.cat([level, torch.sin(level * waves), torch.cos(level * waves)], dim=1),
            persistent=False,
        )
        features = 7
        self.enter = nn.Linear(2 * model.dimension, width, dtype=model.dtype)
        self.enter_time = nn.Linear(features, width, dtype=model.dtype)
        self.hidden = nn.Linear(width, width, dtype=model.dtype)
        self.hidden_time = nn.Linear(features, width, dtype=model.dtype)
        self.leave = nn.Linear(width, model.dimension * max(tilts, 1), dtype=model.dtype)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.tilts = tilts
        if tilts:
            self.enter_tilt = nn.Linear(2 * tilts, width, bias=False, dtype=model.dtype)
            self.hidden_tilt = nn.Linear(2 * tilts, width, bias=False, dtype=model.dtype)

    def conditioning(self, tilt: Tensor | None = None) -> Conditioning:
        """Return what the steps, and tilts ``[batch, R]``, add to the hidden layers."""
        times = self.times
        assert isinstance(times, Tensor)
        enter, hidden = self.enter_time(times), self.hidden_time(times)
        if not self.tilts:
            return Conditioning(enter=enter, hidden=hidden)
        assert tilt is not None, "a residual for many optima is asked for one"
        shares = tilt / (1.0 + tilt.sum(dim=1, keepdim=True))
        seen = torch.cat([shares, tilt / _USUAL_TILT], dim=1)
        return Conditioning(
            enter=enter,
            hidden=hidden,
            enter_tilt=self.enter_tilt(seen),
            hidden_tilt=self.hidden_tilt(seen),
            shares=shares,
        )

    def forward(self, inputs: Tensor, conditioning: Conditioning, step: int | None = None) -> Tensor:
        """Return controls: ``[batch, d]`` of one ``step``, or ``[K, batch, d]`` of all steps at once.

        Args:
            inputs: State and denoised guess, ``[batch, 2 d]`` or ``[K, batch, 2 d]``.
            conditioning: From ``conditioning()``.
            step: The step, or None for all.
        """
        first, second = (
            c[:, None] if step is None else c[step] for c in (conditioning.enter, conditioning.hidden)
        )
        if conditioning.enter_tilt is not None and conditioning.hidden_tilt is not None:
            first, second = first + conditioning.enter_tilt, second + conditioning.hidden_tilt
        hidden = nn.functional.silu(self.enter(inputs) + first)
        hidden = nn.functional.silu(self.hidden(hidden) + second)
        output: Tensor = self.leave(hidden)
        if conditioning.shares is None:
            return output
        heads = output.reshape(*output.shape[:-1], self.tilts, -1)  # [..., batch, R, d]
        control: Tensor = (conditioning.shares[:, :, None] * heads).sum(dim=-2)
        return control

    @torch.no_grad()
    def folded(self, tilt: Tensor) -> "ControlNetwork":
        """Return the residual for one optimum alone that this one is at a tilt ``[R]``: the same function."""
        known = self.conditioning(tilt[None])
        assert known.enter_tilt is not None and known.hidden_tilt is not None and known.shares is not None  # noqa: PT018
        alone = ControlNetwork(self._model, self._width)
        own = dict(self.named_parameters())
        for name, parameter in alone.named_parameters():
            if not name.startswith("leave"):
                parameter.copy_(own[name])
        alone.enter.bias.add_(known.enter_tilt[0])
        alone.hidden.bias.add_(known.hidden_tilt[0])
        alone.leave.weight.copy_(torch.einsum("r,rdw->dw", known.shares[0], self._heads(self.leave.weight)))
        alone.leave.bias.copy_(known.shares[0] @ self._heads(self.leave.bias))
        return alone

    def _heads(self, parameter: Tensor) -> Tensor:
        """Return a parameter of the last layer by reward, ``[R, d, …]``."""
        return parameter.reshape(self.tilts, -1, *parameter.shape[1:])


_USUAL_TILT = 4.0
"""Nats per σ: in this unit a network sees tilts."""


def antithetic_noise(
    model: MixtureModel, count: int, seed: int, *, first: int = 0, last: int | None = None
) -> Tensor:
    """Draw noise ``[K + 1, count, d]`` in pairs ``±ε`` and return samples ``first`` to ``last`` of it.

    The noise is a function of the seed and the whole count, so however many workers share a batch, they share
    the same one.
    """
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(
        model.steps + 1, (count + 1) // 2, model.dimension, generator=generator, dtype=model.dtype
    )
    pairs = torch.stack([half, -half], dim=2).flatten(1, 2)
    return pairs[:, first : count if last is None else last]
