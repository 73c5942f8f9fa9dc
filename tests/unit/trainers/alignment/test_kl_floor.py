"""The floor of the KL is what rounding makes of it, and trials that come near it say so."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import tiny_pipeline
from support.tiers import exhaustive

from trainers.alignment.kl_floor import kl_floor, near_floor
from trainers.models.base import Rollout
from trainers.models.pipeline_policy import PipelinePolicy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline.write(tmp_path_factory.mktemp("floor"))


@pytest.mark.parametrize("precision", ["fp32", "bf16", *exhaustive("fp16")])
def test_the_floor_is_low_in_every_precision(folder: Path, precision: str) -> None:
    policy = tiny_pipeline.policy(folder, guidance=5.0, precision=precision)
    before = {name: parameter.clone() for name, parameter in policy.parameters().items()}
    assert 0.0 <= kl_floor(policy, 3) < 1e-6
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.parameters().items())


def rounding(policy: PipelinePolicy, kl: Callable[[int, bool], float]) -> None:
    """Let the policy's KL depend on the size of the batch, and on whether its adapter acts."""
    exact = policy.rollout

    def rollout(draw: object, **options: object) -> Rollout:
        drawn = exact(draw, **options)  # type: ignore[arg-type] # as it was called
        acts = any(bool(p.any()) for name, p in policy.parameters().items() if ".lora_B." in name)
        value = kl(len(drawn.path_kl), acts)
        return Rollout(
            samples=drawn.samples,
            final=drawn.final,
            path_kl=torch.full_like(drawn.path_kl, value),
            log_ratio=torch.full_like(drawn.path_kl, value),
        )

    policy.rollout = rollout  # type: ignore[method-assign] # to see what is asked


@pytest.mark.parametrize("acting", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_both_effects_and_both_sizes_of_batch_count(folder: Path, acting: bool, alone: bool) -> None:
    policy = tiny_pipeline.policy(folder, steps=1)
    rounding(policy, lambda size, acts: 0.5 if acts is acting and (size == 1) is alone else 0.0)
    assert kl_floor(policy, 3) == 0.5


def test_a_kl_within_ten_floors_is_told() -> None:
    said = near_floor(0.5, 0.1)
    assert said is not None
    assert "0.5 nats, is below 10 times its floor, the 0.1 nats" in said
    assert near_floor(1.1, 0.1) is None
    assert near_floor(0.0, 0.0) is None
    assert near_floor(0.0, None) is None
