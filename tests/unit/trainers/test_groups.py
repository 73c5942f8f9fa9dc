"""Constraints on groups of prompts, on exact mixtures that are told apart by a prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support.models.prompted_mixtures import MIXTURES, PROMPTS, REWARDS, PromptedMixtures

from orchestrator.frontier.problems import ExactProblem
from trainers.alignment import setup
from trainers.alignment.gradient import StepMeans, add_gradient
from trainers.alignment.start import first_multipliers
from trainers.config import (
    BaselineStatistics,
    ConstraintConfig,
    RewardConfig,
    RewardStatistics,
    TrialConfig,
    TrialJob,
)
from trainers.duality.lagrangian import KL
from trainers.estimates import complete, over_all_prompts
from trainers.evaluate import estimate, evaluate
from trainers.loop import Alignment, train
from trainers.models.denoiser import shuffled
from trainers.problem import run_trial, sample_pretrained, statistics
from trainers.rewards.analytic import Linear
from trainers.rewards.base import build_reward
from trainers.rewards.grouped import Grouped
from trainers.testing import gaussian_job
from trainers.trial_io import LocalTrialIO
from trainers.workers.collective import Collective

BOUNDS = {"x[text]": 0.5, "x[photo]": 0.85}


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> TrialConfig:
    job = gaussian_job(
        {},
        sampling={"steps": 48},
        training={"steps": 500, "batch_per_worker": 512, "learning_rate": 6e-3},
        evaluation={"images": 8192, "baseline_images": 32768},
    )

    def built(config: TrialConfig, device: str = "cpu") -> PromptedMixtures:
        torch.manual_seed(0)  # the networks begin somewhere
        return PromptedMixtures(config.sampling, config.training.width)

    monkeypatch.setattr("trainers.hosts.alone.build_policy", built)
    monkeypatch.setattr("trainers.alignment.pretrained.build_policy", built)
    constraints = tuple(
        ConstraintConfig(name=name, kind="reward", target=name, bound=bound, unit="absolute")
        for name, bound in BOUNDS.items()
    )
    return job.config.model_copy(update={"prompts": PROMPTS, "rewards": REWARDS, "constraints": constraints})


def exact(tag: str) -> tuple[ExactProblem, Any]:
    """The problem of one prompt alone, and its optimum at the threshold of its group."""
    reward = RewardConfig(name="x", kind="linear", parameters={"direction": (1.0,)})
    alone = ExactProblem(MIXTURES[tag], [reward])
    return alone, alone.least_kl({"x": BOUNDS[f"x[{tag}]"]})


@pytest.mark.slow
def test_each_group_is_met_at_the_price_of_its_own(config: TrialConfig) -> None:
    """Of two prompts each has a share of ½ in the KL, so a multiplier is half of that of its group alone."""
    samples = sample_pretrained(config)
    baseline = statistics(samples)
    for tag in MIXTURES:
        alone = exact(tag)[0].baseline().rewards["x"]
        assert baseline.rewards[f"x[{tag}]"].mean == pytest.approx(alone.mean, abs=0.02)
        assert baseline.rewards[f"x[{tag}]"].std == pytest.approx(alone.std, rel=0.02)
    job = TrialJob(trial_id="groups", config=config, baseline=baseline, thresholds=BOUNDS)
    outcome = run_trial(job, LocalTrialIO())
    assert outcome.status == "succeeded", outcome.error
    assert outcome.feasible
    assert outcome.kl is not None
    optima = {f"x[{tag}]": exact(tag)[1] for tag in MIXTURES}
    for name, optimum in optima.items():
        assert outcome.rewards[name].mean == pytest.approx(BOUNDS[name], abs=0.03)
        assert outcome.multipliers[name] == pytest.approx(optimum.multipliers["x"] / 2, rel=0.10)
    least = sum(optimum.kl for optimum in optima.values()) / 2
    assert outcome.kl.mean == pytest.approx(least, rel=0.15)


def test_a_price_before_training_is_that_of_the_group(config: TrialConfig) -> None:
    rng = np.random.default_rng(0)
    asked = ("text", "photo") * 50_000
    drawn = np.empty(len(asked))
    for place, mixture in enumerate(MIXTURES.values()):
        picked = rng.choice(2, size=50_000, p=mixture.weights)
        means, covariances = np.array(mixture.means)[picked, 0], np.array(mixture.covariances)[picked, 0, 0]
        drawn[place::2] = means + np.sqrt(covariances) * rng.standard_normal(50_000)
    tags = np.array(asked)
    rewards = {f"x[{tag}]": np.where(tags == tag, drawn, np.nan) for tag in MIXTURES}
    known = {
        name: RewardStatistics(mean=float(np.nanmean(v)), std=float(np.nanstd(v)))
        for name, v in rewards.items()
    }
    job = TrialJob(
        trial_id="groups",
        config=config,
        baseline=BaselineStatistics(rewards=known, samples=len(asked)),
        thresholds=BOUNDS,
    )
    found = first_multipliers(config, setup.build_lagrangian(job), rewards, asked)
    for multiplier, (name, reward) in zip(found, known.items(), strict=True):
        optimum = exact(name[2:-1])[1].multipliers["x"]
        assert multiplier / reward.std == pytest.approx(optimum / 2, rel=0.05)


@pytest.mark.parametrize("centre", [0.0, 3.0])
def test_a_group_spread_over_all_prompts_has_the_mean_of_the_group(
    config: TrialConfig, centre: float
) -> None:
    scores = {"x[text]": np.array([1.0, np.nan, 2.0, np.nan]), "other": np.arange(4.0)}
    asked = ("text", "photo", "text", "photo")
    found = over_all_prompts(config, scores, asked, centres={"x[text]": centre})
    assert found["x[text]"].mean() == pytest.approx(1.5)
    assert found["x[text]"][1] == centre
    assert found["other"] is scores["other"]


def test_shares_are_of_the_prompts_that_are_left(config: TrialConfig) -> None:
    """A prompt of which a single score is left is left out, and its group is of fewer prompts then."""
    asked = ("text", "photo", "text", "photo")
    scores = {
        "x[text]": np.array([1.0, np.nan, 2.0, np.nan]),
        "x[photo]": np.array([np.nan, 3.0, np.nan, np.nan]),
    }
    found, left = complete(config, {"x[text]": scores["x[text]"]}, asked)
    assert found["x[text]"].mean() == pytest.approx(1.5)
    assert left == list(asked)
    found, left = complete(config, scores, asked)
    assert left == ["text", "text"]
    assert found["x[text]"].tolist() == [1.0, 2.0]


class Gappy(Linear):
    """A reward of which a share of the scores cannot be had, and none of some calls."""

    differentiable = False
    missing = 0.9

    def __init__(self, share: float, dead: Sequence[int] = ()) -> None:
        """Take the share, and the calls."""
        super().__init__((1.0,))
        self._share, self._dead, self._calls = share, dead, 0
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, samples: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        scores = super().__call__(samples).detach()
        gone = torch.rand(len(scores), generator=self._generator) < self._share
        self._calls += 1
        return scores.masked_fill(gone | torch.tensor(self._calls in self._dead), torch.nan)


def aligned(
    monkeypatch: pytest.MonkeyPatch, config: TrialConfig, batch: int, text: Linear
) -> tuple[Alignment, TrialJob, LocalTrialIO]:
    """A trial before its first step, on thresholds of two groups; nobody knows the means of the pretrained model."""
    rewards = {"x[text]": text, "x[photo]": Linear((1.0,))}

    def built(reward: RewardConfig, prompts: Any = None) -> Grouped:
        return Grouped(rewards[reward.name], PROMPTS.group(reward.where or {}))

    monkeypatch.setattr("trainers.rewards.base.build_reward", built)
    sections = {"batch_per_worker": batch, "primal": "log_variance", "steps": 6}
    update = {
        "sampling": config.sampling.model_copy(update={"steps": 6}),
        "training": config.training.model_copy(update=sections),
        "duals": config.duals.model_copy(update={"paired": False}),
        "evaluation": config.evaluation.model_copy(update={"every": 1}),
    }
    known = {name: RewardStatistics(mean=-1.0, std=1.0) for name in BOUNDS}
    job = TrialJob(
        trial_id="groups",
        config=config.model_copy(update=update),
        baseline=BaselineStatistics(rewards=known, samples=None),
        thresholds=BOUNDS,
        start=(0.5, 0.5),
    )
    io = LocalTrialIO()
    return Alignment(job, io), job, io


def test_a_group_of_which_scores_are_missing_weighs_as_the_whole_of_it(
    config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradient, means and moments of one step; counted over all prompts they would be a third too small."""

    def step(text: Linear) -> tuple[StepMeans, np.ndarray]:
        trial, job, _ = aligned(monkeypatch, config, 16384, text)
        found = add_gradient(job, trial._state, trial._collective, np.array([0.5, 0.0]))
        gradients = [p.grad.flatten() for p in trial._state.parameters.values() if p.grad is not None]
        return found, torch.cat(gradients).numpy()

    whole, slope = step(Linear((1.0,)))
    found, gappy = step(Gappy(0.5))
    assert found.complete
    assert np.linalg.norm(gappy - slope) < 0.15 * np.linalg.norm(slope)
    assert gappy @ slope / (slope @ slope) == pytest.approx(1.0, abs=0.05)
    for name in (KL, *BOUNDS):
        assert found.means[name] == pytest.approx(whole.means[name], abs=0.03)
    np.testing.assert_allclose(found.moments, whole.moments, rtol=0.04, atol=0.03)


