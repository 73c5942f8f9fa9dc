"""What looks at the held-out samples lead to: where to look next."""

import numpy as np
import pytest

from trainers.alignment.boxed.known import Known, Look
from trainers.types import Evaluation, FloatArray


def evaluated(kl: FloatArray, reward: FloatArray) -> Evaluation:
    return Evaluation(
        kl=kl, log_ratio=kl, rewards={"r": reward}, seeds=np.arange(len(kl)), prompts=None, paired=False
    )


def looked(price: float, found: Evaluation) -> Look:
    return Look(multipliers=np.array([price]), found=found, drawn=found, curvature=np.eye(1))


def test_a_whole_look_stands_in_the_place_of_one_at_some_of_its_samples() -> None:
    zeros = np.zeros(8)
    some, whole, other = (evaluated(zeros, zeros + place) for place in range(3))
    known = Known([looked(2.0, other)])
    known.add(Look(multipliers=np.array([1.0]), found=some, drawn=other, curvature=np.eye(1)))
    assert [one is other for one in known.nearest(np.array([1.0]), 3)] == [True]
    known.add(looked(1.0, whole))
    assert [look.found is some for look in known.looks] == [False, False]
    assert [one is whole for one in known.nearest(np.array([1.0]), 3)] == [True, False]


def test_what_is_proposed_has_not_been_looked_at() -> None:
    """Rewards that answer less than was thought: from the nearest look alone the same would be proposed for ever."""
    random = np.random.default_rng(0)
    known, least, most = Known(), np.zeros(1), np.array([50.0])
    noise, seen = random.normal(size=64), list[float]()

    def lacking(found: Evaluation) -> FloatArray:
        return np.array([1.0 - found.rewards["r"].mean()])

    def look(price: float) -> None:
        reward = noise - noise.mean() + 0.1 * price + (5.0 if price < 0.5 else 0.0) * 0.1
        known.add(looked(price, evaluated(np.full(64, price), reward)))
        seen.append(price)

    look(0.0)
    for _ in range(12):
        (price,) = known.proposed(lacking, np.array([4.0]), least, most).tolist()
        assert min(abs(price - before) for before in seen) > 1e-3
        look(price)
        if abs(0.1 * price - 1.0) < 0.03:
            break
    assert abs(0.1 * seen[-1] - 1.0) < 0.03, seen


def test_a_proposal_aims_beyond_by_what_costs_little_and_by_more_where_that_missed() -> None:
    """Multipliers of 4 at a KL of 0.5: a fortieth of that, 0.0125 nats, is 0.0031 scaled; each miss adds 0.02."""
    known, far = Known(), np.array([50.0])
    reward = np.linspace(-1.0, 1.0, 64)
    known.add(looked(4.0, evaluated(np.full(64, 0.5), reward)))

    def aimed(lack: float, missed: int) -> float:
        (price,) = known.proposed(
            lambda _: np.array([lack]), np.array([4.0]), np.zeros(1), far, missed=missed
        ).tolist()
        return float(price) - 4.0

    response = (0.1 - 0.02) / (aimed(0.1, 0) - aimed(0.02, 0))  # what a step of 1 is taken to change
    assert response * aimed(0.1, 0) == pytest.approx(0.1 + 0.0125 / 4, rel=1e-4)
    assert response * aimed(0.1, 2) == pytest.approx(0.1 + 0.0125 / 4 + 2 * 0.02, rel=1e-4)
    assert response * aimed(-0.1, 2) == pytest.approx(-0.1 + 0.0125 / 4, rel=1e-4)


def test_the_safe_way_leads_from_what_lacks_least_to_the_cheapest_that_holds() -> None:
    """Lacking 0.2 at a multiplier of 1 and having 0.6 too much at 5: nothing at 2, and a quarter of the way farther."""
    places = {1.0: 0.2, 0.5: 0.7, 5.0: -0.6, 9.0: -1.0}
    zeros = np.zeros(8)
    known = Known([looked(price, evaluated(zeros + price, zeros)) for price in places])

    def lacking(found: Evaluation) -> FloatArray:
        return np.array([places[float(found.kl[0])]])

    asked = np.array([1.0]), np.zeros(1), np.array([50.0])
    (price,) = known.proposed(lacking, *asked, safe=True).tolist()
    assert price == pytest.approx(1.0 + 1.25 * (2.0 - 1.0))
    places[1.0] = 1e-3
    (price,) = known.proposed(lacking, *asked, safe=True).tolist()
    assert price == pytest.approx(1.0 + 0.1 * (5.0 - 1.0))
    unheld = Known([look for look in known.looks if look.multipliers[0] < 5.0])
    np.testing.assert_array_equal(
        unheld.proposed(lacking, *asked, safe=True), unheld.proposed(lacking, *asked)
    )


@pytest.mark.parametrize(
    ("costs", "lacks", "vain"),
    [
        ([1.0, 0.995], [0.0, 0.0], True),
        ([1.0, 1.005], [-0.1, 0.0], True),
        ([1.0, 0.98], [0.0, 0.0], False),  # worth more
        ([1.0, 1.2], [0.0, 0.0], False),  # shows how far
        ([1.0, 0.995], [0.0, 0.1], False),  # lacks something
        ([1.0, 0.995], [0.1, 0.0], False),  # the first that holds
        ([0.995], [0.0], False),
    ],
)
def test_looks_that_hold_at_no_less_are_in_vain(costs: list[float], lacks: list[float], vain: bool) -> None:
    zeros = np.zeros(8)
    looks = [looked(price, evaluated(zeros + cost, zeros)) for price, cost in enumerate(costs, start=1)]
    lacking = dict(zip(costs, lacks, strict=True))
    found = Known(looks).in_vain(lambda found: np.array([lacking[float(found.kl[0])]]))
    assert found is vain


def test_multipliers_that_differ_by_less_than_is_worth_a_look_have_been_looked_at() -> None:
    zeros = np.zeros(8)
    known = Known([looked(4.0, evaluated(zeros, zeros))])
    assert known.near(np.array([4.039]))
    assert not known.near(np.array([4.05]))
    assert Known([looked(0.0, evaluated(zeros, zeros))]).near(np.array([5e-4]))
    assert not Known([looked(0.0, evaluated(zeros, zeros))]).near(np.array([2e-3]))
