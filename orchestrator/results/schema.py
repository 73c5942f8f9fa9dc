"""Arrow schemas of the results, and the records of the trainers as tables.

Every column carries its ``unit`` and a one-line ``meaning`` in its field metadata; every file carries the
schema version and the sign convention in its schema metadata. Among readers of Parquet only pyarrow shows these, so
a table of units says the same.

A reward NAME has ``reward_NAME, reward_NAME_low, reward_NAME_high, threshold_NAME, violation_NAME,
multiplier_NAME, weight_NAME``; a constraint that is not called like a reward, such as a KL budget, has
``threshold_NAME, violation_NAME, multiplier_NAME``. A model of a composition has ``kl_NAME, kl_NAME_low, kl_NAME_high,
multiplier_NAME, weight_NAME``; there ``kl`` is the largest of these KLs. Networks have ``retention_NAME`` and
``pointwise_kl_NAME`` too, and ``distilled_kl_NAME, distilled_reward_NAME`` where one adapter was trained. What does not
apply is null.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainers.config import INTERPOLATED, PromptsConfig, TrialConfig, TrialJob
from trainers.types import Answer, Evaluation, StepRecord, TrialOutcome

VERSION = "1"
VERSION_KEY = b"cdsweep.schema_version"
SIGN = (
    "violation = threshold - E[reward], or KL - budget; met iff violation <= 0; higher rewards are better; "
    "KL in nats; multipliers and weights in nats per reward unit"
)

_TEXT, _REAL, _COUNT, _FLAG = pa.string(), pa.float64(), pa.int64(), pa.bool_()
_TIME = pa.timestamp("us", tz="UTC")

# name, type, unit, meaning
_Column = tuple[str, Any, str, str]

_TRIALS: tuple[_Column, ...] = (
    ("trial_id", _TEXT, "", "hash of what defines the trial"),
    (
        "method",
        _TEXT,
        "",
        "constrained, weighted, frontier, or interpolated: measured between trials, not trained",
    ),
    (
        "seed",
        _COUNT,
        "",
        "seed of the trial; of an interpolated point that of the trial with the largest weight",
    ),
    ("status", _TEXT, "", "did it run: succeeded, failed, or infeasible: a threshold out of reach"),
    ("error", _TEXT, "", "why it failed or is infeasible, with the evidence"),
    ("feasible", _FLAG, "", "one-sided 95 % bound of every violation within tolerance"),
    ("kl", _REAL, "nats", "mean KL to the pretrained model; of a composition the largest kl_NAME"),
    ("kl_low", _REAL, "nats", "lower end of the two-sided 95 % interval of kl"),
    ("kl_high", _REAL, "nats", "upper end of the two-sided 95 % interval of kl"),
    ("kl_estimator", _TEXT, "", "how kl was estimated"),
    ("kl_least", _REAL, "nats", "exact or predicted least KL at the rewards reached"),
    ("steps", _COUNT, "optimiser steps", "optimiser steps done"),
    ("wall_seconds", _REAL, "s", "wall time over all attempts"),
    ("gpu_seconds", _REAL, "s", "wall time multiplied by the GPUs held; with what a search asked of it"),
    ("started_at", _TIME, "UTC", "start of the first attempt"),
    ("finished_at", _TIME, "UTC", "end of the last attempt"),
    ("adapter", _TEXT, "", "folder of the adapter, relative to the sweep"),
    ("base_trial", _TEXT, "", "trial whose adapter and multipliers this one started from"),
    (
        "diversity",
        _REAL,
        "",
        "variance of unit CLIP embeddings within a prompt, in [0, 1]; null where nothing embeds",
    ),
    (
        "velocity",
        _REAL,
        "",
        "root mean square of the velocity along paths, over steps and latents; null where they have none",
    ),
    ("notes", _TEXT, "", "what happened on the way, such as a batch halved for want of memory"),
    ("sampler", _TEXT, "", "sampler of a composition; null for others"),
    (
        "acceptance",
        _REAL,
        "",
        "mean probability that a proposal of the sampler is accepted; null without Metropolis",
    ),
    ("effective_samples", _REAL, "samples", "independent samples that would say as much as the evaluation"),
    ("network_evaluations", _REAL, "", "scores per sample, summed over the models of a composition"),
    (
        "distance",
        _REAL,
        "nats",
        "KL to the optimum of its own multipliers, from the density ratios of its samples",
    ),
    (
        "distance_before",
        _REAL,
        "nats",
        "the same before the last round; null where there was one round alone",
    ),
    (
        "interpolated",
        _TEXT,
        "",
        "JSON: weight of each trial's update by its id, the pretrained model's is what is left to 1; null for trials",
    ),
    ("rounds", _COUNT, "", "how often it was trained: once, and again where a search had it continued"),
    (
        "beside_round",
        _COUNT,
        "",
        "round whose adapter, evaluation, answers and images lie as TRIAL.round-N beside what they replace",
    ),
    (
        "asked_gpu_seconds",
        _REAL,
        "s",
        "of gpu_seconds what the questions of a search took, those of adapters that were replaced too",
    ),
    ("provenance", _TEXT, "", "JSON: versions, commit, host, device, precision and sampler it was made with"),
)

_HISTORY: tuple[_Column, ...] = (
    ("trial_id", _TEXT, "", "hash of what defines the trial"),
    ("step", _COUNT, "optimiser steps", "optimiser steps done, from 1"),
    ("kl", _REAL, "nats", "path-wise KL of the step's batch, over all workers"),
    (
        "lagrangian",
        _REAL,
        "nats",
        "objective plus multipliers times violations; sigma for a reward objective",
    ),
    ("kkt_residual", _REAL, "sigma or nats", "largest of violation, complementary slackness and drift"),
    ("learning_rate", _REAL, "", "of the primal optimiser"),
    ("seconds", _REAL, "s", "since the start of the trial, restarts included"),
    ("images_per_second", _REAL, "1/s", "samples trained on per second, over all workers"),
)

_EVALUATIONS: tuple[_Column, ...] = (
    ("trial_id", _TEXT, "", "hash of what defines the trial"),
    ("prompt", _TEXT, "", "prompt of the sample; null where the model has none"),
    ("seed", _COUNT, "", "number of the noise that the sample was drawn from"),
    ("kl", _REAL, "nats", "path-wise KL of the sample"),
    (
        "log_ratio",
        _REAL,
        "nats",
        "log density of the path, less that under what kl is to; null where it is known but for a constant",
    ),
)

_ANSWERS: tuple[_Column, ...] = (
    ("trial_id", _TEXT, "", "hash of what defines the trial"),
    (
        "kl",
        _REAL,
        "nats",
        "path-wise KL at these thresholds, on the noise of every evaluation; of a composition the largest kl_NAME",
    ),
    ("kl_low", _REAL, "nats", "low end of its 95 % interval"),
    ("kl_high", _REAL, "nats", "high end of its 95 % interval"),
    ("lower_bound", _REAL, "nats", "the least KL at these thresholds is at least this"),
    ("lower_bound_kind", _TEXT, "", "how sure: proven, or 95%"),
    ("feasible", pa.bool_(), "", "whether every violation's one-sided 95 % bound is within tolerance"),
    (
        "images",
        _COUNT,
        "",
        "samples that were drawn for it; fewer than evaluation.images where whole ones nearby tell the rest",
    ),
    (
        "distance",
        _REAL,
        "nats",
        "KL to the optimum of nearest_NAME, from the density ratios of its samples",
    ),
    (
        "wall_seconds",
        _REAL,
        "s",
        "wall time that a search's question took; null of those of the trial itself",
    ),
    ("gpu_seconds", _REAL, "s", "the same, multiplied by the GPUs held"),
)

_SAMPLES: tuple[_Column, ...] = (
    (
        "set",
        _TEXT,
        "",
        "train: what thresholds refer to; evaluate: held-out prompts and noise; deployed: these as_deployed",
    ),
    ("prompt", _TEXT, "", "prompt of the sample; null where the model has none"),
    ("seed", _COUNT, "", "number of the noise that the sample was drawn from"),
)

_FRONTIER: tuple[_Column, ...] = (
    ("method", _TEXT, "", "constrained or weighted"),
    ("trial_id", _TEXT, "", "a non-dominated trial of its method"),
    ("seed", _COUNT, "", "seed of the trial"),
    ("feasible", _FLAG, "", "one-sided 95 % bound of every violation within tolerance"),
    ("kl", _REAL, "nats", "mean KL to the pretrained model; of a composition the largest kl_NAME"),
    ("kl_low", _REAL, "nats", "lower end of the two-sided 95 % interval of kl"),
    ("kl_high", _REAL, "nats", "upper end of the two-sided 95 % interval of kl"),
    ("kl_least", _REAL, "nats", "exact or predicted least KL at the rewards reached"),
    ("excess_kl", _REAL, "nats", "kl minus kl_least"),
    ("kl_ratio", _REAL, "", "kl divided by kl_least"),
    (
        "hypervolume",
        _REAL,
        "nats times reward units",
        "dominated by the method's front, up to the reference point",
    ),
    ("reference_kl", _REAL, "nats", "KL of the reference point"),
)

_BOUNDS: tuple[_Column, ...] = (
    ("trials", _COUNT, "", "settings that have ended, failed ones included"),
    ("gap", _REAL, "nats", "largest distance of the bounds over the thresholds in question; null if unknown"),
    ("lower", _REAL, "nats", "lower bound of the least KL, where they are farthest apart"),
    ("upper", _REAL, "nats", "upper bound there, by mixing finished trials"),
    ("unreached", _REAL, "", "largest shortfall at thresholds out of reach, widths of the ranges"),
    ("kind", _TEXT, "", "proven where trials are exact optima; estimated where they were trained"),
)

_UNITS: tuple[_Column, ...] = (
    ("table", _TEXT, "", "file or folder of the sweep, without .parquet"),
    ("column", _TEXT, "", "name of the column"),
    ("unit", _TEXT, "", "its unit; empty where it has none"),
    ("meaning", _TEXT, "", "what it is, in one line, with its sign where that is a convention"),
)


@dataclass(frozen=True, kw_only=True)
class LowerBound:
    """A tangent below the least KL over thresholds: it holds at all of them, and is largest near its own."""

    kl: float
    """At its own thresholds, nats."""
    kind: str
    """How sure it is: ``proven``, or ``95%``."""
    slopes: Mapping[str, float]
    """By reward, nats per reward unit, at least 0; a reward that is absent has none."""


@dataclass(frozen=True, kw_only=True)
class NearestOptimum:
    """The optimum that a policy is nearest to."""

    distance: float
    """KL to it, nats."""
    multipliers: Mapping[str, float]
    """Of it, by constraint, nats per reward unit."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """What the per-NAME columns are called after."""

    rewards: tuple[str, ...] = ()
    """Rewards of the problem."""
    measured: tuple[str, ...] = ()
    """Rewards that are only measured."""
    deployed: bool = False
    """Whether all of these are measured under the sampler that will be used, too."""
    constraints: tuple[str, ...] = ()
    """Constraints, on rewards and on KLs."""
    models: tuple[str, ...] = ()
    """Models of a composition."""
    retained: tuple[str, ...] = ()
    """Those of which it is measured what the composition retains."""
    networks: bool = False
    """Whether the models are networks."""
    metadata: tuple[str, ...] = ()
    """Columns of metadata of the held-out prompts."""

    @classmethod
    def of(cls, config: TrialConfig) -> "Names":
        """Names of one trial."""
        models = config.model.constituents
        return cls(
            models=tuple(model.name for model in models),
            retained=tuple(m.name for m in models if m.rewards and m.prompt is None),
            networks=bool(models) and config.model.networks,
            metadata=() if config.prompts is None else tuple(config.prompts.evaluate_metadata),
            rewards=tuple(reward.name for reward in config.rewards),
            measured=tuple(reward.name for reward in config.measured),
            deployed=config.evaluation.as_deployed is not None,
            constraints=tuple(constraint.name for constraint in config.constraints),
        )

    def columns(self) -> list[_Column]:
        """The per-NAME columns of trials and history."""
        columns: list[_Column] = []
        for name in self.rewards:
            columns += [
                (
                    f"reward_{name}",
                    _REAL,
                    "reward units",
                    f"mean of {name}, higher is better; held-out prompts, pretrained model as control variate",
                ),
                (
                    f"reward_{name}_low",
                    _REAL,
                    "reward units",
                    f"lower end of the two-sided 95 % interval of {name}",
                ),
                (
                    f"reward_{name}_high",
                    _REAL,
                    "reward units",
                    f"upper end of the two-sided 95 % interval of {name}",
                ),
            ]
        # A reward that only judges may be called like the model it judges, whose multiplier and weight those then are.
        judging = set(self.models) - set(self.constraints)
        for name in dict.fromkeys(self.rewards + self.constraints):
            if name in judging:
                continue
            unit, price, shortfall = (
                ("reward units", "nats per reward unit", "violation: threshold minus mean")
                if name in self.rewards
                else ("nats", "objective units per nat", "violation: KL minus budget")
            )
            columns += [
                (f"threshold_{name}", _REAL, unit, f"threshold of {name}"),
                (f"violation_{name}", _REAL, unit, f"{shortfall} of {name}; met iff <= 0"),
                (
                    f"multiplier_{name}",
                    _REAL,
                    price,
                    f"price of the threshold of {name}, averaged; null where the reported state has none",
                ),
            ]
        for name in self.rewards:
            if name in judging:
                continue
            columns.append((f"weight_{name}", _REAL, "nats per reward unit", f"fixed weight of {name}"))
        for name in self.models:
            meaning = f"KL between the composition and {name}, in the direction of the problem"
            columns += _with_ends(f"kl_{name}", "nats", meaning)
            columns += [
                (f"multiplier_{name}", _REAL, "", f"weight of {name} on the simplex"),
                (f"weight_{name}", _REAL, "", f"fixed weight of {name} on the simplex"),
            ]
        return columns

    def of_measured(self) -> list[_Column]:
        """The per-NAME columns of trials of what is only measured."""
        columns: list[_Column] = []
        for name in self.measured:
            columns += _with_ends(
                f"reward_{name}", "reward units", f"mean of {name}, which nothing is trained on"
            )
        for name in (*self.rewards, *self.measured) if self.deployed else ():
            meaning = f"mean of {name} under evaluation.as_deployed, the sampler that will be used"
            columns += _with_ends(f"deployed_{name}", "reward units", meaning)
        return columns

    def of_retained(self) -> list[_Column]:
        """The per-NAME columns of what is kept of models that were sampled alone, of trials and of answers."""
        columns: list[_Column] = []
        for name in self.retained:
            meaning = f"share of the improvement of {name} over the pretrained model that is kept"
            columns += _with_ends(f"retention_{name}", "", meaning)
        return columns

    def of_networks(self) -> list[_Column]:
        """The per-NAME columns of trials that only compositions of networks have.

        Those of one adapter are there without it too: baselines have none, and all trials of a sweep the same columns.
        """
        columns = self.of_retained()
        for name in self.models if self.networks else ():
            columns += _with_ends(f"pointwise_kl_{name}", "nats", f"point-wise KL to {name}, by scores")
        for name in self.models if self.networks else ():
            columns += _with_ends(
                f"distilled_kl_{name}", "nats", f"path-wise KL of the one adapter to {name}"
            )
        for name in self.rewards if self.networks else ():
            columns += _with_ends(f"distilled_reward_{name}", "reward units", f"mean of {name}, one adapter")
        return columns


def bounds_table(gaps: Sequence[Any], constraints: Sequence[str]) -> pa.Table:
    """One row per finished setting of a certified search, in order.

    Args:
        gaps: Records with ``trials, gap, lower, upper, unreached, kind`` and ``thresholds`` ``[m]``.
        constraints: Names of the thresholds.
    """
    schema = bounds_schema(constraints)
    rows = [
        {name: _finite(getattr(gap, name)) for name, *_ in _BOUNDS}
        | {
            f"threshold_{name}": _finite(value)
            for name, value in zip(constraints, gap.thresholds, strict=True)
        }
        for gap in gaps
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def bounds_schema(constraints: Sequence[str]) -> pa.Schema:
    """One row per finished setting of a certified search, with the thresholds where its bounds are farthest apart."""
    thresholds: list[_Column] = [
        (f"threshold_{name}", _REAL, "reward units", "where the bounds are farthest apart")
        for name in constraints
    ]
    return _schema(_BOUNDS, thresholds)


def units_table(names: Iterable[Names]) -> pa.Table:
    """What the metadata of all tables of a sweep say, for readers that do not show them: a row per table and column.

    Args:
        names: Those of the sweep's trials; a column that several have is listed once.
    """
    rows = {
        (table, field.name): {
            "table": table,
            "column": field.name,
            "unit": field.metadata[b"unit"].decode(),
            "meaning": field.metadata[b"meaning"].decode(),
        }
        for each in names
        for table, schema in _all_schemas(each).items()
        for field in schema
    }
    return pa.Table.from_pylist(list(rows.values()), schema=_schema(_UNITS, ()))


def _all_schemas(names: Names) -> dict[str, pa.Schema]:
    """The schema of every table that a sweep can have, by the name of its file or folder."""
    return {
        "trials": trials_schema(names),
        "history": history_schema(names),
        "evaluations": evaluations_schema(names),
        "answers": answers_schema(names),
        "baseline": samples_schema(names),
        "frontier": frontier_schema(names),
        "bounds": bounds_schema([name for name in names.constraints if name in names.rewards]),
        "units": _schema(_UNITS, ()),
    }


def trials_schema(names: Names) -> pa.Schema:
    """One row per trial."""
    return _schema(_TRIALS, names.columns() + names.of_measured() + names.of_networks())


def history_schema(names: Names) -> pa.Schema:
    """One row per trial and logged step."""
    return _schema(_HISTORY, names.columns())


def evaluations_schema(names: Names) -> pa.Schema:
    """One row per trial and evaluation sample."""
    references: list[_Column] = [
        (f"reference_{name}", _REAL, "reward units", f"{name} of the pretrained model on the same noise")
        for name in (*names.rewards, *names.measured)
    ]
    metadata: list[_Column] = [
        (name, _TEXT, "", "of the prompt, as its file has it") for name in names.metadata
    ]
    return _schema(_EVALUATIONS, metadata + _rewards(names) + references)


def answers_schema(names: Names) -> pa.Schema:
    """One row per trial for a box of thresholds, or for all weights of a composition, and where it was evaluated."""
    slopes: list[_Column] = [
        (
            f"lower_slope_{name}",
            _REAL,
            "nats per reward unit",
            f"change of lower_bound with the threshold of {name}",
        )
        for name in names.rewards
    ]
    nearest: list[_Column] = [
        (
            f"nearest_{name}",
            _REAL,
            "nats per reward unit",
            f"multiplier of {name} of an optimum nearby: that whose tangent is highest here",
        )
        for name in names.constraints
    ]
    return _schema(_ANSWERS, slopes + nearest + names.columns() + names.of_measured() + names.of_retained())


def samples_schema(names: Names) -> pa.Schema:
    """One row per sample of the pretrained model."""
    return _schema(_SAMPLES, _rewards(names))


def frontier_schema(names: Names) -> pa.Schema:
    """One row per point of the frontier."""
    references: list[_Column] = [
        (f"reference_{name}", _REAL, "reward units", f"{name} of the reference point")
        for name in names.rewards
    ]
    return _schema(_FRONTIER, references + names.columns() + names.of_measured())


def trial_table(
    job: TrialJob,
    outcome: TrialOutcome,
    *,
    started_at: datetime,
    finished_at: datetime,
    gpu_seconds: float = 0.0,
    adapter: str | None = None,
    base_trial: str | None = None,
    kl_least: float | None = None,
    distance: float | None = None,
    provenance: Mapping[str, str] | None = None,
) -> pa.Table:
    """The one row of a finished trial.

    Args:
        job: What was run; its thresholds are in absolute units.
        outcome: What it came to.
        started_at: Start of the first attempt, with a time zone.
        finished_at: End of the last attempt, with a time zone.
        gpu_seconds: Wall time multiplied by the GPUs held.
        adapter: Folder of the adapter, relative to the sweep.
        base_trial: Trial that this one started from.
        kl_least: Exact or predicted least KL at the rewards reached, nats.
        distance: KL to the optimum of its own multipliers, nats.
        provenance: What it was made with; None where its process told nobody.
    """
    row: dict[str, Any] = {
        "trial_id": job.trial_id,
        "method": job.config.method,
        "seed": job.config.seed,
        "status": outcome.status,
        "error": outcome.error,
        "feasible": outcome.feasible,
        "kl_estimator": outcome.kl_estimator,
        "kl_least": kl_least,
        "distance": distance,
        "steps": outcome.steps,
        "interpolated": None if (parts := job.config.interpolated) is None else json.dumps(parts),
        "rounds": job.rounds,
        "beside_round": job.rounds if job.rounds > 1 else None,
        "wall_seconds": outcome.wall_seconds,
        "gpu_seconds": gpu_seconds,
        "started_at": started_at,
        "finished_at": finished_at,
        "adapter": adapter,
        "base_trial": base_trial,
        "diversity": outcome.diversity,
        "velocity": outcome.velocity,
        "notes": "; ".join(outcome.notes) or None,
        "sampler": outcome.sampler,
        "acceptance": outcome.acceptance,
        "effective_samples": outcome.effective_samples,
        "network_evaluations": outcome.network_evaluations,
        "provenance": None if provenance is None else json.dumps(provenance),
    }
    if outcome.kl is not None:
        row |= {"kl": outcome.kl.mean, "kl_low": outcome.kl.low, "kl_high": outcome.kl.high}
    for kind, intervals in (
        ("reward", outcome.rewards),
        ("deployed", outcome.deployed),
        ("kl", outcome.constituents),
        ("retention", outcome.retention),
        ("pointwise_kl", outcome.pointwise),
        ("distilled", outcome.distilled),
    ):
        for name, interval in intervals.items():
            row |= {
                f"{kind}_{name}": interval.mean,
                f"{kind}_{name}_low": interval.low,
                f"{kind}_{name}_high": interval.high,
            }
    for kind, values in (
        ("threshold", job.thresholds),
        ("violation", outcome.violations),
        ("multiplier", outcome.multipliers),
        ("weight", outcome.weights),
    ):
        row |= {f"{kind}_{name}": value for name, value in values.items()}
    return _table([row], trials_schema(Names.of(job.config)))


def trained(table: pa.Table) -> pa.Table:
    """Rows of trials alone, without the points that were measured between them."""
    return table.filter(pc.not_equal(table["method"], INTERPOLATED))


def rounds_of(row: Mapping[str, Any]) -> int:
    """How often the trial of a row was trained; rows of earlier versions do not say."""
    return row.get("rounds") or 1


def asked_gpu_seconds(row: Mapping[str, Any]) -> float:
    """What the questions of a search took of the GPU-seconds in a trial's row."""
    return row.get("asked_gpu_seconds") or 0.0


