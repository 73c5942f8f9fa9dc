"""What a sweep came to: fronts, hypervolumes, the gap to the exact optimum, and one sentence."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.frontier.comparison.comparison import Cell, compare, real
from orchestrator.frontier.comparison.reference import reference_of
from orchestrator.frontier.comparison.sentence import sentence
from orchestrator.frontier.composed import composed_sentence, settings, shown
from orchestrator.frontier.dominance import non_dominated, sought_rewards, to_minimise
from orchestrator.frontier.indicators import hypervolume
from orchestrator.frontier.problems.least import Kind, LeastKL
from orchestrator.results.schema import Names, frontier_schema
from trainers.config import BaselineStatistics, TrialConfig

FloatArray = NDArray[np.float64]

METHODS = ("constrained", "weighted")
"""In the order of every table and figure."""


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """A non-dominated trial. KL in nats, rewards absolute, multipliers and weights per reward unit."""

    trial_id: str
    seed: int
    sampler: str | None
    """Of a composition; null for others."""
    feasible: bool | None
    kl: float
    kl_low: float | None
    kl_high: float | None
    kl_least: float | None
    excess_kl: float | None
    kl_ratio: float | None
    rewards: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    """Two-sided 95 % intervals of the rewards."""
    thresholds: Mapping[str, float]
    multipliers: Mapping[str, float]
    weights: Mapping[str, float]
    """Fixed ones; of a composition the weight of each model on the simplex, fixed or found."""
    kls: Mapping[str, float]
    """To each model of a composition, nats; empty without one."""
    retention: Mapping[str, float]
    """Of each model that is judged: the share of its improvement that a composition keeps."""


class Front(Sequence[FrontPoint]):
    """Points of a front, made as they are asked for: of 100,000 trials half may be non-dominated."""

    def __init__(self, rows: pa.Table, names: Names) -> None:
        """Read from rows of ``FrontierSummary.points``, in their order."""
        self._rows = rows
        self._names = names

    def __len__(self) -> int:
        """Count the points."""
        rows: int = self._rows.num_rows
        return rows

    @overload
    def __getitem__(self, index: int) -> FrontPoint: ...
    @overload
    def __getitem__(self, index: slice) -> "Front": ...
    def __getitem__(self, index: int | slice) -> "FrontPoint | Front":
        """Return one point, or several as a front."""
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return Front(self._rows.take(pa.array(chosen, pa.int64())), self._names)
        return _front_point(self._rows.slice(chosen, 1).to_pylist()[0], self._names)

    def __iter__(self) -> Iterator[FrontPoint]:
        """Yield the points in their order."""
        for batch in self._rows.to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                yield _front_point(row, self._names)


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """All trials of one method."""

    method: str
    hypervolume: float
    """Of its front, up to the sweep's reference point (``frontier.reference``); nats times reward units."""
    planned: int | None
    trials: int
    """Finished, whatever their status."""
    succeeded: int
    feasible: int
    front: Sequence[FrontPoint]
    """By KL."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How far the feasible constrained trials are from the optimum, at worst.

    A trial is held against the least KL at its thresholds (at the objective it reached, where a reward is
    the objective). Where it fell short of a threshold, within tolerance, the reward that it reached counts
    instead, so that a shortfall does not look like skill. Of a composition both are largest KLs to a model.
    """

    gap: float
    """Largest KL minus least KL, nats."""
    kind: Kind
    """Of the least KL; the KL of the trial is measured all the same."""
    trial_id: str
    """Where it is."""
    ratio: float | None
    """KL divided by least KL there."""
    trials: int
    """Trials that it covers."""


