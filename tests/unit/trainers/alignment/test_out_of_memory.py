"""A batch that the memory does not hold: halved once by itself, with a note; then the trial fails with advice."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers import registry
from trainers.alignment import outcome as ending
from trainers.alignment.paired import PairedReference
from trainers.models.base import Draw, Rollout
from trainers.models.mixture_policy import MixturePolicy
from trainers.primal.base import PrimalEstimate
from trainers.primal.reward_backprop import RewardBackprop
from trainers.problem import run_trial
from trainers.testing import gaussian_job
from trainers.trial_io import LocalTrialIO
from trainers.types import Evaluation, TrialOutcome

BATCH = 16
ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    "python": MemoryError(),
}


class Exhausted(torch.autograd.Function):
    """Fails in the backward pass."""

    @staticmethod
    def forward(_: object, value: Tensor, error: Exception) -> Tensor:
        Exhausted.error = error
        return value.clone()

    @staticmethod
    def backward(_: object, _gradient: Tensor) -> tuple[Tensor, None]:
        raise Exhausted.error


class Hungry(RewardBackprop):
    """Holds so many samples, and in the backward pass fails last, when the network has its gradients."""

    def __init__(self, limit: Callable[[int], int], error: Exception, *, backward: bool = False) -> None:
        """Take the limit as a function of the number of calls so far."""
        self.limit, self.error, self.backward = limit, error, backward
        self.sizes: list[int] = []

    def __call__(self, policy: Any, rewards: Any, coefficients: Any, draw: Any, mean: Any) -> PrimalEstimate:
        self.sizes.append(len(draw))
        full = len(draw) > self.limit(len(self.sizes) - 1)
        if full and not self.backward:
            raise self.error
        # Autograd goes through the oldest node last.
        last = Exhausted.apply(torch.zeros((), requires_grad=True), self.error) if full else torch.zeros(())
        estimate = super().__call__(policy, rewards, coefficients, draw, mean)
        return dataclasses.replace(estimate, loss=estimate.loss + last)


def run(
    monkeypatch: pytest.MonkeyPatch,
    estimator: RewardBackprop,
    io: LocalTrialIO | None = None,
    **training: Any,
) -> TrialOutcome:
    load = registry.load
    with monkeypatch.context() as patched:
        patched.setattr(
            registry,
            "load",
            lambda group, name: (lambda: estimator) if name == "hungry" else load(group, name),
        )
        job = gaussian_job(
            {"x": 1.0},
            sampling={"steps": 4},
            training={
                "steps": 12,
                "batch_per_worker": BATCH,
                "accumulation": 2,
                "width": 8,
                "checkpoint_every": 5,
                "primal": "hungry",
            }
            | training,
            evaluation={"every": 1, "images": 256, "baseline_images": 1024},
        )
        return run_trial(job, io or LocalTrialIO())


def assert_close(one: TrialOutcome, two: TrialOutcome) -> None:
    """To float tolerance."""
    for row, other in zip(one.history, two.history, strict=True):
        for key in ("kl", "lagrangian", "rewards", "violations", "multipliers"):
            assert getattr(row, key) == pytest.approx(getattr(other, key), rel=1e-4, abs=1e-5), key
    assert one.evaluation is not None
    assert two.evaluation is not None
    np.testing.assert_allclose(one.evaluation.kl, two.evaluation.kl, rtol=1e-3, atol=1e-5)
    assert one.evaluation.log_ratio is not None
    assert two.evaluation.log_ratio is not None
    np.testing.assert_allclose(one.evaluation.log_ratio, two.evaluation.log_ratio, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(one.evaluation.rewards["x"], two.evaluation.rewards["x"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("call", [0, 9])
@pytest.mark.parametrize("batch", [BATCH, 15])
def test_a_batch_is_halved_once_and_the_result_is_that_of_an_undisturbed_run(
    monkeypatch: pytest.MonkeyPatch, kind: str, backward: bool, call: int, batch: int
) -> None:
    """From the first micro-batch, or from the second one of the fifth step, whose first has left its gradient."""
    hungry = Hungry(lambda calls: batch if calls < call else 8, ERRORS[kind], backward=backward)
    outcome = run(monkeypatch, hungry, batch_per_worker=batch)
    assert outcome.status == "succeeded"
    assert hungry.sizes == [batch] * (call + 1) + [batch // 2, batch - batch // 2] * (24 - call)
    (note,) = outcome.notes
    assert f"out of memory at step {call // 2 + 1} with training.batch_per_worker {batch}" in note
    assert "micro-batches of half the size" in note
    assert_close(outcome, run(monkeypatch, RewardBackprop(), batch_per_worker=batch))


def test_an_undisturbed_run_has_no_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    hungry = Hungry(lambda _: BATCH, ERRORS["cuda"])
    assert run(monkeypatch, hungry).notes == ()
    assert hungry.sizes == [BATCH] * 24


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("limit", "batch", "sizes"),
    [
        (lambda _: 4, BATCH, [16, 8]),  # halves are too large as well
        (lambda calls: 8 if calls < 5 else 4, BATCH, [16, 8, 8, 8, 8, 8]),  # later
        (lambda calls: 8 if calls < 2 else 4, BATCH, [16, 8, 8]),  # the second half of the first attempt
        (lambda _: 0, 1, [1]),  # nothing to halve
    ],
)
def test_when_halves_do_not_fit_either_the_trial_fails_with_advice(
    monkeypatch: pytest.MonkeyPatch, backward: bool, limit: Callable[[int], int], batch: int, sizes: list[int]
) -> None:
    hungry = Hungry(limit, ERRORS["cuda"], backward=backward)
    outcome = run(monkeypatch, hungry, batch_per_worker=batch)
    assert hungry.sizes == sizes
    assert outcome.status == "failed"
    assert outcome.error is not None
    for field in ("batch_per_worker", "accumulation", "gradient_checkpointing"):
        assert f"training.{field}" in outcome.error
    assert outcome.feasible is None
    assert outcome.evaluation is None
    assert outcome.steps == len(outcome.history)


def test_a_resumed_trial_goes_on_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    whole_io = LocalTrialIO()
    whole = run(monkeypatch, Hungry(lambda _: 8, ERRORS["cuda"]), whole_io)
    hungry = Hungry(lambda _: 8, ERRORS["cuda"])
    resumed = run(monkeypatch, hungry, LocalTrialIO(checkpoint=whole_io.checkpoint))
    assert hungry.sizes == [8] * 8  # steps 11 and 12, nothing tried in vain
    assert resumed.notes == whole.notes
    assert [row.kl for row in resumed.history] == [row.kl for row in whole.history]


def few_at_a_time(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Let an evaluation, and nothing before it, hold so many samples."""
    whole = ending.evaluate

    def evaluated(policy: MixturePolicy, *positional: Any, **named: Any) -> Evaluation:
        rollout = policy.rollout

        def hungry(draw: Draw, **options: Any) -> Rollout:
            if len(draw) > limit:
                raise ERRORS["cuda"]
            return rollout(draw, **options)

        with monkeypatch.context() as patched:
            patched.setattr(policy, "rollout", hungry)
            return whole(policy, *positional, **named)

    monkeypatch.setattr(ending, "evaluate", evaluated)


