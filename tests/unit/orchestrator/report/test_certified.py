"""What a policy's own paths prove of it, where the answer is known: tilts of every prompt, and noise beside them."""

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.plan import base_config
from orchestrator.report.certified import Certified, NoOverlapError, certified
from orchestrator.spec import parse_spec
from trainers.types import Interval

SPEC = """\
name: known
model: {pretrained: embedded}
constraints:
  - {reward: saturation, at_least: 0.1, unit: sigma}
  - {reward: clip, at_least: 0.1, unit: sigma}
"""
PRICES = np.array([2.0, 5.0])


def known(noise: float, each: int = 2, prompts: int = 200) -> Certified:
    """A policy with ``log p/q = λ'r − log Z_c`` and noise, on prompts with partition functions of their own."""
    rng = np.random.default_rng(0)
    homes = np.repeat(np.arange(prompts), each)
    rewards = rng.normal(size=(prompts * each, 2)) * [0.2, 0.1] + rng.normal(size=(prompts, 2))[homes]
    log_ratio = rewards @ PRICES - 3.0 * rng.normal(size=prompts)[homes] + noise * rng.normal(size=len(homes))
    table = pa.table(
        {
            "prompt": [f"prompt {home}" for home in homes],
            "seed": np.arange(len(homes)),
            "kl": log_ratio,
            "log_ratio": log_ratio,
            "reward_saturation": rewards[:, 0],
            "reward_clip": rewards[:, 1],
        }
    )
    means = dict(zip(("saturation", "clip"), rewards.mean(axis=0).tolist(), strict=True))
    return certified(
        table,
        base_config(parse_spec(SPEC)),
        Interval(mean=float(log_ratio.mean()), low=0.0, high=1.0),
        {name: Interval(mean=mean, low=mean, high=mean) for name, mean in means.items()},
    )


def test_a_tilt_of_every_prompt_is_its_own_optimum() -> None:
    found = known(0.0)
    assert [found.multipliers[name] for name in ("saturation", "clip")] == pytest.approx(PRICES.tolist())
    assert found.distance == pytest.approx(0.0, abs=1e-9)
    assert found.ess == pytest.approx(400)


@pytest.mark.parametrize("each", [2, 5])
def test_the_distance_is_half_the_variance_of_log_weights_that_are_gaussian(each: int) -> None:
    found = known(0.7, each)
    assert found.distance == pytest.approx(0.7**2 / 2, rel=0.25)
    assert found.ess / (200 * each) == pytest.approx(np.exp(-(0.7**2)), rel=0.25)
    assert [found.multipliers[name] for name in ("saturation", "clip")] == pytest.approx(PRICES, abs=1.0)


def test_weights_that_few_samples_hold_are_no_overlap() -> None:
    with pytest.raises(NoOverlapError, match=r"no overlap.* 400 samples .* effective ones, and 30") as raised:
        known(6.0)
    assert raised.value.needed > 400