@dataclass(frozen=True, kw_only=True)
class FrontierSummary:
    """What ``cdsweep frontier`` shows."""

    sweep: str
    config: TrialConfig
    """Any trial of the sweep: its rewards, constraints and objective are those of all."""
    baseline: BaselineStatistics
    sought: tuple[str, ...]
    """Rewards that span the frontier with the KL."""
    reference_point: Mapping[str, float | None]
    """``kl`` and every sought reward, where hypervolumes end; null where nothing succeeded."""
    counted_up_to: Mapping[str, float | None]
    """Of every sought reward what hypervolumes count at most; null where they count all."""
    methods: tuple[MethodSummary, ...]
    exact: LeastKL | None
    """What trials are held against, if it is known."""
    bound: Bound | None
    cells: tuple[Cell, ...]
    statuses: Mapping[str, int]
    text: str
    points: pa.Table
    """Every trial that succeeded, with ``excess_kl``, ``kl_ratio`` and ``non_dominated`` added."""

    @property
    def composed(self) -> bool:
        """Whether trials compose models: each KL is then the largest to one of them, and there is no trade-off."""
        return self.config.model.composition is not None

    @property
    def line(self) -> LeastKL | None:
        """What figures draw against a reward, if anything."""
        return self.exact if self.exact is not None and self.exact.line else None

    def sentence(self) -> str:
        """What constraints bought over fixed weights."""
        return self.text

    def to_json(self) -> dict[str, Any]:
        """The document of ``cdsweep run --json`` and ``cdsweep frontier --json``; NaN becomes null."""
        document = {
            "sweep": self.sweep,
            "objective": self.config.objective.model_dump(),
            "reference_point": dict(self.reference_point),
            "counted_up_to": dict(self.counted_up_to),
            "baseline": {name: self.baseline.rewards[name].model_dump() for name in self.sought},
            "methods": [
                asdict(replace(method, front=())) | {"front": [asdict(point) for point in method.front]}
                for method in self.methods
            ],
            "bound": None if self.bound is None else asdict(self.bound),
            "comparison": [asdict(cell) for cell in self.cells],
            "statuses": dict(self.statuses),
            "sentence": self.text,
        }
        composition = self.config.model.composition
        if composition is not None:
            document["composition"] = {
                "models": [model.name for model in composition.models],
                "direction": composition.direction,
                "offsets": dict(composition.offsets),
            }
        cleaned: dict[str, Any] = plain(document)
        return cleaned

    def to_table(self) -> pa.Table:
        """The rows of ``frontier.parquet``: the fronts of all methods."""
        schema = frontier_schema(Names.of(self.config))
        front = self.points.filter(self.points["non_dominated"])
        volumes = {method.method: method.hypervolume for method in self.methods}
        added = {
            "hypervolume": pa.array([volumes[name] for name in front["method"].to_pylist()], pa.float64())
        }
        for name, value in self.reference_point.items():
            added[f"reference_{name}"] = pa.array([value] * front.num_rows, pa.float64())
        columns = []
        for field in schema:
            if field.name in added:
                columns.append(added[field.name])
            elif field.name in front.column_names:
                columns.append(front[field.name].cast(field.type))
            else:
                columns.append(pa.nulls(front.num_rows, field.type))
        metadata = schema.metadata | {
            "cdsweep.reference_point": json.dumps(plain(dict(self.reference_point)))
        }
        return pa.table(columns, schema=schema.with_metadata(metadata))