def test_an_evaluation_that_does_not_fit_is_drawn_fewer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = run(monkeypatch, RewardBackprop())
    few_at_a_time(monkeypatch, 100)
    outcome = run(monkeypatch, RewardBackprop())
    assert outcome.status == "succeeded"
    (note,) = outcome.notes
    assert "out of memory in the evaluation with 4096 samples at a time: went on with 64" in note
    assert_close(outcome, undisturbed)


def test_where_no_sample_fits_the_trial_fails_and_keeps_its_history(monkeypatch: pytest.MonkeyPatch) -> None:
    few_at_a_time(monkeypatch, 0)
    outcome = run(monkeypatch, RewardBackprop())
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert outcome.error.startswith(
        "out of memory in the evaluation, with as few samples at a time as can be"
    )
    assert len(outcome.history) == outcome.steps == 12
    assert outcome.evaluation is None


def test_other_errors_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="size of tensor"):
        run(monkeypatch, Hungry(lambda _: 8, RuntimeError("The size of tensor a must match")))


def test_the_reference_on_the_same_noise_is_halved_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory runs out after the gradient is there, which is then computed again."""
    whole = PairedReference.__call__

    def hungry(self: PairedReference, draw: Draw) -> dict[str, Tensor]:
        if len(draw) > 8:
            raise ERRORS["cuda"]
        return whole(self, draw)

    undisturbed = run(monkeypatch, RewardBackprop())
    monkeypatch.setattr(PairedReference, "__call__", hungry)
    outcome = run(monkeypatch, RewardBackprop())
    assert outcome.status == "succeeded"
    assert len(outcome.notes) == 1
    assert_close(outcome, undisturbed)
