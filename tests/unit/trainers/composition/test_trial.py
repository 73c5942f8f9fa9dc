"""Composition trials, against the exact optimum (quadrature and closed forms of another package)."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from support.tiers import exhaustive, further

from orchestrator.frontier.problems.composition import ExactComposition
from trainers.composition.mixtures import SAMPLERS
from trainers.config import (
    COMPOSITION_DEFAULTS,
    BaselineStatistics,
    CompositionConfig,
    ConstituentConfig,
    ConstraintConfig,
    ConvergenceConfig,
    DualConfig,
    EvaluationConfig,
    MixtureConfig,
    ModelConfig,
    ObjectiveConfig,
    RewardConfig,
    RewardStatistics,
    SamplingConfig,
    TrainingConfig,
    TrialConfig,
    TrialJob,
)
from trainers.hosts.alone import Host
from trainers.problem import run_trial
from trainers.trial_io import LocalTrialIO
from trainers.types import TrialOutcome


def gaussian(x: float, y: float, variance: float = 0.3) -> MixtureConfig:
    return MixtureConfig(weights=(1.0,), means=((x, y),), covariances=(((variance, 0.0), (0.0, variance)),))


def random_mixture(rng: np.random.Generator, components: int, dimension: int) -> MixtureConfig:
    roots = 0.5 * rng.normal(size=(components, dimension, dimension))
    covariances = roots @ roots.transpose(0, 2, 1) + 0.15 * np.eye(dimension)
    return MixtureConfig(
        weights=tuple(rng.dirichlet(3 * np.ones(components)).tolist()),
        means=tuple(map(tuple, (1.2 * rng.normal(size=(components, dimension))).tolist())),
        covariances=tuple(tuple(map(tuple, c)) for c in covariances.tolist()),
    )


ALIKE = {"a": gaussian(-1.0, 0.0), "b": gaussian(-1.1, 0.2), "c": gaussian(1.5, 0.5, 0.5)}
"""Three models of which two are alike."""


def job(
    models: Mapping[str, MixtureConfig],
    *,
    direction: str = "reverse",
    weights: Mapping[str, float] | None = None,
    offsets: Mapping[str, float] | None = None,
    sampler: str = "fkc",
    at_least: float | None = None,
    **parts: dict[str, Any],
) -> TrialJob:
    """A trial; with ``at_least`` the last coordinate has a threshold."""
    sections = {name: dict(values) for name, values in COMPOSITION_DEFAULTS.items()}
    for name, values in parts.items():
        sections.setdefault(name, {}).update(values)
    composition = CompositionConfig(
        models=tuple(ConstituentConfig(name=n, mixture=m) for n, m in models.items()),
        direction=direction,  # type: ignore[arg-type]
        offsets=dict(offsets or {}),
        sampler=sampler,
    )
    rewards, constraints, thresholds = [], [], {}
    if at_least is not None:
        dimension = next(iter(models.values())).dimension
        direction_of = (*(0.0,) * (dimension - 1), 1.0)
        rewards = [RewardConfig(name="x", kind="linear", parameters={"direction": direction_of})]
        constraints = [ConstraintConfig(name="x", kind="reward", target="x", bound=at_least, unit="absolute")]
        thresholds = {"x": at_least}
    config = TrialConfig(
        model=ModelConfig(composition=composition),
        sampling=SamplingConfig(**sections["sampling"]),
        rewards=tuple(rewards),
        objective=ObjectiveConfig(kind="minmax_kl", target="models"),
        constraints=tuple(constraints),
        method="constrained" if weights is None else "weighted",
        weights=dict(weights or {}),
        seed=0,
        training=TrainingConfig(**sections["training"]),
        duals=DualConfig(),
        convergence=ConvergenceConfig(**sections["convergence"]),
        evaluation=EvaluationConfig(**sections["evaluation"]),
    )
    statistics = {"x": RewardStatistics(mean=0.0, std=1.0)} if rewards else {}
    baseline = BaselineStatistics(rewards=statistics, samples=None)
    return TrialJob(trial_id="composed", config=config, baseline=baseline, thresholds=thresholds)


def run(*args: Any, **parts: Any) -> TrialOutcome:
    outcome = run_trial(job(*args, **parts), LocalTrialIO())
    assert outcome.status == "succeeded", outcome.error
    return outcome


def assert_optimal(outcome: TrialOutcome, exact: ExactComposition, **thresholds: float) -> None:
    """Weights within 0.03 of exact, KLs of active models equal within 5 %, the largest near the radius."""
    optimum = exact.optimum(thresholds)
    for name, weight in optimum.weights.items():
        assert outcome.multipliers[name] == pytest.approx(weight, abs=0.03)
        assert outcome.constituents[name].mean == pytest.approx(optimum.kl[name], rel=0.05, abs=0.01)
        half = outcome.constituents[name].high - outcome.constituents[name].mean
        here = exact.at(
            {n: outcome.multipliers[n] for n in optimum.weights},
            {n: outcome.multipliers[n] for n in thresholds},
        ).kl[name]
        assert outcome.constituents[name].mean == pytest.approx(here, abs=2.5 * half + 0.02)


@pytest.mark.parametrize("seed", [0, *exhaustive(1, 2)])
def test_a_product_of_gaussians_keeps_every_model_equally_near(seed: int) -> None:
    rng = np.random.default_rng(seed)
    models = {f"m{i}": random_mixture(rng, 1, 2) for i in range(3)}
    assert_optimal(run(models), ExactComposition(models, "reverse"))


@pytest.mark.parametrize(
    ("direction", "dimension"), [("reverse", 2), ("forward", 1), *further(("reverse", 1), ("forward", 2))]
)
def test_mixtures(direction: str, dimension: int) -> None:
    rng = np.random.default_rng(10 + dimension)
    models = {f"m{i}": random_mixture(rng, 2, dimension) for i in range(2 + dimension % 2)}
    outcome = run(models, direction=direction)
    assert_optimal(outcome, ExactComposition(models, direction))  # type: ignore[arg-type]


LINE = {
    "a": MixtureConfig(weights=(1.0,), means=((-1.0,),), covariances=(((1.0,),),)),
    "b": MixtureConfig(weights=(1.0,), means=((1.0,),), covariances=(((1.0,),),)),
    "narrow": MixtureConfig(weights=(1.0,), means=((1.0,),), covariances=(((0.3,),),)),
}


@pytest.mark.parametrize(
    ("other", "sampler"),
    [
        *(("narrow", sampler) for sampler in SAMPLERS),
        ("b", "score"),
        ("b", "fkc"),
        *further(*(("b", sampler) for sampler in SAMPLERS if sampler not in {"score", "fkc"})),
    ],
)
def test_every_sampler_converges_to_the_optimum(other: str, sampler: str) -> None:
    """Of equal variances also the uncorrected score; of unequal ones it says that its KLs are too small."""
    models = {name: LINE[name] for name in ("a", other)}
    few = {"training": {"steps": 20, "batch_per_worker": 1024}, "evaluation": {"images": 4096}}
    outcome = run(models, sampler=sampler, sampling={"steps": 32}, **few)
    exact = ExactComposition(models, "reverse")
    optimum = exact.optimum({})
    if other == "b":
        assert optimum.kl == pytest.approx({"a": 0.5, "b": 0.5})
    elif sampler == "score":
        assert "does not correct its samples" in outcome.notes[0]
        assert outcome.constituents["a"].high < optimum.kl["a"] - 0.05
        return
    bias = 0.12 if sampler == "ula" else 0.03  # of finite steps, which 32 levels leave
    here = exact.at({name: outcome.multipliers[name] for name in models}).kl
    for name, found in outcome.constituents.items():
        assert outcome.multipliers[name] == pytest.approx(optimum.weights[name], abs=0.05)
        assert found.mean == pytest.approx(here[name], abs=bias + 2.5 * (found.high - found.mean))
    duals = [record.lagrangian for record in outcome.history[-5:]]
    assert np.mean(duals) == pytest.approx(optimum.kl["a"], abs=0.05)


@pytest.fixture(scope="module")
def alike() -> tuple[TrialOutcome, LocalTrialIO]:
    """The constrained composition of models of which two are alike, and what it reported."""
    io = LocalTrialIO()
    return run_trial(job(ALIKE), io), io


def test_equal_weights_leave_the_odd_one_behind_and_the_constrained_do_not(
    alike: tuple[TrialOutcome, LocalTrialIO],
) -> None:
    equal = run(ALIKE, weights=dict.fromkeys(ALIKE, 1 / 3))
    found, _ = alike
    assert found.status == "succeeded", found.error
    exact = ExactComposition(ALIKE, "reverse")
    assert equal.constituents["c"].mean == pytest.approx(
        exact.at(dict.fromkeys(ALIKE, 1 / 3)).kl["c"], rel=0.05
    )
    assert equal.constituents["c"].mean > 1.5 * max(equal.constituents[n].mean for n in "ab")
    assert found.constituents["c"].mean < 1.05 * max(found.constituents[n].mean for n in "ab")
    assert_optimal(found, exact)
    assert equal.steps == 0


def test_offsets_let_a_model_be_farther() -> None:
    models = {"a": gaussian(-1.0, 0.0), "b": gaussian(1.0, 0.0)}
    outcome = run(models, offsets={"b": 0.8})
    difference = outcome.constituents["b"].mean - outcome.constituents["a"].mean
    assert difference == pytest.approx(0.8, rel=0.05)
    assert_optimal(outcome, ExactComposition(models, "reverse", {"b": 0.8}))


def test_a_reward_threshold_beside_the_models() -> None:
    models = {"a": gaussian(-1.0, 0.0), "b": gaussian(1.0, 0.0, 0.4)}
    outcome = run(models, at_least=0.25)
    reward = RewardConfig(name="x", kind="linear", parameters={"direction": (0.0, 1.0)})
    exact = ExactComposition(models, "reverse", rewards=[reward])
    assert outcome.feasible
    assert outcome.rewards["x"].mean == pytest.approx(0.25, abs=0.03)
    assert outcome.violations["x"] == pytest.approx(0.25 - outcome.rewards["x"].mean)
    assert outcome.multipliers["x"] == pytest.approx(exact.optimum({"x": 0.25}).multipliers["x"], rel=0.1)
    assert_optimal(outcome, exact, x=0.25)


def test_a_threshold_in_the_tail_is_rough_and_says_so() -> None:
    far = {"a": gaussian(-1.0, 0.0, 0.02), "b": gaussian(1.0, 0.0, 0.02)}
    outcome = run(far, at_least=0.8, training={"steps": 20})
    assert outcome.effective_samples is not None
    assert outcome.effective_samples < 200
    assert "effective samples" in outcome.notes[0]


def test_models_that_hardly_overlap_are_explained() -> None:
    outcome = run_trial(
        job({"left": gaussian(-30.0, 0.0, 0.01), "right": gaussian(30.0, 0.0, 0.01)}), LocalTrialIO()
    )
    assert outcome.status == "infeasible"
    assert "hardly overlap" in str(outcome.error)
    assert "direction: forward" in str(outcome.error)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_says_what_it_cost(sampler: str) -> None:
    few = {"training": {"steps": 2, "batch_per_worker": 128}, "evaluation": {"images": 256}}
    outcome = run(ALIKE, sampler=sampler, **few)
    assert outcome.sampler == sampler
    assert outcome.network_evaluations is not None
    assert outcome.network_evaluations >= 2 * 65
    assert outcome.effective_samples is not None
    assert 0 < outcome.effective_samples <= 256.001
    assert (outcome.acceptance is not None) == (sampler in {"mala", "hmc"})
    assert outcome.kl_estimator == "energy"


def test_a_resumed_trial_continues_bit_for_bit() -> None:
    parts = {"training": {"steps": 8, "batch_per_worker": 512, "checkpoint_every": 3}}
    parts |= {"evaluation": {"images": 512}, "convergence": {"window": 4, "tolerance": 1e-6}}
    whole = run(ALIKE, **parts)
    first = LocalTrialIO()
    cut = job(ALIKE, **(parts | {"training": parts["training"] | {"steps": 5}}))
    run_trial(cut, first)
    assert json.loads(first.checkpoint["state.json"])["step"] == 3  # type: ignore[index]
    again = run_trial(job(ALIKE, **parts), LocalTrialIO(checkpoint=first.checkpoint))
    assert again.multipliers == whole.multipliers
    assert {n: i.mean for n, i in again.constituents.items()} == {
        n: i.mean for n, i in whole.constituents.items()
    }
    assert [r.multipliers for r in again.history] == [r.multipliers for r in whole.history]


def test_history_and_gap(alike: tuple[TrialOutcome, LocalTrialIO]) -> None:
    outcome, io = alike
    assert len(io.records) == outcome.steps == len(outcome.history)
    assert outcome.history[-1].kkt_residual <= 0.01
    for record in outcome.history:
        assert sum(record.multipliers.values()) == pytest.approx(1.0)
        assert record.kl == max(record.constituents.values())
        assert record.lagrangian <= record.kl + 1e-6  # the dual is a lower bound


def test_a_composition_is_put_beside_no_others() -> None:
    with pytest.raises(ValueError, match=r"resources.pack and resources.shard are of trials that train one"):
        run_trial(job(ALIKE), LocalTrialIO(), Host())
