"""How far a trial is from its optimum; of one trained further: whether that is better, and what its row says."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from orchestrator.execution.nearest import paths_of
from orchestrator.report.certified import fixed_prices
from orchestrator.results.schema import Names, asked_gpu_seconds, trials_schema
from trainers.config import TrialConfig, TrialJob
from trainers.types import Answer, TrialOutcome

Row = Mapping[str, Any]


def better(config: TrialConfig, outcome: TrialOutcome, before: Row, answers: Sequence[Row] = ()) -> bool:
    """Whether what a trial has come to takes the place of what it had.

    A feasible trial never gives way to one that is not, or that failed. Between two that are alike the Lagrangian
    ``KL − λ'r`` at the mean of their prices decides, nats. A trial for a box of thresholds is judged by all answers of
    its design: by how many are feasible, and by the sum of their Lagrangians. What is the same takes the place.

    Args:
        config: Of the trial.
        outcome: What it has come to.
        before: The row that there is.
        answers: The rows of its answers, those of its design first; none where thresholds stand still.
    """
    if outcome.status != "succeeded" or outcome.kl is None:
        return False
    if before["status"] != "succeeded" or before["kl"] is None:
        return True
    found: list[TrialOutcome | Answer] = [outcome]
    had = [before]
    if (
        0 < len(outcome.answers) <= len(answers)
    ):  # after those of the design come those that a search asked for
        found, had = list(outcome.answers), list(answers[: len(outcome.answers)])
    met, met_before = (
        sum(map(bool, of)) for of in ((a.feasible for a in found), (r["feasible"] for r in had))
    )
    if met != met_before:
        return met > met_before
    return sum(_gain(config, *pair) for pair in zip(found, had, strict=True)) >= 0


def _gain(config: TrialConfig, found: TrialOutcome | Answer, before: Row) -> float:
    """Return by how much the Lagrangian is less than it was at the mean of both prices, nats."""
    assert found.kl is not None, "what succeeded was evaluated"
    gain = float(before["kl"] - found.kl.mean)
    for name, target in config.targets.items():
        price = _mean(found.multipliers.get(name), before.get(f"multiplier_{name}"))
        gain += price * (found.rewards[target].mean - before[f"reward_{target}"])
    return gain


def kept(job: TrialJob, outcome: TrialOutcome, before: Row, *, gpu_seconds: float = 0.0) -> pa.Table:
    """Return the row of a trial that keeps what it had, and says that more training came to nothing better.

    Args:
        job: Of the round.
        outcome: What it came to; its seconds are those of all rounds.
        before: The row that there is.
        gpu_seconds: The same, multiplied by the GPUs held; without those of questions.
    """
    tried = outcome.error or f"step {outcome.steps} came to nothing better"
    note = f"trained further in round {job.rounds}, which is not kept: {tried}"
    row = {
        **before,
        "rounds": job.rounds,
        "distance_before": before["distance"],
        "wall_seconds": max(before["wall_seconds"], outcome.wall_seconds),
        "gpu_seconds": max(before["gpu_seconds"], gpu_seconds + asked_gpu_seconds(before)),
        "notes": "; ".join(filter(None, (before["notes"], note))),
    }
    return pa.Table.from_pylist([row], schema=trials_schema(Names.of(job.config)))


def continued(table: pa.Table, before: Row) -> pa.Table:
    """Return the row of a trial that came to something better: it began when it first began, and says what it had."""
    [row] = table.to_pylist()
    note = f"trained further from step {before['steps']}, where its KL was {before['kl']:.3f} nats"
    row["notes"] = "; ".join(filter(None, (row["notes"], note)))
    row["started_at"] = before["started_at"]
    row["asked_gpu_seconds"] = before.get("asked_gpu_seconds")
    row["gpu_seconds"] += asked_gpu_seconds(before)
    row["distance_before"] = before["distance"]
    return pa.Table.from_pylist([row], schema=table.schema)


def charged(config: TrialConfig, before: Row, gpu_seconds: float) -> pa.Table:
    """Return the row of a trial that a question was asked, which held GPUs for so many seconds."""
    row = {
        **before,
        "gpu_seconds": before["gpu_seconds"] + gpu_seconds,
        "asked_gpu_seconds": asked_gpu_seconds(before) + gpu_seconds,
    }
    return pa.Table.from_pylist([row], schema=trials_schema(Names.of(config)))


def distance_of(job: TrialJob, outcome: TrialOutcome) -> float | None:
    """Return how far it is from the optimum of its own multipliers or weights, nats; None where that is not known."""
    row = {f"multiplier_{name}": price for name, price in outcome.multipliers.items()}
    row |= {f"weight_{name}": weight for name, weight in outcome.weights.items()}
    prices = fixed_prices(row, job.config) if job.config.objective.kind == "kl" else None
    if prices is None or outcome.evaluation is None:
        return None
    paths = paths_of(job.config, outcome.evaluation, prices)
    found = math.nan if paths is None else paths.distance(list(prices.values()))
    return found if math.isfinite(found) else None


def _mean(*prices: float | None) -> float:
    known = [price for price in prices if price is not None]
    return sum(known) / len(known) if known else 0.0
