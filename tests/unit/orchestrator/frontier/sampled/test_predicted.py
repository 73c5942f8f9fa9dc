"""The least KL by samples, of a problem whose frontier is known."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray
from support.models.sampled_mixtures import SampledProblem

from orchestrator.frontier.sampled.predicted import MOST_TRIALS, PredictedProblem, may_join, predicted_problem
from orchestrator.frontier.sampled.reweighting import CONTRADICTED
from orchestrator.frontier.summary import summarise
from orchestrator.frontier.trials import Trials

Simulate = Callable[..., Any]

MODERATE = {"right": 0.9, "near": -1.2}
FAR = {"right": 2.5, "near": -1.4}


def samples(drawn: NDArray[np.float64]) -> pa.Table:
    columns = {f"reward_{name}": values for name, values in zip(("right", "near"), drawn.T, strict=True)}
    return pa.table({"prompt": pa.nulls(len(drawn), pa.string()), **columns})


def predicted(
    sweep: Any, tilts: Mapping[str, Mapping[str, float]] | None = None, count: int = 600
) -> PredictedProblem:
    """Predict from 600 pretrained samples and as many of every trial, drawn from ``tilts``, nats per reward unit."""
    rng = np.random.default_rng(0)
    config = sweep.config("constrained", MODERATE, {}, 0)
    drawn = SampledProblem.of(config.model.exact, config.rewards)
    evaluations = {
        trial: samples(drawn.draw(count, rng, np.array([tilt["right"], tilt["near"]]) * drawn.std))
        for trial, tilt in (tilts or {}).items()
    }
    return predicted_problem(
        config,
        sweep.baseline,
        samples(drawn.draw(count, rng)),
        Trials.of(sweep.trials, config) if sweep.rows else None,
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


def test_a_trial_that_is_not_the_tilt_of_its_multipliers_stays_out(simulate: Simulate) -> None:
    sweep = simulate(excess=1.0, noise=0.0)
    sweep.constrained(MODERATE)
    [trial_id] = sweep.trials["trial_id"].to_pylist()
    tilts = {trial_id: {"right": 0.0, "near": 0.0}}  # its samples are those of the pretrained model
    problem = predicted(sweep, tilts)
    assert problem.joined == ()
    assert problem.left_out == {trial_id: CONTRADICTED}


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
