"""The least KL by samples, of a problem whose frontier is known."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.models.sampled_mixtures import SampledProblem

from orchestrator.frontier.paths import PathSamples
from orchestrator.frontier.sampled.predicted import (
    MOST_TRIALS,
    WITHOUT_RATIO,
    PredictedProblem,
    may_join,
    predicted_problem,
)
from orchestrator.frontier.summary import summarise
from orchestrator.frontier.trials import Trials

Simulate = Callable[..., Any]

MODERATE = {"right": 0.9, "near": -1.2}
FAR = {"right": 2.5, "near": -1.4}


def samples(drawn: PathSamples, first: int = 0) -> pa.Table:
    rewards = np.asarray(drawn.rewards)
    columns = {f"reward_{name}": values for name, values in zip(("right", "near"), rewards.T, strict=True)}
    if drawn.log_ratio is not None:
        columns["log_ratio"] = np.asarray(drawn.log_ratio)
    seeds = np.arange(first, first + len(rewards))
    return pa.table({"prompt": pa.nulls(len(rewards), pa.string()), "seed": seeds, **columns})


def predicted(
    sweep: Any, tilts: Mapping[str, Mapping[str, float]] | None = None, count: int = 600
) -> PredictedProblem:
    """Predict from 600 pretrained samples and as many of every trial, drawn from ``tilts``, nats per reward unit."""
    rng = np.random.default_rng(0)
    config = sweep.config("constrained", MODERATE, {}, 0)
    drawn = SampledProblem.of(config.model.exact, config.rewards)
    evaluations = {
        trial: samples(drawn.path(count, rng, np.array([tilt["right"], tilt["near"]]) * drawn.std))
        for trial, tilt in (tilts or {}).items()
    }
    return predicted_problem(
        config,
        sweep.baseline,
        samples(PathSamples(rewards=drawn.draw(count, rng)), 10_000),
        evaluations,
    )


def tilts_of(sweep: Any) -> dict[str, dict[str, float]]:
    return {
        row["trial_id"]: {name: row[f"multiplier_{name}"] for name in ("right", "near")}
        for row in sweep.trials.to_pylist()
    }


def test_pretrained_samples_tell_the_least_kl_and_its_prices_nearby(simulate: Simulate) -> None:
    sweep = simulate()
    found, exact = predicted(sweep, count=4000).least_kl(MODERATE), sweep.exact.least_kl(MODERATE)
    assert found.reachable
    assert found.kl == pytest.approx(exact.kl, rel=0.15)
    for name, price in exact.multipliers.items():
        assert found.multipliers[name] == pytest.approx(price, rel=0.3, abs=0.1)
    assert found.rewards["right"] == pytest.approx(MODERATE["right"], abs=0.05)


def test_what_few_samples_reach_is_not_told(simulate: Simulate) -> None:
    found = predicted(simulate()).least_kl(FAR)
    assert not found.reachable
    assert found.kl == np.inf


def test_samples_of_trials_carry_the_prediction_further(simulate: Simulate) -> None:
    sweep = simulate(excess=1.0, noise=0.0)
    for share in (0.4, 0.55, 0.7, 0.85, 1.0):
        means = {name: known.mean for name, known in sweep.baseline.rewards.items()}
        sweep.constrained({name: means[name] + share * (FAR[name] - means[name]) for name in FAR})
    alone = predicted(sweep)
    # ``constrained`` jitters the KL of a trial alone: its multipliers are those of the exact optimum.
    joined = predicted(sweep, tilts_of(sweep))
    assert set(joined.joined) == set(sweep.trials["trial_id"].to_pylist())
    assert not alone.least_kl(FAR).reachable
    assert joined.least_kl(FAR).kl == pytest.approx(sweep.exact.least_kl(FAR).kl, rel=0.1)


def test_samples_that_were_stored_without_density_ratios_stay_out(simulate: Simulate) -> None:
    sweep = simulate(excess=1.0, noise=0.0)
    config = sweep.config("constrained", MODERATE, {}, 0)
    drawn = SampledProblem.of(config.model.exact, config.rewards)
    rng = np.random.default_rng(0)
    own, older = (samples(PathSamples(rewards=drawn.draw(300, rng))) for _ in range(2))
    found = predicted_problem(
        config,
        sweep.baseline,
        own,
        {"a": older, "b": older.append_column("log_ratio", pa.nulls(300, pa.float64()))},
    )
    assert found.joined == ()
    assert found.left_out == {"a": WITHOUT_RATIO, "b": WITHOUT_RATIO}
    assert not found.renewed


def test_what_samples_prove_is_below_what_they_predict(simulate: Simulate) -> None:
    sweep = simulate(excess=1.0, noise=0.0)
    sweep.constrained(MODERATE)
    found = predicted(sweep, tilts_of(sweep), count=2000)
    proven = found.gaps.certifier.certificate(np.array([MODERATE[name] for name in found.names]))
    exact = sweep.exact.least_kl(MODERATE).kl
    assert proven.carried
    assert 0.8 * exact < proven.lower <= exact
    assert proven.lower < found.least_kl(MODERATE).kl


def test_a_sweep_is_held_against_the_prediction_and_says_so(simulate: Simulate) -> None:
    sweep = simulate(excess=1.5, noise=0.001)
    sweep.constrained(MODERATE)
    table = sweep.trials.drop_columns(["kl_least"])
    table = table.append_column("kl_least", pa.nulls(table.num_rows, pa.float64()))
    config = sweep.config("constrained", MODERATE, {}, 0)
    trials = Trials.of(table, config)
    found = summarise(trials, sweep="s", baseline=sweep.baseline, exact=predicted(sweep, count=4000))
    assert found.bound is not None
    assert found.bound.kind == "estimated"
    exact = sweep.exact.least_kl(MODERATE).kl
    assert found.bound.gap == pytest.approx(0.5 * exact, rel=0.4)
    [point] = found.methods[0].front
    assert point.kl_ratio == pytest.approx(1.5, rel=0.2)


def test_of_many_trials_an_even_sample_may_join(simulate: Simulate) -> None:
    sweep = simulate().grid(seeds=range(6))
    kept = may_join(Trials.of(sweep.trials, sweep.config("constrained", MODERATE, {}, 0)))
    assert len(kept) == MOST_TRIALS
    assert [pc.min(sweep.trials["kl"]).as_py(), pc.max(sweep.trials["kl"]).as_py()] == [
        kept.kl.mean.min(),
        kept.kl.mean.max(),
    ]


def test_what_is_certified_at_the_thresholds_of_trials(simulate: Simulate) -> None:
    sweep = simulate(excess=1.0, noise=0.0)
    sweep.constrained(MODERATE)
    sweep.constrained({"right": 1.2, "near": -1.1})
    problem = predicted(sweep, tilts_of(sweep), count=2000)
    near = {"right": 0.8, "near": -1.25}
    configs = [sweep.config("constrained", near, {}, seed) for seed in (0, 1)]
    [found] = problem.certified(configs, sweep.baseline)
    assert found["thresholds"] == near
    assert found["kind"] == "95%"
    exact = sweep.exact.least_kl(near).kl
    assert found["lower"] <= exact <= found["upper"]
    assert found["gap"] == pytest.approx(found["upper"] - found["lower"])
    assert found["few_trials"] + found["training"] + found["rest"] == pytest.approx(found["gap"])
    # The trials are exact optima.
    assert abs(found["training"]) < 0.03
    assert {member["trial_id"] for member in found["mixture"]} <= {"pretrained", *problem.joined}
    assert sum(member["probability"] for member in found["mixture"]) == pytest.approx(1.0)
    [beyond] = problem.certified(
        [sweep.config("constrained", {"right": 9.0, "near": -0.1}, {}, 0)], sweep.baseline
    )
    assert beyond["upper"] == np.inf
    assert beyond["largest"] is None


def test_without_trials_nothing_is_certified(simulate: Simulate) -> None:
    sweep = simulate()
    assert predicted(sweep).certified([sweep.config("constrained", MODERATE, {}, 0)], sweep.baseline) is None
