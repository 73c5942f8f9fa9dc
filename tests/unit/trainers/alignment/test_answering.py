"""What a finished residual for a box answers: solved, held out, stored and read back, folded, and cut where it ends."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from trainers.adapters.files import CONTROL, MULTIPLIERS
from trainers.alignment.boxed.answering import LOOKS, Answering, _lacking
from trainers.alignment.boxed.known import Known
from trainers.alignment.boxed.stored import open_stored
from trainers.alignment.lagrangian import build_lagrangian
from trainers.config import FrontierConfig, TrialJob
from trainers.evaluate import estimate
from trainers.models.mixture_policy import MixturePolicy
from trainers.problem import run_trial
from trainers.testing import check_conditional, gaussian_job
from trainers.trial_io import LocalTrialIO
from trainers.types import Answer, Evaluation, TrialOutcome


def boxed(objective: str, loosest: float, tightest: float, steps: int = 120) -> TrialJob:
    """``q = N(0, 1)``, reward ``x``: least KL ``b²/2``, at the price ``b``."""
    name = "kl" if objective == "x" else "x"
    job = gaussian_job(
        {name: loosest},
        objective=objective,
        sampling={"steps": 8},
        training={"steps": steps, "batch_per_worker": 128, "learning_rate": 1e-2},
        evaluation={"images": 4096, "baseline_images": 4096},
    )
    constraints = (job.config.constraints[0].model_copy(update={"tightest": tightest}),)
    update = {"method": "frontier", "frontier": FrontierConfig(points=2), "constraints": constraints}
    return job.model_copy(
        update={"config": job.config.model_copy(update=update), "tightest": {name: tightest}}
    )


@pytest.fixture(scope="module")
def trained() -> tuple[TrialJob, TrialOutcome]:
    job = boxed("kl", 0.2, 1.0)
    return job, run_trial(job, LocalTrialIO())


@pytest.fixture
def answering(trained: tuple[TrialJob, TrialOutcome]) -> Answering:
    job, outcome = trained
    return open_stored(job, outcome.adapter, None)


def test_the_stored_residual_answers_as_the_trial_did(
    trained: tuple[TrialJob, TrialOutcome], answering: Answering
) -> None:
    _, outcome = trained
    assert set(outcome.adapter) == {CONTROL, MULTIPLIERS}
    for answer in outcome.answers:
        again = answering.reply(np.array([answer.thresholds["x"]]))
        assert again.answer == answer
        assert answer.feasible


@pytest.mark.parametrize("bound", [0.2, 0.53, 1.0])
def test_an_answer_holds_on_held_out_samples_at_near_the_least_kl(answering: Answering, bound: float) -> None:
    """Judged as a trial it meets the threshold in the mean; at the figure itself it is above by its error."""
    judged = answering.reply(np.array([bound]))
    assert judged.held
    assert judged.answer.feasible
    assert judged.answer.rewards["x"].mean == pytest.approx(bound, abs=0.02)
    assert judged.answer.kl.mean == pytest.approx(bound**2 / 2, abs=0.01 + 0.05 * bound)
    strict = answering.reply(np.array([bound]), deviations=1.645)
    assert strict.held
    interval = strict.answer.rewards["x"]
    assert interval.mean - 1.645 / 1.96 * (interval.mean - interval.low) >= bound
    assert interval.mean < bound + 0.1
    assert strict.answer.multipliers["x"] > judged.answer.multipliers["x"]


def test_what_is_asked_holds_at_the_figure_and_the_rest_as_a_trial_is_feasible(answering: Answering) -> None:
    """Two constraints on one reward: what is lacking of each, by its own way to hold."""
    (first,) = answering.frontier.lagrangian.constraints
    both = first, replace(first, name="again", allowance=0.05)
    found = replace(answering.reply(np.array([0.53])).answer.evaluation, looks=LOOKS)
    known = estimate(found, "x")
    strict, judged = _lacking(found, both, (1.645, None))
    interval = known.interval()
    error = (interval.high - interval.low) / (2 * 1.959964)
    assert strict == pytest.approx(first.bound - known.mean + 1.645 * error)
    assert judged == pytest.approx(first.bound - known.mean + known.margin() - 0.05)
    assert _lacking(found, both, 1.645) == pytest.approx([strict, strict])
    assert _lacking(found, both[1:], None) == pytest.approx([judged])


def test_multipliers_that_are_far_off_are_solved_for(trained: tuple[TrialJob, TrialOutcome]) -> None:
    job, outcome = trained
    document = json.loads(outcome.adapter[MULTIPLIERS])
    document["multipliers"] = [[0.9] for _ in document["multipliers"]]
    found = open_stored(job, outcome.adapter | {MULTIPLIERS: json.dumps(document).encode()}, None)
    answer = found.reply(np.array([0.4])).answer
    assert answer.rewards["x"].mean == pytest.approx(0.4, abs=0.02)
    assert answer.multipliers["x"] == pytest.approx(0.4, abs=0.05)


def test_what_is_out_of_reach_is_cut_at_the_nearest_that_holds(
    answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    beyond = answering.nearest(np.array([7.0]))
    assert beyond.held
    assert beyond.answer.thresholds == {"x": 1.0}
    monkeypatch.setattr(answering, "most", np.array([0.6]))  # nothing above is asked of the residual
    missed = answering.reply(np.array([1.0]))
    assert not missed.held
    assert not missed.answer.feasible
    nearest = answering.nearest(np.array([1.0]))
    assert nearest.held
    assert 0.5 < nearest.answer.thresholds["x"] < 0.7
    monkeypatch.setattr(answering, "most", np.array([0.05]))
    loosest = answering.nearest(np.array([1.0]))
    assert not loosest.held
    assert loosest.answer.thresholds == {"x": 0.2}


def test_where_samples_are_dear_the_nearest_is_what_was_looked_at(
    answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is out of reach takes no more looks than one that is not, and two more questions where nothing held."""
    looked: list[float] = []
    draw = answering._sampled

    def sampled(multipliers: np.ndarray, **options: Any) -> Evaluation:
        looked.append(float(multipliers[0]))
        return draw(multipliers, **options)

    monkeypatch.setattr(answering, "_sampled", sampled)
    monkeypatch.setattr(answering, "_known", Known())
    monkeypatch.setattr(answering, "most", np.array([0.6]))
    missed = answering.reply(np.array([1.0]), deviations=1.645)
    assert not missed.held
    looks = len(looked)
    nearest = answering.nearest(np.array([1.0]), deviations=1.645, missed=missed)
    assert nearest.held
    assert len(looked) == looks
    bound, reached = nearest.answer.thresholds["x"], nearest.answer.rewards["x"]
    assert 0.5 < bound < 0.7
    assert bound == pytest.approx(reached.mean - _error(nearest.answer, "x") * 1.645, abs=0.01)
    assert answering.reply(np.array([bound]), deviations=1.645).held
    monkeypatch.setattr(answering, "_known", Known())
    monkeypatch.setattr(answering, "most", np.array([0.05]))
    assert not answering.nearest(np.array([1.0]), deviations=1.645).held
    assert len(looked) <= looks + 4 * LOOKS


