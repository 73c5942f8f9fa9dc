"""What looks at the held-out samples lead to: where to look next."""

import numpy as np

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
