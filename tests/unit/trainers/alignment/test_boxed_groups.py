"""One residual for a box of thresholds of groups of prompts, on exact mixtures that are told apart by a prompt."""

from typing import Any

import numpy as np
import pytest
import torch
from support.models.prompted_mixtures import MIXTURES, PROMPTS, REWARDS, PromptedMixtures

from orchestrator.frontier.problems import ExactProblem
from trainers.config import ConstraintConfig, FrontierConfig, RewardConfig, TrialConfig, TrialJob
from trainers.problem import run_trial, sample_pretrained, statistics
from trainers.testing import gaussian_job
from trainers.trial_io import LocalTrialIO

LOOSEST = {"x[text]": 0.15, "x[photo]": 0.7}
TIGHTEST = {"x[text]": 0.9, "x[photo]": 1.5}
ALONE = {
    f"x[{tag}]": ExactProblem(
        mixture, [RewardConfig(name="x", kind="linear", parameters={"direction": (1.0,)})]
    )
    for tag, mixture in MIXTURES.items()
}


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> TrialJob:
    def built(config: TrialConfig, device: str = "cpu") -> PromptedMixtures:
        torch.manual_seed(0)  # the networks begin somewhere
        return PromptedMixtures(config.sampling, config.training.width, len(config.acting))

    monkeypatch.setattr("trainers.hosts.alone.build_policy", built)
    monkeypatch.setattr("trainers.alignment.pretrained.build_policy", built)
    sections: dict[str, Any] = {
        "sampling": {"steps": 12},
        "training": {"steps": 100, "batch_per_worker": 128},
        "evaluation": {"images": 2048, "baseline_images": 8192},
    }
    constraints = tuple(
        ConstraintConfig(
            name=name, kind="reward", target=name, bound=bound, tightest=TIGHTEST[name], unit="absolute"
        )
        for name, bound in LOOSEST.items()
    )
    update = {
        "prompts": PROMPTS,
        "rewards": REWARDS,
        "constraints": constraints,
        "method": "frontier",
        "frontier": FrontierConfig(points=4),
    }
    config = gaussian_job({}, **sections).config.model_copy(update=update)
    baseline = statistics(sample_pretrained(config))
    return TrialJob(
        trial_id="groups", config=config, baseline=baseline, thresholds=LOOSEST, tightest=TIGHTEST
    )


@pytest.mark.slow
def test_each_group_has_a_threshold_and_a_price_of_its_own(job: TrialJob) -> None:
    """Of two prompts each has a share of ½ in the KL, so a price is half of that of its group alone."""
    outcome = run_trial(job, LocalTrialIO())
    assert outcome.status == "succeeded", outcome.error
    excess = []
    for answer in outcome.answers:
        assert answer.feasible
        optima = {name: problem.least_kl({"x": answer.thresholds[name]}) for name, problem in ALONE.items()}
        excess.append(answer.kl.mean - sum(optimum.kl for optimum in optima.values()) / 2)
        for name, optimum in optima.items():
            assert answer.multipliers[name] == pytest.approx(optimum.multipliers["x"] / 2, rel=0.45)
    assert np.mean(excess) < 0.05
    assert outcome.answers[1].kl.mean > 0.25  # of both groups' tightest thresholds, where it is not small
