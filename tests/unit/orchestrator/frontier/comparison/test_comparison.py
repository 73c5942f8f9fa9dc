"""Verdicts between methods: false ones at their rate where the methods are identical, true ones where they are not."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from support.tiers import exhaustive

from orchestrator.frontier.comparison.comparison import Cell, compare
from orchestrator.frontier.comparison.sentence import sentence
from orchestrator.frontier.trials import Trials
from trainers.config import ObjectiveConfig
from trainers.testing import gaussian_job

JOB = gaussian_job({"x": 0.0})
FloatArray = np.ndarray


def verdict(
    ours: FloatArray, rivals: FloatArray, *, error: float = 0.0, seeds: Sequence[int] | None = None
) -> Cell:
    """The cell of one constrained setting with KLs ``[n]`` and weighted ones ``[K, n]``; NaN is a trial that failed."""
    count, size = rivals.shape
    kl = np.append(ours, rivals.ravel())
    table = pa.table(
        {
            "method": ["constrained"] * size + ["weighted"] * (count * size),
            "seed": np.tile(np.arange(size) if seeds is None else seeds, 1 + count),
            "status": np.where(np.isnan(kl), "failed", "succeeded"),
            "kl": kl,
            "kl_low": kl - 1.959964 * error,
            "kl_high": kl + 1.959964 * error,
            "reward_x": np.ones_like(kl),
            "reward_x_low": np.ones_like(kl),
            "reward_x_high": np.ones_like(kl),
            "threshold_x": np.zeros_like(kl),
            "weight_x": np.append(np.full(size, np.nan), np.repeat(np.arange(count) + 1.0, size)),
        }
    )
    (cell,), settings = compare(Trials.of(table, JOB.config), JOB.baseline)
    assert settings == count
    return cell


def drawn(rng: np.random.Generator, seeds: int, rivals: int, common: float) -> tuple[FloatArray, FloatArray]:
    """KLs of identical methods around 1 nat; ``common`` is the share of the variance that a seed gives to all."""
    shared = np.sqrt(common) * rng.normal(size=seeds)
    own = np.sqrt(1.0 - common) * rng.normal(size=(1 + rivals, seeds))
    kl = 1.0 + 0.05 * (shared + own)
    return kl[0], kl[1:]


@pytest.mark.parametrize("seeds", [2, 5, *exhaustive(3, 4)])
@pytest.mark.parametrize("rivals", [1, 10, *exhaustive(3)])
def test_identical_methods_seldom_get_a_verdict(seeds: int, rivals: int) -> None:
    rng = np.random.default_rng(100 * seeds + rivals)
    found = Counter(verdict(*drawn(rng, seeds, rivals, rng.choice([0.0, 0.8]))).verdict for _ in range(500))
    false = 500 - found["undecided"]
    assert false / 500 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 500), found


@pytest.mark.parametrize("rivals", [1, 10])
def test_one_seed_gets_none(rivals: int) -> None:
    cell = verdict(np.array([0.1]), np.full((rivals, 1), 5.0))
    assert (cell.verdict, cell.paired, cell.ratio) == ("undecided", 1, 50.0)


@pytest.mark.parametrize(("seeds", "least"), [(2, 0.75), (3, 0.99), (5, 0.99)])
@pytest.mark.parametrize("rivals", [1, 5, 10])
@pytest.mark.parametrize("better", ["constrained", "weighted"])
def test_a_large_difference_is_found(seeds: int, least: float, rivals: int, better: str) -> None:
    """One method pays twice as much, with 5 % between seeds; with two seeds Student's t has one degree of freedom."""
    rng = np.random.default_rng(seeds * rivals)
    hits = 0
    for _ in range(100):
        ours, theirs = drawn(rng, seeds, rivals, 0.0)
        factors = (1.0, 2.0) if better == "constrained" else (2.0, 1.0)
        hits += verdict(factors[0] * ours, factors[1] * theirs).verdict == f"{better} better"
    assert hits >= least * 100 - 3 * np.sqrt(100 * least * (1 - least) + 1)


def test_the_noise_of_evaluation_is_not_seen_between_seeds() -> None:
    """All seeds are judged on the same noise: two that agree to a thousandth say nothing of what moves both."""
    ours, theirs = np.array([1.0, 1.001]), np.array([[1.1, 1.101]])
    assert verdict(ours, theirs, error=0.005).verdict == "constrained better"
    assert verdict(ours, theirs, error=0.05).verdict == "undecided"


