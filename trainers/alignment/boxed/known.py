"""What looks at the held-out samples have shown of a residual: from each to the next there is a linear model.

Rewards answer multipliers as the covariance of the samples says, times a share ``ρ``: 1 at the optimum of every
multiplier, less for an adapter that has not learned all of it. ``ρ`` is fitted to what looks showed from one to the
next, and the matrix made to agree with it (BFGS: Nocedal & Wright 2006, Numerical Optimization, section 6.1): on shared
noise such differences are sharp, however small the step.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from operator import itemgetter

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import lsq_linear

from trainers.types import Evaluation, FloatArray

_RIDGE = 1e-6
_RESPONSE = 0.25
"""``ρ`` before two looks tell."""
_CUSHION, _PAID = 0.02, 0.025
"""How far beyond a threshold the next look aims, scaled: as far as costs that share of a look's KL at its own
multipliers; where looks have missed it so, by as much more for every one of them."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What multipliers came to on the held-out samples."""

    multipliers: FloatArray
    """``[m]``, per scaled violation."""
    found: Evaluation
    """On all of them, or what the first tell of all (``partial.completed``)."""
    curvature: FloatArray
    """``−∂g/∂λ`` there, ``[m, m]``, as the samples' covariance has it."""
    drawn: Evaluation
    """What was sampled for it."""
    tells: bool = True
    """Whether it is as good as a whole one; else it shows only where to look."""

    @property
    def whole(self) -> bool:
        """Whether all samples were drawn."""
        return self.found is self.drawn


class Known:
    """The looks so far, all on the same noise: whole ones, and some at the first of the samples."""

    def __init__(self, looks: Iterable[Look] = ()) -> None:
        """Begin with looks that there are."""
        self.looks = list(looks)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.looks)

    def add(self, look: Look) -> None:
        """Take another look; a whole one stands in the place of one at its first samples."""
        self.looks = [
            one
            for one in self.looks
            if one.whole or not look.whole or not _same(one.multipliers, look.multipliers)
        ]
        self.looks.append(look)

    def usable(self, *, whole: bool) -> list[Look]:
        """Return those that an answer can be: ``whole`` ones alone, or what is as good, too."""
        return [look for look in self.looks if look.whole or (look.tells and not whole)]

    def nearest(self, multipliers: FloatArray, count: int) -> list[Evaluation]:
        """Return at most so many whole looks, those at the nearest multipliers ``[m]`` first."""
        whole = [look for look in self.looks if look.whole]
        whole.sort(key=lambda look: float(np.linalg.norm(look.multipliers - multipliers)))
        return [look.found for look in whole[:count]]

    def proposed(
        self,
        lacking: Callable[[Evaluation], FloatArray],
        near: FloatArray,
        least: FloatArray,
        most: FloatArray,
        *,
        missed: int = 0,
        safe: bool = False,
    ) -> FloatArray:
        """Return multipliers ``[m]`` at which nothing should be lacking, and nothing be paid in vain.

        They have not been looked at, unless nothing else is proposed.

        Args:
            lacking: Of an evaluation, ``[m]``, scaled.
            near: Multipliers that are thought to be near.
            least: ``[m]``.
            most: ``[m]``.
            missed: Looks that were proposed for the same, and still lacked something.
            safe: Whether to take the way to where nothing is known to lack, if there is one.
        """
        if safe and (found := self._between(lacking)) is not None and not self.near(found):
            return found
        short = [lacking(look.found) for look in self.looks]
        # What changes from one to the next is told by the samples that all of them have drawn.
        drawn = min(len(look.drawn.kl) for look in self.looks)
        shared = [lacking(_first(look.drawn, drawn)) for look in self.looks]

        def distance(place: int) -> float:
            held = self.looks[place].multipliers <= least
            # What is exceeded at a multiplier of its least cannot be paid less for.
            return float(np.abs(np.where(held, np.maximum(short[place], 0.0), short[place])).max())

        def after(place: int) -> FloatArray:
            look = self.looks[place]
            response = self._response(look.curvature, shared)
            response += _DAMPED * float(np.linalg.eigvalsh(response)[-1]) * np.eye(len(response))
            beyond = short[place] + _cushion(look, least) + np.where(short[place] > 0, missed * _CUSHION, 0.0)
            step = newton_step(beyond, response, look.multipliers, least, most)
            longest = 0.5 + 0.5 * float(np.linalg.norm(near))
            step *= min(1.0, longest / max(float(np.linalg.norm(step)), 1e-12))
            return np.asarray(np.clip(look.multipliers + step, least, most))

        # From the look that came nearest: what is lacking there is measured on the noise of the next.
        order = sorted(range(len(self.looks)), key=distance)
        first = after(order[0])
        others = (after(place) for place in order[1:])  # each as it is needed
        return next((found for found in chain([first], others) if not self.near(found)), first)

    def _between(self, lacking: Callable[[Evaluation], FloatArray]) -> FloatArray | None:
        """Return multipliers ``[m]`` on the way from the look that lacks least to the cheapest at which nothing does.

        As far as what is lacking vanishes along it, and a little farther; None where one of the two is missing.

        Args:
            lacking: Of an evaluation, ``[m]``, scaled.
        """
        judged = [(lacking(look.found), look) for look in self.usable(whole=False)]
        held = [(float(look.found.kl.mean()), short, look) for short, look in judged if (short <= 0).all()]
        lacks = [(float(short.max()), short, look) for short, look in judged if (short > 0).any()]
        if not (held and lacks):
            return None
        _, over, dear = min(held, key=itemgetter(0))
        _, under, near = min(lacks, key=itemgetter(0))
        missing = under > 0
        share = float((under[missing] / (under[missing] - over[missing])).max())
        share = float(np.clip(_FARTHER * share, _LEAST_WAY, 1.0))
        return near.multipliers + share * (dear.multipliers - near.multipliers)

    def in_vain(self, lacking: Callable[[Evaluation], FloatArray]) -> bool:
        """Whether the last look lacks nothing, and costs what one before it does that lacks nothing, too.

        Args:
            lacking: Of an evaluation, ``[m]``, scaled.
        """
        held = [look for look in self.usable(whole=False) if (lacking(look.found) <= 0).all()]
        if len(held) < 2 or held[-1] is not self.looks[-1]:
            return False
        *earlier, last = [float(look.found.kl.mean()) for look in held]
        return abs(last - min(earlier)) <= _WORTH * last

    def near(self, multipliers: FloatArray) -> bool:
        """Whether multipliers ``[m]`` have been looked at, or some that differ by no more than is worth a look."""
        return any(_same(look.multipliers, multipliers, _ALIKE) for look in self.looks)

    def _response(self, curvature: FloatArray, short: Sequence[FloatArray]) -> FloatArray:
        """Return what multipliers change of what is lacking, ``[m, m]``, as the looks have it that lack ``short``."""
        steps, changes = [], []
        along, square = _WEIGHT * _RESPONSE, _WEIGHT
        for (before, lacked), (after, lacks) in pairwise(zip(self.looks, short, strict=True)):
            if not np.isfinite(lacked - lacks).all():
                continue  # too few scores tell nothing
            steps.append(after.multipliers - before.multipliers)
            changes.append(lacked - lacks)
            expected = before.curvature @ steps[-1]
            along += float(expected @ changes[-1])
            square += float(expected @ expected)
        found = float(np.clip(along / square, *_RESPONSES)) * _positive(curvature)
        for step, change in zip(steps, changes, strict=True):
            expected = found @ step
            length = float(step @ expected)
            if float(step @ change) > _BENT * length > 0.0:
                found = found - np.outer(expected, expected) / length
                found += np.outer(change, change) / float(step @ change)
        return found


