"""Whole trials: exact optima, resumption bit for bit, divergence, thresholds out of reach, early ends."""

import dataclasses
import json
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support.tiers import exhaustive, further

from trainers import loop, registry
from trainers.alignment import paired
from trainers.alignment.setup import build_setup
from trainers.alignment.state import Best, TrainState
from trainers.config import (
    BaselineStatistics,
    ConstraintConfig,
    MixtureConfig,
    ModelConfig,
    RewardConfig,
    RewardStatistics,
    TrialJob,
)
from trainers.loop import train
from trainers.models.base import Draw, Rollout
from trainers.models.mixture_policy import MixturePolicy
from trainers.problem import run_trial
from trainers.rewards.analytic import Linear
from trainers.testing import gaussian_job
from trainers.trial_io import LocalTrialIO
from trainers.types import StepRecord, TrialOutcome
from trainers.workers.collective import Collective

SMALL: dict[str, dict[str, Any]] = {
    "sampling": {"steps": 16},
    "training": {"steps": 200, "batch_per_worker": 128, "learning_rate": 1e-2},
    "evaluation": {"images": 4096, "baseline_images": 32768},
}
TINY: dict[str, dict[str, Any]] = {
    "sampling": {"steps": 4},
    "training": {"steps": 24, "batch_per_worker": 16, "width": 8, "checkpoint_every": 5},
    "evaluation": {"every": 3, "images": 256, "baseline_images": 32768},
    "convergence": {"window": 6},
}


def problem(
    rewards: dict[str, tuple[str, dict[str, Any]]],
    bounds: dict[str, float],
    mixture: MixtureConfig | None = None,
    **parts: dict[str, Any],
) -> TrialJob:
    """A trial with other rewards (kind and parameters) on a 1-D mixture, baseline by quadrature."""
    job = gaussian_job({}, **(SMALL | parts))
    mixture = mixture or job.config.model.mixture
    grid = np.linspace(-12, 12, 20001)[:, None]
    density = sum(
        w * np.exp(-0.5 * (grid[:, 0] - m[0]) ** 2 / c[0][0]) / np.sqrt(c[0][0])
        for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
    )
    density /= density.sum()
    statistics = {}
    for name, (kind, parameters) in rewards.items():
        values = registry.load(registry.REWARDS, kind)(**parameters)(torch.tensor(grid)).numpy()
        mean = float(density @ values)
        statistics[name] = RewardStatistics(mean=mean, std=float(np.sqrt(density @ (values - mean) ** 2)))
    config = job.config.model_copy(
        update={
            "model": ModelConfig(mixture=mixture),
            "rewards": tuple(RewardConfig(name=n, kind=k, parameters=p) for n, (k, p) in rewards.items()),
            "constraints": tuple(
                ConstraintConfig(name=n, kind="reward", target=n, bound=b, unit="absolute")
                for n, b in bounds.items()
            ),
        }
    )
    return job.model_copy(
        update={
            "config": config,
            "thresholds": bounds,
            "baseline": BaselineStatistics(rewards=statistics, samples=None),
        }
    )


# Exact optima of q = N(0, 1) with reward x.


@pytest.mark.parametrize("kind", ["ascent", "nu_pi", "augmented", "reweighted"])
def test_a_threshold_is_met_at_the_exact_kl_and_price(kind: str) -> None:
    """``E[x] >= b``: KL = b²/2, λ = b."""
    outcome = run_trial(gaussian_job({"x": 1.2}, **SMALL, duals={"kind": kind}), LocalTrialIO())
    assert outcome.status == "succeeded"
    assert outcome.feasible
    assert outcome.kl is not None
    assert outcome.rewards["x"].mean == pytest.approx(1.2, abs=0.06)
    assert outcome.kl.mean == pytest.approx(outcome.rewards["x"].mean ** 2 / 2, rel=0.05)
    assert outcome.multipliers["x"] == pytest.approx(1.2, rel=0.1)
    assert outcome.violations["x"] == pytest.approx(1.2 - outcome.rewards["x"].mean)


