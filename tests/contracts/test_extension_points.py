"""Every registered extension passes the contract that ships in ``trainers.testing``.

A new reward gets one line in ``POINT_REWARDS`` or ``IMAGE_REWARDS`` with parameters to build it from; those that
load weights, or ask a server, are checked in ``tests/unit/trainers/rewards``. Dual optimisers, primal estimators and
searches are found by themselves.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.searched import GRID, SPEC, Sweep, spec_of

from orchestrator.plan import make_plan
from orchestrator.search.base import Search
from orchestrator.spec.load import parse_spec
from trainers import registry, reward_parameters
from trainers.config import DualConfig, MixtureConfig, SamplingConfig
from trainers.duality.optimizers import DualAscent
from trainers.models.base import Draw, Policy
from trainers.models.mixture_policy import MixturePolicy
from trainers.primal.base import PrimalEstimate, PrimalEstimator
from trainers.primal.log_variance import LogVariance
from trainers.primal.low_variance import LowVariance
from trainers.primal.reward_backprop import RewardBackprop
from trainers.rewards.analytic import Linear
from trainers.rewards.base import Reward
from trainers.testing import check_dual_optimizer, check_primal_estimator, check_reward

POINT_REWARDS = {
    "linear": {"direction": (1.0, -2.0)},
    "quadratic": {"center": (0.3, 0.1), "scale": 0.7},
}
IMAGE_REWARDS = {
    "brightness": {},
    "global_contrast": {"aim": "low"},
    "local_contrast": {"sigma": 1.5},
    "saturation": {"aim": "low"},
    "colourfulness": {},
    "edge_density": {},
    "colour_entropy": {"aim": "low"},
}


def test_every_reward_is_in_a_list() -> None:
    with_weights = {
        name
        for name, parameters in reward_parameters.IMAGE_REWARDS.items()
        if issubclass(parameters, reward_parameters.PretrainedParameters)
    }
    lists = [set(POINT_REWARDS), set(IMAGE_REWARDS), with_weights, set(reward_parameters.SERVED)]
    assert sorted(name for names in lists for name in names) == sorted(registry.registered(registry.REWARDS))


@pytest.mark.parametrize("kind", POINT_REWARDS)
def test_point_reward(kind: str) -> None:
    reward = registry.load(registry.REWARDS, kind)(**POINT_REWARDS[kind])
    check_reward(reward, torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("kind", IMAGE_REWARDS)
def test_image_reward(kind: str) -> None:
    reward = registry.load(registry.REWARDS, kind)(**IMAGE_REWARDS[kind])
    check_reward(reward, torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


def test_the_shipped_clip() -> None:
    reward = registry.load(registry.REWARDS, "clip")(model="embedded")
    prompts = ["a large red circle on a blue background", "a small cyan moon on a pink background", "a"]
    check_reward(reward, torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)), prompts)


@pytest.mark.parametrize("kind", sorted(registry.registered(registry.DUAL_OPTIMIZERS)))
def test_dual_optimizer(kind: str) -> None:
    check_dual_optimizer(registry.load(registry.DUAL_OPTIMIZERS, kind))


@pytest.mark.parametrize("kind", sorted(registry.registered(registry.PRIMAL_ESTIMATORS)))
def test_primal_estimator(kind: str) -> None:
    check_primal_estimator(registry.load(registry.PRIMAL_ESTIMATORS, kind)())


@pytest.mark.parametrize("kind", sorted(point.name for point in entry_points(group="cdsweep.searches")))
@pytest.mark.parametrize("at_once", [1, 3])
def test_search(kind: str, at_once: int) -> None:
    """It ends, repeats nothing, waits only for what runs, and goes on after a crash; ``Sweep.drive`` asserts it."""
    (point,) = entry_points(group="cdsweep.searches", name=kind)
    spec = spec_of(GRID)
    if kind != "certified":
        text = SPEC.replace("kind: certified, tolerance: 0.05, max_trials: 16", f"kind: {kind}")
        text = text.replace("{range: [0.05, 0.6]}", "{grid: [0.1, 0.3]}").replace(
            "{range: [+10%, +55%]}", "+20%"
        )
        spec = parse_spec(text)
    sweep = Sweep(spec, None)
    assert issubclass(point.load(), Search)
    for most in (2, 1, 0, None):
        interrupted = [name for name in dict.fromkeys(sweep.started) if name not in sweep.rows]
        before = len(sweep.started)
        search = sweep.drive(at_once=at_once, most=most)
        assert sweep.started[before:][: len(interrupted)] == interrupted
    assert search.exhausted
    assert search.propose() is None
    assert set(sweep.rows) == set(sweep.trials)
    assert {trial.trial_id for trial in make_plan(spec).trials} <= set(sweep.trials)


# The contracts themselves: each broken rule is found.


class BatchNormalised:
    def __call__(self, samples: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        scores = samples.sum(dim=1)
        return scores - scores.mean() + scores.square()


class Unshaped:
    def __call__(self, samples: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        return samples.sum(dim=1, keepdim=True)


class Double:
    def __call__(self, samples: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        return samples.sum(dim=1).double()


class Flat:
    def __call__(self, samples: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        return 0.0 * samples.sum(dim=1)


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(_: object, samples: torch.Tensor) -> torch.Tensor:
        return samples.sum(dim=1)

    @staticmethod
    def backward(_: object, gradient: torch.Tensor) -> torch.Tensor:
        return -gradient[:, None].expand(-1, 2)


class WrongSlope:
    def __call__(self, samples: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        return Backwards.apply(samples)


@pytest.mark.parametrize(
    ("reward", "rule"),
    [
        (BatchNormalised(), "depends on its sample only"),
        (Unshaped(), "one score per sample"),
        (Double(), "float32"),
        (Flat(), "has a gradient"),
        (WrongSlope(), "raises the scores"),
    ],
)
def test_a_broken_reward_is_found(reward: object, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_reward(reward, torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))


class Unprojected(DualAscent):
    def step(self, violations: np.ndarray, rate: float = 1.0) -> None:
        self.multipliers = self.multipliers + rate * violations


class Reversed(DualAscent):
    def _updated(self, violations: np.ndarray, rate: float) -> np.ndarray:
        return self.multipliers - rate * violations


class Forgetful(DualAscent):
    """Momentum that is not saved."""

    velocity = 0.0

    def _updated(self, violations: np.ndarray, rate: float) -> np.ndarray:
        self.velocity = 0.9 * self.velocity + violations
        return self.multipliers + 0.1 * self.velocity


@pytest.mark.parametrize(
    ("cls", "rule"),
    [(Unprojected, ">= 0"), (Reversed, "raises its multiplier"), (Forgetful, "bit for bit")],
)
def test_a_broken_dual_optimizer_is_found(cls: type[DualAscent], rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_dual_optimizer(cls, DualConfig())


class Ascending(RewardBackprop):
    def __call__(self, *args: object) -> PrimalEstimate:
        estimate = super().__call__(*args)
        return PrimalEstimate(loss=-estimate.loss, path_kl=estimate.path_kl, rewards=estimate.rewards)


class OwnBaseline(LogVariance):
    """Ignores the other workers' mean."""

    def __call__(self, *args: object) -> PrimalEstimate:
        return super().__call__(*args[:-1], torch.Tensor.detach)