def beside_round(row: Mapping[str, Any]) -> int:
    """The round by which what a trial has left is called; 1: it lies under the trial's own name."""
    return row.get("beside_round") or 1


def history_table(job: TrialJob, steps: Iterable[StepRecord]) -> pa.Table:
    """One row per logged step; thresholds and weights repeat, reward intervals are null."""
    baseline = job.baseline.rewards
    constant: dict[str, Any] = {"trial_id": job.trial_id}
    constant |= {f"threshold_{name}": value for name, value in job.thresholds.items()}
    # Weights of rewards are written per sigma and stored per reward unit; those of models are on the simplex.
    models = Names.of(job.config).models
    constant |= {
        f"weight_{name}": value if name in models else value / baseline[name].std
        for name, value in job.config.weights.items()
    }
    rows = []
    for record in steps:
        row = constant | {column: getattr(record, column) for column, *_ in _HISTORY[1:]}
        for kind, values in (
            ("reward", record.rewards),
            ("violation", record.violations),
            ("multiplier", record.multipliers),
            ("kl", record.constituents),
        ):
            row |= {f"{kind}_{name}": value for name, value in values.items()}
        rows.append(row)
    return _table(rows, history_schema(Names.of(job.config)))


def evaluations_table(job: TrialJob, evaluation: Evaluation) -> pa.Table:
    """One row per evaluation sample."""
    schema = evaluations_schema(Names.of(job.config))
    count = len(evaluation.kl)
    columns: dict[str, Any] = {
        "trial_id": pa.repeat(job.trial_id, count),
        "prompt": pa.array(evaluation.prompts or [None] * count, _TEXT),
        "seed": evaluation.seeds,
        "kl": pa.array(
            evaluation.kl, _REAL, from_pandas=True
        ),  # of a sample of a composition it is not known
    }
    if evaluation.log_ratio is not None:
        columns["log_ratio"] = evaluation.log_ratio
    columns |= _metadata_of(evaluation.prompts or (), job.config.prompts)
    # A score that could not be had is null.
    scores = {f"reward_{name}": values for name, values in evaluation.rewards.items()}
    scores |= {f"reference_{name}": values[:count] for name, values in (evaluation.reference or {}).items()}
    columns |= {name: pa.array(values, _REAL, from_pandas=True) for name, values in scores.items()}
    _refuse_unknown(columns, schema)
    nothing = pa.nulls(count, _REAL)
    return pa.table([columns.get(name, nothing) for name in schema.names], schema=schema)


