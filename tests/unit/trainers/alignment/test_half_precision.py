"""Gradients that float16 does not hold: skipped while a smaller scale may help, then the trial has failed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from trainers import registry
from trainers.primal.base import PrimalEstimate
from trainers.primal.reward_backprop import RewardBackprop
from trainers.problem import run_trial
from trainers.testing import gaussian_job
from trainers.trial_io import LocalTrialIO
from trainers.types import TrialOutcome


class Overflowing(RewardBackprop):
    """Has a gradient that is not finite in the steps that ``when`` names, from 1."""

    def __init__(self, when: Callable[[int], bool]) -> None:
        """Take the steps."""
        self.when, self.calls = when, 0

    def __call__(self, policy: Any, rewards: Any, coefficients: Any, draw: Any, mean: Any) -> PrimalEstimate:
        self.calls += 1
        estimate = super().__call__(policy, rewards, coefficients, draw, mean)
        if not self.when(self.calls):
            return estimate
        nothing = next(iter(policy.parameters().values())).sum() * 0.0
        return dataclasses.replace(estimate, loss=estimate.loss + nothing.sqrt())  # of slope 0/0


def run(
    monkeypatch: pytest.MonkeyPatch,
    when: Callable[[int], bool],
    io: LocalTrialIO | None = None,
    *,
    precision: str = "fp16",
    **training: Any,
) -> TrialOutcome:
    load, estimator = registry.load, Overflowing(when)
    with monkeypatch.context() as patched:
        patched.setattr(
            registry,
            "load",
            lambda group, name: (lambda: estimator) if name == "overflowing" else load(group, name),
        )
        job = gaussian_job(
            {"x": 1.0},
            sampling={"steps": 4},
            training={
                "steps": 60,
                "batch_per_worker": 16,
                "width": 8,
                "checkpoint_every": 5,
                "precision": precision,
                "primal": "overflowing",
            }
            | training,
            evaluation={"every": 1, "images": 256, "baseline_images": 1024},
        )
        return run_trial(job, io or LocalTrialIO())


@pytest.mark.parametrize("steps", [60, 12])
def test_a_gradient_that_is_never_finite_is_a_failure_with_its_cause(
    monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Whether there are as many steps as a smaller scale is tried for, or the trial ends before."""
    outcome = run(monkeypatch, lambda _: True, steps=steps)
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert f"diverged at step {min(steps, 20)}" in outcome.error
    assert "not finite in float16" in outcome.error
    assert "training.precision" in outcome.error
    assert outcome.evaluation is None
    assert outcome.feasible is None


def test_an_overflow_that_begins_later_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run(monkeypatch, lambda call: call > 10)
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert "diverged at step 30" in outcome.error


def test_a_resumed_trial_counts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    io = LocalTrialIO()
    whole = run(monkeypatch, lambda _: True, io)
    resumed = run(monkeypatch, lambda _: True, LocalTrialIO(checkpoint=io.checkpoint))
    assert resumed.status == whole.status == "failed"
    assert resumed.error == whole.error


def test_the_first_overflows_only_find_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run(monkeypatch, lambda call: call <= 4)
    assert outcome.status == "succeeded"
    assert outcome.steps == 60
    assert outcome.notes == ()
    assert outcome.rewards["x"].mean > 0.3


def test_many_of_them_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run(monkeypatch, lambda call: call % 3 == 0)
    assert outcome.status == "succeeded"
    (note,) = outcome.notes
    assert note.startswith("20 of 60 steps changed nothing")


def test_in_full_precision_the_first_one_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run(monkeypatch, lambda call: call == 3, precision="fp32")
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert "diverged at step 3: gradient norm nan" in outcome.error