def test_rollouts_that_are_reused_find_the_same_optimum_with_half_the_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: Counter[bool] = Counter()
    rollout = MixturePolicy.rollout

    def counted(policy: MixturePolicy, draw: Draw, **how: Any) -> Rollout:
        drawn[how.get("reference", False)] += len(draw) == 128
        return rollout(policy, draw, **how)

    monkeypatch.setattr(MixturePolicy, "rollout", counted)
    paired._known.clear()  # of other tests on the same noise
    training = SMALL["training"] | {"primal": "reused_rollouts"}
    outcome = run_trial(gaussian_job({"x": 1.2}, **(SMALL | {"training": training})), LocalTrialIO())
    assert outcome.feasible
    assert outcome.kl is not None
    assert outcome.rewards["x"].mean == pytest.approx(1.2, abs=0.06)
    assert outcome.kl.mean == pytest.approx(outcome.rewards["x"].mean ** 2 / 2, rel=0.05)
    assert outcome.multipliers["x"] == pytest.approx(1.2, rel=0.1)
    assert 0 < drawn[False] < outcome.steps / 2
    assert drawn[True] == drawn[False], "what the multipliers are paired with is of the noise that was kept"


def test_a_cold_start_finds_the_same_price() -> None:
    job = gaussian_job({"x": 1.2}, **SMALL, duals={"start": 0.0, "rate": 0.2})
    outcome = run_trial(job, LocalTrialIO())
    assert outcome.feasible
    assert outcome.multipliers["x"] == pytest.approx(1.2, rel=0.1)


def test_a_reward_is_maximised_within_a_kl_budget() -> None:
    """``KL <= B``: E[x] = √(2B), and a nat more buys 1/√(2B)."""
    outcome = run_trial(gaussian_job({"kl": 0.72}, objective="x", **SMALL), LocalTrialIO())
    assert outcome.status == "succeeded"
    assert outcome.feasible
    assert outcome.kl is not None
    assert outcome.kl.mean == pytest.approx(0.72, abs=0.05)
    assert outcome.rewards["x"].mean == pytest.approx(1.2, rel=0.04)
    assert outcome.multipliers["kl"] == pytest.approx(1 / 1.2, rel=0.1)
    assert outcome.multipliers["x"] == pytest.approx(1.2, rel=0.1)  # the price of x, in nats


def test_fixed_weights_are_a_tilt() -> None:
    """Weight w: E[x] = w, KL = w²/2; nothing moves the weight."""
    outcome = run_trial(gaussian_job({"x": 0.5}, weights={"x": 0.9}, **SMALL), LocalTrialIO())
    assert outcome.kl is not None
    assert outcome.rewards["x"].mean == pytest.approx(0.9, rel=0.04)
    assert outcome.kl.mean == pytest.approx(0.405, rel=0.06)
    assert outcome.weights == {"x": 0.9}
    assert outcome.multipliers == {}
    assert outcome.violations["x"] == pytest.approx(-0.4, abs=0.05)


def test_backpropagation_trains_too() -> None:
    parts = SMALL | {"training": SMALL["training"] | {"primal": "reward_backprop", "steps": 120}}
    outcome = run_trial(gaussian_job({"x": 1.2}, **parts), LocalTrialIO())
    assert outcome.feasible
    assert outcome.kl is not None
    assert outcome.kl.mean == pytest.approx(0.72, rel=0.08)


def test_a_slack_threshold_costs_nothing() -> None:
    outcome = run_trial(gaussian_job({"x": -0.5}, **SMALL), LocalTrialIO())
    assert outcome.feasible
    assert outcome.kl is not None
    assert outcome.kl.mean < 1e-3
    assert outcome.multipliers["x"] == 0.0


@pytest.mark.parametrize(("share", "notes"), [(0.05, 0), (0.2, 1)])
def test_a_kl_within_ten_floors_is_noted(share: float, notes: int) -> None:
    """Of the 0.32 nats that the threshold costs, or thereabouts."""
    job = gaussian_job({"x": 0.8}, **TINY)
    plain = run_trial(job, LocalTrialIO())
    assert plain.kl is not None
    assert not plain.notes
    baseline = job.baseline.model_copy(update={"kl_floor": share * plain.kl.mean})
    outcome = run_trial(job.model_copy(update={"baseline": baseline}), LocalTrialIO())
    assert len(outcome.notes) == notes
    assert all("is below 10 times its floor" in note for note in outcome.notes)