def answers_table(
    job: TrialJob,
    answers: Sequence[Answer],
    least: Sequence[LowerBound | None],
    *,
    nearest: Sequence[NearestOptimum | None] | None = None,
    took: Mapping[str, float] | None = None,
) -> pa.Table:
    """One row per thresholds at which a trial for a box of them was evaluated; the first are the loosest.

    Of a composition weights of its models, ``multiplier_NAME``; the first are those that were found.

    Args:
        job: Of the trial.
        answers: What it came to.
        least: What bounds the least KL at each; None without a bound.
        nearest: The optimum that each is nearest to; None where that is not known.
        took: ``wall_seconds`` and ``gpu_seconds`` of each, where they were measured one by one.
    """
    rows = []
    optima = [None] * len(answers) if nearest is None else nearest
    for answer, bound, optimum in zip(answers, least, optima, strict=True):
        row: dict[str, Any] = {
            "trial_id": job.trial_id,
            "feasible": answer.feasible,
            "images": answer.images,
            **(took or {}),
        }
        if optimum is not None:
            row |= {f"nearest_{name}": price for name, price in optimum.multipliers.items()}
            row["distance"] = optimum.distance
        if bound is not None:
            row |= {"lower_bound": bound.kl, "lower_bound_kind": bound.kind}
            row |= {f"lower_slope_{name}": slope for name, slope in bound.slopes.items()}
        for column, interval in (
            ("kl", answer.kl),
            *((f"reward_{name}", interval) for name, interval in answer.rewards.items()),
            *((f"kl_{name}", interval) for name, interval in answer.constituents.items()),
            *((f"retention_{name}", interval) for name, interval in answer.retention.items()),
        ):
            row |= {column: interval.mean, f"{column}_low": interval.low, f"{column}_high": interval.high}
        for kind, values in (
            ("threshold", answer.thresholds),
            ("violation", answer.violations),
            ("multiplier", answer.multipliers),
        ):
            row |= {f"{kind}_{name}": value for name, value in values.items()}
        rows.append(row)
    return _table(rows, answers_schema(Names.of(job.config)))


