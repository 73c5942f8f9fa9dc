"""How long does the analysis of a large sweep take, and in how much memory?

    python benchmarks/frontier_analysis.py [--trials 100000] [--constraints 3] [--seeds 5]

Makes the trials of a sweep whose frontier is known (a Gaussian with linear rewards that stand in each other's way)
without training them: a grid of thresholds and a grid of weights, every one with all seeds and with noise. They are
written as Parquet files of the real schema, one for each trial as a sweep leaves them, and in one file as their driver
keeps them (opening a file costs more than reading it). A fresh process then loads, summarises and analyses them,
and prints seconds and its peak memory, imports among it.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from environment import peak
from numpy.typing import NDArray

from orchestrator.frontier.analysis import analyse
from orchestrator.frontier.bounds.bounds import Bounds, Box, FrontierPoint
from orchestrator.frontier.bounds.excess import UpperBound
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.frontier.summary import summarise
from orchestrator.frontier.trials import Trials
from orchestrator.results.schema import Names, trials_schema
from orchestrator.results.store import SweepStore
from trainers.config import (
    ConstraintConfig,
    ConvergenceConfig,
    DualConfig,
    EvaluationConfig,
    MixtureConfig,
    ModelConfig,
    ObjectiveConfig,
    RewardConfig,
    SamplingConfig,
    TrainingConfig,
    TrialConfig,
)

FloatArray = NDArray[np.float64]

CONFLICT = -0.2
"""Correlation of any two rewards: below 0 each is had at the cost of the others."""
LOOSEST, TIGHTEST = 0.2, 1.0
"""Thresholds, σ."""
OVERPAID = 1.05
"""KL and multipliers of a trial, relative to the exact ones."""
NOISE = 0.01
"""Standard error of a reward, σ, and of KL and multipliers, relative."""


def correlations(count: int) -> FloatArray:
    """Correlation matrix ``[m, m]`` of the rewards."""
    return np.full((count, count), CONFLICT) + (1.0 - CONFLICT) * np.eye(count)


def sweep_config(count: int) -> TrialConfig:
    """Return the config of any trial: ``x ~ N(0, 1)`` and unit directions whose products are the correlations."""
    identity = tuple(tuple(float(i == j) for j in range(count)) for i in range(count))
    directions = np.linalg.cholesky(correlations(count))
    names = [f"reward{index}" for index in range(count)]
    return TrialConfig(
        model=ModelConfig(
            mixture=MixtureConfig(weights=(1.0,), means=((0.0,) * count,), covariances=(identity,))
        ),
        sampling=SamplingConfig(),
        rewards=tuple(
            RewardConfig(name=name, kind="linear", parameters={"direction": tuple(direction.tolist())})
            for name, direction in zip(names, directions, strict=True)
        ),
        objective=ObjectiveConfig(),
        constraints=tuple(
            ConstraintConfig(name=name, kind="reward", target=name, bound=TIGHTEST, unit="sigma")
            for name in names
        ),
        method="constrained",
        weights={},
        seed=0,
        training=TrainingConfig(),
        duals=DualConfig(),
        convergence=ConvergenceConfig(),
        evaluation=EvaluationConfig(),
    )


def make_trials(total: int, count: int, seeds: int, generator: np.random.Generator) -> pa.Table:
    """Return the rows of about ``total`` trials, half of them constrained and half weighted."""
    levels = max(2, round((total / 2 / seeds) ** (1 / count)))
    matrix = correlations(count)
    thresholds = np.array(list(itertools.product(np.linspace(LOOSEST, TIGHTEST, levels), repeat=count)))
    weights = np.array(list(itertools.product(np.geomspace(0.1, 2.0, levels), repeat=count)))
    # Of these correlations the inverse has no negative entry, so every threshold binds and λ = R⁻¹b.
    prices = thresholds @ np.linalg.inv(matrix)
    parts = [
        _rows(method, np.repeat(settings, seeds, axis=0), np.repeat(tilts, seeds, axis=0), seeds, generator)
        for method, settings, tilts in (
            ("constrained", thresholds, prices),
            ("weighted", weights, weights),
        )
    ]
    table = pa.concat_tables(parts)
    return table.take(pa.array(generator.permutation(table.num_rows)))  # trials finish in any order


def _rows(
    method: str, settings: FloatArray, tilts: FloatArray, seeds: int, generator: np.random.Generator
) -> pa.Table:
    number, count = settings.shape
    matrix = correlations(count)
    names = [f"reward{index}" for index in range(count)]
    schema = trials_schema(Names(rewards=tuple(names), constraints=tuple(names)))
    now = datetime(2025, 1, 1, tzinfo=UTC)
    kl = OVERPAID * 0.5 * np.einsum("ni,ij,nj->n", tilts, matrix, tilts)
    kl = kl * (1.0 + NOISE * generator.normal(size=number))
    means = tilts @ matrix + NOISE * generator.normal(size=(number, count))
    order = generator.permutation(number)
    columns: dict[str, Any] = {
        "trial_id": [f"{method[0]}{index:011d}" for index in range(number)],
        "method": [method] * number,
        "seed": np.tile(np.arange(seeds), number // seeds),
        "status": ["succeeded"] * number,
        "kl": kl,
        "kl_low": kl * (1.0 - 1.96 * NOISE),
        "kl_high": kl * (1.0 + 1.96 * NOISE),
        "kl_estimator": ["path"] * number,
        "kl_least": 0.5 * np.einsum("ni,ij,nj->n", means, np.linalg.inv(matrix), means),
        "steps": np.full(number, 400),
        "wall_seconds": np.full(number, 30.0),
        "gpu_seconds": np.full(number, 30.0),
        "started_at": pa.array([now] * number, pa.timestamp("us", tz="UTC")),
        "finished_at": pa.array(1_735_689_600_000_000 + 1_000_000 * order, pa.int64()).cast(
            pa.timestamp("us", tz="UTC")
        ),
    }
    feasible = np.ones(number, dtype=np.bool_)
    for index, name in enumerate(names):
        reward = means[:, index]
        bounds = settings[:, index] if method == "constrained" else np.full(number, LOOSEST)
        feasible &= bounds - reward + 1.645 * NOISE <= 0.05
        columns |= {
            f"reward_{name}": reward,
            f"reward_{name}_low": reward - 1.96 * NOISE,
            f"reward_{name}_high": reward + 1.96 * NOISE,
            f"threshold_{name}": bounds,
            f"violation_{name}": bounds - reward,
        }
        if method == "constrained":
            columns[f"multiplier_{name}"] = (
                OVERPAID * tilts[:, index] * (1.0 + NOISE * generator.normal(size=number))
            )
        else:
            columns[f"weight_{name}"] = settings[:, index]
    columns["feasible"] = feasible
    nothing = pa.nulls(number)
    return pa.table([columns.get(field.name, nothing.cast(field.type)) for field in schema], schema=schema)


def write(folder: Path, trials: pa.Table) -> float:
    """Write the trials where a store looks for them, and their journal; returns the seconds of that."""
    store = SweepStore(str(folder), "large")
    place = folder / "large" / "trials"
    place.mkdir(parents=True)
    for row, name in enumerate(trials["trial_id"].to_pylist()):
        pq.write_table(trials.slice(row, 1), place / f"{name}.parquet")
    began = time.perf_counter()
    store.trials()
    store.write_journal({})  # with the rows, as a driver does
    return time.perf_counter() - began


def measure(folder: Path, count: int) -> dict[str, float]:
    """Load, summarise and analyse: seconds of wall clock and of the CPU, and the peak memory of this process, MB."""
    config = sweep_config(count)
    exact = ExactProblem(config.model.exact, config.rewards)
    baseline = exact.baseline()
    box = Box(low=np.full(count, LOOSEST), high=np.full(count, TIGHTEST))

    def mixing(kl: FloatArray, rewards: FloatArray) -> UpperBound:
        points = [FrontierPoint(rewards=row, kl=cost) for row, cost in zip(rewards, kl.tolist(), strict=True)]
        return Bounds(points, box).upper

    times = [(time.perf_counter(), time.process_time())]
    trials = SweepStore(str(folder), "large").trials()
    times.append((time.perf_counter(), time.process_time()))
    read = Trials.of(trials, config)
    summary = summarise(read, sweep="large", baseline=baseline, exact=exact)
    times.append((time.perf_counter(), time.process_time()))
    analysis = analyse(read, baseline=baseline, exact=exact, mixing=mixing)
    times.append((time.perf_counter(), time.process_time()))
    print(summary.sentence())
    for method in analysis.methods:
        volume, curve = method.hypervolume, method.curve
        assert curve is not None
        print(
            f"{method.method}: hypervolume {volume.mean:.4f} ({volume.low:.4f} to {volume.high:.4f}, "
            f"from {volume.kind}), worst excess {curve.last.excess:.3f} nats, "
            f"first below 0.1 after {curve.trials_to(0.1)} trials"
        )
    assert analysis.prices is not None
    assert analysis.importance is not None
    print(
        f"prices: {int(analysis.prices.flagged.sum())} of {len(analysis.prices.first)} pairs flagged; importance: "
        + ", ".join(f"{share:.3f}" for share in analysis.importance.share)
    )
    steps = dict(zip(("load", "summarise", "analyse"), itertools.pairwise(times), strict=True))
    found = {f"{name}_wall": end[0] - begin[0] for name, (begin, end) in steps.items()}
    found |= {f"{name}_cpu": end[1] - begin[1] for name, (begin, end) in steps.items()}
    return found | {"rows": trials.num_rows, "peak": peak() / 1e6}


def main() -> None:
    """Make the sweep, start the process that is measured, and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--constraints", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, arguments.constraints)))
        return
    with tempfile.TemporaryDirectory() as name:
        trials = make_trials(
            arguments.trials, arguments.constraints, arguments.seeds, np.random.default_rng(0)
        )
        packing = write(Path(name), trials)
        command = [sys.executable, __file__, "--measure", name, "--constraints", str(arguments.constraints)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    *told, last = output.strip().splitlines()
    print("\n".join(told))
    found = json.loads(last)
    print(f"{found['rows']:.0f} trials, {arguments.constraints} constraints, {arguments.seeds} seeds")
    print(f"   packing {packing:6.2f} s, once, at the end of the sweep")
    names = ("load", "summarise", "analyse")
    for name in names:
        print(f"{name:>10} {found[f'{name}_wall']:6.2f} s, of the CPU {found[f'{name}_cpu']:6.2f} s")
    wall, cpu = (sum(found[f"{name}_{kind}"] for name in names) for kind in ("wall", "cpu"))
    print(f"{'together':>10} {wall:6.2f} s, of the CPU {cpu:6.2f} s, peak memory {found['peak']:.0f} MB")


if __name__ == "__main__":
    main()
