"""The floor of the path-wise KL: what rounding alone makes of it, measured with an adapter that hardly acts."""

from collections.abc import Iterator

import torch

from trainers.config import TrialConfig
from trainers.evaluate import evaluate
from trainers.models.base import Policy
from trainers.models.build import build_policy
from trainers.workers.collective import Collective

NEAR = 10.0
"""Floors within which a KL may be rounding for a part that matters."""
_EFFECT = 1e-7
"""Of an adapter near zero, per entry of its matrices: the last bit of float32. Its own KL is quadratic in it."""
_SAMPLES = 4


def measured_floor(config: TrialConfig, device: str = "cpu") -> float | None:
    """Return the floor of the KL, nats; None where no adapter is trained.

    Raises:
        ValueError: the model cannot be used; says why.
        OutOfMemory: the memory does not hold a single sample.
    """
    if config.model.pretrained is None:
        return None
    # Also of an adapter for a box: the floor is of the network's arithmetic.
    plain = config.model_copy(update={"frontier": None})
    return kl_floor(build_policy(plain, device), config.evaluation.seed)


@torch.no_grad()
def kl_floor(policy: Policy, seed: int) -> float:
    """Return the largest mean KL, nats, of the untrained policy and of one next to it, in batches of two sizes.

    Args:
        policy: As it was built; it is left so.
        seed: Of the noise and prompts, those of evaluations.

    Raises:
        OutOfMemory: the memory does not hold a single sample.
    """
    return max(
        float(
            evaluate(policy, {}, samples=_SAMPLES, seed=seed, collective=Collective(), batch=size).kl.mean()
        )
        for _ in _effects(policy)
        for size in (1, _SAMPLES)
    )


def _effects(policy: Policy) -> Iterator[None]:
    """Put the policy at zero effect, then near it, then back."""
    yield
    parameters = policy.parameters().values()
    before = [parameter.clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.add_(_EFFECT * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    yield
    for parameter, value in zip(parameters, before, strict=True):
        parameter.copy_(value)


def near_floor(kl: float, floor: float | None) -> str | None:
    """Say that a KL may be rounding, where it is below ten floors; None where it is not, or no floor is known."""
    if floor is None or not kl < NEAR * floor:
        return None
    return (
        f"the KL, {kl:.3g} nats, is below {NEAR:g} times its floor, the {floor:.2g} nats that rounding alone makes: do "
        "not compare it with others"
    )
