"""Rewards that are only measured: judges, and what trials are watched by."""

import numpy as np
import pytest

from trainers.alignment.watch import watched
from trainers.config import BaselineStatistics, RewardConfig, RewardStatistics
from trainers.problem import run_trial, sample_pretrained, statistics
from trainers.testing import gaussian_job
from trainers.trial_io import LocalTrialIO
from trainers.types import Evaluation, FloatArray


def test_what_moved_by_more_than_a_deviation_is_said() -> None:
    known = {
        "edge_density": RewardStatistics(mean=0.05, std=0.02),
        "brightness": RewardStatistics(mean=0.5, std=0.1),
        "judge": RewardStatistics(mean=-1.0, std=0.5),
    }
    rewards = {
        "edge_density": np.full(8, 0.02),
        "brightness": np.full(8, 0.59),
        "judge": np.array([-0.25, np.nan, -0.25, -0.25, -0.25, -0.25, -0.25, -0.25]),
        "sought": np.full(8, 99.0),
    }
    evaluation = Evaluation(kl=np.zeros(8), rewards=rewards, seeds=np.arange(8))
    baseline = BaselineStatistics(
        rewards={"sought": RewardStatistics(mean=0.0, std=1.0)}, measured=known, samples=8
    )
    edges, judge = watched(evaluation, baseline)
    assert edges.startswith("watch: edge density −60 % (0.05 to 0.02, 1.5 σ")
    assert judge.startswith("watch: judge +75 % (-1 to -0.25, 1.5 σ")


def test_velocity_and_diversity_are_watched() -> None:
    """Two prompts with two pictures each: embeddings at right angles have a variance of 1 within a prompt."""
    alike, apart = np.eye(4)[[0, 0, 1, 1]], np.eye(4)
    baseline = BaselineStatistics(
        rewards={},
        samples=4,
        diversity=1.0,
        diversity_std=0.5,
        velocity=RewardStatistics(mean=1.2, std=0.1),
    )

    def notes(embeddings: FloatArray | None, velocity: float | None) -> list[str]:
        speed = None if velocity is None else np.full(4, velocity)
        evaluation = Evaluation(
            kl=np.zeros(4),
            rewards={},
            seeds=np.arange(4),
            prompts=("a", "a", "b", "b"),
            embeddings=embeddings,
            velocity=speed,
        )
        return watched(evaluation, baseline)

    assert notes(apart, 1.25) == notes(None, None) == []
    velocity, spread = notes(alike, 1.5)
    assert velocity.startswith(
        "watch: norm of the velocity +25 % (1.2 to 1.5, 3.0 σ of the pretrained model's paths)"
    )
    assert spread.startswith("watch: diversity −100 % (1 to 0, 2.0 σ of the pretrained model's prompts)")


def test_a_judge_is_measured_and_nothing_is_trained_on_it() -> None:
    parts = {
        "sampling": {"steps": 16},
        "training": {"steps": 150, "batch_per_worker": 128, "learning_rate": 1e-2},
        "evaluation": {"images": 2048, "baseline_images": 4096},
    }
    job = gaussian_job({"x": 1.5}, **parts)
    judge = RewardConfig(name="less", kind="linear", parameters={"direction": (-1.0,)})
    config = job.config.model_copy(update={"measured": (judge,)})
    baseline = statistics(sample_pretrained(config))
    assert set(baseline.rewards) == {"x"}
    assert baseline.measured["less"].std == pytest.approx(1.0, abs=0.05)
    outcome = run_trial(job.model_copy(update={"config": config, "baseline": baseline}), LocalTrialIO())
    alone = run_trial(job.model_copy(update={"baseline": baseline}), LocalTrialIO())
    assert outcome.multipliers == alone.multipliers
    assert outcome.rewards["less"].mean == pytest.approx(-outcome.rewards["x"].mean)
    assert outcome.violations.keys() == {"x"}
    assert any(note.startswith("watch: less") for note in outcome.notes)
