"""What a glance at the first of the held-out samples tells of a look at all of them."""

import numpy as np
import pytest

from trainers.alignment.boxed.known import Known
from trainers.types import Evaluation, FloatArray


def evaluated(kl: FloatArray, reward: FloatArray) -> Evaluation:
    return Evaluation(
        kl=kl, log_ratio=kl, rewards={"r": reward}, seeds=np.arange(len(kl)), prompts=None, paired=False
    )


def test_a_glance_is_as_sharp_as_its_differences_are_small() -> None:
    """On shared noise a policy that is moved a little moves every sample about alike."""
    random = np.random.default_rng(0)
    noise, kl = random.normal(size=512), random.exponential(size=512)
    known = Known()
    known.add(np.array([1.0]), evaluated(kl, noise), np.eye(1))
    moved = noise + 0.3 + 0.05 * random.normal(size=512)
    found = known.guessed(np.array([1.2]), evaluated(1.1 * kl[:128], moved[:128]))
    assert found.rewards["r"].mean() == pytest.approx(moved.mean(), abs=3 * 0.05 / 128**0.5)
    alone = abs(moved[:128].mean() - moved.mean())
    assert alone > 3 * abs(found.rewards["r"].mean() - moved.mean()), (
        "the first samples by themselves are worse"
    )
    assert found.kl.mean() == pytest.approx(kl.mean() + 0.1 * kl[:128].mean())
    assert len(found.kl) == 512
    assert found.rewards["r"].std() == pytest.approx(noise.std())


def test_a_glance_is_held_against_the_nearest_whole_look_where_both_have_scores() -> None:
    known, zeros = Known(), np.zeros(8)
    gaps = np.where(np.arange(8) % 2, np.nan, 0.0)
    known.add(np.array([1.0]), evaluated(zeros, zeros - 100.0), np.eye(1))
    known.add(np.array([2.0]), evaluated(zeros, gaps), np.eye(1))
    known.add(np.array([2.4]), evaluated(zeros, zeros + 100.0), np.eye(1), whole=False)
    found = known.guessed(np.array([2.5]), evaluated(zeros[:4], np.array([1.0, 50.0, np.nan, 50.0])))
    np.testing.assert_array_equal(found.rewards["r"], gaps + 1.0)
    nothing = known.guessed(np.array([2.5]), evaluated(zeros[:4], np.full(4, np.nan)))
    np.testing.assert_array_equal(nothing.rewards["r"], gaps)


def test_what_is_proposed_has_not_been_looked_at() -> None:
    """Rewards that answer less than was thought: from the nearest look alone the same would be proposed for ever."""
    random = np.random.default_rng(0)
    known, least, most = Known(), np.zeros(1), np.array([50.0])
    noise, seen = random.normal(size=64), list[float]()

    def lacking(found: Evaluation) -> FloatArray:
        return np.array([1.0 - found.rewards["r"].mean()])

    def look(price: float) -> None:
        reward = noise - noise.mean() + 0.1 * price + (5.0 if price < 0.5 else 0.0) * 0.1
        known.add(np.array([price]), evaluated(np.full(64, price), reward), np.eye(1))
        seen.append(price)

    look(0.0)
    for _ in range(12):
        (price,) = known.proposed(lacking, np.array([4.0]), least, most).tolist()
        assert min(abs(price - before) for before in seen) > 1e-3
        look(price)
        if abs(0.1 * price - 1.0) < 0.03:
            break
    assert abs(0.1 * seen[-1] - 1.0) < 0.03, seen
