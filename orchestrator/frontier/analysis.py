"""What a sweep's frontier is made of: reach over seeds, prices, importance of thresholds, and excess over the box.

    trials ─┬─ runs (method, seed) ──► hypervolume with interval, attainment surfaces, difference of methods
            ├─ settings (constrained) ──► shadow prices ──► importance
            │                                   └────► least KL, where no exact one is known
            └─ in the order of finishing ──► mixtures ──► worst excess, trials to tolerance

All of it is about measured figures; their noise enters the intervals of hypervolumes and the flags of prices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.frontier.bounds.excess import (
    ExcessCurve,
    Mixing,
    UpperBound,
    excess_curve,
)
from orchestrator.frontier.bounds.judged import Judged, judge
from orchestrator.frontier.comparison.attainment import (
    Difference,
    HypervolumeInterval,
    Surface,
    attainment_difference,
    attainment_surfaces,
    hypervolume_interval,
    runs_of,
)
from orchestrator.frontier.comparison.comparison import real
from orchestrator.frontier.comparison.importance import Importance, importance
from orchestrator.frontier.comparison.priced import PricedSettings, priced_settings
from orchestrator.frontier.comparison.prices import PriceCheck, check_prices
from orchestrator.frontier.comparison.reference import reference_of
from orchestrator.frontier.dominance import non_dominated, sought_rewards, to_minimise
from orchestrator.frontier.feasibility import standard_error
from orchestrator.frontier.problems.least import LeastKL
from orchestrator.frontier.summary import METHODS, plain
from trainers.config import BaselineStatistics, TrialConfig

FloatArray = NDArray[np.float64]

_FOLLOWED = 1024
"""Trials of a seed up to which its excess is followed, and not only its end."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MethodAnalysis:
    """All trials of one method."""

    method: str
    seeds: tuple[int, ...]
    hypervolume: HypervolumeInterval
    surfaces: Mapping[str, tuple[Surface, ...]]
    """By reward: KL and the negated reward that one seed, half of them and all of them attain."""
    curve: ExcessCurve | None
    """Of mixtures of all trials, in the order of finishing; None where excess is not judged."""
    curves: Mapping[int, ExcessCurve]
    """By seed, of the trials of that seed alone; of very many trials only the end."""

    def to_json(self, sought: Sequence[str]) -> dict[str, Any]:
        """As a document."""
        return {
            "method": self.method,
            "seeds": list(self.seeds),
            "hypervolume": asdict(self.hypervolume),
            "attainment": {
                name: [surface.to_json() for surface in found] for name, found in self.surfaces.items()
            },
            "excess": self.curve.to_json(sought) if self.curve else None,
            "excess_by_seed": {str(seed): curve.to_json(sought) for seed, curve in self.curves.items()},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class FrontierAnalysis:
    """What ``analyse`` finds."""

    sought: tuple[str, ...]
    """Rewards that span the frontier with the KL."""
    reference: FloatArray
    """``[1 + m]``, KL and negated rewards."""
    methods: tuple[MethodAnalysis, ...]
    differences: Mapping[str, Difference]
    """By reward, of the first two methods; empty with one."""
    settings: PricedSettings | None
    """None for a composition, whose multipliers are weights."""
    prices: PriceCheck | None
    importance: Importance | None
    judged: Judged | None

    def to_json(self) -> dict[str, Any]:
        """As a document; NaN and infinities become null, and rewards have their own sign."""
        reference = to_minimise(
            self.reference[:1], dict(zip(self.sought, self.reference[1:, None], strict=True))
        )
        document = {
            "reference_point": dict(zip(("kl", *self.sought), reference[0].tolist(), strict=True)),
            "methods": [method.to_json(self.sought) for method in self.methods],
            "differences": {name: found.to_json() for name, found in self.differences.items()},
            "prices": self.prices.to_json(self.settings) if self.prices and self.settings else None,
            "importance": self.importance.to_json() if self.importance else None,
            "box": self.judged.to_json(self.sought) if self.judged else None,
        }
        cleaned: dict[str, Any] = plain(document)
        return cleaned


def analyse(
    trials: pa.Table,
    *,
    config: TrialConfig,
    baseline: BaselineStatistics,
    history: pa.Table | None = None,
    exact: LeastKL | None = None,
    mixing: Mixing | None = None,
    least: UpperBound | None = None,
    seed: int = 0,
) -> FrontierAnalysis:
    """Analyse the finished trials of a sweep.

    Args:
        trials: Rows of ``trials/*.parquet``.
        config: Any trial of the sweep.
        baseline: Statistics of the rewards under the pretrained model.
        history: Rows of ``history/*.parquet``, for the noise of multipliers where there is one seed.
        exact: What trials are held against; only where it is proven.
        mixing: What a set of models reaches; without it no excess is judged. The first model is the pretrained one.
        least: A lower bound on the least KL, where there is no exact one; by default the tangents of all settings.
        seed: Of the random thresholds and the bootstrap.
    """
    generator = np.random.default_rng(seed)
    sought = sought_rewards(config)
    means = np.array([baseline.rewards[name].mean for name in sought])
    table = _figures(trials.combine_chunks(), sought)
    reference = reference_of(trials, table.points, sought, config, baseline)

    settings = check = shares = judged = None
    if config.model.composition is None and sought:
        settings = priced_settings(trials, config, sought, history)
        if len(settings.kl):
            check, shares = check_prices(settings), importance(settings, means)
            judged = None if mixing is None else judge(settings, config, baseline, exact, least, generator)

    methods, compared = [], []
    for method in (name for name in METHODS if name in table.methods):
        mine = table.of(table.methods == method)
        fronts = runs_of(mine.points, mine.seeds)
        pairs = {
            name: [_front(mine.points[rows][:, [0, column]]) for rows in fronts]
            for column, name in enumerate(sought, start=1)
        }
        compared.append(pairs)
        curve: ExcessCurve | None = None
        curves: dict[int, ExcessCurve] = {}
        if judged is not None and mixing is not None:
            curve, curves = _curves(mine, judged, mixing, means)
        methods.append(
            MethodAnalysis(
                method=method,
                seeds=tuple(np.unique(mine.seeds).tolist()),
                hypervolume=hypervolume_interval(
                    [mine.points[rows] for rows in fronts],
                    [mine.errors[rows] for rows in fronts],
                    reference.point,
                    generator,
                    goal=reference.goal,
                ),
                surfaces={name: _surfaces(found) for name, found in pairs.items()},
                curve=curve,
                curves=curves,
            )
        )
    return FrontierAnalysis(
        sought=sought,
        reference=reference.point,
        methods=tuple(methods),
        differences={
            name: attainment_difference(compared[0][name], compared[1][name], reference.point[[0, column]])
            for column, name in enumerate(sought if len(compared) == len(METHODS) else (), start=1)
        },
        settings=settings,
        prices=check,
        importance=shares,
        judged=judged,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Figures:
    """``n`` trials; NaN stands for what brought no figures, so that a failed trial keeps its place."""

    methods: NDArray[np.object_]
    seeds: NDArray[np.int64]
    places: NDArray[np.int64]
    """``[n]``, in the order of finishing."""
    points: FloatArray
    """``[n, 1 + m]``, KL and negated rewards."""
    errors: FloatArray
    """``[n, 1 + m]``"""

    def of(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> "_Figures":
        """Some of them."""
        return _Figures(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def _figures(trials: pa.Table, sought: Sequence[str]) -> _Figures:
    ran = np.asarray(pc.equal(trials["status"], "succeeded"))

    def measured(name: str) -> FloatArray:
        return np.where(ran, real(trials, name), np.nan)

    columns = ("kl", *(f"reward_{name}" for name in sought))
    order = pc.sort_indices(trials, [("finished_at", "ascending"), ("trial_id", "ascending")])
    places = np.empty(trials.num_rows, dtype=np.int64)
    places[order.to_numpy()] = np.arange(trials.num_rows)
    return _Figures(
        methods=np.asarray(trials["method"].to_pylist(), dtype=object),
        seeds=np.asarray(trials["seed"].to_numpy(), dtype=np.int64),
        places=places,
        points=to_minimise(measured("kl"), {name: measured(f"reward_{name}") for name in sought}),
        errors=np.column_stack(
            [standard_error(measured(f"{name}_low"), measured(f"{name}_high")) for name in columns]
        ),
    )


def _front(points: FloatArray) -> FloatArray:
    return points[non_dominated(points)]


def _surfaces(runs: Sequence[FloatArray]) -> tuple[Surface, ...]:
    count = len(runs)
    return attainment_surfaces(runs, sorted({1, (count + 1) // 2, count}))


def _curves(
    trials: _Figures, judged: Judged, mixing: Mixing, pretrained: FloatArray
) -> tuple[ExcessCurve, dict[int, ExcessCurve]]:
    """Of all trials, and of those of every seed."""
    ordered = trials.of(np.argsort(trials.places))

    def curve(rows: NDArray[np.intp], checkpoints: NDArray[np.int64] | None = None) -> ExcessCurve:
        return excess_curve(
            ordered.points[rows, 0],
            -ordered.points[rows, 1:],
            mixing,
            judged.least,
            judged.thresholds,
            pretrained=pretrained,
            prices=judged.prices,
            checkpoints=checkpoints,
        )

    everything = curve(np.arange(len(ordered.seeds)))
    seeds = np.unique(ordered.seeds).tolist()
    if len(seeds) == 1:
        return everything, {seeds[0]: everything}
    curves = {}
    for seed in seeds:
        rows = np.flatnonzero(ordered.seeds == seed)
        curves[seed] = curve(rows, None if len(rows) <= _FOLLOWED else np.array([len(rows)]))
    return everything, curves
