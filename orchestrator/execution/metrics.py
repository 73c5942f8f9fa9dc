"""Gauges of running trials and sweeps, which Ray exports to Prometheus.

Ray exports a value once after it was set, and drops it two reports later (20 s by default): a gauge is there for as
long as somebody sets it. So the last values are set again every second while a trial runs, and end with it; a sweep of
a thousand trials never shows more series than its running trials have.
"""

import logging
import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from orchestrator.report.dashboard import names
from orchestrator.report.dashboard.names import Metric
from trainers.config import TrialJob
from trainers.types import StepRecord

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.execution.trials.ports import StorePort

_REFRESH_SECONDS = 1.0
_log = logging.getLogger(__name__)

Reading = tuple[Metric, Mapping[str, str], float]
"""A gauge, the tags beside the common ones, and its value."""


class LiveGauges:
    """The last readings of one trial or sweep, exported until the end of the block.

    Metrics are no reason for a trial to fail: if Ray refuses one, it is said once and no more are set.
    """

    def __init__(self, tags: Mapping[str, str]) -> None:
        """Set gauges with these tags."""
        self._tags = dict(tags)
        self._lock = threading.Lock()
        self._readings: dict[tuple[str, tuple[tuple[str, str], ...]], Reading] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="cdsweep-gauges", daemon=True)

    def __enter__(self) -> Self:
        """Begin to export."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Let the gauges end."""
        self._over.set()

    def show(self, readings: Iterable[Reading]) -> None:
        """Export readings, in place of earlier ones of the same gauge; what is not finite is left out."""
        finite = [reading for reading in readings if math.isfinite(reading[2])]
        with self._lock:
            self._readings |= {(m.name, tuple(sorted(tags.items()))): (m, tags, v) for m, tags, v in finite}
        self._set(finite)

    def _refresh(self) -> None:
        while not self._over.wait(_REFRESH_SECONDS):
            with self._lock:
                readings = list(self._readings.values())
            self._set(readings)

    def _set(self, readings: Iterable[Reading]) -> None:
        if self._over.is_set():
            return
        try:
            for metric, tags, value in readings:
                _gauge(metric).set(float(value), {**self._tags, **tags})
        except Exception as error:  # noqa: BLE001 - whatever Ray's metrics raise, the trial goes on
            self._over.set()
            _log.warning("no metrics for Ray's dashboard: %s", error)


@cache
def _gauge(metric: Metric) -> Any:
    """Return Ray's gauge, one per process and name."""
    from ray.util.metrics import Gauge

    return Gauge(metric.name, metric.description, tag_keys=metric.tags)


# ---------------------------------------------------------------------------------------------- trials


@contextmanager
def shown(port: "StorePort") -> Iterator[None]:
    """Export what rank 0 reports for the length of a block."""
    if port.rank != 0:
        yield
        return
    with LiveGauges(trial_tags(port.job, port.store.name)) as gauges:
        port.watch = lambda record: gauges.show(trial_readings(record))
        yield


def trial_tags(job: TrialJob, sweep: str) -> dict[str, str]:
    """Return the tags that all gauges of a trial have."""
    return {names.SWEEP: sweep, names.TRIAL: job.trial_id, names.METHOD: job.config.method}


def trial_readings(record: StepRecord) -> list[Reading]:
    """Return the readings of a logged step."""
    single = {
        names.STEP: float(record.step),
        names.KL: record.kl,
        names.KKT_RESIDUAL: record.kkt_residual,
        names.LEARNING_RATE: record.learning_rate,
        names.IMAGES_PER_SECOND: record.images_per_second,
    }
    several = {
        names.REWARD: record.rewards,
        names.VIOLATION: record.violations,
        names.MULTIPLIER: record.multipliers,
        names.MODEL_KL: record.constituents,
    }
    readings: list[Reading] = [(metric, {}, value) for metric, value in single.items()]
    for metric, by_name in several.items():
        readings += [(metric, {names.CONSTRAINT: name}, value) for name, value in by_name.items()]
    return readings


# ---------------------------------------------------------------------------------------------- sweeps


class SweepGauges(LiveGauges):
    """Trials by status and the gap of a certified search, from the process that drives the sweep."""

    def __init__(self, sweep: str, *, planned: int, statuses: Iterable[str]) -> None:
        """Begin with the trials that have finished before."""
        super().__init__({names.SWEEP: sweep})
        self._statuses = Counter({"succeeded": 0, "failed": 0, "infeasible": 0})
        self._statuses.update(statuses)
        self._planned = planned

    def __enter__(self) -> Self:
        """Begin to export."""
        super().__enter__()
        self.planned(self._planned)
        return self

    def planned(self, count: int) -> None:
        """Take note of how many trials the plan has."""
        counts = {"planned": count, **self._statuses}
        self._planned = count
        self.show((names.TRIALS, {names.STATUS: status}, float(n)) for status, n in counts.items())

    def ended(self, row: Mapping[str, Any] | None) -> None:
        """Take note of a trial's end."""
        self._statuses["failed" if row is None else str(row["status"])] += 1
        self.planned(self._planned)

    def known(self, bounds: "pa.Table") -> None:
        """Take note of the bounds."""
        if bounds.num_rows and (gap := bounds["gap"][-1].as_py()) is not None:
            self.show([(names.BOUND_GAP, {}, gap)])