_WORTH = 0.01
"""Share of an answer's KL for which another look is worth its samples."""
_ALIKE = 0.01
"""Share of multipliers within which looks tell the same."""
_FARTHER = 1.25
"""Of the way to what is lacking no more, that is gone."""
_LEAST_WAY = 0.1
"""Share of the whole way that is gone at least: less tells nothing new."""
_DAMPED = 0.1
"""Of the largest response, added to all: where an adapter moves rewards together, what tells them apart is noise."""
_RESPONSES = 0.05, 1.0
"""Between which ``ρ`` is taken to be."""
_BENT = 0.05
"""Share of the expected change along a step from which on it is believed: less would ask for steps without measure."""
_WEIGHT = 0.002
"""Of ``_RESPONSE`` among the looks, squares of scaled violations."""


def _cushion(look: Look, least: FloatArray) -> float:
    """Return how far beyond what is lacking the next look aims, scaled."""
    price = float((look.multipliers - least).sum())
    return min(_CUSHION, _PAID * max(float(look.found.kl.mean()), 0.0) / price) if price > 0 else _CUSHION


def _first(drawn: Evaluation, count: int) -> Evaluation:
    """Return the first samples of an evaluation."""
    if count == len(drawn.kl):
        return drawn
    return replace(
        drawn,
        kl=drawn.kl[:count],
        log_ratio=None,
        rewards={name: values[:count] for name, values in drawn.rewards.items()},
        noise={name: values[:count] for name, values in drawn.noise.items()},
        seeds=drawn.seeds[:count],
        prompts=None if drawn.prompts is None else drawn.prompts[:count],
    )


def _same(one: FloatArray, other: FloatArray, share: float = 0.0) -> bool:
    return np.allclose(one, other, rtol=share, atol=1e-3)


def newton_step(
    gaps: FloatArray, curvature: FloatArray, multipliers: FloatArray, least: FloatArray, most: FloatArray
) -> FloatArray:
    """Return Newton's step ``[m]`` of the concave dual among multipliers between ``least`` and ``most``."""
    ridge = _RIDGE * max(float(np.trace(curvature)), _RIDGE)
    root = np.linalg.cholesky(_positive(curvature) + ridge * np.eye(len(gaps)))
    aim = root.T @ multipliers + solve_triangular(root, gaps, lower=True)
    return np.asarray(lsq_linear(root.T, aim, bounds=(least, most), method="bvls").x - multipliers)


def _positive(matrix: FloatArray) -> FloatArray:
    """Return a symmetric matrix without what is negative of it: noise."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)
