"""Evaluation: intervals that cover, the one-sided bound, noise that does not depend on the workers, diversity."""

import copy
import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from trainers.config import MixtureConfig, PromptsConfig, SamplingConfig
from trainers.duality.constraint import Constraint
from trainers.duality.lagrangian import KL
from trainers.evaluate import (
    SHOWN,
    diversity,
    estimate,
    evaluate,
    feasible,
    first_feasible,
    mean_interval,
    noise_notes,
)
from trainers.failures import OutOfMemory
from trainers.models.base import Draw, Rollout
from trainers.models.mixture_policy import MixturePolicy
from trainers.rewards.analytic import Linear
from trainers.types import Evaluation
from trainers.workers.collective import Collective, Shard

POLICY = MixturePolicy.build(
    MixtureConfig(weights=(0.5, 0.5), means=((-1.0,), (1.0,)), covariances=(((0.3,),), ((0.5,),))),
    SamplingConfig(steps=3),
    width=4,
)
REWARDS = {"x": Linear((1.0,))}


def sample_of(
    values: np.ndarray,
    prompts: Sequence[str] | None = None,
    *,
    paired: bool = False,
    reference: np.ndarray | None = None,
) -> Evaluation:
    return Evaluation(
        kl=values,
        rewards={"r": values},
        seeds=np.arange(len(values)),
        prompts=None if prompts is None else tuple(prompts),
        paired=paired,
        reference=None if reference is None else {"r": reference},
    )


