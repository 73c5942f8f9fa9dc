"""Thresholds that are drawn more densely in places: as the density says, still evenly, and each on its own."""

import dataclasses

import numpy as np
import pytest

from trainers.duality.box import MOST_MOVING, Box


def even(moving: int) -> Box:
    """A box with a threshold that stands still."""
    loosest = np.arange(moving + 1, dtype=np.float64)
    return Box(loosest=loosest, tightest=loosest + np.array([2.0] * moving + [0.0]))


def leaning(moving: int) -> Box:
    """The same with densities from 0.5 to 4 at its nodes."""
    box = even(moving)
    density = np.random.default_rng(moving).uniform(0.5, 4.0, size=len(box.masses))
    return dataclasses.replace(box, density=density)


@pytest.mark.parametrize("moving", range(1, MOST_MOVING + 1))
def test_shares_are_those_of_even_thresholds_weighted_by_the_density(moving: int) -> None:
    box = leaning(moving)
    assert box.density is not None
    hats = box.hats(box.spread(0, 40_000))
    weights = hats @ box.density
    np.testing.assert_allclose(box.masses, weights @ hats / weights.sum(), atol=1e-3)
    np.testing.assert_allclose(box.masses.sum(), 1.0)


@pytest.mark.parametrize(("moving", "draws"), [(1, 256), (2, 1024), (3, 4096), (6, 8192)])
def test_any_stretch_of_the_sequence_has_the_density_evenly(moving: int, draws: int) -> None:
    """To six points: independent draws would miss by tens."""
    box = leaning(moving)
    for first, shift in ((0, 0.0), (12345, 0.7)):
        occupied = box.hats(box.drawn(first, first + draws, shift)).mean(axis=0)
        np.testing.assert_allclose(occupied, box.masses, atol=6 / draws)


def test_what_is_even_stays_to_the_bit_and_a_flat_density_is_even() -> None:
    box = even(2)
    np.testing.assert_array_equal(box.drawn(3, 99, 0.3), box.spread(3, 99, 0.3))
    flat = dataclasses.replace(box, density=np.full(len(box.masses), 0.7))
    np.testing.assert_allclose(flat.drawn(3, 99, 0.3), box.spread(3, 99, 0.3), atol=1e-12)
    np.testing.assert_allclose(flat.masses, box.masses)


@pytest.mark.parametrize("moving", [1, 2, 3])
def test_any_part_is_what_it_is_in_the_whole_to_the_bit(moving: int) -> None:
    box = leaning(moving)
    whole = box.drawn(0, 100, 0.3)
    for first, last in ((40, 60), (7, 8), (0, 3)):
        np.testing.assert_array_equal(box.drawn(first, last, 0.3), whole[first:last])
    assert len(np.unique(whole, axis=0)) == 100
    assert box.holds(whole.min(axis=0))
    assert box.holds(whole.max(axis=0))


def test_local_means_and_those_of_all_are_of_what_is_drawn() -> None:
    box = leaning(1)
    thresholds = box.drawn(0, 20_000)
    values = np.stack([np.full(20_000, 3.0), thresholds[:, 0]], axis=1)
    local = box.local_means(thresholds, values).reshape(-1, 2)
    np.testing.assert_allclose(local[:, 0], 3.0, rtol=2e-3)
    cell = box.nodes[1, 0] - box.nodes[0, 0]
    assert (np.abs(local[:, 1] - box.nodes[:, 0]) < cell / 2).all()
    np.testing.assert_allclose(box.mean(box.nodes.ravel()), thresholds.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(box.masses @ local[:, 1], thresholds[:, 0].mean(), atol=1e-3)


def test_half_of_it_is_even_and_the_other_half_follows_the_gaps() -> None:
    box = even(2)
    thresholds = box.nodes[[0, 4, 20, 24]]  # its corners
    density = box.denser(thresholds, np.array([0.0, 0.1, -3.0, 0.7]))
    assert density is not None
    assert (density > 0.5 - 1e-12).all()
    np.testing.assert_allclose(box.masses @ density, 1.0)
    over = density - 0.5
    np.testing.assert_allclose(over[[0, 4, 20]], [0.0, over[24] / 7, 0.0], atol=1e-2)
    assert np.argmax(density) == 24
    middle = over[12]  # as far from all corners: their mean
    assert middle == pytest.approx(over[[0, 4, 20, 24]].mean(), rel=1e-2)
    unknown = box.denser(thresholds, np.array([0.0, 0.1, np.nan, 0.7]))
    assert unknown is not None
    assert unknown[20] > density[20], "what is not known is told by its neighbours"
    assert box.denser(thresholds, np.array([-1.0, 0.0, np.nan, 0.0])) is None


@pytest.mark.parametrize("density", [np.ones(3), np.zeros(25), np.full(25, np.nan)])
def test_what_is_no_density_is_refused(density: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a density has 25 numbers above 0"):
        dataclasses.replace(even(2), density=density)