# Early ends.


def test_convergence_ends_a_trial_early() -> None:
    """Converged within the window, then the rates fall for ``anneal`` of the steps: well before the last."""
    training = SMALL["training"] | {"steps": 400, "anneal": 0.1, "average": 0.1}
    parts = SMALL | {"training": training, "convergence": {"window": 30, "tolerance": 0.05}}
    early = run_trial(gaussian_job({"x": 0.8}, **parts), LocalTrialIO())
    assert early.status == "succeeded"
    assert 70 <= early.steps < 200
    assert early.multipliers["x"] == pytest.approx(0.8, rel=0.1)
    never = parts | {"training": training | {"steps": 100}, "convergence": {"window": 30, "tolerance": 1e-9}}
    assert run_trial(gaussian_job({"x": 0.8}, **never), LocalTrialIO()).steps == 100


@pytest.mark.parametrize(("steps", "anneal"), [(1, 0.4), (2, 0.4), (7, 0.01), (7, 1.0), (12, 0.5)])
def test_a_trial_takes_no_more_steps_than_it_may(steps: int, anneal: float) -> None:
    training = TINY["training"] | {"steps": steps, "anneal": anneal, "average": anneal}
    outcome = run_trial(gaussian_job({"x": 1.0}, **(TINY | {"training": training})), LocalTrialIO())
    assert outcome.steps == steps
    assert outcome.history[-1].step == steps


OUT_OF_REACH = {
    "above a maximum": ({"q": ("quadratic", {"center": (1.0,)})}, {"q": 0.3}),
    "far above a maximum": ({"q": ("quadratic", {"center": (1.0,), "scale": 0.5})}, {"q": 2.0}),
    "opposed": (
        {"a": ("linear", {"direction": (1.0,)}), "b": ("linear", {"direction": (-1.0,)})},
        {"a": 0.4, "b": 0.4},
    ),
    "opposed maxima": (
        {"a": ("quadratic", {"center": (-1.0,)}), "b": ("quadratic", {"center": (1.0,)})},
        {"a": -0.5, "b": -0.5},
    ),
}


@pytest.mark.parametrize(
    "case", ["above a maximum", "opposed", *exhaustive("far above a maximum", "opposed maxima")]
)
def test_a_threshold_out_of_reach_stops_the_trial_with_its_evidence(case: str) -> None:
    rewards, bounds = OUT_OF_REACH[case]
    training = SMALL["training"] | {"steps": 400, "batch_per_worker": 256}
    io = LocalTrialIO()
    outcome = run_trial(problem(rewards, bounds, training=training), io)
    assert outcome.status == "infeasible"
    assert outcome.feasible is False
    assert outcome.steps < 240
    assert outcome.error is not None
    said = re.match(
        r"infeasible: constraint '(\w+)' \((\w+) bound (\S+)\) stayed violated by ", outcome.error
    )
    assert said is not None, outcome.error
    name = said[1]
    assert said[2] == name
    assert float(said[3]) == bounds[name]
    assert f"(step {outcome.steps})" in outcome.error
    assert "at 50 nats per σ the worst violation would still be" in outcome.error
    # The results are kept: an evaluation, the history to the last step, the multipliers.
    assert outcome.evaluation is not None
    assert outcome.history[-1].step == io.records[-1].step == outcome.steps
    assert outcome.violations[name] > 0
    assert outcome.multipliers[name] > 0


def test_evidence_does_not_need_a_logged_row() -> None:
    rewards, bounds = OUT_OF_REACH["opposed"]
    evaluation, convergence = {"every": 1000, "images": 256, "baseline_images": 32768}, {"window": 10}
    outcome = run_trial(
        problem(rewards, bounds, evaluation=evaluation, convergence=convergence), LocalTrialIO()
    )
    assert outcome.status == "infeasible"
    assert len(outcome.history) == 1