def _metadata_of(asked: Sequence[str], prompts: PromptsConfig | None) -> dict[str, Any]:
    """Columns of metadata of the prompts that were asked; null for one of no set, such as a joint one."""
    if prompts is None:
        return {}
    places = {text: place for place, text in enumerate(prompts.evaluate)}
    rows = [places.get(text) for text in asked]
    return {
        name: pa.array([None if row is None else values[row] for row in rows], _TEXT)
        for name, values in prompts.evaluate_metadata.items()
    }


def samples_table(config: TrialConfig, samples: Mapping[str, Evaluation]) -> pa.Table:
    """One row per sample of the pretrained model, by set of prompts."""
    schema = samples_schema(Names.of(config))
    parts = []
    for name, drawn in samples.items():
        count = len(drawn.kl)
        columns: dict[str, Any] = {
            "set": pa.repeat(name, count),
            "prompt": pa.array(drawn.prompts or [None] * count, _TEXT),
            "seed": drawn.seeds,
        } | {
            f"reward_{key}": pa.array(values, _REAL, from_pandas=True)
            for key, values in drawn.rewards.items()
        }
        nothing = pa.nulls(count, _REAL)
        parts.append(pa.table([columns.get(key, nothing) for key in schema.names], schema=schema))
    return pa.concat_tables(parts)