class Attached(RewardBackprop):
    def __call__(self, *args: object) -> PrimalEstimate:
        estimate = super().__call__(*args)
        return PrimalEstimate(
            loss=estimate.loss, path_kl=estimate.path_kl.requires_grad_(), rewards=estimate.rewards
        )


class OwnNoise(LowVariance):
    """Takes its part of a batch for a batch."""

    def __call__(
        self, policy: Policy, rewards: object, coefficients: object, draw: Draw, mean: object
    ) -> PrimalEstimate:
        return super().__call__(policy, rewards, coefficients, replace(draw, first=0, count=len(draw)), mean)


class OfTheReference(RewardBackprop):
    """Measures the rewards of the wrong samples."""

    def __call__(self, policy: Policy, rewards: Mapping[str, Reward], *args: object) -> PrimalEstimate:
        samples = policy.rollout(args[1], reference=True).samples
        wrong = {name: reward(samples).detach() for name, reward in rewards.items()}
        return replace(super().__call__(policy, rewards, *args), rewards=wrong)


class PerSample(RewardBackprop):
    def __call__(self, *args: object) -> PrimalEstimate:
        estimate = super().__call__(*args)
        return replace(estimate, loss=estimate.loss.expand(len(estimate.path_kl)))


@pytest.mark.parametrize(
    ("estimator", "rule"),
    [
        (Ascending(), "lowers the Lagrangian"),
        (OwnBaseline(), "gradient of the whole"),
        (OwnNoise(), "gradient of the whole"),
        (Attached(), "detached"),
        (OfTheReference(), "not close"),
        (PerSample(), "loss is a scalar"),
    ],
)
def test_a_broken_estimator_is_found(estimator: PrimalEstimator, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_primal_estimator(estimator)


def test_an_estimator_is_checked_on_the_callers_policy_which_stays_as_it_was() -> None:
    torch.manual_seed(0)
    mixture = MixtureConfig(weights=(1.0,), means=((0.0, 1.0),), covariances=(((1.0, 0.2), (0.2, 0.5)),))
    policy = MixturePolicy.build(mixture, SamplingConfig(steps=4), width=8)
    before = {name: parameter.detach().clone() for name, parameter in policy.parameters().items()}
    rewards = {"across": Linear((1.0, -1.0))}
    check_primal_estimator(RewardBackprop(), policy, rewards, samples=64)
    with pytest.raises(AssertionError, match="lowers the Lagrangian"):
        check_primal_estimator(Ascending(), policy, rewards, samples=64)
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.parameters().items())


def test_the_reward_of_the_documentation_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own code: its class, its test, and the key of its spec."""
    page = (Path(__file__).parents[2] / "docs" / "adding_a_reward.md").read_text(encoding="utf-8")
    code, test = re.findall(r"```python\n# \w+\.py\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, Any] = {}
    exec(compile(test, "test_my_rewards.py", "exec"), names)  # noqa: S102 - our own page
    names["test_warmth_is_a_reward"]()
