"""Chains with affine controls ``u_i(x) = A_i,k x + c_i,k``: their path measures are Gaussian, and answers exact.

A path is ``z = (x_0, s_1, …, s_K)``, the start and the realised shifts ``s_k = u + ε_k``; states are linear in it.
Model ``i`` makes ``M_i z − b_i`` standard normal, where ``M_i`` is unit lower triangular: precision ``P_i = M_iᵀ M_i``
of determinant 1, mean ``M_i⁻¹ b_i``. A product has precision ``Σ λ_i P_i``, and the chain of ``ū`` has ``Σ λ_i M_i``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from trainers.config import MixtureConfig
from trainers.models.base import Draw
from trainers.types import FloatArray

SHRUNK = 0.8
"""What the stand-in for merged weights makes of ``Σ λ_i u_i``."""


@dataclass(frozen=True, kw_only=True)
class PathGaussian:
    """A Gaussian over paths, and ``log Z`` of the product that it came from."""

    precision: FloatArray
    mean: FloatArray
    log_partition: float = 0.0

    def kl(self, other: "PathGaussian") -> float:
        """Return ``KL(self ‖ other)``, nats."""
        covariance, apart = np.linalg.inv(self.precision), self.mean - other.mean
        logs = np.linalg.slogdet(self.precision)[1] - np.linalg.slogdet(other.precision)[1]
        trace = np.trace(other.precision @ covariance) - len(apart)
        return float(0.5 * (trace + apart @ other.precision @ apart + logs))


class LinearChains:
    """``m`` chains of ``K`` steps ``x ← a x + σ (u + ε)`` in ``d`` dimensions; prompts shift the controls."""

    def __init__(
        self,
        matrices: FloatArray,
        offsets: FloatArray,
        *,
        prompts: dict[str, FloatArray] | None = None,
        decay: float = 0.9,
        noise: float = 0.6,
        chunk: int = 4096,
    ) -> None:
        """Take ``A`` ``[m, K, d, d]``, ``c`` ``[m, K, d]`` and, by prompt, what adds to ``c``, ``[m, 1 or K, d]``."""
        self.matrices, self.offsets, self.prompts = matrices, offsets, prompts
        self.decay, self.noise = decay, noise
        self.count, self.steps, self.dimension = offsets.shape
        self.chunk = chunk
        self.evaluations = float(self.count * self.steps)

    def draw(self, groups: int, size: int, seed: int, *, first: int = 0, held_out: bool = False) -> Draw:
        noise, seeds, asked = [], [], []
        names = list(self.prompts or ())
        for group in range(first, first + groups):
            generator = torch.Generator().manual_seed(1_000_003 * seed + 2 * group + int(held_out))
            noise.append(torch.randn(self.steps + 1, size, self.dimension, generator=generator))
            seeds += [seed + group * size + slot for slot in range(size)]
            if names:
                number = group if held_out else int(np.random.default_rng((seed, group)).integers(len(names)))
                asked += [names[number % len(names)]] * size
        return Draw(
            noise=torch.cat(noise, dim=1),
            seeds=np.array(seeds, dtype=np.int64),
            prompts=tuple(asked) or None,
            seed=seed,
        )

    def controls(self, step: int, state: Tensor, draw: Draw) -> Tensor:
        shifts = state.new_tensor(self.offsets[:, step])[:, None]  # [m, 1, d]
        if self.prompts is not None:
            added = {name: np.broadcast_to(v, self.offsets.shape) for name, v in self.prompts.items()}
            shifts = shifts + torch.stack(
                [state.new_tensor(added[name][:, step]) for name in draw.prompts or ()], dim=1
            )
        return torch.einsum("mij,nj->mni", state.new_tensor(self.matrices[:, step]), state) + shifts

    def control(
        self, driver: str | int, step: int, state: Tensor, draw: Draw, weights: Sequence[float]
    ) -> Tensor:
        if isinstance(driver, int):
            return self.controls(step, state, draw)[driver]
        if driver == "base":
            return torch.zeros_like(state)
        if driver == "merged":
            return SHRUNK * torch.einsum(
                "m,mbd->bd", state.new_tensor(weights), self.controls(step, state, draw)
            )
        raise ValueError(f"these models have no baseline {driver!r}")

    def advance(self, step: int, state: Tensor, control: Tensor, noise: Tensor) -> Tensor:
        return self.decay * state + self.noise * (control + noise)

    def decode(self, state: Tensor) -> Tensor:
        return state

    # ------------------------------------------------------------------ exact answers

    def _maps(self, prompt: str | None) -> tuple[FloatArray, FloatArray]:
        """Return ``M`` and ``b`` of every model."""
        size, d = (self.steps + 1) * self.dimension, self.dimension
        maps, shifts = np.stack([np.eye(size)] * self.count), np.zeros((self.count, size))
        offsets = self.offsets if prompt is None else self.offsets + (self.prompts or {})[prompt]
        for step in range(self.steps):
            rows = slice((step + 1) * d, (step + 2) * d)
            maps[:, rows] -= self.matrices[:, step] @ self.state(step)
            shifts[:, rows] = offsets[:, step]
        return maps, shifts

    def state(self, step: int) -> FloatArray:
        """Return what maps a path to the state before a step, ``[d, (K + 1) d]``; the final one at ``K``."""
        factors = [self.decay**step, *(self.noise * self.decay ** (step - 1 - k) for k in range(step))]
        factors += [0.0] * (self.steps + 1 - len(factors))
        return np.kron(np.array(factors)[None], np.eye(self.dimension))

    def models(self, prompt: str | None = None) -> list[PathGaussian]:
        """Return the models' paths."""
        maps, shifts = self._maps(prompt)
        return [
            PathGaussian(precision=m.T @ m, mean=np.linalg.solve(m, b))
            for m, b in zip(maps, shifts, strict=True)
        ]

    def chain(self, weights: FloatArray, prompt: str | None = None, factor: float = 1.0) -> PathGaussian:
        """Return the paths of the chain with ``factor · Σ λ_i u_i``."""
        maps, shifts = self._maps(prompt)
        mixed = (1.0 - factor) * np.eye(maps.shape[1]) + factor * np.tensordot(weights, maps, 1)
        return PathGaussian(
            precision=mixed.T @ mixed, mean=np.asarray(np.linalg.solve(mixed, factor * (weights @ shifts)))
        )

    def product(
        self, weights: FloatArray, prompt: str | None = None, tilt: FloatArray | None = None
    ) -> PathGaussian:
        """Return ``Π q_i^{λ_i} exp(tilt · x_K) / Z``."""
        models = self.models(prompt)
        precision = sum(w * q.precision for w, q in zip(weights, models, strict=True))
        pulls = [q.precision @ q.mean for q in models]
        pull = weights @ np.stack(pulls)
        if tilt is not None:
            pull = pull + tilt @ self.state(self.steps)
        mean = np.linalg.solve(precision, pull)
        squares = weights @ np.array([q.mean @ p for q, p in zip(models, pulls, strict=True)])
        logs = -np.linalg.slogdet(precision)[1] + pull @ mean - squares
        return PathGaussian(
            precision=np.asarray(precision), mean=np.asarray(mean), log_partition=float(0.5 * logs)
        )

    def best(self, *, chain: bool = False) -> FloatArray:
        """Return the weights at which the largest mean KL over prompts is least, of products or of ``chain``."""
        prompts = list(self.prompts) if self.prompts else [None]

        def worst(weights: FloatArray) -> FloatArray:
            found = np.zeros(self.count)
            for prompt in prompts:
                p = self.chain(weights, prompt) if chain else self.product(weights, prompt)
                found += [p.kl(q) for q in self.models(prompt)]
            return found / len(prompts)

        start = np.full(self.count, 1.0 / self.count)
        bounds = [(0.0, 1.0)] * self.count + [(0.0, None)]
        constraints = [
            {"type": "eq", "fun": lambda v: v[:-1].sum() - 1.0},
            {"type": "ineq", "fun": lambda v: v[-1] - worst(v[:-1])},
        ]
        search: Any = minimize  # its types are too many for a dictionary of constraints
        found = search(
            lambda v: v[-1],
            np.append(start, worst(start).max()),
            method="SLSQP",
            bounds=bounds,
            constraints=constraints,
            options={"ftol": 1e-12, "maxiter": 500},
        )
        assert found.success, found.message
        return np.asarray(found.x[:-1])

    def mixtures(self) -> dict[str, MixtureConfig]:
        """Return the models' paths as exact mixtures of one component."""
        return {
            f"m{i}": MixtureConfig(
                weights=(1.0,),
                means=(tuple(q.mean.tolist()),),
                covariances=(tuple(map(tuple, np.linalg.inv(q.precision).tolist())),),
            )
            for i, q in enumerate(self.models())
        }