def prompts_of(table: pa.Table, name: str) -> list[str] | None:
    """Prompts ``[N]`` of one set of the pretrained model's samples, in their order; None without prompts."""
    prompts: list[str | None] = table.filter(pc.equal(table["set"], name))["prompt"].to_pylist()
    named = [prompt for prompt in prompts if prompt is not None]
    return named if named and len(named) == len(prompts) else None


def samples_of(table: pa.Table, name: str) -> dict[str, NDArray[np.float64]]:
    """Rewards ``[N]`` of one set of the pretrained model's samples, in their order; NaN where there is no score.

    What is only measured is of the held-out set alone.
    """
    rows = table.filter(pc.equal(table["set"], name))
    return {
        column.removeprefix("reward_"): rows[column].to_numpy()
        for column in rows.column_names
        if column.startswith("reward_") and (rows[column].null_count < rows.num_rows or not rows.num_rows)
    }


def up_to_date(table: pa.Table) -> pa.Table:
    """Return rows of trials in today's words: earlier versions called an infeasible trial stopped."""
    if "status" not in table.column_names:
        return table
    place, status = table.column_names.index("status"), table["status"]
    told = pc.if_else(pc.equal(status, "stopped"), "infeasible", status)
    return table.set_column(place, table.schema.field(place), told)