def summarise(
    trials: pa.Table,
    *,
    sweep: str,
    config: TrialConfig,
    baseline: BaselineStatistics,
    exact: LeastKL | None = None,
    planned: Mapping[str, int] | None = None,
) -> FrontierSummary:
    """Summarise the finished trials of a sweep.

    Args:
        trials: Rows of ``trials/*.parquet``.
        sweep: Its name.
        config: Any trial of the sweep.
        baseline: Statistics of the rewards under the pretrained model.
        exact: What trials are held against, if it is known.
        planned: Number of trials by method, where known.
    """
    trials = (
        trials.combine_chunks()
    )  # one file per trial makes as many chunks, and each costs in every filter
    sought = sought_rewards(config)
    statuses = Counter(trials["status"].to_pylist())
    points = trials.filter(pc.and_(pc.equal(trials["status"], "succeeded"), pc.is_finite(trials["kl"])))
    kl = real(points, "kl")
    minimised = to_minimise(kl, {name: real(points, f"reward_{name}") for name in sought})
    reference = reference_of(trials, minimised, sought, config, baseline)
    method_of = np.asarray(points["method"].to_pylist(), dtype=object)
    finished = Counter(trials["method"].to_pylist())
    present = set(finished) | set(planned or {})
    methods = [name for name in METHODS if name in present] + sorted(present - set(METHODS))

    composed = config.model.composition is not None
    feasible = np.asarray(pc.fill_null(points["feasible"], False), dtype=np.bool_)
    front = np.zeros(points.num_rows, dtype=np.bool_)
    for method in methods:
        rows = np.flatnonzero(method_of == method)
        front[rows] = shown(kl[rows], feasible[rows]) if composed else non_dominated(minimised[rows])
    # That of a large front takes a while, outside of the interpreter's lock, and the rest goes on meanwhile.
    pool = ThreadPoolExecutor()
    volumes = {
        method: pool.submit(
            hypervolume, reference.counted(minimised[front & (method_of == method)]), reference.point
        )
        for method in methods
    }
    pool.shutdown(wait=False)
    points = _with_excess(points, _least(points, front, config, exact)).append_column(
        "non_dominated", pa.array(front)
    )
    points = points.sort_by([("method", "ascending"), ("kl", "ascending"), ("trial_id", "ascending")])

    total = None if planned is None else sum(planned.values())
    bound: Bound | None = None
    cells: tuple[Cell, ...] = ()
    if composed:
        bound = None if exact is None else _composed_bound(points)
        text = composed_sentence(settings(points, config), statuses, total)
    else:
        bound = None if exact is None else _bound(points, config, sought, exact)
        cells, rivals = compare(trials, config, baseline)
        ratios = real(points.filter(pc.equal(points["method"], "constrained")), "kl_ratio")
        objective = config.objective.target if config.objective.kind == "reward" else None
        text = sentence(
            cells=cells,
            rivals=rivals,
            statuses=statuses,
            planned=total,
            objective=None if objective is None else (objective, baseline.rewards[objective].std),
            ratios_to_exact=ratios[np.isfinite(ratios)].tolist() if exact and exact.kind == "proven" else [],
        )
    return FrontierSummary(
        sweep=sweep,
        config=config,
        baseline=baseline,
        sought=sought,
        reference_point={
            "kl": float(reference.point[0]) if points.num_rows else None,
            **dict(zip(sought, (-reference.point[1:]).tolist(), strict=True)),
        },
        counted_up_to={
            name: None if np.isinf(end) else -end
            for name, end in zip(sought, reference.goal[1:].tolist(), strict=True)
        },
        methods=tuple(
            _method(
                method,
                finished[method],
                points,
                volumes[method].result(),
                (planned or {}).get(method),
                config,
            )
            for method in methods
        ),
        exact=exact,
        bound=bound,
        cells=cells,
        statuses=dict(statuses),
        text=text,
        points=points,
    )


def _least(
    points: pa.Table, front: NDArray[np.bool_], config: TrialConfig, exact: LeastKL | None
) -> FloatArray:
    """Least KL, ``[n]``: as stored, or solved on the fronts where trials came without it, or can be told better now."""
    least = real(points, "kl_least").copy()
    if exact is None:
        return least
    if exact.renewed:
        least[front] = np.nan
    rewards = {name: real(points, f"reward_{name}") for name in sought_rewards(config)}
    asked = {
        constraint.target: real(points, f"threshold_{constraint.name}")
        for constraint in config.constraints
        if constraint.kind == "reward"
    }
    # Only on the fronts: an optimum takes a millisecond, and a sweep may have 100,000 trials.
    measured = np.all([front, *(np.isfinite(values) for values in rewards.values())], axis=0)
    for row in np.flatnonzero(np.isnan(least) & measured):
        held = exact.held(
            *({name: float(column[row]) for name, column in of.items()} for of in (asked, rewards))
        )
        least[row] = exact.least_kl(held).kl
    return least


def _with_excess(points: pa.Table, least: FloatArray) -> pa.Table:
    """Put ``kl_least`` in its place and add ``excess_kl`` and ``kl_ratio``."""
    least[~np.isfinite(least)] = np.nan
    kl = real(points, "kl")
    with np.errstate(divide="ignore", invalid="ignore"):
        # Below a thousandth of a nat both are noise, and their quotient is nothing.
        ratio = np.where(least > 1e-3, kl / least, np.nan)
    computed = {"kl_least": least, "excess_kl": kl - least, "kl_ratio": ratio}
    kept = points.drop_columns([name for name in computed if name in points.column_names])
    for name, values in computed.items():
        kept = kept.append_column(name, pa.array(values, from_pandas=True))
    return kept


