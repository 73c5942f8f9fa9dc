"""Another round for a box of thresholds: drawn where gaps are largest, resumed, shared, and nearer to the least KL."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from support.models.rounds import SHORT, thresholds_asked

from trainers.alignment.boxed.frontier import box_of, leaning
from trainers.alignment.boxed.stored import open_stored
from trainers.alignment.gradient import add_gradient
from trainers.alignment.setup import build_setup
from trainers.alignment.state import TrainState
from trainers.config import FrontierConfig, TrialJob
from trainers.loop import Alignment
from trainers.problem import run_trial
from trainers.testing import gaussian_job
from trainers.trial_io import LocalTrialIO
from trainers.types import TrialOutcome
from trainers.workers.collective import Collective

LOOSEST, TIGHTEST = 0.2, 1.6
GAPS = np.array([0.0, 0.4])
"""Nats, at both ends."""
PARTS: dict[str, dict[str, Any]] = SHORT | {
    "evaluation": {"every": 3, "images": 512, "baseline_images": 4096}
}


def job(workers: int = 1, *, points: int = 2, **parts: dict[str, Any]) -> TrialJob:
    """The first round: ``q = N(0, 1)``, reward ``x``, whose least KL at b is b²/2."""
    made = gaussian_job({"x": LOOSEST}, workers=workers, **(PARTS | parts))
    (constraint,) = made.config.constraints
    config = made.config.model_copy(
        update={
            "method": "frontier",
            "frontier": FrontierConfig(points=points, rounds=2),
            "constraints": (constraint.model_copy(update={"tightest": TIGHTEST}),),
        }
    )
    return made.model_copy(update={"config": config, "tightest": {"x": TIGHTEST}, "continuable": True})


def further(first: TrialJob, gaps: np.ndarray = GAPS) -> TrialJob:
    again = first.model_copy(update={"rounds": 2})
    return leaning(again, np.array([[LOOSEST], [TIGHTEST]]), gaps)


def timeless(outcome: TrialOutcome) -> Any:
    history = [dataclasses.replace(r, seconds=0.0, images_per_second=0.0) for r in outcome.history]
    tensors = load(outcome.adapter["control.safetensors"])
    return (
        history,
        outcome.answers,
        outcome.adapter["multipliers.json"],
        {name: tensor.tolist() for name, tensor in tensors.items()},
    )


class KilledError(Exception):
    """The process is gone."""


@pytest.mark.parametrize("dies_at", [30, 45])
def test_a_round_that_is_killed_goes_on_bit_for_bit_whatever_its_job_says_by_then(dies_at: int) -> None:
    """The density is the state's: answers that were written before the row changed would make another one."""
    first = job()
    port = LocalTrialIO()
    run_trial(first, port)
    begun = dict(port.checkpoint or {})
    expected = run_trial(further(first), LocalTrialIO(checkpoint=dict(begun)))

    class Dying(LocalTrialIO):
        def save(self, step: int, files: dict[str, bytes], history: Any) -> None:
            super().save(step, files, history)
            if step == dies_at:
                raise KilledError

    dying = Dying(checkpoint=dict(begun))
    with pytest.raises(KilledError):
        run_trial(further(first), dying)
    torch.manual_seed(12345)
    other = further(first, np.array([3.0, 0.1]))
    again = run_trial(other, LocalTrialIO(checkpoint=dying.checkpoint))
    assert timeless(again) == timeless(expected)
    # And it is the density that made it what it is.
    even = run_trial(further(first, np.zeros(2)), LocalTrialIO(checkpoint=begun))
    assert further(first, np.zeros(2)).density is None
    assert timeless(even)[0] != timeless(expected)[0]


def test_workers_draw_the_next_thresholds_of_one_dense_sequence() -> None:
    """Two parts of a batch of 128 have thresholds 0 to 63 and 64 to 127, whoever computes them; all lean alike."""

    def gaps_of(asked: TrialJob) -> np.ndarray:
        state = TrainState.start(build_setup(asked), asked.config.training)
        state.begin_round(further(asked).density)
        measured = add_gradient(asked, state, Collective(), state.setup.dual.multipliers)
        assert measured.gaps is not None
        return measured.gaps

    with thresholds_asked() as found:
        two = gaps_of(job(workers=2))
        parts = np.concatenate(found)
        found.clear()
        one = gaps_of(job(training=PARTS["training"] | {"batch_per_worker": 128}))
    np.testing.assert_array_equal(parts, found[0])
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-7)
    assert (parts > (LOOSEST + TIGHTEST) / 2).mean() > 0.6, "gaps are at the tight end"


def test_a_state_before_there_were_densities_is_read_and_the_first_round_has_none() -> None:
    first = job()
    assert (first.density, box_of(first).density) == (None, None)  # type: ignore[union-attr]
    port = LocalTrialIO()
    run_trial(first, port)
    state = Alignment(further(first), port)._state
    assert state.round == 2
    assert state.setup.frontier is not None
    assert state.setup.frontier.density == pytest.approx(list(further(first).density or ()))
    state._load_counters({**_counters(state), "density": None})
    assert state.setup.frontier.density is None


def _counters(state: TrainState) -> dict[str, Any]:
    from trainers.workers import checkpoint  # noqa: PLC0415 - beside what looks inside

    return checkpoint.unpack(state.pack(Collective()))[1]


def test_a_further_round_narrows_the_largest_gap() -> None:
    """By ``L(p, λ) − L*`` at 50 thresholds and their own λ = b: ``KL − λ E[x] + λ²/2``, 0 at the optimum."""
    first = job(
        points=5,
        training=PARTS["training"] | {"steps": 30},
        evaluation=PARTS["evaluation"] | {"images": 4096},
    )
    port = LocalTrialIO()
    before = run_trial(first, port)
    asked = np.array([[answer.thresholds["x"]] for answer in before.answers])
    gaps = np.array([_gap(answer) for answer in before.answers])
    second = leaning(first.model_copy(update={"rounds": 2}), asked, gaps)
    assert second.density is not None
    after = run_trial(second, port)
    assert after.steps == 60
    largest = [_largest(first, outcome) for outcome in (before, after)]
    assert largest[1] < 0.6 * largest[0]


def _gap(answer: Any) -> float:
    bound = answer.thresholds["x"]
    return float(answer.kl.mean + answer.multipliers["x"] * max(answer.violations["x"], 0.0) - bound**2 / 2)


def _largest(trial: TrialJob, outcome: TrialOutcome) -> float:
    answering = open_stored(trial, outcome.adapter, None)
    found = []
    for price in np.linspace(LOOSEST, TIGHTEST, 50):
        answer = answering.at(np.array([price])).answer
        found.append(answer.kl.mean - price * answer.rewards["x"].mean + price**2 / 2)
    return max(found)