def test_the_order_of_the_baseline_says_nothing() -> None:
    """A baseline read from a file lists rewards by name; a slow but reachable threshold was called infeasible."""
    rewards = {"x": ("linear", {"direction": (1.0,)}), "dull": ("linear", {"direction": (0.01,)})}
    training = SMALL["training"] | {"steps": 80, "batch_per_worker": 64}
    duals, window = {"rate": 0.002, "start": 0.0}, {"window": 20}
    job = problem(rewards, {"x": 1.0}, training=training, duals=duals, convergence=window)
    outcomes = []
    for order in (("x", "dull"), ("dull", "x")):
        known = {name: job.baseline.rewards[name] for name in order}
        baseline = job.baseline.model_copy(update={"rewards": known})
        asked = job.model_copy(update={"baseline": baseline, "start": (0.0,)})
        outcomes.append(run_trial(asked, LocalTrialIO()))
    for outcome in outcomes:
        assert outcome.status == "succeeded", outcome.error
    assert_equal(*outcomes)


NARROW = MixtureConfig(
    weights=(0.4, 0.4, 0.2), means=((-1.2,), (0.0,), (1.4,)), covariances=(((0.01,),), ((0.01,),), ((0.01,),))
)
REACHABLE = {
    # exact multipliers 14.5, 20 and 5 per σ: beyond the narrow top mode, close to a maximum, far in a tail
    "a narrow mode": ({"x": ("linear", {"direction": (1.0,)})}, {"x": 1.55}, NARROW, {}),
    "near a maximum": ({"q": ("quadratic", {"center": (1.0,)})}, {"q": -0.06}, None, {}),
    "a tail": ({"x": ("linear", {"direction": (1.0,)})}, {"x": 3.5}, None, {}),
    "slow duals": ({"x": ("linear", {"direction": (1.0,)})}, {"x": 1.0}, None, {"rate": 0.002, "start": 0.0}),
    "slow duals near a maximum": (
        {"q": ("quadratic", {"center": (1.0,)})}, {"q": -0.1}, None, {"rate": 0.02, "start": 0.0}
    ),
    "a compromise": (
        {"a": ("quadratic", {"center": (-1.0,)}), "b": ("quadratic", {"center": (1.0,)})},
        {"a": -1.25, "b": -1.25}, None, {},
    ),
}  # fmt: skip


SHOWN = ("slow duals", "a compromise")


@pytest.mark.slow
@pytest.mark.parametrize("case", [*SHOWN, *exhaustive(*(case for case in REACHABLE if case not in SHOWN))])
def test_what_merely_takes_long_is_not_called_infeasible(case: str) -> None:
    rewards, bounds, mixture, duals = REACHABLE[case]
    training = SMALL["training"] | {"steps": 400}
    job = problem(rewards, bounds, mixture, training=training, duals=duals, sampling={"steps": 16})
    outcome = run_trial(job, LocalTrialIO())
    assert outcome.status == "succeeded", outcome.error


# Divergence.