def test_seeds_are_compared_in_pairs() -> None:
    """What a seed does to both methods is no spread between them, whatever the order of the rows."""
    effect = np.array([0.0, 0.7, -0.5])
    ours, theirs = 1.0 + effect, 1.2 + 0.01 * np.arange(3) + effect
    assert verdict(ours, theirs[None]).verdict == "constrained better"
    assert verdict(ours, theirs[None, ::-1]).verdict == "undecided"


def test_a_rival_that_lacks_a_seed_is_not_compared() -> None:
    ours = np.array([1.0, 1.01, 0.99])
    dear = np.array([3.0, 3.01, 2.99])
    assert verdict(ours, np.array([dear, [np.nan, 3.5, 3.5]])).verdict == "constrained better"
    # The cheapest is the one with a seed less: it may be better, or lucky.
    cell = verdict(ours, np.array([dear, [np.nan, 0.5, 0.5]]))
    assert (cell.verdict, cell.paired, cell.rival_kl) == ("undecided", 0, 0.5)
    alone = verdict(np.array([1.0, np.nan, np.nan]), dear[None])
    assert (alone.verdict, alone.paired) == ("undecided", 1)


def test_a_setting_that_misses_its_thresholds_is_not_better() -> None:
    table = pa.table(
        {
            "method": ["constrained"] * 3 + ["weighted"] * 3,
            "seed": [0, 1, 2] * 2,
            "status": ["succeeded"] * 6,
            "kl": [0.1] * 3 + [1.0] * 3,
            "kl_low": [0.1] * 3 + [1.0] * 3,
            "kl_high": [0.1] * 3 + [1.0] * 3,
            "reward_x": [-1.0] * 3 + [1.0] * 3,
            "reward_x_low": [-1.0] * 3 + [1.0] * 3,
            "reward_x_high": [-1.0] * 3 + [1.0] * 3,
            "threshold_x": [0.0] * 6,
            "weight_x": [None] * 3 + [1.0] * 3,
        }
    )
    (cell,), _ = compare(Trials.of(table, JOB.config), JOB.baseline)
    assert (cell.met, cell.verdict) == (False, "undecided")


def said(*cells: Cell) -> str:
    return sentence(
        cells=cells, rivals=2, statuses=Counter(succeeded=9), planned=9, objective=None, ratios_to_exact=()
    )


def test_the_sentence_says_what_holds() -> None:
    one = verdict(np.array([1.0]), np.array([[2.0], [3.0]]))
    assert said(one) == (
        "Constrained training met the thresholds; weights met the thresholds too, and a verdict takes two seeds of "
        "both."
    )
    better = verdict(np.array([1.0, 1.001]), np.array([[2.0, 2.001], [3.0, 3.001]]))
    assert "the cheapest weighted setting that met the thresholds paid 2.00 times its KL" in said(better)
    worse = verdict(np.array([1.0, 1.001]), np.array([[0.5, 0.501], [3.0, 3.001]]))
    assert "weights did better" in said(worse)
    assert "times its KL" not in said(worse)
    close = verdict(np.array([1.0, 1.2]), np.array([[1.1, 1.05], [1.3, 1.2]]))
    assert said(close).endswith("; the seeds do not tell it from weights that met the thresholds.")
    assert said(better, close, close) == (
        "Constrained training met all 3 threshold combinations; at 1 of those the cheapest weighted setting that met "
        "the thresholds paid 2.00 times its KL; at the other 2 the seeds do not tell it from weights that met the "
        "thresholds."
    )


def test_a_reward_that_is_maximised_is_compared_upwards() -> None:
    job = gaussian_job({"kl": 2.0}, objective="x")
    assert job.config.objective == ObjectiveConfig(kind="reward", target="x")
    table = pa.table(
        {
            "method": ["constrained"] * 2 + ["weighted"] * 2,
            "seed": [0, 1] * 2,
            "status": ["succeeded"] * 4,
            "kl": [1.0] * 4,
            "kl_low": [1.0] * 4,
            "kl_high": [1.0] * 4,
            "reward_x": [1.9, 1.901, 1.2, 1.201],
            "reward_x_low": [1.9, 1.901, 1.2, 1.201],
            "reward_x_high": [1.9, 1.901, 1.2, 1.201],
            "threshold_kl": [2.0] * 4,
            "weight_x": [None, None, 1.2, 1.2],
        }
    )
    (cell,), _ = compare(Trials.of(table, job.config), job.baseline)
    assert (cell.verdict, cell.paired) == ("constrained better", 2)
    assert cell.objective == pytest.approx(1.9005)
    assert cell.rival_objective == pytest.approx(1.2005)