def antithetic_values(rng: np.random.Generator, count: int, correlation: float) -> np.ndarray:
    """``count`` standard normal values whose neighbours (0, 1), (2, 3), … have this correlation."""
    first, second = rng.normal(size=(2, count // 2))
    return np.stack([first, correlation * first + np.sqrt(1 - correlation**2) * second], axis=1).ravel()


@pytest.mark.parametrize("correlation", [-0.95, 0.0, 0.9])
def test_intervals_cover_at_their_rate(correlation: float) -> None:
    """Of 95 % intervals about 95 % hold the truth, whatever antithetic pairs have in common."""
    rng = np.random.default_rng(0)
    samples = [sample_of(antithetic_values(rng, 400, correlation) + 0.3, paired=True) for _ in range(4000)]
    intervals = [mean_interval(sample, KL) for sample in samples]
    covered = np.mean([i.low <= 0.3 <= i.high for i in intervals])
    assert covered == pytest.approx(0.95, abs=0.012)


def test_too_few_values_bound_nothing() -> None:
    for sample in (
        sample_of(np.array([1.0])),
        sample_of(np.array([1.0]), paired=True),
        sample_of(np.ones(3), "aab"),
    ):
        bounds = mean_interval(sample, KL)
        assert (bounds.mean, bounds.low, bounds.high) == (1.0, -np.inf, np.inf)


def test_independent_samples_have_the_textbook_error() -> None:
    values = np.random.default_rng(0).normal(size=51)
    assert estimate(sample_of(values), KL).error == pytest.approx(scipy.stats.sem(values))


@pytest.mark.parametrize("count", [40, 43])
def test_prompts_are_strata(count: int) -> None:
    """Residual variance of a regression on prompts; for equal counts the textbook's sum over strata."""
    prompts = [f"prompt {i % 5}" for i in range(count)]
    values = np.random.default_rng(0).normal(size=count) + 3.0 * np.array([i % 5 for i in range(count)])
    found = estimate(sample_of(values, prompts), KL).error
    dummies = np.array([[float(i % 5 == g) for g in range(5)] for i in range(count)])
    (residual,) = np.linalg.lstsq(dummies, values)[1]
    turns = np.bincount(np.arange(count) % 5)
    assert found == pytest.approx(np.sqrt(residual / (count - 5) * np.sum(1 / turns)) / 5)
    if count % 5 == 0:
        strata = values.reshape(-1, 5)
        assert found == pytest.approx(np.sqrt((strata.var(axis=0, ddof=1) / len(strata)).sum()) / 5)
    assert found < 0.4 * scipy.stats.sem(values)


def test_stratified_intervals_cover_at_their_rate() -> None:
    rng, prompts = np.random.default_rng(0), [f"prompt {i % 8}" for i in range(200)]
    means = rng.normal(size=8) * 5.0
    samples = [sample_of(np.tile(means, 25) + rng.normal(size=200), prompts) for _ in range(4000)]
    intervals = [mean_interval(sample, KL) for sample in samples]
    assert np.mean([i.low <= means.mean() <= i.high for i in intervals]) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize("count", [16, 19, 23])
def test_every_prompt_counts_alike_also_where_some_are_asked_once_more(count: int) -> None:
    """What differs between prompts alone is then known without error, in the control variate too."""
    prompts = PromptsConfig(train=("x",), evaluate=tuple("abcdefgh")).in_turn("evaluate", 3)
    asked = [prompts[i % 8] for i in range(count)]
    values = np.array([float(ord(prompt)) for prompt in asked])
    found = estimate(sample_of(values, asked), "r")
    assert (found.mean, found.error) == (pytest.approx(100.5), pytest.approx(0.0, abs=1e-9))
    rng = np.random.default_rng(0)
    levels = np.array([float(ord(prompts[i % 8])) for i in range(61)])
    covered = []
    for noise in rng.normal(size=(1000, 61)):
        sample = sample_of(values + noise[:count], asked, reference=levels + noise)
        ends = mean_interval(sample, "r")
        covered.append(ends.low <= 100.5 <= ends.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)


def test_an_interval_of_a_share_of_the_prompts_speaks_of_all() -> None:
    """40 of 80 prompts in two blocks: the first 40 would judge one block, and miss the mean of all each time."""
    texts = tuple(f"{block} {place}" for block in ("yellow", "blue") for place in range(40))
    config = PromptsConfig(train=texts, evaluate=texts)
    rng = np.random.default_rng(0)
    means = {text: (1.0 if text.startswith("blue") else -1.0) + 0.3 * rng.normal() for text in texts}
    truth = float(np.mean(list(means.values())))

    def judged(order: Sequence[str]) -> bool:
        values = np.array([means[text] for text in order[:40]]) + 0.2 * rng.normal(size=40)
        found = mean_interval(sample_of(values, order[:40]), "r")
        return found.low <= truth <= found.high

    for seed in range(200):
        order = config.in_turn("evaluate", seed)
        assert sum(text.startswith("blue") for text in order[:40]) == 20
        assert judged(order)
    assert not any(judged(texts) for _ in range(20))


@pytest.mark.parametrize("prompts", ["abcdefgh", "aabbccdd"[:7] + "e"])
def test_one_image_of_a_prompt_cannot_be_told_from_its_prompt(prompts: str) -> None:
    values = np.random.default_rng(0).normal(size=8)
    assert estimate(sample_of(values, prompts), KL).error == pytest.approx(scipy.stats.sem(values))


# The pretrained model's samples as a control variate.

KINDS: dict[str, dict[str, Any]] = {
    "independent": {},
    "antithetic": {"paired": True},
    "prompts": {"prompts": [f"prompt {i % 7}" for i in range(100)]},
}


def correlated(
    rng: np.random.Generator, kind: str, count: int = 100, known: int = 400
) -> tuple[np.ndarray, np.ndarray]:
    """Values of mean 0.3 and the reference's of mean 0 on the same noise, and on more: 0.9 of them in common."""
    reference = antithetic_values(rng, known, -0.5) if kind == "antithetic" else rng.normal(size=known)
    own = antithetic_values(rng, count, -0.5) if kind == "antithetic" else rng.normal(size=count)
    values = 0.3 + 0.9 * reference[:count] + np.sqrt(1 - 0.9**2) * own
    if kind == "prompts":  # not the reference's mean of 0 where prompts are cut off in the middle of a turn
        values += np.tile([3.0, -1.0, 0.5, 2.0, -3.0, -2.0, 0.5], 15)[:count]
    return values, reference


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_on_the_same_noise_and_its_mean_over_more(kind: str) -> None:
    """Against a regression with a dummy for every stratum; antithetic pairs are one draw each."""
    values, reference = correlated(np.random.default_rng(0), kind)
    found = estimate(sample_of(values, reference=reference, **KINDS[kind]), "r")
    own, known = (
        np.reshape(v, (-1, 2)).mean(axis=1) if kind == "antithetic" else v for v in (values, reference)
    )
    strata = np.arange(len(own)) % (7 if kind == "prompts" else 1)
    design = np.column_stack([strata == s for s in np.unique(strata)] + [known[: len(own)]]).astype(float)
    slope = np.linalg.lstsq(design, own)[0][-1]
    assert 0.7 < slope < 1.1

    def mean(of: np.ndarray) -> float:
        turns = np.arange(len(of)) % (strata.max() + 1)
        return float(np.mean([of[turns == s].mean() for s in np.unique(turns)]))

    assert found.mean == pytest.approx(mean(own) - slope * (mean(known[: len(own)]) - mean(known)))
    plain = estimate(sample_of(values, **KINDS[kind]), "r")
    assert found.error < 0.8 * plain.error
    # No more samples than the evaluation's own tell nothing new; the KL has no reference.
    assert estimate(sample_of(values, reference=reference[:100], **KINDS[kind]), "r") == plain
    assert estimate(sample_of(values, reference=reference, **KINDS[kind]), KL) == plain


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_with_a_reference_cover_at_their_rate(kind: str) -> None:
    rng, covered = np.random.default_rng(0), []
    prompts = {"prompts": [f"prompt {i % 7}" for i in range(98)]} if kind == "prompts" else KINDS[kind]
    for _ in range(4000):
        values, reference = correlated(rng, kind, 98, 392)  # whole turns of the prompts
        found = mean_interval(sample_of(values, reference=reference, **prompts), "r")
        covered.append(found.low <= 0.3 <= found.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_a_reference_can_decide_what_is_feasible() -> None:
    """The bound uses the same estimate: the plain mean of these samples falls short by chance."""
    values, reference = correlated(np.random.default_rng(6), "independent")
    constraint = Constraint(name="c", quantity="r", sign=-1.0, bound=0.3, scale=1.0)
    results = {}
    for known in (None, reference):
        sample = sample_of(values, reference=known)
        found = estimate(sample, "r")
        tolerance = 0.3 - found.mean + scipy.stats.t.ppf(0.95, found.degrees) * found.error
        assert feasible(sample, [dataclasses.replace(constraint, allowance=tolerance + 1e-9)])
        assert not feasible(sample, [dataclasses.replace(constraint, allowance=tolerance - 1e-9)])
        results[known is None] = tolerance
    assert results[True] != results[False]


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.7])
def test_a_reference_never_widens_an_interval_by_more_than_the_slope_costs(correlation: float) -> None:
    """With a slope of 1 it was wider by √(2 − 2 ρ): by 18 % at ρ = 0.3. Fitted, its variance is ``1 − ρ²`` and more."""
    rng, count, known = np.random.default_rng(0), 64, 512
    ratios = []
    for _ in range(400):
        reference = rng.normal(size=known)
        values = correlation * reference[:count] + np.sqrt(1 - correlation**2) * rng.normal(size=count)
        own, alone = (mean_interval(sample_of(values, reference=r), "r") for r in (reference, None))
        ratios.append((own.high - own.low) / (alone.high - alone.low))
    assert np.mean(ratios) == pytest.approx(np.sqrt(1 - correlation**2 * (1 - count / known)), abs=0.02)


@pytest.mark.parametrize("known", [None, 64])
@pytest.mark.parametrize("prompts", [None, 2])
@pytest.mark.parametrize("count", [4, 5, 8, 16])
def test_few_images_call_no_more_trials_feasible_than_many(
    count: int, prompts: int | None, known: int | None
) -> None:
    """A violation of exactly the allowance passes 5 times in 100; with normal quantiles 10 times at 4 images."""
    rng = np.random.default_rng(count)
    constraint = Constraint(name="c", quantity="r", sign=-1.0, bound=0.0, scale=1.0)
    asked = None if prompts is None else [f"prompt {i % prompts}" for i in range(count)]
    passed, covered = [], []
    for _ in range(4000):
        reference = None if known is None else rng.normal(size=known)
        values = rng.normal(size=count) + (0.0 if reference is None else reference[:count])
        sample = sample_of(values, asked, reference=reference)
        passed.append(feasible(sample, [constraint]))
        bounds = mean_interval(sample, "r")
        covered.append(bounds.low <= 0.0 <= bounds.high)
    assert 0.02 < np.mean(passed) < 0.058  # fewer with a reference: its slope is fitted to few images too
    assert 0.942 < np.mean(covered) < 0.985


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_a_second_look_errs_no_more_often_than_one(correlation: float) -> None:
    """Two states exactly at the allowance, on the same noise: a pass is an error. Uncounted it is up to 9.75 %."""
    rng = np.random.default_rng(0)
    constraint = Constraint(name="c", quantity="r", sign=-1.0, bound=0.0, scale=1.0)
    passed, firsts = [], []
    for _ in range(4000):
        common, *own = rng.normal(size=(3, 32))
        states = [np.sqrt(correlation) * common + np.sqrt(1 - correlation) * noise for noise in own]
        number, evaluation = first_feasible([0, 1], lambda n, s=states: sample_of(s[n]), [constraint])
        assert evaluation.looks == 2
        passed.append(feasible(evaluation, [constraint]))
        firsts.append(number == 0)
        (alone,) = {first_feasible([0], lambda n, s=states: sample_of(s[n]), [constraint])[1].looks}
        assert alone == 1
    assert 0.03 < np.mean(passed) < 0.057
    assert np.mean(firsts) > 0.96  # where neither passes it is the first


def test_states_are_looked_at_in_turn_until_one_is_feasible() -> None:
    constraint = Constraint(name="c", quantity="r", sign=-1.0, bound=0.0, scale=1.0)
    means = {"bad": -1.0, "worse": -2.0, "good": 1.0, "never": 3.0}
    seen: list[str] = []

    def evaluated(name: str) -> Evaluation:
        seen.append(name)
        return sample_of(means[name] + 0.01 * np.random.default_rng(0).normal(size=64))

    assert first_feasible(list(means), evaluated, [constraint])[0] == "good"
    assert seen == ["bad", "worse", "good"]
    assert first_feasible(["bad", "worse"], evaluated, [constraint])[0] == "bad"


@pytest.mark.parametrize(("sign", "scale"), [(1.0, 1.0), (-1.0, 4.0)])
def test_feasible_is_a_one_sided_95_percent_bound(sign: float, scale: float) -> None:
    """A trial whose true violation equals the tolerance passes 5 times in 100; well inside it always passes."""
    quantity = KL if sign > 0 else "r"
    constraint = Constraint(
        name="c", quantity=quantity, sign=sign, bound=2.0, scale=scale, allowance=0.05 * scale
    )
    rng = np.random.default_rng(0)

    def passes(violation: float) -> bool:
        values = 2.0 + sign * violation * scale + scale * antithetic_values(rng, 400, -0.5)
        return feasible(sample_of(values, paired=True), [constraint])

    assert np.mean([passes(0.05) for _ in range(4000)]) == pytest.approx(0.05, abs=0.012)
    assert all(passes(-0.2) for _ in range(50))
    assert not any(passes(0.3) for _ in range(50))


def test_every_constraint_must_hold_and_none_holds_without_numbers() -> None:
    met = Constraint(name="met", quantity="a", sign=-1.0, bound=-1.0, scale=1.0)
    broken = Constraint(name="broken", quantity="b", sign=-1.0, bound=1.0, scale=1.0)
    values = 0.01 * np.random.default_rng(0).normal(size=100)
    sample = Evaluation(kl=values, rewards={"a": values, "b": values}, seeds=np.arange(100))
    assert feasible(sample, [])
    assert feasible(sample, [met])
    assert not feasible(sample, [met, broken])
    lost = Evaluation(kl=values, rewards={"a": np.full(100, np.nan)}, seeds=np.arange(100))
    assert not feasible(lost, [met])


@pytest.mark.parametrize("workers", [2, 3])
def test_a_sample_does_not_depend_on_the_number_of_workers(workers: int) -> None:
    policy = MixturePolicy(POLICY.model, copy.deepcopy(POLICY.network))
    torch.nn.init.constant_(policy.network.leave.bias, 0.3)
    alone = evaluate(policy, REWARDS, samples=9000, seed=7, collective=Collective())
    parts = [
        evaluate(policy, REWARDS, samples=9000, seed=7, collective=Shard(rank, workers))
        for rank in range(workers)
    ]
    assert np.array_equal(sum(part.rewards["x"] for part in parts), alone.rewards["x"])
    assert np.array_equal(sum(part.kl for part in parts), alone.kl)
    assert not np.array_equal(parts[0].kl, alone.kl)


@pytest.mark.parametrize("fewer", [1, 100, 5001])
def test_a_sample_does_not_depend_on_how_many_there_are(fewer: int) -> None:
    many = evaluate(POLICY, REWARDS, reference=True, samples=9000, seed=7, collective=Collective())
    few = evaluate(POLICY, REWARDS, reference=True, samples=fewer, seed=7, collective=Collective())
    assert len(few.rewards["x"]) == len(few.seeds) == fewer
    np.testing.assert_allclose(few.rewards["x"], many.rewards["x"][:fewer], rtol=1e-5, atol=1e-6)


def test_chunks_have_their_own_noise_and_seeds_their_own_samples() -> None:
    drawn = evaluate(POLICY, REWARDS, reference=True, samples=8192, seed=7, collective=Collective()).rewards[
        "x"
    ]
    again = evaluate(POLICY, REWARDS, reference=True, samples=8192, seed=7, collective=Collective()).rewards[
        "x"
    ]
    other = evaluate(POLICY, REWARDS, reference=True, samples=8192, seed=5, collective=Collective()).rewards[
        "x"
    ]
    assert np.array_equal(drawn, again)
    assert len(np.unique(drawn)) > 8000
    assert len(np.intersect1d(drawn, other)) < 100


def test_the_policys_and_the_references_samples_differ_by_the_residual_only() -> None:
    policy = MixturePolicy(POLICY.model, copy.deepcopy(POLICY.network))
    fresh = evaluate(policy, REWARDS, samples=100, seed=7, collective=Collective())
    torch.nn.init.constant_(policy.network.leave.bias, 0.3)
    moved = evaluate(policy, REWARDS, samples=100, seed=7, collective=Collective())
    reference = evaluate(policy, REWARDS, samples=100, seed=7, collective=Collective(), reference=True)
    assert np.array_equal(fresh.rewards["x"], reference.rewards["x"])
    assert (moved.rewards["x"] > reference.rewards["x"]).all()
    assert (moved.kl > 0).all()
    assert not reference.kl.any()
    assert reference.seeds.tolist() == list(range(7, 107))
    assert reference.paired
    assert reference.prompts is reference.embeddings is reference.images is None
    assert diversity(reference) is None


# Images with prompts.


class Pictures:
    """A sampler of images that are noise: sample ``i`` of a seed is a function of both."""

    chunk, paired_samples = 8, False
    held_out = ("a", "b", "c")

    def fixed_draw(self, seed: int, first: int, last: int, prompts: Sequence[str] | None = None) -> Draw:
        asked, seeds = prompts or self.held_out, seed + np.arange(first, last)
        noise = torch.tensor(np.stack([np.random.default_rng(s).random((3, 2, 2)) for s in seeds])).float()
        names = tuple(asked[i % len(asked)] for i in range(first, last))
        return Draw(noise=noise[None], seeds=seeds, prompts=names)

    def rollout(self, draw: Draw, *, reference: bool = False) -> Rollout:
        images = draw.noise[0]
        ratio = images.mean(dim=(1, 2, 3))
        return Rollout(samples=images, path_kl=torch.zeros(len(draw)), log_ratio=ratio, final=images)


def brightness_by_prompt(images: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
    assert prompts is not None
    return images.mean(dim=(1, 2, 3)) + torch.tensor([10.0 * ord(prompt) for prompt in prompts])


def embedder(images: Tensor) -> Tensor:
    return torch.nn.functional.normalize(images.flatten(1) - 0.2, dim=1)


def pictured(
    samples: int,
    collective: Collective | Shard | None = None,
    prompts: Sequence[str] | None = None,
    policy: Pictures | None = None,
    batch: int | None = None,
) -> Evaluation:
    return evaluate(
        policy or Pictures(),
        {"bright": brightness_by_prompt},
        samples=samples,
        seed=5,
        collective=collective or Collective(),
        prompts=prompts,
        embedder=embedder,
        batch=batch,
    )


def images_of(samples: int) -> np.ndarray:
    return np.stack([np.random.default_rng(5 + i).random((3, 2, 2)) for i in range(samples)])


@pytest.mark.parametrize("samples", [5, 16, 43])
def test_diversity_is_the_spread_of_embeddings_within_a_prompt(samples: int) -> None:
    """For unit vectors the unbiased variance is ``n / (n − 1) (1 − ‖mean‖²)``; a prompt with one image has none."""
    images = images_of(samples)
    units = images.reshape(samples, -1) - 0.2
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    groups = [units[g::3] for g in range(3)]
    spreads = [len(u) / (len(u) - 1) * (1 - (u.mean(axis=0) ** 2).sum()) for u in groups if len(u) > 1]
    found = pictured(samples)
    assert found.embeddings is not None
    np.testing.assert_allclose(found.embeddings, units, atol=1e-6)
    assert diversity(found) == pytest.approx(np.mean(spreads), rel=1e-5)


def test_there_is_no_diversity_without_two_images_of_a_prompt() -> None:
    assert diversity(pictured(3)) is None


def test_one_picture_for_all_noise_has_no_diversity() -> None:
    one = np.tile(np.eye(4)[:3], (5, 1))  # a picture per prompt
    sample = dataclasses.replace(sample_of(np.zeros(15), "abcabcabcabcabc"), embeddings=one)
    assert diversity(sample) == pytest.approx(0.0, abs=1e-12)
    assert diversity(dataclasses.replace(sample, prompts=None)) == pytest.approx(15 / 14 * 2 / 3)


def test_prompts_take_turns_reach_the_rewards_and_can_be_replaced() -> None:
    found = pictured(20)
    assert found.prompts == tuple("abcabcabcabcabcabcab")
    assert found.seeds.tolist() == list(range(5, 25))
    expected = images_of(20).mean(axis=(1, 2, 3)) + 10.0 * np.array([ord(prompt) for prompt in found.prompts])
    np.testing.assert_allclose(found.rewards["bright"], expected, rtol=1e-6)
    assert pictured(20, prompts=["x", "y"]).prompts == tuple("xyxyxyxyxyxyxyxyxyxy")


@pytest.mark.parametrize("samples", [5, 43])
def test_the_first_images_are_kept_as_bytes(samples: int) -> None:
    kept = pictured(samples).images
    assert kept is not None
    assert kept.dtype == np.uint8
    assert kept.shape == (min(samples, Pictures.chunk, SHOWN), 2, 2, 3)
    expected = images_of(samples)[: len(kept)].transpose(0, 2, 3, 1) * 255
    assert np.abs(kept - expected).max() <= 0.5 + 1e-4


# Few at a time.


@pytest.mark.parametrize("batch", [1, 7, 100, 4096, 5000, 20000])
def test_a_sample_does_not_depend_on_how_many_are_drawn_at_a_time(batch: int) -> None:
    """But for rounding: kernels are chosen by the size of a batch. Noise is the same to the last bit."""
    policy = MixturePolicy(POLICY.model, copy.deepcopy(POLICY.network))
    torch.nn.init.constant_(policy.network.leave.bias, 0.3)
    samples = 40 if batch == 1 else 9000
    usual = evaluate(policy, REWARDS, samples=samples, seed=7, collective=Collective())
    found = evaluate(policy, REWARDS, samples=samples, seed=7, collective=Collective(), batch=batch)
    np.testing.assert_allclose(found.rewards["x"], usual.rewards["x"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.kl, usual.kl, rtol=1e-5, atol=1e-6)
    assert found.log_ratio is not None
    assert usual.log_ratio is not None
    np.testing.assert_allclose(found.log_ratio, usual.log_ratio, rtol=1e-5, atol=1e-5)
    assert usual.log_ratio.std() > 0.1
    assert found.seeds.tolist() == usual.seeds.tolist()
    assert found.notes == ()
    parts = [
        evaluate(policy, REWARDS, samples=samples, seed=7, collective=Shard(rank, 2), batch=batch)
        for rank in range(2)
    ]
    assert np.array_equal(parts[0].kl + parts[1].kl, found.kl)
    assert np.array_equal(sum(part.log_ratio for part in parts), found.log_ratio)


class Hungry(Pictures):
    """Holds so many pictures at a time."""

    def __init__(self, limit: int) -> None:
        """Take the limit."""
        self.limit, self.sizes = limit, list[int]()

    def rollout(self, draw: Draw, *, reference: bool = False) -> Rollout:
        self.sizes.append(len(draw))
        if len(draw) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().rollout(draw, reference=reference)


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_where_memory_runs_out_fewer_are_drawn_at_a_time_and_nothing_else_changes(limit: int) -> None:
    """Rows, pictures, prompts, seeds and embeddings, to the last bit."""
    policy, usual = Hungry(limit), pictured(43)
    found = pictured(43, policy=policy)
    for field in dataclasses.fields(Evaluation):
        one, other = getattr(found, field.name), getattr(usual, field.name)
        if field.name == "notes":
            (note,) = one
            assert other == ()
            assert "out of memory in the evaluation with 8 samples at a time" in note
            assert f"evaluation.batch: {policy.sizes[-2]}" in note
        elif field.name == "rewards":
            np.testing.assert_array_equal(one["bright"], other["bright"])
        else:
            np.testing.assert_array_equal(one, other)
    assert policy.sizes[0] == 8
    assert sum(size > limit for size in policy.sizes) <= 3  # it is remembered


def test_where_one_sample_does_not_fit_there_is_advice() -> None:
    with pytest.raises(OutOfMemory, match=r"out of memory in the evaluation, .*training.precision"):
        pictured(43, policy=Hungry(0))


def test_the_first_pictures_are_together_in_one_share_however_few_are_drawn_at_a_time() -> None:
    parts = [pictured(43, Shard(rank, 3), batch=2) for rank in range(3)]
    assert [part.images is None for part in parts] == [False, True, True]
    assert np.array_equal(parts[0].images, pictured(43).images)


class Threads(Collective):
    """One worker of several in this process, which sum what they hold."""

    def __init__(self, rank: int, held: list[Tensor], barrier: threading.Barrier) -> None:
        """Share ``held``, one place per worker."""
        super().__init__()
        self.rank, self.world_size, self.held, self.barrier = rank, len(held), held, barrier

    def sum(self, value: Tensor) -> Tensor:
        self.held[self.rank] = value
        self.barrier.wait()
        shapes = [each.shape for each in self.held]
        total = torch.stack(self.held).sum(dim=0) if len(set(shapes)) == 1 else None
        self.barrier.wait()
        assert total is not None, f"workers sum tensors of one shape, got {shapes}"
        return total


def on_threads(workers: int, work: Callable[[Collective], Evaluation]) -> list[Evaluation]:
    held, barrier = [torch.zeros(())] * workers, threading.Barrier(workers, timeout=60)
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda rank: work(Threads(rank, held, barrier)), range(workers)))


@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize("samples", [7, 43])
def test_workers_find_the_same_scores_and_diversity_as_one(workers: int, samples: int) -> None:
    """Also those to whom no chunk falls."""
    alone = pictured(samples)
    for each in on_threads(workers, lambda collective: pictured(samples, collective)):
        assert np.array_equal(each.rewards["bright"], alone.rewards["bright"])
        assert np.array_equal(each.embeddings, alone.embeddings)
        assert diversity(each) == diversity(alone)
        assert each.prompts == alone.prompts
        assert each.seeds.tolist() == alone.seeds.tolist()


def test_what_is_known_of_the_noise_of_scores_is_the_least_that_their_mean_can_be_off() -> None:
    agree = sample_of(np.full(64, 0.75))
    assert estimate(agree, "r").error == 0.0, "64 scores of a judge that happens to say the same"
    noisy = dataclasses.replace(agree, noise={"r": np.full(64, 0.4)})
    assert estimate(noisy, "r").error == pytest.approx(0.4 / 8)
    assert estimate(dataclasses.replace(noisy, paired=True), "r").error == pytest.approx(0.4 / 8)
    constraint = Constraint(name="r", quantity="r", sign=-1.0, bound=0.74, scale=1.0)
    assert feasible(agree, [constraint])
    assert not feasible(noisy, [constraint])
    (note,) = noise_notes(noisy)
    assert note.startswith("noise of the scores of 'r' is 100% of the variance of its mean")


def test_the_spread_of_noisy_scores_has_their_noise_already() -> None:
    """Intervals cover at their rate with the noise told and untold: counted twice they would cover more."""
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(2000):
        scores = rng.normal(0.3, 1.0, 100) + rng.normal(0.0, 0.7, 100)
        told = dataclasses.replace(sample_of(scores), noise={"r": np.full(100, 0.7)})
        interval = mean_interval(told, "r")
        covered.append(interval.low <= 0.3 <= interval.high)
        assert estimate(told, "r").error == estimate(sample_of(scores), "r").error
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)
    assert noise_notes(dataclasses.replace(told, noise={"r": np.full(100, 0.1)})) == []


class Noisy:
    """A reward that knows how noisy its scores are."""

    def __call__(self, samples: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        self.noise = samples[:, 0].abs()
        return samples[:, 0]


def test_the_noise_of_every_sample_is_kept_beside_its_score() -> None:
    whole = evaluate(POLICY, {"x": Noisy(), "y": REWARDS["x"]}, samples=6, seed=0, collective=Collective())
    assert set(whole.noise) == {"x"}
    np.testing.assert_allclose(whole.noise["x"], np.abs(whole.rewards["x"]))
    np.testing.assert_allclose(whole.rewards["y"], whole.rewards["x"])
