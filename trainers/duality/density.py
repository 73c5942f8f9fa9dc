"""Densities on the unit cube: numbers at the nodes of a lattice, multilinear between them.

Symbols: ``x`` a place ``[k]``, ``ρ(x) = Σ_n φ_n(x) ρ_n`` with ``ρ_n > 0`` and the hats ``φ_n`` of ``duality.box``; a
density is an array with ``k`` axes of ``A`` nodes each, and needs not integrate to 1.
"""

import numpy as np

from trainers.types import FloatArray


def hats(places: FloatArray, nodes: int) -> FloatArray:
    """Return the hats of so many nodes along an axis at places ``[…]`` in [0, 1], ``[…, nodes]``."""
    return np.maximum(0.0, 1.0 - np.abs(places[..., None] * (nodes - 1) - np.arange(nodes)))


def shares(density: FloatArray) -> FloatArray:
    """Return ``E φ_n`` of places with a density, of its shape; they sum to 1."""
    count = len(density)
    overlaps = np.zeros((count, count))  # ∫ φ_i φ_j along one axis, in sixths of a cell
    for cell in range(count - 1):
        overlaps[cell : cell + 2, cell : cell + 2] += [[2.0, 1.0], [1.0, 2.0]]
    for axis in range(density.ndim):
        density = np.moveaxis(np.tensordot(overlaps, density, axes=(1, axis)), 0, axis)
    return np.asarray(density / density.sum())


def at_density(places: FloatArray, density: FloatArray) -> FloatArray:
    """Return places ``[n, k]`` of the unit cube, moved so that what was spread evenly has a density.

    Each coordinate in turn is moved by the inverse of its distribution function, given those before it (Rosenblatt
    1952); where it lands depends on no other place.
    """
    nodes = len(density)
    left = np.broadcast_to(density, (len(places), *density.shape))  # given the coordinates before
    columns = []
    for column in range(places.shape[1]):
        marginal = left
        while marginal.ndim > 2:  # the integral along the last axis, in cells: added up in one order for all
            marginal = sum(
                (marginal[..., cell] + marginal[..., cell + 1] for cell in range(nodes - 1)),
                np.zeros(marginal.shape[:-1]),
            )
        columns.append(_quantiles(places[:, column], marginal))
        along = hats(columns[-1], nodes)
        tail = (1,) * (left.ndim - 2)
        left = sum(
            (along[:, node].reshape(-1, *tail) * left[:, node] for node in range(nodes)),
            np.zeros((len(places), *left.shape[2:])),
        )
    return np.stack(columns, axis=1)


def near(places: FloatArray, values: FloatArray, asked: FloatArray) -> FloatArray:
    """Return what values ``[p]`` at places ``[p, k]`` come to at others ``[n, k]``: by inverse squares of distances.

    What is nearer than a hundredth of the cube counts as that far.
    """
    distances = ((asked[:, None] - places) ** 2).sum(axis=2)  # [n, p]
    weights = 1.0 / (distances + _NEAREST**2)
    return np.asarray((weights * values).sum(axis=1) / weights.sum(axis=1))


_NEAREST = 0.01


def _quantiles(levels: FloatArray, density: FloatArray) -> FloatArray:
    """Return where distribution functions of piecewise linear densities ``[n, A]`` on [0, 1] reach levels ``[n]``."""
    masses = (density[:, 1:] + density[:, :-1]) / 2.0  # [n, A - 1], of each cell
    below = np.concatenate([np.zeros((len(masses), 1)), np.cumsum(masses, axis=1)], axis=1)
    asked = levels * below[:, -1]
    cells = (below[:, 1:-1] <= asked[:, None]).sum(axis=1)
    rows = np.arange(len(levels))
    begin, end = density[rows, cells], density[rows, cells + 1]
    missing = asked - below[rows, cells]
    # begin t + (end − begin) t² / 2 = missing
    part = 2.0 * missing / (begin + np.sqrt(np.maximum(begin**2 + 2.0 * (end - begin) * missing, 0.0)))
    return np.asarray((cells + np.clip(part, 0.0, 1.0)) / masses.shape[1])
