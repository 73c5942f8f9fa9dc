"""Scores that could not be had: in no mean, in no gradient, and null in the results."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.results.schema import evaluations_table, history_table, samples_of, samples_table
from trainers.alignment.gradient import _in_parts, _of_all
from trainers.alignment.paired import PromptMeans
from trainers.alignment.start import start_of
from trainers.config import FrontierConfig, TrialJob
from trainers.estimates import complete
from trainers.evaluate import estimate
from trainers.failures import Unscored
from trainers.loop import Alignment, train
from trainers.models.base import Draw
from trainers.primal.base import without_gaps
from trainers.primal.log_variance import LogVariance
from trainers.problem import run_trial, sample_pretrained, statistics
from trainers.rewards.analytic import Linear
from trainers.rewards.grouped import Grouped, Spread
from trainers.testing import check_primal_estimator, gaussian_job
from trainers.trial_io import LocalTrialIO
from trainers.types import Evaluation


class Gappy(Linear):
    """A reward of which some scores cannot be had: a share of them by chance, and all of some calls."""

    differentiable = False

    def __init__(self, share: float, missing: float = 0.5, dead: Sequence[int] = ()) -> None:
        """Take the share that is missing, that which may be, and the calls without any score."""
        super().__init__((1.0,))
        self.missing, self._share, self._dead = missing, share, dead
        self._calls, self._generator = 0, torch.Generator().manual_seed(0)
        self.counts = (0, 0)

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        scores = super().__call__(samples).detach()
        gone = torch.rand(len(scores), generator=self._generator) < self._share
        if self._calls in self._dead:
            gone = torch.ones_like(gone)
        self._calls += 1
        self.counts = self.counts[0] + int(gone.sum()), self.counts[1] + len(gone)
        return scores.masked_fill(gone, math.nan)


def built(monkeypatch: pytest.MonkeyPatch, reward: Gappy) -> None:
    monkeypatch.setattr("trainers.rewards.base.build_reward", lambda *_: reward)


def job(steps: int = 200, images: int = 4096) -> TrialJob:
    return gaussian_job(
        {"x": 1.0},
        training={"steps": steps, "batch_per_worker": 512},
        evaluation={"images": images, "baseline_images": 2 * images, "every": 10},
    )


def drawn(count: int, prompts: tuple[str, ...] | None = None) -> Draw:
    return Draw(noise=torch.zeros(1, count, 1), seeds=np.arange(count), prompts=prompts)


def test_missing_scores_move_nothing_and_bias_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    scores, others = torch.randn(2, 4000, generator=generator)
    scores = 3.0 + scores + 0.5 * others
    reward = {"x": Gappy(0.0)}
    same = without_gaps({"x": scores}, reward, drawn(len(scores)), Tensor.detach)["x"]
    assert torch.equal(same, scores)
    nothing = without_gaps({"x": torch.full((9,), math.nan)}, reward, drawn(len(scores)), Tensor.detach)["x"]
    assert nothing.tolist() == [0.0] * 9
    found = []
    for _ in range(200):
        gone = torch.rand(4000, generator=generator) < 0.3
        seen = {"x": scores.masked_fill(gone, math.nan)}
        filled = without_gaps(seen, reward, drawn(len(scores)), Tensor.detach)["x"]
        assert len(filled[gone].unique()) == 1
        found.append(float(((filled - filled.mean()) * others).mean()))
    exact = float(((scores - scores.mean()) * others).mean())
    assert abs(np.mean(found) - exact) < 3 * np.std(found) / np.sqrt(len(found))


def test_of_a_group_the_others_of_the_group_stand_in_for_what_is_missing() -> None:
    """Half of the samples are in the group, and half of its scores missing: counted over all samples, a third lost."""
    generator = torch.Generator().manual_seed(1)
    prompts = ("in", "out") * 2000
    scores, others = torch.randn(2, 4000, generator=generator)
    within = torch.arange(4000) % 2 == 0
    # As ``Spread`` has it: (r − m) / s + m, of a group with the mean 3 of which 1 was known.
    scores = torch.where(within, 1.0 + (2.0 + scores + 0.5 * others) / 0.5, 1.0)
    reward = Spread(Grouped(Gappy(0.0), frozenset({"in"})), share=0.5, centre=1.0)
    means, products, sums = [], [], []
    for _ in range(200):
        gone = within & (torch.rand(4000, generator=generator) < 0.5)
        seen = scores.masked_fill(gone, math.nan)
        filled = without_gaps({"x": seen}, {"x": reward}, drawn(4000, prompts), Tensor.detach)["x"]
        assert torch.equal(filled[~within], scores[~within])
        means.append(float(filled.mean()))
        products.append(float(((filled - filled.mean()) * others).mean()))
        parts = _in_parts(seen[None], torch.tensor([True]), within[None])
        sums.append(_of_all(parts.mean(dim=-1), (0,))[0].item())
    exact = float(((scores - scores.mean()) * others).mean())
    assert abs(np.mean(products) - exact) < 3 * np.std(products) / np.sqrt(len(products))
    assert np.mean(means) == pytest.approx(float(scores.mean()), abs=0.01)
    np.testing.assert_allclose(sums, means, rtol=1e-5)
    empty = scores.masked_fill(within, math.nan)
    still = without_gaps({"x": empty}, {"x": reward}, drawn(4000, prompts), Tensor.detach)["x"]
    assert still.unique().tolist() == [1.0]


def test_an_estimator_keeps_its_contract_with_a_reward_that_has_gaps() -> None:
    check_primal_estimator(LogVariance(), rewards={"first": Gappy(0.0), "second": Linear((-0.5,))})


@pytest.mark.exhaustive
def test_a_trial_comes_to_its_optimum_where_a_fifth_of_the_scores_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reward = Gappy(0.2)
    built(monkeypatch, reward)
    task, io = job(400), LocalTrialIO()
    outcome = run_trial(task, io)
    assert outcome.status == "succeeded"
    assert outcome.feasible
    assert outcome.kl is not None
    assert outcome.kl.mean == pytest.approx(0.5, abs=0.1)
    assert outcome.rewards["x"].mean == pytest.approx(1.0, abs=0.06)
    assert any("scores of 'x' could not be had" in note for note in outcome.notes)
    assert outcome.evaluation is not None
    gone = np.isnan(outcome.evaluation.rewards["x"])
    assert 0.1 < gone.mean() < 0.3
    column = evaluations_table(task, outcome.evaluation)["reward_x"]
    assert column.null_count == gone.sum()
    assert np.isfinite(column.drop_null().to_numpy()).all()
    for name in ("kl", "lagrangian", "reward_x", "violation_x", "multiplier_x"):
        assert np.isfinite(history_table(task, outcome.history)[name].to_numpy()).all()


def test_a_step_without_any_score_leaves_the_multipliers(monkeypatch: pytest.MonkeyPatch) -> None:
    built(monkeypatch, Gappy(0.0, dead=[1]))  # a call for each step
    task = gaussian_job(
        {"x": 1.0},
        training={"steps": 10, "batch_per_worker": 64},
        duals={"paired": False, "rate": 0.1},
        evaluation={"every": 1},
    ).model_copy(update={"start": (0.7,)})
    io = LocalTrialIO()
    trial = Alignment(task, io)
    train(task, trial._state, io, trial._collective)
    first, third, fourth = io.records[:3]
    assert [first.step, third.step, fourth.step] == [1, 3, 4]
    for before, after in (
        (first, third),
        (third, fourth),
    ):  # one dual step each, on the violation that was seen
        moved = after.multipliers["x"] - before.multipliers["x"]
        assert moved == pytest.approx(0.1 * after.violations["x"])


def test_too_many_missing_scores_fail_the_trial_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    built(monkeypatch, Gappy(0.5, missing=0.2))
    task = job(3, 64).model_copy(update={"start": (0.0,)})
    outcome = run_trial(task, LocalTrialIO())
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert "images of the evaluation, and at most a share of 0.2 may be missing" in outcome.error


def test_the_pretrained_model_is_sampled_with_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    built(monkeypatch, Gappy(0.2))
    task = job()
    samples = sample_pretrained(task.config)
    known = statistics(samples)
    assert known.rewards["x"].mean == pytest.approx(0.0, abs=0.05)
    assert known.rewards["x"].std == pytest.approx(1.0, abs=0.05)
    table = samples_table(task.config, samples)
    assert table["reward_x"].null_count > 0
    drawn = samples_of(table, "train")
    assert np.isnan(drawn["x"]).any()
    (start,) = start_of(task, drawn).start or ()
    assert start == pytest.approx(1.0, abs=0.15)


def test_too_many_gaps_of_the_pretrained_model_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    built(monkeypatch, Gappy(0.5, missing=0.2))
    with pytest.raises(Unscored, match="images of the pretrained model, and at most a share of"):
        sample_pretrained(job().config)


def test_estimates_are_of_what_is_there() -> None:
    rng = np.random.default_rng(0)
    values, known = rng.normal(size=40), rng.normal(size=100)
    known[:40] += values
    gone, gone_of_known = rng.random(40) < 0.3, rng.random(100) < 0.2
    gappy, gappy_known = np.where(gone, np.nan, values), np.where(gone_of_known, np.nan, known)
    whole = Evaluation(kl=values, rewards={"x": gappy}, seeds=np.arange(40), gaps=frozenset({"x"}))
    alone = dataclasses.replace(whole, rewards={"x": values[~gone]}, gaps=frozenset())
    assert estimate(whole, "x") == estimate(alone, "x")
    paired = dataclasses.replace(whole, reference={"x": gappy_known})
    both = ~gone & ~gone_of_known[:40]
    others = np.concatenate(
        [known[:40][both], known[:40][~gone_of_known[:40] & ~both], known[40:][~gone_of_known[40:]]]
    )
    expected = dataclasses.replace(alone, rewards={"x": values[both]}, reference={"x": others})
    found = estimate(paired, "x")
    assert found.mean == pytest.approx(estimate(expected, "x").mean)
    assert found.error == pytest.approx(estimate(expected, "x").error)
    assert math.isnan(estimate(dataclasses.replace(whole, gaps=frozenset()), "x").mean)


def test_means_of_prompts_leave_gaps_out() -> None:
    sampled = {"x": np.array([1.0, np.nan, 3.0, np.nan])}
    means = PromptMeans(sampled, ["a", "a", "b", "c"])._means["x"]
    assert means.tolist() == pytest.approx([1.0, 3.0, 2.0, 2.0])


def test_a_sample_that_is_left_alone_of_its_prompt_is_left_out_too() -> None:
    values = np.array([1.0, np.nan, 2.0, 3.0, 4.0, np.nan])
    config = job().config
    kept, prompts = complete(config, {"x": values}, ["a", "a", "b", "b", "c", "d"])
    assert kept["x"].tolist() == [2.0, 3.0, 4.0]
    assert prompts == ["b", "b", "c"]
    kept, prompts = complete(config, {"x": values}, None)
    assert kept["x"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert prompts is None


def test_a_box_of_thresholds_is_answered_with_the_scores_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``q = N(0, 1)``: ``E[x] >= b`` costs b²/2 at the price b."""
    built(monkeypatch, Gappy(0.2))
    alone = gaussian_job(
        {"x": 0.2},
        sampling={"steps": 8},
        training={"steps": 100, "batch_per_worker": 256, "learning_rate": 1e-2},
        evaluation={"images": 2048, "baseline_images": 2048},
    )
    (constraint,) = alone.config.constraints
    update = {
        "method": "frontier",
        "frontier": FrontierConfig(points=3),
        "constraints": (constraint.model_copy(update={"tightest": 1.0}),),
    }
    config = alone.config.model_copy(update=update)
    outcome = run_trial(
        alone.model_copy(update={"config": config, "tightest": {"x": 1.0}}),
        LocalTrialIO(),
    )
    assert outcome.status == "succeeded", outcome.error
    for answer in outcome.answers:
        bound = answer.thresholds["x"]
        assert answer.rewards["x"].mean == pytest.approx(bound, abs=0.08)
        assert answer.kl.mean == pytest.approx(bound**2 / 2, abs=0.05 + 0.08 * bound)
