"""What an eighth of the held-out samples tells, beside whole looks on the same noise."""

import numpy as np
import pytest

from trainers.alignment.boxed.partial import completed, filled
from trainers.evaluate import estimate
from trainers.types import Evaluation, FloatArray

SAMPLES, FIRST = 512, 64


def evaluated(kl: FloatArray, reward: FloatArray, **parts: object) -> Evaluation:
    return Evaluation(kl=kl, rewards={"r": reward}, seeds=np.arange(len(kl)), **parts)  # type: ignore[arg-type]


def test_what_whole_looks_determine_is_known_exactly() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, SAMPLES))
    look = 0.3 + 0.7 * one - 0.2 * other
    found = filled(look[:FIRST], [one, other])
    assert found is not None
    np.testing.assert_allclose(found, look)
    assert filled(look[:23], [one, other]) is None, "eight samples for each of three numbers"


@pytest.mark.parametrize("prompts", [None, 64])
def test_the_error_is_as_stated_and_bounds_miss_as_often_as_they_may(prompts: int | None) -> None:
    """Against draws of everything: whole looks that tell 90 % of the variance, and the regression's own variance."""
    random = np.random.default_rng(1)
    rounds, unknown = 2000, 0.1**0.5
    names = None if prompts is None else tuple(str(row % prompts) for row in range(SAMPLES))
    of_prompt = (
        np.zeros(SAMPLES) if prompts is None else np.tile(random.normal(size=prompts), SAMPLES // prompts)
    )
    of_prompt -= of_prompt.mean()
    means, errors, missed = [], [], 0
    for _ in range(rounds):
        near = random.normal(size=SAMPLES)
        shared = near + of_prompt
        look = 0.9**0.5 * shared + unknown * random.normal(size=SAMPLES)
        whole = evaluated(np.zeros(SAMPLES), 2.0 * shared, prompts=names)
        found = completed(evaluated(np.zeros(FIRST), look[:FIRST]), [whole])
        assert found is not None
        told = estimate(found, "r")
        means.append(told.mean)
        errors.append(told.error)
        missed += told.mean - told.margin() > 0.0
    expected = (0.9 / SAMPLES + unknown**2 / FIRST) ** 0.5
    assert np.std(means) == pytest.approx(expected, rel=0.06)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.08)
    assert missed / rounds == pytest.approx(0.05, abs=0.016)


def test_gaps_count_nowhere_and_an_evaluation_keeps_them() -> None:
    random = np.random.default_rng(2)
    whole, look = random.normal(size=(2, SAMPLES))
    look = whole + 0.01 * look
    whole[::5], part = np.nan, look[:FIRST].copy()
    part[1::7] = np.nan
    gaps = frozenset({"r"})
    zeros = np.zeros(SAMPLES)
    found = completed(evaluated(zeros[:FIRST], part, gaps=gaps), [evaluated(zeros, whole, gaps=gaps)])
    assert found is not None
    np.testing.assert_array_equal(np.isnan(found.rewards["r"]), np.isnan(whole))
    known = np.isfinite(whole)
    assert estimate(found, "r").mean == pytest.approx(look[known].mean(), abs=0.005)
    part[:] = np.nan
    assert completed(evaluated(zeros[:FIRST], part, gaps=gaps), [evaluated(zeros, whole, gaps=gaps)]) is None
