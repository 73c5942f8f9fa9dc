"""What a sweep came to: fronts, hypervolumes, the gap to the exact optimum, and one sentence."""

import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.frontier.comparison.comparison import Cell, compare
from orchestrator.frontier.comparison.reference import reference_of
from orchestrator.frontier.comparison.sentence import sentence
from orchestrator.frontier.composed import composed_sentence, settings, shown
from orchestrator.frontier.dominance import non_dominated
from orchestrator.frontier.indicators import hypervolume
from orchestrator.frontier.problems.least import Kind, LeastKL
from orchestrator.frontier.trials import METHODS, SMALL_KL, Trials
from orchestrator.results.schema import frontier_schema
from trainers.config import INTERPOLATED, BaselineStatistics, TrialConfig

FloatArray = NDArray[np.float64]


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
    front: Trials
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
    baseline: BaselineStatistics
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
    trials: Trials
    """All of them, with what is known of the least KL and of fronts."""

    @cached_property
    def points(self) -> Trials:
        """Those that succeeded, by method and KL."""
        return self.trials.take(self.trials.by_kl())

    @property
    def config(self) -> TrialConfig:
        """Any trial of the sweep: its rewards, constraints and objective are those of all."""
        return self.trials.config

    @property
    def sought(self) -> tuple[str, ...]:
        """Rewards that span the frontier with the KL."""
        return self.trials.sought

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
            "deployed": {name: known.model_dump() for name, known in self.baseline.deployed.items()},
            "methods": [
                {field.name: getattr(method, field.name) for field in fields(method)}
                | {"front": [asdict(trial) for trial in method.front]}
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
        schema = frontier_schema(self.points.names)
        front = self.points.take(self.points.front)
        volumes = {method.method: method.hypervolume for method in self.methods}
        found: dict[str, Any] = front.stored()
        found["feasible"] = np.ma.array(front.feasible, mask=~front.judged)
        found["hypervolume"] = [volumes[name] for name in front.methods]
        found |= {f"reference_{name}": [value] * len(front) for name, value in self.reference_point.items()}
        nothing = [None] * len(front)
        columns = [pa.array(found.get(field.name, nothing), field.type, from_pandas=True) for field in schema]
        metadata = schema.metadata | {
            "cdsweep.reference_point": json.dumps(plain(dict(self.reference_point)))
        }
        return pa.table(columns, schema=schema.with_metadata(metadata))


def summarise(
    trials: Trials,
    *,
    sweep: str,
    baseline: BaselineStatistics,
    exact: LeastKL | None = None,
    planned: Mapping[str, int] | None = None,
) -> FrontierSummary:
    """Summarise the finished trials of a sweep.

    Args:
        trials: All of them.
        sweep: Its name.
        baseline: Statistics of the rewards under the pretrained model.
        exact: What trials are held against, if it is known.
        planned: Number of trials by method, where known.
    """
    config, sought, points = trials.config, trials.sought, trials.points
    reference = reference_of(trials, baseline)
    finished = Counter(trials.methods.tolist())
    present = set(finished) | set(planned or {})
    methods = [name for name in METHODS if name in present] + sorted(present - set(METHODS))

    composed = config.model.composition is not None
    front = np.zeros(len(trials), dtype=np.bool_)
    for method in methods:
        rows = np.flatnonzero(trials.succeeded & (trials.methods == method))
        front[rows] = (
            shown(trials.kl.mean[rows], trials.feasible[rows]) if composed else non_dominated(points[rows])
        )
    # That of a large front takes a while, outside of the interpreter's lock, and the rest goes on meanwhile.
    pool = ThreadPoolExecutor()
    volumes = {
        method: pool.submit(
            hypervolume, reference.counted(points[front & (trials.methods == method)]), reference.point
        )
        for method in methods
    }
    pool.shutdown(wait=False)
    trials, order = replace(trials, front=front), trials.by_kl()
    least = _least(trials.take(order), exact)
    told = trials.least.copy()
    told[order] = np.where(np.isfinite(least), least, np.nan)
    trials = replace(trials, least=told)
    found = trials.take(order)

    statuses = Counter(trials.statuses[trials.methods != INTERPOLATED].tolist())
    total = None if planned is None else sum(planned.values())
    bound: Bound | None = None
    cells: tuple[Cell, ...] = ()
    if composed:
        bound = None if exact is None else _composed_bound(found)
        text = composed_sentence(settings(found), statuses, total)
    else:
        bound = None if exact is None else _bound(found, exact)
        cells, rivals = compare(trials, baseline)
        ratios = found.ratio[found.methods == "constrained"]
        objective = config.objective.target if config.objective.kind == "reward" else None
        text = sentence(
            cells=cells,
            rivals=rivals,
            statuses=statuses,
            planned=total,
            objective=None if objective is None else (objective, baseline.rewards[objective].std),
            ratios_to_exact=ratios[np.isfinite(ratios)].tolist() if exact and exact.kind == "proven" else [],
            boxes=int((found.methods == "frontier").sum()),
        )
    return FrontierSummary(
        sweep=sweep,
        baseline=baseline,
        reference_point={
            "kl": float(reference.point[0]) if len(found) else None,
            **dict(zip(sought, (-reference.point[1:]).tolist(), strict=True)),
        },
        counted_up_to={
            name: None if np.isinf(end) else -end
            for name, end in zip(sought, reference.goal[1:].tolist(), strict=True)
        },
        methods=tuple(
            MethodSummary(
                method=method,
                hypervolume=volumes[method].result(),
                planned=(planned or {}).get(method),
                trials=finished[method],
                succeeded=len(mine),
                feasible=int(mine.feasible.sum()),
                front=mine.take(mine.front),
            )
            for method in methods
            for mine in [found.of_method(method)]
        ),
        exact=exact,
        bound=bound,
        cells=cells,
        statuses=dict(statuses),
        text=text,
        trials=trials,
    )


def _least(points: Trials, exact: LeastKL | None) -> FloatArray:
    """Least KL, ``[n]``: as stored, or solved on the fronts where trials came without it, or can be told better now."""
    least = points.least.copy()
    if exact is None:
        return least
    if exact.renewed:
        least[points.front] = np.nan
    asked = {target: points.thresholds[name] for name, target in points.config.targets.items()}
    rewards = {name: points.rewards[name].mean for name in points.sought}
    # Only on the fronts: an optimum takes a millisecond, and a sweep may have 100,000 trials.
    measured = points.front & np.isfinite(points.points[:, 1:]).all(axis=1)
    for row in np.flatnonzero(np.isnan(least) & measured):
        held = exact.held(
            *({name: float(column[row]) for name, column in of.items()} for of in (asked, rewards))
        )
        least[row] = exact.least_kl(held).kl
    return least


def _bound(points: Trials, exact: LeastKL) -> Bound | None:
    """Worst excess of the feasible constrained trials over the optimum."""
    judged = points.take((points.methods == "constrained") & points.feasible)
    config = points.config
    if not len(judged) or not points.sought:
        return None
    targets = {name: judged.rewards[name].mean for name in points.sought}
    for constraint in config.constraints:
        if constraint.kind == "reward" and constraint.target != config.objective.target:
            targets[constraint.target] = np.fmin(
                targets[constraint.target], judged.thresholds[constraint.name]
            )
    matrix = np.column_stack(list(targets.values()))
    measured = np.all(np.isfinite(matrix), axis=1)
    judged, matrix = judged.take(measured), matrix[measured]
    kl = judged.kl.mean
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
        trial_id=judged.ids[worst],
        ratio=float(kl[worst] / least) if least > SMALL_KL else None,
        trials=len(judged) - unreachable,
    )


def _composed_bound(points: Trials) -> Bound | None:
    """Worst excess of the feasible constrained compositions over the exact least maximum."""
    judged = points.take((points.methods == "constrained") & points.feasible & np.isfinite(points.excess))
    if not len(judged):
        return None
    worst = judged[int(np.argmax(judged.excess))]
    assert worst.excess_kl is not None, "finite"
    return Bound(
        gap=worst.excess_kl, kind="proven", trial_id=worst.trial_id, ratio=worst.kl_ratio, trials=len(judged)
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