def _bound(points: pa.Table, config: TrialConfig, sought: tuple[str, ...], exact: LeastKL) -> Bound | None:
    """Worst excess of the feasible constrained trials over the optimum."""
    judged = points.filter(
        pc.and_(pc.equal(points["method"], "constrained"), pc.equal(points["feasible"], True))
    )
    if judged.num_rows == 0 or not sought:
        return None
    targets = {name: real(judged, f"reward_{name}") for name in sought}
    for constraint in config.constraints:
        if constraint.kind == "reward" and constraint.target != config.objective.target:
            targets[constraint.target] = np.fmin(
                targets[constraint.target], real(judged, f"threshold_{constraint.name}")
            )
    matrix = np.column_stack(list(targets.values()))
    measured = np.isfinite(matrix).all(axis=1)
    judged, matrix = judged.filter(pa.array(measured)), matrix[measured]
    kl = real(judged, "kl")
    # Of many trials few need their optimum: every solution is a tangent below the convex least KL, so it
    # limits the gaps of all others, and only a trial that could still be the worst is solved.
    limits = kl.copy()
    worst, gap, least = -1, -np.inf, np.nan
    unreachable = 0
    while len(limits) and limits.max() > gap + 1e-9:
        row = int(np.argmax(limits))
        optimum = exact.least_kl(dict(zip(targets, matrix[row].tolist(), strict=True)))
        if not optimum.reachable:
            limits[row] = -np.inf
            unreachable += 1
            continue
        prices = np.array([optimum.multipliers[name] for name in targets])
        limits = np.minimum(limits, kl - optimum.kl - (matrix - matrix[row]) @ prices)
        limits[row] = -np.inf
        if kl[row] - optimum.kl > gap:
            worst, gap, least = row, float(kl[row] - optimum.kl), optimum.kl
    if worst < 0:
        return None
    return Bound(
        gap=gap,
        kind=exact.kind,
        trial_id=judged["trial_id"][worst].as_py(),
        ratio=float(kl[worst] / least) if least > 1e-3 else None,
        trials=judged.num_rows - unreachable,
    )


def _composed_bound(points: pa.Table) -> Bound | None:
    """Worst excess of the feasible constrained compositions over the exact least maximum."""
    judged = points.filter(
        pc.and_(pc.equal(points["method"], "constrained"), pc.equal(points["feasible"], True))
    )
    excess = real(judged, "excess_kl")
    known = np.isfinite(excess)
    if not known.any():
        return None
    worst = int(np.nanargmax(excess))
    ratio = float(real(judged, "kl_ratio")[worst])
    return Bound(
        gap=float(excess[worst]),
        kind="proven",
        trial_id=judged["trial_id"][worst].as_py(),
        ratio=ratio if np.isfinite(ratio) else None,
        trials=int(known.sum()),
    )


def _method(
    method: str, finished: int, points: pa.Table, volume: float, planned: int | None, config: TrialConfig
) -> MethodSummary:
    mine = pc.equal(points["method"], method)
    return MethodSummary(
        method=method,
        hypervolume=volume,
        planned=planned,
        trials=finished,
        succeeded=pc.sum(mine).as_py() or 0,
        feasible=pc.sum(pc.and_(mine, points["feasible"])).as_py() or 0,
        front=Front(points.filter(pc.and_(mine, points["non_dominated"])), Names.of(config)),
    )


def _front_point(row: Mapping[str, Any], names: Names) -> FrontPoint:
    def named(kind: str, of: tuple[str, ...]) -> dict[str, float]:
        values = {name: row.get(f"{kind}_{name}") for name in of}
        return {name: value for name, value in values.items() if value is not None}

    return FrontPoint(
        trial_id=row["trial_id"],
        seed=row["seed"],
        sampler=row.get("sampler"),
        feasible=row["feasible"],
        kl=row["kl"],
        kl_low=row["kl_low"],
        kl_high=row["kl_high"],
        kl_least=row["kl_least"],
        excess_kl=row["excess_kl"],
        kl_ratio=row["kl_ratio"],
        rewards=named("reward", names.rewards),
        intervals={
            name: (row[f"reward_{name}_low"], row[f"reward_{name}_high"])
            for name in names.rewards
            if row.get(f"reward_{name}_low") is not None and row.get(f"reward_{name}_high") is not None
        },
        thresholds=named("threshold", names.constraints),
        multipliers=named("multiplier", names.constraints + names.models),
        weights=named("weight", names.rewards + names.models) or named("multiplier", names.models),
        kls=named("kl", names.models),
        retention=named("retention", names.retained),
    )


def plain(value: Any) -> Any:
    """Only what JSON has: NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
