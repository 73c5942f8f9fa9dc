"""One chain in place of several, against the best chain there is: linear chains have it in closed form."""

import numpy as np
import pytest
import torch
from support.models.linear_chains import LinearChains, random_chains
from torch import Tensor, nn

from trainers.composition.networks.distil import distil
from trainers.config import DistillationConfig
from trainers.failures import Diverged
from trainers.models.base import Draw
from trainers.types import FloatArray

WEIGHTS = np.array([0.2, 0.3, 0.5])
NOTHING = np.zeros(3)


class Taught(LinearChains):
    """Linear chains beside a student whose control is affine in every step."""

    def teach(self) -> None:
        self.slopes = nn.Parameter(torch.zeros(self.steps, self.dimension, self.dimension))
        self.shifts = nn.Parameter(torch.zeros(self.steps, self.dimension))

    def student_parameters(self) -> list[nn.Parameter]:
        return [self.slopes, self.shifts]

    def student_control(self, step: int, state: Tensor, draw: Draw) -> Tensor:
        del draw
        return state.detach() @ self.slopes[step].T + self.shifts[step]


class Weighed(Taught):
    """Beside a student whose control is linear in the weights, and affine in every step."""

    def teach(self) -> None:
        self.slopes = nn.Parameter(torch.zeros(self.count, self.steps, self.dimension, self.dimension))
        self.shifts = nn.Parameter(torch.zeros(self.count, self.steps, self.dimension))

    def student_control(self, step: int, state: Tensor, draw: Draw) -> Tensor:
        assert draw.tilt is not None, "it is asked for weights"
        each = torch.einsum("mij,nj->mni", self.slopes[:, step], state.detach()) + self.shifts[:, step, None]
        return torch.einsum("nm,mni->ni", draw.tilt, each)


def taught(seed: int, *, bend: float = 0.5, models: int = 3) -> Taught:
    chains = random_chains(seed, models=models, spread=0.4, bend=bend)
    student = Taught(chains.matrices, chains.offsets)
    student.teach()
    return student


def best_affine(chains: LinearChains, step: int) -> tuple[FloatArray, FloatArray]:
    """Slope and shift of ``E[u + ε | x]`` in a step under the product: what minimises ``KL(p*‖p_θ)``."""
    product = chains.product(WEIGHTS)
    covariance, d = np.linalg.inv(product.precision), chains.dimension
    before = chains.state(step)
    moved = np.zeros((d, len(product.mean)))
    moved[:, (step + 1) * d : (step + 2) * d] = np.eye(d)
    slope = moved @ covariance @ before.T @ np.linalg.inv(before @ covariance @ before.T)
    return slope, moved @ product.mean - slope @ before @ product.mean


def distance(chains: Taught, slopes: list[FloatArray], shifts: list[FloatArray]) -> float:
    """Largest difference of coefficients."""
    return max(
        float(np.abs(chains.slopes.detach().numpy() - np.stack(slopes)).max()),
        float(np.abs(chains.shifts.detach().numpy() - np.stack(shifts)).max()),
    )


CONFIG = DistillationConfig(steps=500, batch=512, learning_rate=0.05)


def test_uncorrected_the_student_learns_the_weighted_control() -> None:
    chains = taught(3)
    distil(chains, WEIGHTS, CONFIG, direction="reverse", corrected=False, offsets=NOTHING, seed=0)
    slopes = np.tensordot(WEIGHTS, chains.matrices, axes=1)
    shifts = np.tensordot(WEIGHTS, chains.offsets, axes=1)
    assert distance(chains, list(slopes), list(shifts)) < 0.01


def test_asked_for_all_weights_it_learns_every_model() -> None:
    """What is linear in the weights is, at their corners, the models themselves."""
    config = CONFIG.model_copy(update={"batch": 128, "steps": 300})
    base = random_chains(3, models=3, spread=0.4, bend=0.5)
    chains = Weighed(base.matrices, base.offsets)
    chains.teach()
    distil(
        chains, WEIGHTS, config, direction="reverse", corrected=False, offsets=NOTHING, seed=0, spread=True
    )
    assert distance(chains, list(chains.matrices), list(chains.offsets)) < 0.02


def test_corrected_it_learns_the_best_chain_for_the_product() -> None:
    chains = taught(3)
    best = [best_affine(chains, step) for step in range(chains.steps)]
    slopes, shifts = [slope for slope, _ in best], [shift for _, shift in best]
    plain = Taught(chains.matrices, chains.offsets)
    plain.teach()
    distil(chains, WEIGHTS, CONFIG, direction="reverse", corrected=True, offsets=NOTHING, seed=0)
    distil(plain, WEIGHTS, CONFIG, direction="reverse", corrected=False, offsets=NOTHING, seed=0)
    # The correction is what makes the difference, and it is found from 8 paths at a time.
    assert distance(plain, slopes, shifts) > 0.15
    assert distance(chains, slopes, shifts) < 0.4 * distance(plain, slopes, shifts)


def test_forward_the_losses_are_the_divergences_and_the_dual_step_equalises_them() -> None:
    """Two models are the same: at equal weights the third is far, at the end all are equally far."""
    base = random_chains(5, models=3, spread=0.6, bend=0.2)
    matrices, offsets = base.matrices.copy(), base.offsets.copy()
    matrices[1], offsets[1] = matrices[0], offsets[0]
    chains = Taught(matrices, offsets)
    chains.teach()
    config = DistillationConfig(steps=500, batch=768, learning_rate=0.03)
    found = distil(
        chains, np.full(3, 1 / 3), config, direction="forward", corrected=False, offsets=NOTHING, seed=0
    )
    assert found.weights.sum() == pytest.approx(1.0)
    assert found.weights[2] == pytest.approx(0.5, abs=0.05)

    draw = chains.draw(4096, 1, 1)
    chains.slopes.requires_grad_(requires_grad=False)
    chains.shifts.requires_grad_(requires_grad=False)
    kls = []
    for model in range(3):
        state, kl = draw.noise[0], 0.0
        for step in range(chains.steps):
            control = chains.controls(step, state, draw)[model]
            kl += float(
                0.5 * (control - chains.student_control(step, state, draw)).square().sum(dim=1).mean()
            )
            state = chains.advance(step, state, control, draw.noise[step + 1])
        kls.append(kl)
    assert kls[2] == pytest.approx(kls[0], rel=0.15)
    # A chain cannot be the mixture of two: it pays more than log 2, but no more than the midpoint of the two does.
    assert kls[0] > 0.3


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_a_gradient_that_is_not_finite_is_the_end(direction: str) -> None:
    """And not an adapter of NaN."""
    chains = taught(0)
    with torch.no_grad():
        chains.student_parameters()[0].fill_(torch.inf)
    with pytest.raises(Diverged, match=r"distillation diverged at step 1: .*distillation.learning_rate"):
        distil(
            chains,
            WEIGHTS,
            DistillationConfig(steps=3, batch=8),
            direction=direction,
            corrected=False,
            offsets=np.zeros(3),
            seed=0,
        )