class Poisoned(Linear):
    """Scores well until it has been called so often, then NaN."""

    calls = 0
    good_calls = 0

    def __call__(self, samples: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        Poisoned.calls += 1
        return super().__call__(samples) * (1.0 if Poisoned.calls <= Poisoned.good_calls else math.nan)


@pytest.mark.parametrize(
    ("primal", "with_reference"),
    [
        ("log_variance", True),
        ("reward_backprop", False),
        *further(("log_variance", False), ("reward_backprop", True)),
    ],
)
def test_nan_fails_the_trial_and_keeps_the_last_good_state(
    monkeypatch: pytest.MonkeyPatch, primal: str, with_reference: bool
) -> None:
    load = registry.load
    monkeypatch.setattr(
        registry, "load", lambda group, name: Poisoned if name == "poisoned" else load(group, name)
    )
    parts = TINY | {"training": TINY["training"] | {"primal": primal}, "duals": {"paired": with_reference}}
    job = gaussian_job({"x": 1.0}, **parts)
    poisoned = RewardConfig(name="x", kind="poisoned", parameters={"direction": (1.0,)})
    job = job.model_copy(update={"config": job.config.model_copy(update={"rewards": (poisoned,)})})

    monkeypatch.setattr(Poisoned, "calls", 0)
    monkeypatch.setattr(Poisoned, "good_calls", 10**9)
    build_setup(job)
    baseline, per_step = Poisoned.calls, 2 if with_reference else 1
    monkeypatch.setattr(
        paired, "_known", OrderedDict()
    )  # no batch is known yet: the reference is scored as well
    monkeypatch.setattr(Poisoned, "calls", 0)
    monkeypatch.setattr(Poisoned, "good_calls", baseline + 12 * per_step)

    io = LocalTrialIO()
    outcome = run_trial(job, io)
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert "diverged at step 13" in outcome.error
    assert outcome.steps == 12
    assert outcome.feasible is None
    assert outcome.evaluation is None
    assert outcome.rewards == outcome.violations == {}
    assert all(np.isfinite([r.kl, r.rewards["x"], r.multipliers["x"]]).all() for r in outcome.history)
    # The checkpoint is the last good one; once the reward is mended the trial goes on from there.
    assert io.checkpoint is not None
    assert json.loads(io.checkpoint["state.json"])["step"] == 10
    monkeypatch.setattr(Poisoned, "good_calls", 10**9)
    monkeypatch.setattr(paired, "_known", OrderedDict())  # another process
    mended = run_trial(job, io)
    assert mended.status == "succeeded"
    assert_equal(mended, run_trial(job, LocalTrialIO()))


def test_an_explosion_fails_the_trial() -> None:
    parts = TINY | {"training": TINY["training"] | {"learning_rate": 1e4}}
    outcome = run_trial(gaussian_job({"x": 1.0}, **parts), LocalTrialIO())
    assert outcome.status == "failed"
    assert "smaller training.learning_rate (now 10000)" in str(outcome.error)


# Resumption.


class Recorder(LocalTrialIO):
    """Keeps every checkpoint."""

    def __init__(self) -> None:
        """Keep none yet."""
        super().__init__()
        self.saved: dict[int, dict[str, bytes]] = {}

    def save(self, step: int, files: dict[str, bytes], history: Sequence[StepRecord]) -> None:
        super().save(step, files, history)
        self.saved[step] = dict(files)
        assert json.loads(files["state.json"])["step"] == step


def timeless(record: StepRecord) -> StepRecord:
    return dataclasses.replace(record, seconds=0.0, images_per_second=0.0)


def assert_equal(one: TrialOutcome, other: TrialOutcome) -> None:
    """Bit for bit, but for the time it took."""
    assert [timeless(r) for r in one.history] == [timeless(r) for r in other.history]
    assert one.evaluation is not None
    assert other.evaluation is not None
    assert one.evaluation.kl.tolist() == other.evaluation.kl.tolist()
    assert np.array_equal(one.evaluation.log_ratio, other.evaluation.log_ratio)
    assert one.evaluation.rewards["x"].tolist() == other.evaluation.rewards["x"].tolist()
    bare = [
        dataclasses.replace(outcome, evaluation=None, history=(), wall_seconds=0.0)
        for outcome in (one, other)
    ]
    assert bare[0] == bare[1]


RESUMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ascent": ({}, {"duals": {"kind": "ascent"}}),
    "nu_pi": ({}, {"duals": {"kind": "nu_pi"}}),
    "augmented": ({}, {"duals": {"kind": "augmented"}}),
    "reweighted": ({}, {"duals": {"kind": "reweighted", "window": 4}}),
    "weighted": ({"weights": {"x": 0.7}}, {}),
    "every third step": ({}, {"duals": {"kind": "nu_pi", "steps_between": 3}}),
    "accumulation": ({}, {"training": TINY["training"] | {"accumulation": 2, "primal": "reward_backprop"}}),
    "early": ({}, {"convergence": {"window": 6, "tolerance": 5.0}}),
}


