"""Point-wise KLs along the sampler's levels, against Gaussians whose KL and scores are known."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from support import tiny_pipeline
from torch import Tensor

from trainers.composition.networks.pipelines import PipelineChains
from trainers.composition.networks.pointwise import pointwise_kls
from trainers.diffusion.schedule import cosine_alpha_bars, ddim_steps
from trainers.models.base import Draw
from trainers.types import FloatArray


class GaussianChains:
    """Samplers of ``N(mean_i, variance_i)``, coordinates independent, by their exact denoisers."""

    chunk = 4096

    def __init__(self, means: FloatArray, variances: FloatArray, alpha_bars: FloatArray) -> None:
        """Take means and variances ``[m, d]``, and noise levels ``[K + 1]`` from clean to noisy."""
        self.means, self.variances = torch.tensor(means), torch.tensor(variances)
        self.table = ddim_steps(alpha_bars, 1.0)
        self.count, self.dimension = means.shape
        self.steps = self.table.steps

    @property
    def alpha_bars(self) -> FloatArray:
        return self.table.levels.alpha[:-1] ** 2

    @property
    def score_scale(self) -> FloatArray:
        """Of a score, ``(√ᾱ x̂ − x) / (1 − ᾱ)``, by a control, ``(B / C) x̂``."""
        by_clean = np.sqrt(self.alpha_bars) / (1.0 - self.alpha_bars)
        return np.asarray(by_clean / (self.table.from_clean / self.table.noise))

    def draw(self, groups: int, size: int, seed: int, *, first: int = 0, held_out: bool = False) -> Draw:
        assert (size, held_out) == (1, True)
        generator = torch.Generator().manual_seed(seed + first)
        noise = torch.randn(self.steps + 1, groups, self.dimension, generator=generator, dtype=torch.float64)
        return Draw(noise=noise, seeds=np.arange(first, first + groups), prompts=None, seed=seed)

    def controls(self, step: int, state: Tensor, draw: Draw) -> Tensor:
        del draw
        level = float(self.alpha_bars[step])
        spread = level * self.variances + (1.0 - level)  # of the noised model
        clean = self.means[:, None] + (np.sqrt(level) * self.variances / spread)[:, None] * (
            state - np.sqrt(level) * self.means[:, None]
        )
        return self.table.gain(step) * clean

    def advance(self, step: int, state: Tensor, control: Tensor, noise: Tensor) -> Tensor:
        return float(self.table.from_state[step]) * state + float(self.table.noise[step]) * (control + noise)

    def kl(self, of: int, to: int) -> float:
        """Return ``KL(q_of ‖ q_to)`` in closed form."""
        ratio = self.variances[of] / self.variances[to]
        apart = (self.means[of] - self.means[to]).square() / self.variances[to]
        return float(0.5 * (ratio - 1.0 - ratio.log() + apart).sum())


def measure(chains: Any, weights: Sequence[float], count: int = 4096) -> tuple[FloatArray, FloatArray]:
    return pointwise_kls(cast("Any", chains), np.array(weights), count, 5)


MEANS = np.array([[0.3, -0.2], [0.9, 0.1], [-0.2, 0.4]])
VARIANCES = np.array([[0.5, 0.6], [0.45, 0.8], [0.7, 0.5]])


def stable_diffusion(steps: int) -> FloatArray:
    """Return the levels of Stable Diffusion's schedule."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return np.asarray(np.cumprod(1.0 - betas)[np.linspace(0, 999, steps + 1).round().astype(int)])


@pytest.mark.parametrize("levels", [cosine_alpha_bars(200), stable_diffusion(200)], ids=["cosine", "sd"])
def test_at_a_vertex_it_is_the_kl_between_two_models(levels: FloatArray) -> None:
    chains = GaussianChains(MEANS, VARIANCES, levels)
    for model in range(3):
        found, errors = measure(chains, np.eye(3)[model].tolist())
        assert found[model] == errors[model] == 0.0
        for other in {0, 1, 2} - {model}:
            exact = chains.kl(model, other)
            assert 0.1 < exact < 2.0
            assert errors[other] < 0.02 * exact
            assert found[other] == pytest.approx(exact, rel=0.05)


def test_few_levels_come_near() -> None:
    chains = GaussianChains(MEANS, VARIANCES, cosine_alpha_bars(10))
    found, _ = measure(chains, [1.0, 0.0, 0.0])
    assert found[1] == pytest.approx(chains.kl(0, 1), rel=0.25)


def test_of_models_that_differ_in_their_means_alone_the_mixed_score_is_the_product_s() -> None:
    chains = GaussianChains(MEANS, np.full((3, 2), 0.5), cosine_alpha_bars(100))
    weights = np.array([0.2, 0.5, 0.3])
    found, errors = measure(chains, weights.tolist())
    exact = np.square(weights @ MEANS - MEANS).sum(axis=1) / (2 * 0.5)
    # The difference of two scores is a constant there: no sample has another value.
    assert errors == pytest.approx(0.0, abs=1e-9)
    assert found == pytest.approx(exact, rel=0.05)


def test_chunks_are_put_together() -> None:
    chains = GaussianChains(MEANS, VARIANCES, cosine_alpha_bars(50))
    chains.chunk = 1000
    found, errors = measure(chains, [1.0, 0.0, 0.0], 2500)
    assert abs(found[1] - chains.kl(0, 1)) < 4 * errors[1] + 0.05 * chains.kl(0, 1)


def test_the_scale_of_a_pipeline_s_controls_is_that_of_its_scores(tmp_path: Any) -> None:
    """At the levels of a real scheduler: ``s = −ε̂ / √(1 − ᾱ)``, and ``x̂`` from ``ε̂``, written out."""
    policy = tiny_pipeline.policy(tiny_pipeline.write(tmp_path / "base"), steps=6)
    table = policy.table

    class Stub(PipelineChains):
        def __init__(self) -> None:
            pass

        @property
        def _first(self) -> Any:
            return policy._denoiser

    level = table.levels.alpha[:-1] ** 2
    one, other = 0.3, -0.8  # noise predictions of one state, 0
    clean = -np.sqrt(1 - level) * (one - other) / np.sqrt(level)
    score = -(one - other) / np.sqrt(1 - level)
    control = table.from_clean / table.noise * clean
    assert Stub().score_scale * control == pytest.approx(score, rel=1e-9)