def random_chains(
    seed: int,
    *,
    models: int = 3,
    steps: int = 4,
    dimension: int = 2,
    spread: float = 0.25,
    bend: float = 0.25,
    chunk: int = 4096,
    prompts: int = 0,
) -> LinearChains:
    """Return chains whose controls differ by about ``spread`` per dimension and step, and by ``bend`` per state."""
    rng = np.random.default_rng(seed)
    return LinearChains(
        bend * rng.normal(size=(models, 1, dimension, dimension)) + np.zeros((models, steps, 1, 1)),
        2.0 * spread * rng.normal(size=(models, 1, dimension)) + np.zeros((models, steps, 1)),
        prompts={f"p{i}": spread * rng.normal(size=(models, 1, dimension)) for i in range(prompts)} or None,
        chunk=chunk,
    )


def constant_chains(means: FloatArray, steps: int, *, chunk: int = 4096) -> LinearChains:
    """Return chains with constant controls: paths ``N(c_i, 1)``, their means as far apart as ``means`` ``[m, d]``.

    The least maximal KL is half the squared radius of the smallest enclosing ball of these.
    """
    count, dimension = means.shape
    offsets = np.repeat(means[:, None] / np.sqrt(steps), steps, axis=1)
    return LinearChains(np.zeros((count, steps, dimension, dimension)), offsets, chunk=chunk)