def version_of(schema: pa.Schema) -> str | None:
    """Schema version of a file, or None if cdsweep did not write it."""
    value = (schema.metadata or {}).get(VERSION_KEY)
    return value.decode() if value is not None else None


def _with_ends(name: str, unit: str, meaning: str) -> list[_Column]:
    """A mean with the ends of its interval."""
    return [
        (name, _REAL, unit, meaning),
        (f"{name}_low", _REAL, unit, f"lower end of the two-sided 95 % interval of {name}"),
        (f"{name}_high", _REAL, unit, f"upper end of the two-sided 95 % interval of {name}"),
    ]


def _rewards(names: Names) -> list[_Column]:
    scored = (*names.rewards, *names.measured)
    return [(f"reward_{name}", _REAL, "reward units", f"{name} of the sample") for name in scored]


def _schema(base: Sequence[_Column], named: Sequence[_Column]) -> pa.Schema:
    fields = [
        pa.field(name, kind, metadata={"unit": unit, "meaning": meaning})
        for name, kind, unit, meaning in (*base, *named)
    ]
    names = [field.name for field in fields]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            f"two columns of the results would be called {', '.join(twice)}: rename a reward or constraint "
            "that ends in _low or _high, or stands twice"
        )
    return pa.schema(fields, metadata={VERSION_KEY: VERSION, "cdsweep.signs": SIGN})


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    for row in rows[:1]:
        _refuse_unknown(row, schema)
    return pa.Table.from_pylist(rows, schema=schema)


def _refuse_unknown(columns: Iterable[str], schema: pa.Schema) -> None:
    """A column outside the schema would be dropped in silence: a name that the config does not have."""
    unknown = sorted(set(columns) - set(schema.names))
    if unknown:
        raise ValueError(f"not columns of the results of this trial: {', '.join(unknown)}")
