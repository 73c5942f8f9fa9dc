"""What a method reaches, seed by seed: attainment surfaces, their difference between methods, and hypervolume.

All trials of one method and one seed are one *run*. A run attains a goal ``z`` if one of its trials is no worse in
any coordinate. The empirical attainment function of ``n`` runs is the share of them that attains ``z``; the k-of-n
surface is the edge of what at least ``k`` of them attain (Grunert da Fonseca, Fonseca & Hall 2001, "Inferential
performance assessment of stochastic optimisers and the attainment function"). Its integral up to a reference point
is the mean hypervolume of the runs.

Everything is minimised here, as in ``dominance``: KL in nats, rewards negated.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import moocore
import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from orchestrator.frontier.dominance import non_dominated
from orchestrator.frontier.feasibility import TWO_SIDED
from orchestrator.frontier.indicators import hypervolume

FloatArray = NDArray[np.float64]

SEEDS_FOR_SPREAD = 3
"""From as many runs on, their spread is what the interval of a hypervolume comes from."""

_EXACT_POINTS = {4: 50_000, 5: 2_000}
"""Points by number of coordinates (5 stands for more) up to which a hypervolume is computed exactly."""
_DIRECTIONS = 4_096
"""Of the approximation beyond that: about 5 in 1,000 too low."""
_FIRST_TIME = 1.0 / (2.0**0.5 - 1.0)
"""How much more noise added when it was measured than when it is drawn anew, at most."""
_REDRAWN_POINTS = 200_000
"""Points times repetitions of the parametric bootstrap."""
_REDRAWN_EXACTLY = 2_000
"""Points up to which its repetitions are computed exactly."""
_REDRAWN_DIRECTIONS = 256
"""Of the approximation beyond that: a relative change needs no more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """The edge of what ``level`` of ``runs`` runs attain."""

    level: int
    runs: int
    points: FloatArray
    """``[p, d]``, non-dominated, minimised; none where so many runs attain nothing."""

    def to_json(self) -> dict[str, Any]:
        """As a document; rewards have their own sign."""
        signs = np.append(1.0, np.full(self.points.shape[1] - 1, -1.0))
        return {"level": self.level, "of": self.runs, "points": (self.points * signs).tolist()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Difference:
    """Where one method attains more often than another, in two coordinates."""

    corners: FloatArray
    """``[q, 4]``: lower and upper end of the first coordinate, then of the second; half-open, disjoint."""
    shares: FloatArray
    """``[q]``, share of the first method's runs minus that of the second, in [-1, 1], never 0."""
    net: float
    """Integral up to the reference point: the difference of the mean hypervolumes."""

    def to_json(self) -> dict[str, Any]:
        """As a document; a rectangle is KL from, to, reward from, to, and the share."""
        corners = np.column_stack([self.corners[:, :2], -self.corners[:, [3, 2]], self.shares])
        return {"hypervolume": self.net, "rectangles": corners.tolist()}


@dataclass(frozen=True, kw_only=True)
class HypervolumeInterval:
    """Mean hypervolume of the runs of a method, with a two-sided 95 % interval."""

    mean: float
    """Nats times reward units."""
    low: float | None
    high: float | None
    by_run: tuple[float, ...]
    kind: Literal["seeds", "standard errors", "none"]
    """What the interval comes from."""
    exact: bool
    """False where a front was so large that the hypervolume is approximated."""


def runs_of(points: FloatArray, seeds: NDArray[np.int64]) -> tuple[NDArray[np.intp], ...]:
    """Return the rows of every run that are on its front, in the order of the seeds.

    Args:
        points: ``[n, d]``, minimised; NaN where a trial has no figures. A seed of such trials alone is an empty run.
        seeds: ``[n]``
    """
    runs = [np.flatnonzero(seeds == seed) for seed in np.unique(seeds).tolist()]
    return tuple(rows[non_dominated(points[rows])] for rows in runs)


def attainment_surfaces(
    runs: Sequence[FloatArray], levels: Sequence[int] | None = None
) -> tuple[Surface, ...]:
    """Return the surfaces of all levels, or of some, from the easiest goals to the most reliable.

    Args:
        runs: ``[n_i, d]`` each, minimised; ``d`` is 2 or 3.
        levels: Numbers of runs, from 1 to all.

    Raises:
        ValueError: Another number of coordinates, or a level that there is not.
    """
    count = len(runs)
    asked = range(1, count + 1) if levels is None else levels
    if any(not 1 <= level <= count for level in asked):
        raise ValueError(f"levels of {count} runs are 1 to {count}, got {list(asked)}")
    size = runs[0].shape[1] if count else 2
    if size not in {2, 3}:
        raise ValueError(f"attainment surfaces have two or three coordinates, got {size}")
    filled = [points for points in runs if len(points)]  # a run without points attains nothing
    found = np.empty((0, size + 1))
    if filled:
        labels = np.repeat(np.arange(len(filled)), [len(points) for points in filled])
        found = moocore.eaf(np.concatenate(filled), labels)
    reached = np.rint(found[:, -1] * len(filled) / 100.0)  # percent of the runs that have points
    return tuple(
        Surface(level=level, runs=count, points=found[reached == level, :-1].copy()) for level in asked
    )


def attainment_difference(
    first: Sequence[FloatArray], second: Sequence[FloatArray], reference: FloatArray
) -> Difference:
    """Compare the attainment functions of two methods up to a reference point.

    In a strip between two neighbouring values of the first coordinate, each run attains all second coordinates
    from some height on; sorting these heights gives the steps of both functions. (``moocore.eafdiff`` finds the
    same where both have equally many runs; 0.3.2 takes the first half of all runs for the first method's, so of
    unequal numbers it counts some for the other method.)

    Args:
        first: ``[n_i, 2]`` each, minimised.
        second: The same of the other method; the numbers of runs may differ.
        reference: ``[2]``, the upper end of both coordinates.

    Raises:
        ValueError: A method has no runs, or another number of coordinates.
    """
    if not first or not second:
        raise ValueError(f"a difference needs runs of both methods, got {len(first)} and {len(second)}")
    runs = [*first, *second]
    if any(points.shape[1:] != (2,) for points in runs) or reference.shape != (2,):
        raise ValueError("differences are of two coordinates")
    edges = np.unique(np.concatenate([points[:, 0] for points in runs]))
    edges = np.append(edges[edges < reference[0]], reference[0])  # [s + 1]
    left = edges[:-1]
    heights = np.column_stack([_height(points, left, float(reference[1])) for points in runs])  # [s, runs]
    weights = np.repeat([1.0 / len(first), -1.0 / len(second)], [len(first), len(second)])
    order = np.argsort(heights, axis=1, kind="stable")
    shares = np.cumsum(weights[order], axis=1)
    bottoms = np.take_along_axis(heights, order, axis=1)
    tops = np.column_stack([bottoms[:, 1:], np.full(len(left), reference[1])])
    strips, steps = np.nonzero((tops > bottoms) & (np.abs(shares) > 1e-9))
    corners = np.column_stack([left[strips], edges[strips + 1], bottoms[strips, steps], tops[strips, steps]])
    corners, values = _joined(corners, shares[strips, steps])
    areas = (corners[:, 1] - corners[:, 0]) * (corners[:, 3] - corners[:, 2])
    return Difference(corners=corners, shares=values, net=float(areas @ values))


def hypervolume_interval(
    runs: Sequence[FloatArray],
    errors: Sequence[FloatArray],
    reference: FloatArray,
    generator: np.random.Generator,
    *,
    goal: FloatArray | None = None,
) -> HypervolumeInterval:
    """Return the mean hypervolume of the runs and how sure it is.

    Three runs or more speak for themselves, by Student's t: of three, resampling them covers 74 % in place of 95 %
    (10 distinct samples), t 94 %. Fewer are drawn anew from the reported standard errors (parametric bootstrap).
    Noise makes a front look better than it is, since the lucky trials are on it, and drawing it anew does so once
    more. The largest of noisy figures grows with the standard deviation, so what the second time adds the first one
    may have added 1 / (√2 − 1) times: the interval reaches down by that.

    Args:
        runs: ``[n_i, d]`` each, minimised.
        errors: Standard errors of the same shapes; NaN where unknown.
        reference: ``[d]``
        generator: Of the bootstrap.
        goal: ``[d]``, beyond which nothing counts; None counts all.
    """
    if not runs:
        return HypervolumeInterval(mean=0.0, low=None, high=None, by_run=(), kind="none", exact=True)
    ideal = np.full_like(reference, -np.inf) if goal is None else goal
    exact = all(len(points) <= _exact_limit(points) for points in runs)
    with ThreadPoolExecutor() as pool:  # outside of the interpreter's lock
        volumes = np.array(list(pool.map(lambda points: _volume(np.maximum(points, ideal), reference), runs)))
    mean, count = float(volumes.mean()), len(runs)
    kind: Literal["seeds", "standard errors", "none"] = "none"
    low = high = None
    if count >= SEEDS_FOR_SPREAD:
        kind = "seeds"
        half = float(stdtrit(count - 1, 0.975) * volumes.std(ddof=1) / np.sqrt(count))
        low, high = max(mean - half, 0.0), mean + half
    elif mean > 0 and all(np.isfinite(noise).all() for noise in errors):
        kind = "standard errors"
        changes = _redrawn(runs, errors, reference, ideal, generator)
        flattered = _FIRST_TIME * max(float(changes.mean()) - 1.0, 0.0)
        half = TWO_SIDED * float(changes.std(ddof=1))
        low, high = mean * max(1.0 - flattered - half, 0.0), mean * (1.0 + half)
    return HypervolumeInterval(
        mean=mean, low=low, high=high, by_run=tuple(volumes.tolist()), kind=kind, exact=exact
    )


def _redrawn(
    runs: Sequence[FloatArray],
    errors: Sequence[FloatArray],
    reference: FloatArray,
    ideal: FloatArray,
    generator: np.random.Generator,
) -> FloatArray:
    """Mean hypervolumes of runs with noise added, relative to those without: ``[repetitions]``."""
    total = sum(len(points) for points in runs)
    repetitions = int(np.clip(_REDRAWN_POINTS // total, 16, 400))
    directions = None if total <= _REDRAWN_EXACTLY else _REDRAWN_DIRECTIONS

    def volume(scale: float) -> float:
        noisy = (
            np.maximum(points + scale * noise * generator.standard_normal(points.shape), ideal)
            for points, noise in zip(runs, errors, strict=True)
        )
        return sum(
            hypervolume(points, reference)
            if directions is None
            else _approximate(points, reference, directions)
            for points in noisy
        )

    still = volume(0.0)
    return np.array([volume(1.0) for _ in range(repetitions)]) / still


def _volume(points: FloatArray, reference: FloatArray) -> float:
    if len(points) <= _exact_limit(points):
        return hypervolume(points, reference)
    return _approximate(points, reference, _DIRECTIONS)


def _approximate(points: FloatArray, reference: FloatArray, directions: int) -> float:
    counted = points[(points < reference).all(axis=1)]
    if not len(counted):
        return 0.0
    return float(moocore.hv_approx(counted, ref=reference, nsamples=directions))


def _exact_limit(points: FloatArray) -> float:
    """Number of points up to which the exact hypervolume takes well below a second."""
    size = points.shape[1]
    return np.inf if size < min(_EXACT_POINTS) else _EXACT_POINTS[min(size, max(_EXACT_POINTS))]


def _height(points: FloatArray, left: FloatArray, top: float) -> FloatArray:
    """Least second coordinate that a run attains at each first one ``[s]``, ``top`` where it attains none."""
    order = np.argsort(points[:, 0], kind="stable")
    least = np.append(top, np.minimum(np.minimum.accumulate(points[order, 1]), top))
    heights: FloatArray = least[np.searchsorted(points[order, 0], left, side="right")]
    return heights


def _joined(corners: FloatArray, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Rectangles side by side with equal share and heights become one."""
    order = np.lexsort((corners[:, 0], shares, corners[:, 3], corners[:, 2]))
    corners, shares = corners[order], shares[order]
    starts = np.ones(len(shares), dtype=np.bool_)
    starts[1:] = (
        (corners[1:, 2:] != corners[:-1, 2:]).any(axis=1)
        | (np.abs(np.diff(shares)) > 1e-9)
        | (corners[1:, 0] != corners[:-1, 1])
    )
    ends = np.append(np.flatnonzero(starts)[1:] - 1, len(shares) - 1)[: int(starts.sum())]
    joined = corners[starts]
    joined[:, 1] = corners[ends, 1]
    return joined, shares[starts]
