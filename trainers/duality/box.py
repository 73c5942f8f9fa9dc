"""Multipliers as a function of thresholds that move in a box: numbers at nodes, and hats between them.

Symbols: ``b`` thresholds ``[m]``, ``λ(b) = Σ_n φ_n(b) λ_n`` with ``λ_n >= 0`` at node ``n`` of a lattice over it and
``φ_n`` the multilinear hat there. Hats are not negative and sum to 1, so ``λ(b) >= 0`` everywhere as soon as every
``λ_n`` is: the projection of the nodes is that of the function, and nothing winds up behind it. With ``N`` nodes the
``N m`` numbers are those of one ordinary dual optimiser (``duality.optimizers``), whose violations are local means,

    ḡ_n = E_b[φ_n(b) g(b)] / E_b[φ_n(b)],

of thresholds that are spread evenly over the box: what a trial at a node would see, smoothed over its neighbourhood.
Where they are drawn more densely in places, expectations are those of the density (``duality.density``).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainers.duality.constraint import Constraint
from trainers.duality.density import at_density, hats, near, shares
from trainers.duality.lagrangian import Lagrangian
from trainers.low_discrepancy import even_cube
from trainers.types import FloatArray

_NODES = {1: 9, 2: 5, 3: 4, 4: 3, 5: 2, 6: 2}
"""Nodes along each of so many moving thresholds: at most 81 in all."""
_COARSE = {1: 3, 2: 3, 3: 2, 4: 2, 5: 2, 6: 2}
"""The same for small batches: each node needs samples of its own in every one."""
MOST_MOVING = max(_NODES)


@dataclass(frozen=True, kw_only=True)
class Box:
    """Thresholds of ``m`` constraints, of which 1 to 6 move."""

    loosest: FloatArray
    """``[m]``, units of the quantities."""
    tightest: FloatArray
    """``[m]``; the same where a threshold stands still."""
    coarse: bool = False
    """Whether batches are small, and nodes few."""
    density: FloatArray | None = None
    """``[N]``, above 0: how densely thresholds are drawn at the nodes, relative to each other, and multilinear between;
    None: evenly."""

    def __post_init__(self) -> None:
        """Check that something moves, and not too much, and that nothing is left out.

        Raises:
            ValueError: nothing moves, or too much; or a density is none.
        """
        if not 1 <= len(self.moving) <= MOST_MOVING:
            raise ValueError(f"1 to {MOST_MOVING} thresholds of a box move, got {len(self.moving)}")
        if self.density is not None:
            count, known = self._along ** len(self.moving), self.density
            if known.shape != (count,) or not (np.isfinite(known).all() and (known > 0).all()):
                raise ValueError(
                    f"a density has {count} numbers above 0, one for each node, got {known.tolist()}"
                )

    @property
    def moving(self) -> tuple[int, ...]:
        """Places of the constraints whose thresholds move."""
        return tuple(np.flatnonzero(self.loosest != self.tightest).tolist())

    @property
    def _along(self) -> int:
        """Nodes along each moving threshold."""
        return (_COARSE if self.coarse else _NODES)[len(self.moving)]

    @property
    def nodes(self) -> FloatArray:
        """Thresholds of the nodes, ``[N, m]``; the first has the loosest, the last the tightest."""
        along = np.linspace(0.0, 1.0, self._along)
        return self._thresholds(np.array(list(itertools.product(*[along] * len(self.moving)))))

    @property
    def masses(self) -> FloatArray:
        """``E_b φ_n(b)``, ``[N]``: the share of what is drawn that each node stands for; they sum to 1."""
        if self.density is not None:
            return shares(self._lattice(self.density)).ravel()
        cells = self._along - 1
        along = np.full(cells + 1, 1.0 / cells)
        along[[0, -1]] /= 2.0
        return np.array([np.prod(parts) for parts in itertools.product(*[along] * len(self.moving))])

    def spread(self, first: int, last: int, shift: float = 0.0) -> FloatArray:
        """Return thresholds ``first`` to ``last`` of an endless even sequence over the box, ``[n, m]``.

        Args:
            first: Number of the first one.
            last: Number of the one after the last.
            shift: Of all of them, around the box: another sequence for every seed.
        """
        return self._thresholds(self._even(first, last, shift))

    def drawn(self, first: int, last: int, shift: float = 0.0) -> FloatArray:
        """Return thresholds ``[n, m]`` of the same sequence, moved so that they have the density of the box."""
        places = self._even(first, last, shift)
        return self._thresholds(
            places if self.density is None else at_density(places, self._lattice(self.density))
        )

    def denser(self, thresholds: FloatArray, gaps: FloatArray) -> FloatArray | None:
        """Return a density ``[N]``, half of it even and half in proportion to the gaps; None where there are none.

        Args:
            thresholds: ``[p, m]``, where gaps are known.
            gaps: ``[p]``; what is below 0 is none, and what is NaN is left out.
        """
        known = np.isfinite(gaps)
        positive = np.maximum(gaps[known], 0.0)
        if not positive.any():
            return None
        at_nodes = near(self._places(thresholds[known]), positive, self._places(self.nodes))
        even = replace(self, density=None).masses
        return np.asarray(0.5 + 0.5 * at_nodes / (even @ at_nodes))

    def clipped(self, thresholds: FloatArray) -> FloatArray:
        """Return thresholds ``[m]`` moved into the box: those of it that are nearest."""
        ends = np.stack([self.loosest, self.tightest])
        return np.asarray(np.clip(thresholds, ends.min(axis=0), ends.max(axis=0)))

    def holds(self, thresholds: FloatArray) -> bool:
        """Whether thresholds ``[m]`` lie in the box."""
        size = np.where(self.loosest == self.tightest, 1.0, np.abs(self.tightest - self.loosest))
        return bool((np.abs(thresholds - self.clipped(thresholds)) <= _ROUNDING * size).all())

    def hats(self, thresholds: FloatArray) -> FloatArray:
        """Return ``φ_n(b)`` ``[n, N]`` at thresholds ``[n, m]`` of the box.

        Raises:
            ValueError: some lie outside.
        """
        along = hats(self._places(thresholds), self._along)  # [n, k, nodes]
        found = np.ones((len(thresholds), 1))
        for column in range(along.shape[1]):
            found = (found[:, :, None] * along[:, column, None, :]).reshape(len(found), -1)
        return found

    def at(self, multipliers: FloatArray, thresholds: FloatArray) -> FloatArray:
        """Return ``λ(b)``, ``[n, m]``, of multipliers ``[N m]`` at the nodes, for thresholds ``[n, m]``."""
        return self.hats(thresholds) @ multipliers.reshape(-1, len(self.loosest))

    def mean(self, multipliers: FloatArray) -> FloatArray:
        """Return the mean of ``λ(b)`` over what is drawn, ``[m]``."""
        return self.masses @ multipliers.reshape(-1, len(self.loosest))

    def local_means(self, thresholds: FloatArray, values: FloatArray) -> FloatArray:
        """Return what values ``[n, m]`` at thresholds ``[n, m]`` that were drawn come to near each node, ``[N m]``."""
        return ((self.hats(thresholds).T @ values) / len(values) / self.masses[:, None]).ravel()

    def _even(self, first: int, last: int, shift: float) -> FloatArray:
        """Return places ``[n, k]`` of the sequence in the unit cube."""
        return even_cube(first, last, len(self.moving), shift)

    def _lattice(self, values: FloatArray) -> FloatArray:
        """Return values ``[N]`` at the nodes with an axis for each threshold that moves."""
        return values.reshape((self._along,) * len(self.moving))

    def _thresholds(self, places: FloatArray) -> FloatArray:
        """Return thresholds ``[n, m]`` at places ``[n, k]`` in the unit cube of those that move."""
        whole = np.zeros((len(places), len(self.loosest)))
        whole[:, list(self.moving)] = places
        # Both ends exactly, and what stands still to the last bit.
        return self.loosest * (1.0 - whole) + self.tightest * whole

    def _places(self, thresholds: FloatArray) -> FloatArray:
        """Return places ``[n, k]`` in the unit cube, rounding cut off."""
        moving = list(self.moving)
        low, size = self.loosest[moving], (self.tightest - self.loosest)[moving]
        places = (thresholds[:, moving] - low) / size
        if not ((places >= -_ROUNDING) & (places <= 1.0 + _ROUNDING)).all():
            raise ValueError(f"thresholds {thresholds.tolist()} are not all in the box {self}")
        return np.asarray(np.clip(places, 0.0, 1.0))


_ROUNDING = 1e-9
"""Of a threshold, as a share of its range."""


def moved(lagrangian: Lagrangian, thresholds: FloatArray) -> Lagrangian:
    """Return a Lagrangian with thresholds ``[m]`` in place of its own."""
    constraints = tuple(
        # What is allowed of a budget is a share of it.
        replace(c, bound=float(b), allowance=c.allowance * (float(b) / c.bound if c.sign > 0 else 1.0))
        for c, b in zip(lagrangian.constraints, thresholds, strict=True)
    )
    return replace(lagrangian, constraints=constraints)


def scaled_gaps(constraints: Sequence[Constraint], thresholds: FloatArray, values: FloatArray) -> FloatArray:
    """Return scaled violations ``[n, m]`` of samples.

    Args:
        constraints: ``[m]``; their own thresholds are of no account.
        thresholds: ``[n, m]``, those of each sample.
        values: ``[n, m]``, of the quantity of each constraint.
    """
    signs = np.array([c.sign for c in constraints])
    scales = np.array([c.scale for c in constraints])
    return np.asarray(signs * (values - thresholds) / scales + np.array([c.margin for c in constraints]))
