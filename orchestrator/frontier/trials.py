"""The finished trials of a sweep as columns: built once from the stored rows, read by everything above.

    trials/*.parquet ──► Trials ─┬─► summary, comparison, analysis, prediction, points to bound and to mix
                                 └─► tables, figures, the report's records

A column is ``[n]``, aligned with all others; NaN stands for what a trial does not have, as a failed one has no figures.
Rewards are in reward units, higher is better; KLs in nats; a violation is met at or below 0; multipliers and weights
are nats per reward unit, of a composition's models shares on the simplex. What is selected is a record again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.frontier.dominance import sought_rewards, to_minimise
from orchestrator.frontier.feasibility import standard_error
from orchestrator.results.schema import Names
from trainers.config import TrialConfig

FloatArray = NDArray[np.float64]
Texts = NDArray[np.object_]
Rows = NDArray[np.bool_] | NDArray[np.intp]

METHODS = ("constrained", "weighted")
"""In the order of every table and figure."""
SMALL_KL = 1e-3
"""Nats below which a ratio of two KLs says nothing: both are noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """A figure of ``n`` trials, and the ends of its two-sided 95 % intervals."""

    mean: FloatArray
    low: FloatArray
    high: FloatArray

    @classmethod
    def of(cls, table: pa.Table, name: str) -> Self:
        """Read a column with its ends."""
        return cls(mean=real(table, name), low=real(table, f"{name}_low"), high=real(table, f"{name}_high"))

    @property
    def error(self) -> FloatArray:
        """Standard errors, ``[n]``."""
        return standard_error(self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One row of ``Trials``: null, or absent from a mapping, where it has no such figure."""

    trial_id: str
    seed: int
    sampler: str | None
    """Of a composition; null for others."""
    feasible: bool | None
    kl: float | None
    kl_low: float | None
    kl_high: float | None
    kl_least: float | None
    excess_kl: float | None
    kl_ratio: float | None
    rewards: Mapping[str, float]
    measured: Mapping[str, float]
    """Rewards that nothing is trained on: judges, and what trials are watched by."""
    intervals: Mapping[str, tuple[float, float]]
    """Two-sided 95 % intervals of all of these."""
    deployed: Mapping[str, float]
    """All of these under the sampler that will be used; empty where that was not asked for."""
    deployed_intervals: Mapping[str, tuple[float, float]]
    thresholds: Mapping[str, float]
    multipliers: Mapping[str, float]
    weights: Mapping[str, float]
    """Fixed ones; of a composition the weight of each model on the simplex, fixed or found."""
    kls: Mapping[str, float]
    """To each model of a composition, nats; empty without one."""
    retention: Mapping[str, float]
    """Of each model that is judged: the share of its improvement that a composition keeps."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trials:
    """``n`` trials that have ended, whatever their status."""

    config: TrialConfig
    """Any trial of the sweep: its rewards, constraints and objective are those of all."""
    ids: Texts
    methods: Texts
    seeds: NDArray[np.int64]
    statuses: Texts
    feasible: NDArray[np.bool_]
    """False also of what was not judged."""
    judged: NDArray[np.bool_]
    kl: Measured
    """To the pretrained model; of a composition the largest to a model."""
    least: FloatArray
    """Exact or predicted least KL at the rewards reached."""
    distances: FloatArray
    """KL to the optimum of their own multipliers, nats."""
    rewards: Mapping[str, Measured]
    measured: Mapping[str, Measured]
    """Rewards that nothing is trained on."""
    deployed: Mapping[str, Measured]
    """All of these under the sampler that will be used; empty where that was not asked for."""
    kls: Mapping[str, Measured]
    """To each model of a composition."""
    retention: Mapping[str, Measured]
    """Share of a model's improvement that a composition keeps."""
    thresholds: Mapping[str, FloatArray]
    """By constraint, as are violations; of a KL budget nats."""
    violations: Mapping[str, FloatArray]
    multipliers: Mapping[str, FloatArray]
    """By reward, constraint or model."""
    weights: Mapping[str, FloatArray]
    """By reward or model."""
    samplers: Texts
    provenance: pa.Table
    """How each was made, as stored: times, cost, adapter, what happened on the way."""
    front: NDArray[np.bool_]
    """On the front of its method; nowhere before ``summarise`` has said so."""
    tightest: Mapping[str, float] = field(default_factory=dict)
    """By constraint: the other end of what trials for a box were asked for, whose rows are at the loosest."""

    @classmethod
    def of(cls, table: pa.Table, config: TrialConfig, tightest: Mapping[str, float] | None = None) -> Self:
        """Read rows of ``trials/*.parquet``.

        Args:
            table: In the order of the sweep's files.
            config: Any trial of the sweep.
            tightest: See the field; None without trials for a box.
        """
        table = table.combine_chunks()  # one file per trial makes as many chunks
        names, columns = Names.of(config), set(table.column_names)

        def texts(name: str) -> Texts:
            values = table[name].to_pylist() if name in columns else [None] * table.num_rows
            return np.array([*values, None], dtype=object)[:-1]

        def measured(kind: str, of: tuple[str, ...]) -> dict[str, Measured]:
            return {name: Measured.of(table, f"{kind}_{name}") for name in of}

        def figures(kind: str, of: tuple[str, ...]) -> dict[str, FloatArray]:
            return {name: real(table, f"{kind}_{name}") for name in of}

        own = {"trial_id", "method", "seed", "status", "feasible", "kl_least", "distance", "sampler"}
        named = ("kl", "reward_", "threshold_", "violation_", "multiplier_", "weight_", "retention_")
        feasible = table["feasible"] if "feasible" in columns else pa.nulls(table.num_rows)
        feasible = pc.cast(feasible, pa.bool_())
        return cls(
            config=config,
            ids=texts("trial_id"),
            methods=texts("method"),
            seeds=np.asarray(table["seed"].to_numpy(), dtype=np.int64),
            statuses=texts("status"),
            feasible=np.asarray(pc.fill_null(feasible, False), dtype=np.bool_),
            judged=np.asarray(pc.is_valid(feasible), dtype=np.bool_),
            kl=Measured.of(table, "kl"),
            least=real(table, "kl_least"),
            distances=real(table, "distance"),
            rewards=measured("reward", names.rewards),
            measured=measured("reward", names.measured),
            deployed=measured("deployed", (*names.rewards, *names.measured) if names.deployed else ()),
            kls=measured("kl", names.models),
            retention=measured("retention", names.retained),
            thresholds=figures("threshold", names.constraints),
            violations=figures("violation", names.constraints),
            multipliers=figures(
                "multiplier", tuple(dict.fromkeys(names.rewards + names.constraints + names.models))
            ),
            weights=figures("weight", tuple(dict.fromkeys(names.rewards + names.models))),
            samplers=texts("sampler"),
            provenance=table.select(
                [name for name in table.column_names if name not in own and not name.startswith(named)]
            ),
            front=np.zeros(table.num_rows, dtype=np.bool_),
            tightest=dict(tightest or {}),
        )

    # Selection ------------------------------------------------------------------------------------------

    def take(self, rows: Rows) -> "Trials":
        """Select by mask ``[n]``, or by places in their order."""

        def of(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                return value[rows]
            if isinstance(value, Measured):
                return Measured(mean=value.mean[rows], low=value.low[rows], high=value.high[rows])
            if isinstance(value, pa.Table):
                return value.take(pa.array(np.arange(len(self))[rows]))
            return {name: of(inner) for name, inner in value.items()} if isinstance(value, Mapping) else value

        return replace(self, **{each.name: of(getattr(self, each.name)) for each in fields(self)})

    def of_method(self, method: str) -> "Trials":
        """Those of one method."""
        return self.take(self.methods == method)

    @cached_property
    def succeeded(self) -> NDArray[np.bool_]:
        """``[n]``, that ran to their end and have a KL."""
        succeeded: NDArray[np.bool_] = (self.statuses == "succeeded") & np.isfinite(self.kl.mean)
        return succeeded

    def by_finish(self) -> "Trials":
        """In the order of finishing."""
        ended = pa.table({"at": self.provenance["finished_at"], "id": self.ids})
        return self.take(pc.sort_indices(ended, [("at", "ascending"), ("id", "ascending")]).to_numpy())

    def by_kl(self) -> NDArray[np.intp]:
        """Places of those that succeeded, by method and KL."""
        order = np.lexsort((self.ids.astype(str), self.kl.mean, self.methods.astype(str)))
        return order[self.succeeded[order]]

    # Figures --------------------------------------------------------------------------------------------

    @cached_property
    def sought(self) -> tuple[str, ...]:
        """Rewards that span the frontier with the KL: ``m`` of them."""
        return sought_rewards(self.config)

    @property
    def points(self) -> FloatArray:
        """``[n, 1 + m]``, KL and negated sought rewards: what is minimised."""
        return to_minimise(self.kl.mean, {name: self.rewards[name].mean for name in self.sought})

    @property
    def errors(self) -> FloatArray:
        """``[n, 1 + m]``, standard errors of ``points``."""
        return np.column_stack([self.kl.error, *(self.rewards[name].error for name in self.sought)])

    @cached_property
    def excess(self) -> FloatArray:
        """KL above the least, ``[n]``, nats; NaN where training did not succeed."""
        return np.where(self.succeeded, self.kl.mean - self.least, np.nan)

    @cached_property
    def ratio(self) -> FloatArray:
        """KL divided by the least, ``[n]``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            large = self.succeeded & (self.least > SMALL_KL)
            return np.where(large, self.kl.mean / self.least, np.nan)

    def stored(self) -> dict[str, NDArray[Any]]:
        """All figures under the names of their columns in ``results.schema``."""
        found: dict[str, NDArray[Any]] = {"method": self.methods, "trial_id": self.ids, "seed": self.seeds}
        found |= {"kl_least": self.least, "excess_kl": self.excess, "kl_ratio": self.ratio}
        measured = {"kl": self.kl}
        for kind, of in (
            ("reward", {**self.rewards, **self.measured}),
            ("deployed", self.deployed),
            ("kl", self.kls),
            ("retention", self.retention),
        ):
            measured |= {f"{kind}_{name}": figure for name, figure in of.items()}
        for name, figure in measured.items():
            found |= {name: figure.mean, f"{name}_low": figure.low, f"{name}_high": figure.high}
        for kind in ("threshold", "violation", "multiplier", "weight"):
            found |= {f"{kind}_{name}": column for name, column in getattr(self, f"{kind}s").items()}
        return found

    # One by one -----------------------------------------------------------------------------------------

    @cached_property
    def names(self) -> Names:
        """Names of the sweep's rewards, constraints and models."""
        return Names.of(self.config)

    def __len__(self) -> int:
        """Count them."""
        return len(self.ids)

    def __iter__(self) -> Iterator[Trial]:
        """Yield them in their order, made as they are asked for."""
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, row: int) -> Trial:
        """Return one."""
        names = self.names

        def known(
            of: Mapping[str, FloatArray] | Mapping[str, Measured], only: Any = None
        ) -> dict[str, float]:
            found = ((name, _at(of[name], row)) for name in (of if only is None else only))
            return {name: value for name, value in found if value is not None}

        def intervals(of: Mapping[str, Measured]) -> dict[str, tuple[float, float]]:
            ends = ((name, _at(each.low, row), _at(each.high, row)) for name, each in of.items())
            return {name: (low, high) for name, low, high in ends if low is not None and high is not None}

        return Trial(
            trial_id=self.ids[row],
            seed=int(self.seeds[row]),
            sampler=self.samplers[row],
            feasible=bool(self.feasible[row]) if self.judged[row] else None,
            kl=_at(self.kl, row),
            kl_low=_at(self.kl.low, row),
            kl_high=_at(self.kl.high, row),
            kl_least=_at(self.least, row),
            excess_kl=_at(self.excess, row),
            kl_ratio=_at(self.ratio, row),
            rewards=known(self.rewards),
            measured=known(self.measured),
            intervals=intervals({**self.rewards, **self.measured}),
            deployed=known(self.deployed),
            deployed_intervals=intervals(self.deployed),
            thresholds=known(self.thresholds),
            multipliers=known(self.multipliers, (*names.constraints, *names.models)),
            weights=known(self.weights) or known(self.multipliers, names.models),
            kls=known(self.kls),
            retention=known(self.retention),
        )


def _at(of: FloatArray | Measured, row: int) -> float | None:
    value = float((of.mean if isinstance(of, Measured) else of)[row])
    return None if np.isnan(value) else value


def real(table: pa.Table, name: str) -> FloatArray:
    """A numeric column as ``[n]`` floats; NaN where it is null or the column is missing."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return np.asarray(pc.cast(table[name], pa.float64()).to_numpy(), dtype=np.float64)


def spread(count: int, most: int) -> NDArray[np.intp]:
    """Places of at most ``most`` of ``count``, evenly, the first and the last among them: ``[k]``, rising."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp))