@pytest.mark.parametrize("case", [case if case != "ascent" else exhaustive(case)[0] for case in RESUMED])
def test_a_resumed_trial_continues_bit_for_bit(case: str) -> None:
    arguments, parts = RESUMED[case]
    job = gaussian_job({"x": 1.0}, **arguments, **(TINY | parts))
    undisturbed = Recorder()
    expected = run_trial(job, undisturbed)
    assert expected.status == "succeeded"
    assert set(undisturbed.saved) == ({5, 10, 15} if case == "early" else {5, 10, 15, 20})

    for files in undisturbed.saved.values():
        torch.manual_seed(12345)  # whatever the new process did before
        io = LocalTrialIO(checkpoint=files)
        assert_equal(run_trial(job, io), expected)

    # Parameters, averages, optimiser and every counter as well.
    states = []
    for files in (None, undisturbed.saved[10]):
        state = TrainState.start(build_setup(job), job.config.training)
        if files is not None:
            state.unpack(files, Collective())
        assert train(job, state, LocalTrialIO(), Collective()) is None
        packed = state.pack(Collective())
        counters = json.loads(packed["state.json"])
        counters.pop("seconds")
        for record in counters["history"]:
            record["seconds"] = record["images_per_second"] = 0.0
        states.append((packed["state.safetensors"], counters))
    assert states[0][0] == states[1][0]
    assert states[0][1] == states[1][1]


def test_seeds_differ_and_repeat() -> None:
    first, again = (run_trial(gaussian_job({"x": 1.0}, **TINY), LocalTrialIO()) for _ in range(2))
    assert_equal(first, again)
    other = run_trial(gaussian_job({"x": 1.0}, seed=1, **TINY), LocalTrialIO())
    assert [r.kl for r in other.history] != [r.kl for r in first.history]


def test_time_adds_up_over_attempts() -> None:
    recorder = Recorder()
    job = gaussian_job({"x": 1.0}, **TINY)
    run_trial(job, recorder)
    files = recorder.saved[10]
    state = json.loads(files["state.json"]) | {"seconds": 1000.0}
    outcome = run_trial(job, LocalTrialIO(checkpoint=files | {"state.json": json.dumps(state).encode()}))
    assert outcome.wall_seconds > 1000.0
    assert outcome.history[-1].seconds > 1000.0


# The history.


def test_history_means_cover_every_step_once_and_reports_are_the_same_rows() -> None:
    every_step = TINY | {"evaluation": {"every": 1, "images": 256, "baseline_images": 32768}}
    fine_io, coarse_io = LocalTrialIO(), LocalTrialIO()
    fine = run_trial(gaussian_job({"x": 1.0}, **every_step), fine_io).history
    coarse = run_trial(gaussian_job({"x": 1.0}, **TINY), coarse_io).history
    assert [r.step for r in fine] == list(range(1, 25))
    assert [r.step for r in coarse] == list(range(3, 25, 3))
    assert list(coarse) == coarse_io.records
    for i, row in enumerate(coarse):
        three = fine[3 * i : 3 * i + 3]
        assert row.kl == pytest.approx(np.mean([r.kl for r in three]))
        assert row.rewards["x"] == pytest.approx(np.mean([r.rewards["x"] for r in three]))
        assert row.violations["x"] == pytest.approx(1.0 - row.rewards["x"])
        assert row.multipliers == three[-1].multipliers
        assert row.learning_rate == three[-1].learning_rate


def test_multipliers_move_by_the_rule_once_per_so_many_steps() -> None:
    """λ after each step of the history is ``[λ + η g]₊`` of that step's own mean, annealed."""
    parts = TINY | {
        "training": TINY["training"] | {"accumulation": 2, "anneal": 0.25, "average": 0.2},
        "evaluation": {"every": 1, "images": 256, "baseline_images": 32768},
        "duals": {"rate": 0.3, "start": 0.5, "steps_between": 2},
    }
    rows = run_trial(gaussian_job({"x": 1.0}, **parts), LocalTrialIO()).history
    multiplier = 0.5
    for row in rows[:18]:  # the rates are constant until 6 of 24 steps are left
        if row.step % 2 == 0:
            multiplier = max(0.0, multiplier + 0.3 * row.violations["x"])
        assert row.multipliers["x"] == pytest.approx(multiplier, rel=1e-9)
    assert [r.learning_rate for r in rows[:18]] == [3e-3] * 18
    assert rows[-1].learning_rate < 0.3 * 3e-3


