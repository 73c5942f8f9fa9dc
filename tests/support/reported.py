"""Directories of finished sweeps, written by the real store without training: optima of an exact problem, and noise."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from orchestrator.frontier.feasibility import ONE_SIDED, TWO_SIDED, tolerance
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.plan import base_config, make_job, make_plan
from orchestrator.results import layout
from orchestrator.results.schema import evaluations_table, history_table, trial_table
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.config import BaselineStatistics, TrialJob
from trainers.types import Evaluation, Interval, StepRecord, TrialOutcome

SPEC = """\
name: demo
model:
  mixture:
    weights: [0.5, 0.5]
    means: [[-1.0, 0.0], [1.5, 0.5]]
    covariances: [[[0.3, 0.0], [0.0, 0.3]], [[0.4, 0.1], [0.1, 0.2]]]
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {grid: [0.2, 0.5, 0.8]}, unit: sigma}
  - {reward: {quadratic: {center: [1.0, 1.0], scale: 0.5}}, name: near, at_least: {grid: [0.2, 0.5]}, unit: sigma}
methods:
  - constrained
  - weighted: {weights: equal, scale: {grid: [0.3, 0.6, 1.2]}}
seeds: [0, 1]
"""

MANY = (
    SPEC.replace("[0.2, 0.5, 0.8]", str([round(0.02 + 0.04 * step, 3) for step in range(20)]))
    .replace("[0.2, 0.5]", str([round(0.02 + 0.04 * step, 3) for step in range(20)]))
    .replace("[0.3, 0.6, 1.2]", str([round(0.02 + 0.02 * step, 3) for step in range(100)]))
)
"""1,000 trials: 400 combinations of thresholds and 100 weightings, two seeds each."""

PROMPTS = ("a red circle", "a blue square <b>&", "a green triangle", "a yellow star")
JUDGED = Interval(mean=0.25, low=0.2, high=0.3)
"""Of every reward that is only measured."""
_EXCESS = 1.05
_NOISE = 0.004
"""Standard error of a reward, σ."""


def write_sweep(
    storage: Path,
    text: str = SPEC,
    *,
    finished: int | None = None,
    failed: int = 0,
    pictures: bytes | None = None,
    prompts: bool = False,
    steps: int = 20,
    name: str = "demo",
    packed: bool = False,
) -> SweepStore:
    """Write a sweep.

    Args:
        storage: Folder that holds it.
        text: Spec.
        finished: Number of trials that have ended; all by default.
        failed: How many of them failed, the last ones.
        pictures: PNG that every trial has, two rows of images; its upper half is that of the pretrained model.
        prompts: Whether evaluation samples have prompts, and rewards of the pretrained model beside them.
        steps: Logged steps of each trial.
        name: Of the sweep.
        packed: All rows in one file, as no sweep has them, but many trials are written in a moment.
    """
    spec = parse_spec(text).model_copy(update={"name": name, "storage": str(storage)})
    plan, config = make_plan(spec), base_config(spec)
    exact = ExactProblem(config.model.exact, config.rewards)
    baseline = exact.baseline()
    store = SweepStore(str(storage), name)
    store.create(dump_spec(spec), plan.to_json(baseline=baseline), baseline.model_dump(mode="json"))
    rng = np.random.default_rng(0)
    if pictures is not None:
        store.write_file(layout.PRETRAINED_IMAGE, _upper_half(pictures))
    began = datetime(2025, 1, 1, tzinfo=UTC)
    ended = plan.trials[:finished]
    tables: dict[str, list[pa.Table]] = {layout.TRIALS: [], layout.HISTORY: []}
    for place, trial in enumerate(ended):
        job = make_job(trial, baseline)
        outcome = _failed() if place >= len(ended) - failed else _outcome(job, exact, baseline, rng, steps)
        at = began + timedelta(minutes=place)
        row = trial_table(
            job,
            outcome,
            started_at=at,
            finished_at=at + timedelta(minutes=1),
            distance=0.01 * (1 + place % 3),
        )
        if packed:
            tables[layout.TRIALS].append(row)
            tables[layout.HISTORY].append(history_table(job, outcome.history))
            continue
        if outcome.status == "succeeded":
            store.write_history(trial.trial_id, history_table(job, outcome.history))
            if prompts:
                store.write_evaluations(
                    trial.trial_id, evaluations_table(job, _evaluation(job, outcome, rng))
                )
            if pictures is not None:
                store.write_file(layout.image(trial.trial_id), pictures)
        store.write_trial(row)
    for folder, parts in tables.items():
        if parts:
            (storage / name / folder).mkdir(parents=True)
            pq.write_table(pa.concat_tables(parts), storage / name / folder / "all.parquet")
    return store


def noise_pictures(count: int = 8, size: int = 128, seed: int = 0) -> bytes:
    """Two rows of images that compress as badly as any."""
    pixels = np.random.default_rng(seed).integers(0, 256, (2 * size, count * size, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="PNG")
    return sink.getvalue()


def _upper_half(pictures: bytes) -> bytes:
    with Image.open(io.BytesIO(pictures)) as picture:
        half = picture.crop((0, 0, picture.width, picture.height // 2))
    sink = io.BytesIO()
    half.save(sink, format="PNG")
    return sink.getvalue()


def _outcome(
    job: TrialJob, exact: ExactProblem, baseline: BaselineStatistics, rng: np.random.Generator, steps: int
) -> TrialOutcome:
    stds = {name: known.std for name, known in baseline.rewards.items()}
    if job.config.method == "constrained":
        targets = {c.target: job.thresholds[c.name] for c in job.config.constraints}
        optimum = exact.least_kl(targets)
        kl, rewards, prices = optimum.kl, optimum.rewards, optimum.multipliers
        weights = {}
    else:
        weights = {name: value / stds[name] for name, value in job.config.weights.items()}
        rewards, prices = exact.tilted_means(weights), {}
        kl = sum(weights[name] * rewards[name] for name in weights) - exact.log_partition(weights)
    kl *= _EXCESS * (1.0 + 0.01 * float(rng.normal()))
    rewards = {name: value + _NOISE * stds[name] * float(rng.normal()) for name, value in rewards.items()}
    error = 0.01 * kl + 1e-4
    violations = {c.name: job.thresholds[c.name] - rewards[c.target] for c in job.config.constraints}
    feasible = all(
        violations[c.name] + ONE_SIDED * _NOISE * stds[c.target]
        <= tolerance(c, job.config.evaluation, baseline)
        for c in job.config.constraints
    )
    multipliers = {c.name: prices[c.target] for c in job.config.constraints} if prices else {}
    history = tuple(
        StepRecord(
            step=10 * (step + 1),
            kl=kl * (1.0 - np.exp(-0.3 * (step + 1))),
            lagrangian=kl,
            kkt_residual=float(np.exp(-0.2 * step)),
            learning_rate=1e-3,
            seconds=float(step),
            images_per_second=50.0,
            rewards=rewards,
            violations={
                name: value + np.exp(-0.3 * step) * (1 - 0.5 * np.cos(step))
                for name, value in violations.items()
            },
            multipliers={name: value * (1.0 - np.exp(-0.3 * step)) for name, value in multipliers.items()},
        )
        for step in range(steps)
    )
    return TrialOutcome(
        status="succeeded",
        error=None,
        feasible=feasible,
        kl=Interval(mean=kl, low=kl - TWO_SIDED * error, high=kl + TWO_SIDED * error),
        kl_estimator="path",
        rewards={
            name: Interval(
                mean=mean,
                low=mean - TWO_SIDED * _NOISE * stds[name],
                high=mean + TWO_SIDED * _NOISE * stds[name],
            )
            for name, mean in rewards.items()
        }
        | {judge.name: JUDGED for judge in job.config.measured},
        violations=violations,
        multipliers=multipliers,
        weights=weights,
        steps=10 * steps,
        wall_seconds=30.0,
        evaluation=None,
        history=history,
    )


def _evaluation(job: TrialJob, outcome: TrialOutcome, rng: np.random.Generator) -> Evaluation:
    names = list(outcome.rewards)
    count = 8 * len(PROMPTS)
    before = {name: rng.normal(size=count) for name in names}
    lifts = np.tile(np.linspace(-0.1, 0.5, len(PROMPTS)), 8)
    return Evaluation(
        kl=np.full(count, outcome.kl.mean if outcome.kl else 0.0),
        rewards={name: before[name] + lifts + 0.05 * rng.normal(size=count) for name in names},
        seeds=np.arange(count),
        prompts=PROMPTS * 8,
        reference=before,
    )


def _failed() -> TrialOutcome:
    return TrialOutcome(
        status="failed",
        error="the loss became NaN at step 40 </script><b>not markup</b>",
        feasible=None,
        kl=None,
        kl_estimator="path",
        rewards={},
        violations={},
        multipliers={},
        weights={},
        steps=40,
        wall_seconds=3.0,
        evaluation=None,
        history=(),
    )
