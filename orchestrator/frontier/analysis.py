"""What a sweep's frontier is made of: reach over seeds, prices, importance of thresholds, and excess over the box.

    trials ─┬─ runs (method, seed) ──► hypervolume with interval, attainment surfaces, difference of methods
            ├─ settings (constrained) ──► shadow prices ──► importance
            │                                   └────► least KL, where no exact one is known
            └─ in the order of finishing ──► mixtures ──► worst excess, trials to tolerance

All of it is about measured figures; their noise enters the intervals of hypervolumes and the flags of prices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
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
from orchestrator.frontier.comparison.importance import Importance, importance
from orchestrator.frontier.comparison.priced import PricedSettings, priced_settings
from orchestrator.frontier.comparison.prices import PriceCheck, check_prices
from orchestrator.frontier.comparison.reference import reference_of
from orchestrator.frontier.dominance import non_dominated, to_minimise
from orchestrator.frontier.problems.least import LeastKL
from orchestrator.frontier.summary import plain
from orchestrator.frontier.trials import METHODS, Trials
from trainers.config import BaselineStatistics

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
    trials: Trials,
    *,
    baseline: BaselineStatistics,
    history: pa.Table | None = None,
    exact: LeastKL | None = None,
    mixing: Mixing | None = None,
    least: UpperBound | None = None,
    seed: int = 0,
) -> FrontierAnalysis:
    """Analyse the finished trials of a sweep.

    Args:
        trials: All of them, failed ones too.
        baseline: Statistics of the rewards under the pretrained model.
        history: Rows of ``history/*.parquet``, for the noise of multipliers where there is one seed.
        exact: What trials are held against; only where it is proven.
        mixing: What a set of models reaches; without it no excess is judged. The first model is the pretrained one.
        least: A lower bound on the least KL, where there is no exact one; by default the tangents of all settings.
        seed: Of the random thresholds and the bootstrap.
    """
    generator = np.random.default_rng(seed)
    config, sought = trials.config, trials.sought
    means = np.array([baseline.rewards[name].mean for name in sought])
    reference = reference_of(trials, baseline)

    settings = check = shares = judged = None
    if config.model.composition is None and sought:
        settings = priced_settings(trials, means, history)
        if len(settings.kl):
            check, shares = check_prices(settings), importance(settings, means)
            judged = None if mixing is None else judge(settings, config, baseline, exact, least, generator)

    methods, compared = [], []
    for method in (name for name in METHODS if name in trials.methods):
        mine = trials.of_method(method)
        points, errors = _measured(mine, mine.points), _measured(mine, mine.errors)
        fronts = runs_of(points, mine.seeds)
        pairs = {
            name: [_front(points[rows][:, [0, column]]) for rows in fronts]
            for column, name in enumerate(sought, start=1)
        }
        compared.append(pairs)
        curve: ExcessCurve | None = None
        curves: dict[int, ExcessCurve] = {}
        if judged is not None and mixing is not None:
            curve, curves = _curves(mine.by_finish(), judged, mixing, means)
        methods.append(
            MethodAnalysis(
                method=method,
                seeds=tuple(np.unique(mine.seeds).tolist()),
                hypervolume=hypervolume_interval(
                    [points[rows] for rows in fronts],
                    [errors[rows] for rows in fronts],
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


def _measured(trials: Trials, figures: FloatArray) -> FloatArray:
    """NaN where a trial failed, so that it keeps its place."""
    return np.where((trials.statuses == "succeeded")[:, None], figures, np.nan)


def _front(points: FloatArray) -> FloatArray:
    return points[non_dominated(points)]


def _surfaces(runs: Sequence[FloatArray]) -> tuple[Surface, ...]:
    count = len(runs)
    return attainment_surfaces(runs, sorted({1, (count + 1) // 2, count}))


def _curves(
    trials: Trials, judged: Judged, mixing: Mixing, pretrained: FloatArray
) -> tuple[ExcessCurve, dict[int, ExcessCurve]]:
    """Of all trials, which are in the order of finishing, and of those of every seed."""
    points = _measured(trials, trials.points)

    def curve(rows: NDArray[np.intp], checkpoints: NDArray[np.int64] | None = None) -> ExcessCurve:
        return excess_curve(
            points[rows, 0],
            -points[rows, 1:],
            mixing,
            judged.least,
            judged.thresholds,
            pretrained=pretrained,
            prices=judged.prices,
            checkpoints=checkpoints,
        )

    everything = curve(np.arange(len(trials)))
    seeds = np.unique(trials.seeds).tolist()
    if len(seeds) == 1:
        return everything, {seeds[0]: everything}
    curves = {}
    for seed in seeds:
        rows = np.flatnonzero(trials.seeds == seed)
        curves[seed] = curve(rows, None if len(rows) <= _FOLLOWED else np.array([len(rows)]))
    return everything, curves