@pytest.fixture(scope="module")
def aimed() -> tuple[TrialJob, dict[str, bytes]]:
    """A job that aims past its threshold, and its state after the last step."""
    job = gaussian_job({"x": 1.0}, **SMALL, duals={"margin": 0.1})
    state = TrainState.start(build_setup(job), job.config.training)
    assert train(job, state, LocalTrialIO(), Collective()) is None
    return job, state.pack(Collective())


def test_a_missed_end_falls_back_on_the_best_state(
    aimed: tuple[TrialJob, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, trained = aimed

    def spoiled(_: Any, state: TrainState, *__: Any) -> None:
        state.unpack(trained, Collective())
        for tensor in state.averaged.values():
            tensor.zero_()

    monkeypatch.setattr(loop, "train", spoiled)
    outcome = run_trial(job, LocalTrialIO())
    assert outcome.feasible
    assert outcome.rewards["x"].mean == pytest.approx(1.1, abs=0.12)
    assert re.search(r"missed a threshold; this is the best one, of step \d+", outcome.notes[-1])


@pytest.mark.parametrize("settled", [True, False])
def test_the_best_state_is_reported_with_its_own_multipliers_or_none(
    aimed: tuple[TrialJob, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, settled: bool
) -> None:
    """With those of the end, 2.5 where 1.1 is the price, a tangent at ``x >= 1`` said 2.0 nats where 0.5 is exact."""
    job, trained = aimed

    def spoiled(_: Any, state: TrainState, *__: Any) -> None:
        state.unpack(trained, Collective())
        own = state.averaged_multipliers if settled else None
        copies = {name: tensor.clone() for name, tensor in state.averaged.items()}
        state.best = Best(step=state.step - 1, kl=0.6, parameters=copies, multipliers=own)
        state.averaged_multipliers = [2.5]
        for tensor in state.averaged.values():
            tensor.zero_()

    monkeypatch.setattr(loop, "train", spoiled)
    outcome = run_trial(job, LocalTrialIO())
    assert outcome.feasible
    assert outcome.evaluation is not None
    assert outcome.evaluation.looks == 2
    if settled:
        assert outcome.multipliers["x"] == pytest.approx(1.1, rel=0.15)
        slope = outcome.multipliers["x"]
        assert outcome.kl is not None
        assert outcome.kl.mean - slope * (outcome.rewards["x"].mean - 1.0) < 0.56
    else:
        assert outcome.multipliers == {}


def test_a_trial_that_failed_has_no_multipliers_of_an_evaluated_state() -> None:
    parts = TINY | {"training": TINY["training"] | {"learning_rate": 1e4}}
    outcome = run_trial(gaussian_job({"x": 1.0}, **parts), LocalTrialIO())
    assert (outcome.status, outcome.evaluation, outcome.multipliers) == ("failed", None, {})


def test_a_margin_is_aimed_past_and_not_reported() -> None:
    outcome = run_trial(gaussian_job({"x": 1.0}, **SMALL, duals={"margin": 0.3}), LocalTrialIO())
    assert outcome.rewards["x"].mean == pytest.approx(1.3, abs=0.06)
    assert outcome.violations["x"] == pytest.approx(1.0 - outcome.rewards["x"].mean)


class Opaque(Linear):
    """A reward without gradients."""

    differentiable = False


@pytest.mark.parametrize(("primal", "refused"), [("reward_backprop", True), ("log_variance", False)])
def test_what_only_an_object_says_of_its_gradients_is_refused_too(
    primal: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.rewards.base.build_reward", lambda config, _: Opaque(**config.parameters))
    job = gaussian_job({"x": 1.0}, training={"primal": primal})
    if not refused:
        build_setup(job)
        return
    with pytest.raises(ValueError, match="reward_backprop differentiates rewards, and the reward 'x'"):
        build_setup(job)
