"""How much more KL than necessary a method asks for, at the worst thresholds of a box, and after how many trials.

What finished models can do at thresholds ``b`` is an upper bound ``U(b)`` on the least KL ``P(b)``: the price of
their best mixture. The excess is ``U − P``; it is infinite where no mixture reaches the thresholds. How ``U`` is
computed from the models is the caller's choice (``Mixing``), so that the same figure can be had of mixtures and of
single models, of measured figures and of their bounds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

UpperBound = Callable[[FloatArray], FloatArray]
"""Thresholds ``[T, m]``, reward units, to the KL that reaches them ``[T]``, nats; infinite where nothing does."""
Mixing = Callable[[FloatArray, FloatArray], UpperBound]
"""KL ``[k]``, nats, and rewards ``[k, m]`` of models that can be used, to what they reach. A model reaches its own
rewards at its own KL, or cheaper by the others."""

_EACH = 128
"""Trials up to which a curve has a point for each number of them."""
_MANY = 256
"""Models up to which all are mixed."""
_BLOCK = 8192
"""Models that are scored at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WorstExcess:
    """Of one set of models over the box."""

    excess: float
    """The largest one, nats; infinite where some thresholds are not reached."""
    thresholds: FloatArray
    """``[m]``, where it is, reward units."""
    reached: float
    """Share of the thresholds that are reached."""
    excess_where_reached: float
    """The largest one there, nats; NaN where nothing is reached."""

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """As a document, with the thresholds by reward."""
        return {
            "excess": self.excess,
            "thresholds": dict(zip(names, self.thresholds.tolist(), strict=True)),
            "reached": self.reached,
            "excess_where_reached": self.excess_where_reached,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class ExcessCurve:
    """The worst excess after so many finished trials; it never rises."""

    trials: NDArray[np.int64]
    """``[c]``, rising; failed ones count, since they were paid for."""
    excess: FloatArray
    """``[c]``, nats, infinite while some thresholds are out of reach."""
    reached: FloatArray
    """``[c]``, share of the thresholds that are reached."""
    last: WorstExcess
    """After all trials."""

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """As a document, the figures after the last trial beside the curve."""
        return self.last.to_json(names) | {
            "curve": {
                "trials": self.trials.tolist(),
                "excess": self.excess.tolist(),
                "reached": self.reached.tolist(),
            }
        }

    def trials_to(self, tolerance: float) -> int | None:
        """Trials after which the worst excess was first at most so many nats; None if it never was.

        To the next point of the curve, which of a large sweep does not have every number of trials.
        """
        good = np.flatnonzero(self.excess <= tolerance)
        return int(self.trials[good[0]]) if len(good) else None


def thresholds_of_box(
    low: FloatArray, high: FloatArray, count: int, generator: np.random.Generator
) -> FloatArray:
    """Random thresholds ``[count, m]`` of a box.

    Raises:
        ValueError: An end is not finite, or a low one above its high one.
    """
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
        raise ValueError(
            f"a box of thresholds has finite ends in order, got {low.tolist()} to {high.tolist()}"
        )
    return generator.uniform(low, high, size=(count, len(low)))


def worst_excess(costs: FloatArray, least: FloatArray, thresholds: FloatArray) -> WorstExcess:
    """Find the largest excess.

    Thresholds that cannot be reached at all, of infinite or unknown least KL, are left out.

    Args:
        costs: ``[T]``, what an ``UpperBound`` says of the thresholds, nats.
        least: ``[T]``, their least KL, nats.
        thresholds: ``[T, m]``, reward units.

    Raises:
        ValueError: None is left.
    """
    possible = np.isfinite(least)
    if not possible.any():
        raise ValueError("no thresholds with a finite least KL to judge the excess at")
    excess = costs[possible] - least[possible]
    met = np.isfinite(excess)
    worst = int(np.argmax(excess))
    return WorstExcess(
        excess=float(excess[worst]),
        thresholds=thresholds[possible][worst],
        reached=float(met.mean()),
        excess_where_reached=float(excess[met].max()) if met.any() else np.nan,
    )


def excess_curve(
    kl: FloatArray,
    rewards: FloatArray,
    mixing: Mixing,
    least: FloatArray,
    thresholds: FloatArray,
    *,
    pretrained: FloatArray,
    prices: FloatArray,
    checkpoints: NDArray[np.int64] | None = None,
) -> ExcessCurve:
    """Follow the worst excess while trials finish.

    Up to 256 models are all mixed. Of more only those are that are the best so far at one of the prices, by the least
    ``KL − λ'r`` (what mixtures are made of), or by the greatest ``λ'r`` (what decides how far they reach). What is
    left out can only make an excess larger, and what an earlier mixture reached stays reached.

    Args:
        kl: ``[n]``, nats, in the order in which the trials finished; NaN for one that brought no model.
        rewards: ``[n, m]``, reward units.
        mixing: What a set of models reaches.
        least: ``[T]``, least KL at the thresholds, nats.
        thresholds: ``[T, m]``, reward units.
        pretrained: ``[m]``, mean rewards of the pretrained model, which can always be used, at KL 0.
        prices: ``[L, m]``, multipliers at thresholds like these, nats per reward unit.
        checkpoints: Rising numbers of trials at which the curve has a point; by default ``usual_checkpoints``.
    """
    points = usual_checkpoints(len(kl)) if checkpoints is None else checkpoints
    usable = np.flatnonzero(np.isfinite(kl) & np.isfinite(rewards).all(axis=1))
    chosen = _chosen(kl[usable], rewards[usable], prices, np.searchsorted(usable, points))
    costs = np.full(len(thresholds), np.inf)
    found: list[WorstExcess] = []
    before: NDArray[np.intp] | None = None
    for places in chosen:
        models = usable[places]
        if before is None or not np.array_equal(models, before):
            before = models
            upper = mixing(np.append(0.0, kl[models]), np.vstack([pretrained, rewards[models]]))
            costs = np.minimum(costs, upper(thresholds))
        found.append(worst_excess(costs, least, thresholds))
    return ExcessCurve(
        trials=points.astype(np.int64),
        excess=np.array([worst.excess for worst in found]),
        reached=np.array([worst.reached for worst in found]),
        last=found[-1],
    )


def _chosen(
    kl: FloatArray, rewards: FloatArray, prices: FloatArray, counts: NDArray[np.intp]
) -> Iterator[NDArray[np.intp]]:
    """Yield the models to be mixed of the first ``counts[0]``, ``counts[1]``, ... of all."""
    worth = np.concatenate([prices, prices[::4], np.eye(rewards.shape[1])])
    dear = np.arange(len(worth)) < len(prices)  # whether KL counts
    # Single precision is enough to tell which models are good, and twice as fast.
    directions = np.vstack([dear, -worth.T]).astype(np.float32)
    figures = np.column_stack([kl, rewards]).astype(np.float32)
    best = np.zeros(len(worth), dtype=np.intp)
    least = np.full(len(worth), np.inf, dtype=np.float32)
    done = 0
    for count in counts.tolist():
        for begin in range(done, count, _BLOCK):
            scores = figures[begin : min(begin + _BLOCK, count)] @ directions
            rank = scores.argmin(axis=0)
            score = scores[rank, np.arange(len(worth))]
            best, least = np.where(score < least, begin + rank, best), np.minimum(score, least)
        done = count
        yield np.arange(count) if count <= _MANY else np.unique(best)


def usual_checkpoints(count: int) -> NDArray[np.int64]:
    """Every number of trials up to 128; of more, every one up to 8, then each doubling, and the last one."""
    if count <= _EACH:
        return np.arange(min(1, count), count + 1)
    doubled = 2 ** np.arange(4, count.bit_length())
    return np.unique(np.concatenate([np.arange(1, 9), doubled, [count]]))