def test_thresholds_asked_together_are_answered_by_the_looks_at_any_of_them(
    answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the loosest was answered first costs ten times as much as what a tighter one was found to."""
    monkeypatch.setattr(answering, "_known", Known())
    dear = answering.at(np.array([0.9]))
    monkeypatch.setattr(Known, "in_vain", lambda *_: True)
    looked = answering._looked

    def settled(there: Any, multipliers: np.ndarray, *options: Any, **named: Any) -> Any:
        loosest = there.constraints[0].bound < 0.3
        return dear if loosest else looked(there, multipliers, *options, **named)

    monkeypatch.setattr(answering, "_looked", settled)
    design = [np.array([0.2]), np.array([0.5])]
    loosest, tighter = answering.replies(design)
    assert loosest.held
    assert tighter.held
    assert loosest.answer.thresholds == {"x": 0.2}
    assert loosest.answer.kl == tighter.answer.kl
    assert loosest.answer.kl.mean < dear.answer.kl.mean / 2


def _error(answer: Answer, name: str) -> float:
    return (answer.rewards[name].high - answer.rewards[name].low) / (2 * 1.96)


def test_budgets_are_solved_for_too() -> None:
    """``q = N(0, 1)``: within a KL of B the greatest ``E[x]`` is √(2 B)."""
    job = boxed("x", 0.6, 0.1)
    outcome = run_trial(job, LocalTrialIO())
    answering = open_stored(job, outcome.adapter, None)
    for budget in (0.6, 0.3, 0.1):
        answer = answering.reply(np.array([budget])).answer
        assert answer.feasible
        assert answer.kl.mean == pytest.approx(budget, abs=0.02)
        assert answer.rewards["x"].mean == pytest.approx((2 * budget) ** 0.5, abs=0.06)


def _other(name: str, value: Any) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    def changed(files: dict[str, bytes]) -> dict[str, bytes]:
        document = json.loads(files[MULTIPLIERS]) | {name: value}
        return files | {MULTIPLIERS: json.dumps(document).encode()}

    return changed


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda files: {CONTROL: files[CONTROL]}, "no multipliers.json beside the network"),
        (lambda files: files | {MULTIPLIERS: b"{"}, "multipliers.json cannot be read"),
        (lambda files: files | {CONTROL: b"no tensors"}, "no file of safetensors"),
        (_other("constraints", ["y"]), "of another trial"),
        (_other("multipliers", [[1.0]]), "of another trial"),
        (_other("multipliers", [[-1.0]] * 9), "no multipliers: at least 0"),
    ],
)
def test_files_that_are_not_of_the_trial_are_refused(
    trained: tuple[TrialJob, TrialOutcome], change: Any, expected: str
) -> None:
    job, outcome = trained
    with pytest.raises(ValueError, match=expected):
        open_stored(job, change(dict(outcome.adapter)), None)


def test_a_residual_of_another_width_is_refused(trained: tuple[TrialJob, TrialOutcome]) -> None:
    job, outcome = trained
    training = job.config.training.model_copy(update={"width": job.config.training.width // 2})
    narrow = job.model_copy(update={"config": job.config.model_copy(update={"training": training})})
    with pytest.raises(ValueError, match=r"of another residual: enter\.bias has"):
        open_stored(narrow, outcome.adapter, None)


def test_the_residual_of_a_mixture_keeps_the_contract_of_conditional_ones(answering: Answering) -> None:
    policy = answering.policy
    assert isinstance(policy, MixturePolicy)
    plain = MixturePolicy(policy.model, type(policy.network)(policy.model, policy.network.enter.out_features))
    check_conditional(policy, plain, [np.array([0.4]), np.array([1.1])])
    with torch.no_grad():
        policy.network.leave.bias.add_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        plain.load_adapter(policy.folded(np.array([0.4])))


@pytest.mark.parametrize("objective", ["kl", "x"])
def test_prices_and_multipliers_are_inverse(objective: str) -> None:
    job = boxed(objective, 0.3, 0.6)
    lagrangian = build_lagrangian(job)
    (constraint,) = lagrangian.constraints
    lagrangian = replace(
        lagrangian,
        objective_scale=2.0,
        constraints=(
            replace(constraint, scale=1.0 if objective == "x" else 3.0),
            replace(constraint, name="other", quantity="y", sign=-1.0, scale=5.0),
        ),
    )
    multipliers = np.array([0.7, 0.2])
    np.testing.assert_allclose(lagrangian.multipliers(lagrangian.prices(multipliers)), multipliers)
