"""Training that is taken up again after its end: another round from the average of the one before."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from support.models.rounds import SHORT

from trainers.config import TrialJob
from trainers.problem import run_trial
from trainers.testing import gaussian_job
from trainers.trial_io import LocalTrialIO

PARTS: dict[str, dict[str, Any]] = SHORT | {
    "evaluation": {"every": 3, "images": 1024, "baseline_images": 32768}
}


def job(rounds: int = 1, *, continuable: bool = True, **parts: dict[str, Any]) -> TrialJob:
    made = gaussian_job({"x": 0.8}, **(PARTS | parts))
    return made.model_copy(update={"rounds": rounds, "continuable": continuable})


def test_a_round_more_goes_on_from_the_end_and_comes_nearer() -> None:
    port = LocalTrialIO()
    first = run_trial(job(), port)
    assert port.checkpoint is not None
    second = run_trial(job(2), port)
    assert (first.steps, second.steps) == (24, 48)
    assert [record.step for record in second.history[: len(first.history)]] == [r.step for r in first.history]
    assert second.history[len(first.history)].step > 24
    assert second.wall_seconds > first.wall_seconds
    # The reward at the least KL for it: what is paid too much shrinks.
    excess = [
        outcome.kl.mean - 0.5 * outcome.rewards["x"].mean ** 2 for outcome in (first, second) if outcome.kl
    ]
    assert excess[1] < excess[0]


def test_a_round_that_was_interrupted_goes_on_bit_for_bit() -> None:
    whole, port = LocalTrialIO(), LocalTrialIO()
    run_trial(job(), whole)
    port.checkpoint = whole.checkpoint
    expected = run_trial(job(2), whole)

    class KilledError(Exception):
        pass

    class Dying(LocalTrialIO):
        def save(self, step: int, files: dict[str, bytes], history: Any) -> None:
            super().save(step, files, history)
            if step == 35:
                raise KilledError

    dying = Dying(checkpoint=port.checkpoint)
    with pytest.raises(KilledError):
        run_trial(job(2), dying)
    again = run_trial(job(2), LocalTrialIO(checkpoint=dying.checkpoint))
    assert again.kl == expected.kl
    assert again.multipliers == expected.multipliers
    assert [dataclasses.replace(r, seconds=0.0, images_per_second=0.0) for r in again.history] == [
        dataclasses.replace(r, seconds=0.0, images_per_second=0.0) for r in expected.history
    ]


def test_the_same_round_again_trains_nothing() -> None:
    port = LocalTrialIO()
    first = run_trial(job(), port)
    again = run_trial(job(), port)
    assert again.steps == first.steps
    assert again.kl == first.kl
    np.testing.assert_array_equal(again.evaluation.kl, first.evaluation.kl)  # type: ignore[union-attr]


def test_nothing_is_kept_of_what_is_not_taken_up_again() -> None:
    port = LocalTrialIO()
    run_trial(job(continuable=False, training=PARTS["training"] | {"checkpoint_every": 1000}), port)
    assert port.checkpoint is None


@pytest.mark.parametrize("kind", ["ascent", "nu_pi", "augmented", "reweighted"])
def test_multipliers_go_on_from_their_average(kind: str) -> None:
    from trainers.loop import Alignment  # noqa: PLC0415 - beside what looks inside

    port = LocalTrialIO()
    first = run_trial(job(duals={"kind": kind}), port)
    begun = Alignment(job(2, duals={"kind": kind}), port)
    state = begun._state
    assert state.round == 2
    prices = state.setup.lagrangian.prices(state.setup.dual.multipliers)
    assert prices == pytest.approx(first.multipliers)
    assert state.setup.dual.effective(None) is state.setup.dual.multipliers