def test_a_step_leaves_the_multipliers_alone_where_a_group_has_no_score(
    config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, job, io = aligned(monkeypatch, config, 16, Gappy(0.0, dead=[3]))
    assert train(job, trial._state, io, trial._collective) is None
    assert [record.step for record in io.records] == [1, 2, 4, 5, 6]


def test_a_batch_may_be_without_a_prompt_of_a_group(
    config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of one image: the reward of the other group is what it is outside of it, as over many batches."""
    trial, job, io = aligned(monkeypatch, config, 1, Linear((1.0,)))
    found = add_gradient(job, trial._state, trial._collective, np.array([0.5, 0.5]))
    assert found.complete
    assert -1.0 in [found.means[name] for name in BOUNDS]
    assert train(job, trial._state, io, trial._collective) is None
    assert [record.step for record in io.records] == [1, 2, 3, 4, 5, 6]


def test_a_group_is_measured_on_its_prompts_alone(config: TrialConfig) -> None:
    policy = PromptedMixtures(config.sampling, 8)
    rewards = {reward.name: build_reward(reward, config.prompts) for reward in REWARDS}
    found = evaluate(
        policy,
        rewards,
        samples=400,
        seed=1,
        collective=Collective(),
        reference=True,  # type: ignore[arg-type]
    )
    assert found.prompts is not None
    within = np.array(found.prompts) == "photo"
    photo = found.rewards["x[photo]"]
    assert np.isnan(photo[~within]).all()
    mean = estimate(found, "x[photo]")
    assert mean.mean == pytest.approx(float(photo[within].mean()))
    assert mean.error == pytest.approx(float(photo[within].std(ddof=1)) / np.sqrt(200))
    assert mean.degrees == 199


def test_training_batches_hold_their_share_of_every_group() -> None:
    tags = ("a",) * 6 + ("b",) * 2 + ("c",) * 4
    prompts = [f"{tag}{number}" for number, tag in enumerate(tags)]
    for seed in range(20):
        batch = shuffled(prompts, 6, seed, (tags,))
        counts = {tag: sum(prompt[0] == tag for prompt in batch) for tag in "abc"}
        assert counts == {"a": 3, "b": 1, "c": 2}
        assert shuffled(prompts, 12, seed, (tags,))[:6] == batch
    assert len(set(shuffled(prompts, 12, 0, (tags,)))) == 12
