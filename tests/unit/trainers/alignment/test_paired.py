"""Paired scores of the reference: those of a fresh computation, and computed once as long as nothing changes."""

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from trainers.alignment import paired
from trainers.alignment.paired import PairedReference, PromptMeans, StoredReference, paired_with
from trainers.alignment.pretrained import sample_reference
from trainers.config import (
    DualConfig,
    MixtureConfig,
    ModelConfig,
    RewardConfig,
    SamplingConfig,
    TrialConfig,
)
from trainers.models.base import Draw, Rollout
from trainers.models.mixture_policy import MixturePolicy
from trainers.rewards.base import build_reward
from trainers.testing import gaussian_job

CONFIG = gaussian_job({"x": 1.0}, sampling={"steps": 4}, training={"width": 8}).config


class Counted(MixturePolicy):
    """Counts its rollouts."""

    rollouts = 0

    def rollout(self, draw: Draw, **options: Any) -> Rollout:
        self.rollouts += 1
        return super().rollout(draw, **options)


def build(config: TrialConfig) -> tuple[PairedReference, Counted]:
    policy = Counted.build(config.model.exact, config.sampling, config.training.width)
    assert isinstance(policy, Counted)
    rewards = {reward.name: build_reward(reward) for reward in config.rewards}
    return PairedReference(config, policy, rewards), policy


def fresh(config: TrialConfig, draw: Draw) -> dict[str, torch.Tensor]:
    """From a new policy, without any cache."""
    policy = MixturePolicy.build(config.model.exact, config.sampling, 4)
    samples = policy.rollout(draw, reference=True).samples
    return {reward.name: build_reward(reward)(samples) for reward in config.rewards}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "_known", OrderedDict())


def test_what_could_not_be_scored_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next trial of the process, which would else take over the gap."""
    reference, policy = build(CONFIG)
    draw, whole = policy.draw(8, 0), reference._rewards["x"]

    def gappy(samples: torch.Tensor, prompts: Any = None) -> torch.Tensor:
        scores = whole(samples, prompts)
        return torch.where(torch.arange(len(scores)) == 3, torch.nan, scores)

    monkeypatch.setitem(reference._rewards, "x", gappy)  # type: ignore[arg-type]
    assert reference(draw)["x"].isnan().sum() == 1
    again, _ = build(CONFIG)
    assert_same(again(draw), fresh(CONFIG, draw))


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert not values.requires_grad
        torch.testing.assert_close(values, expected[name], rtol=0, atol=0)


def test_a_batch_is_scored_once_and_as_a_fresh_computation_would() -> None:
    reference, policy = build(CONFIG)
    for seed in (3, 4, 3, 4, 3):
        draw = policy.draw(10, seed)
        assert_same(reference(draw), fresh(CONFIG, draw))
    assert policy.rollouts == 2


def test_what_is_trained_and_how_does_not_matter() -> None:
    """Trials of one sweep that differ in thresholds, seeds, duals and learning rates share their batches."""
    reference, policy = build(CONFIG)
    draw = policy.draw(10, 3)
    first = reference(draw)
    other = gaussian_job(
        {"x": 0.2}, seed=5, sampling={"steps": 4}, training={"learning_rate": 1.0}, duals={"kind": "nu_pi"}
    ).config
    again, second = build(other)
    for parameter in second.parameters().values():
        torch.nn.init.normal_(parameter)
    assert_same(again(second.draw(10, 3)), first)
    assert second.rollouts == 0


def test_every_part_of_a_batch_is_known_by_itself() -> None:
    """Another worker's part, a batch of another size and its first half have other noise, or other samples."""
    reference, policy = build(CONFIG)
    whole = policy.draw(10, 3)
    draws = [
        whole,
        whole.part(0, 5),
        whole.part(5, 10),
        policy.draw(12, 3),
        policy.draw(12, 3, first=0, last=10),
    ]
    for draw in [*draws, *draws]:
        assert_same(reference(draw), fresh(CONFIG, draw))
    assert policy.rollouts == len(draws)


def changed(**update: Any) -> TrialConfig:
    return CONFIG.model_copy(update=update)


LINEAR, QUADRATIC = CONFIG.rewards[0], RewardConfig(name="q", kind="quadratic", parameters={"center": (1.0,)})
CHANGES = {
    "a reward's parameter": changed(
        rewards=(LINEAR.model_copy(update={"parameters": {"direction": (2.0,)}}),)
    ),
    "a reward's kind": changed(rewards=(QUADRATIC.model_copy(update={"name": "x"}),)),
    "a reward's name": changed(rewards=(LINEAR.model_copy(update={"name": "y"}),)),
    "one reward more": changed(rewards=(LINEAR, QUADRATIC)),
    "eta": changed(sampling=SamplingConfig(steps=4, eta=0.5)),
    "the model": changed(
        model=ModelConfig(mixture=MixtureConfig(weights=(1.0,), means=((2.0,),), covariances=(((1.0,),),)))
    ),
    "the number of steps": changed(sampling=SamplingConfig(steps=5)),
    "the precision": changed(training=CONFIG.training.model_copy(update={"precision": "bf16"})),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_the_scores_depend_on_misses_the_cache(change: str) -> None:
    known, before = build(CONFIG)
    known(before.draw(10, 3))
    reference, policy = build(CHANGES[change])
    draw = policy.draw(10, 3)
    assert_same(reference(draw), fresh(CHANGES[change], draw))
    assert policy.rollouts == 1


def test_the_batch_that_was_asked_for_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "_KEPT", 2)
    reference, policy = build(CONFIG)
    counts = []
    for seed in (1, 2, 1, 3, 1, 2):  # 3 drives 2 out, not 1
        reference(policy.draw(4, seed))
        counts.append(policy.rollouts)
    assert counts == [1, 2, 2, 3, 3, 4]
    assert len(paired._known) == 2


# Stored samples.


def stored(config: TrialConfig, samples: int) -> tuple[StoredReference, Counted]:
    fresh, policy = build(config)
    rewards = {reward.name: build_reward(reward) for reward in config.rewards}
    parts = {
        "evaluation": config.evaluation.model_copy(update={"baseline_images": samples}),
        "training": config.training.model_copy(update={"batch_per_worker": 8}),
    }
    config = config.model_copy(update=parts)
    drawn = sample_reference(config, policy, rewards)
    policy.rollouts = 0
    return StoredReference(config, policy, drawn.rewards, fresh), policy


def test_stored_samples_are_trained_on_once_each_and_need_no_rollout() -> None:
    samples, size = 50, 8
    reference, policy = stored(CONFIG, samples)
    seen: list[int] = []
    for number in range(samples // size):
        whole = reference.draw(number, 0, size)
        assert whole is not None
        assert_same(dict(reference(whole)), fresh(CONFIG, whole))
        seen += whole.seeds.tolist()
        assert (whole.first, whole.count) == (0, size)
        # Another worker's part is that part, and in halves its scores are the same.
        part = reference.draw(number, 4, 8)
        assert part is not None
        assert (part.first, part.count) == (4, size)
        torch.testing.assert_close(part.noise, whole.noise[:, 4:], rtol=0, atol=0)
        assert_same(dict(reference(whole.part(4, 8))), dict(reference(part)))
    assert len(set(seen)) == len(seen) == samples // size * size
    assert policy.rollouts == 0
    assert reference.draw(samples // size, 0, size) is None
    drawn = policy.draw(size, 3)
    assert_same(dict(reference(drawn)), fresh(CONFIG, drawn))
    assert policy.rollouts == 1


def test_trials_of_other_seeds_take_stored_samples_in_another_order() -> None:
    orders = []
    for seed in (0, 1):
        reference, _ = stored(CONFIG.model_copy(update={"seed": seed}), 64)
        drawn = [reference.draw(number, 0, 8) for number in range(8)]
        orders.append([int(draw.seeds[0]) for draw in drawn if draw is not None])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


# Prompts.


def test_means_of_prompts_count_every_prompt_alike() -> None:
    """Whatever the samples do: over the prompts the means are that of the samples, which the duals add again."""
    means = PromptMeans({"x": np.array([1.0, 3.0, 10.0])}, ["a", "a", "b"])
    noise = torch.zeros(1, 3, 1)
    found = means(Draw(noise=noise, seeds=np.arange(3), prompts=("b", "a", "never sampled")))["x"]
    overall = 14.0 / 3.0
    torch.testing.assert_close(found, torch.tensor([overall + 4.0, overall - 4.0, overall]))


KINDS: dict[tuple[Any, str], Any] = {
    (True, "constrained"): PairedReference,
    ("noise", "constrained"): PairedReference,
    ("prompt", "constrained"): PromptMeans,
    ("none", "constrained"): type(None),
    (False, "constrained"): type(None),
    ("stored", "constrained"): StoredReference,
    ("stored", "weighted"): StoredReference,
    (True, "weighted"): PromptMeans,
    ("prompt", "weighted"): PromptMeans,
    (False, "weighted"): type(None),
}


@pytest.mark.parametrize(("pairing", "method"), KINDS)
def test_the_reference_is_sampled_only_where_multipliers_are_driven(pairing: Any, method: str) -> None:
    duals = DualConfig(paired=pairing)
    config = CONFIG.model_copy(update={"duals": duals, "method": method})
    policy = MixturePolicy.build(config.model.exact, config.sampling, 4)
    sampled = {"x": np.array([1.0, 2.0])}
    assert type(paired_with(config, policy, {}, sampled, ["a", "b"])) is KINDS[pairing, method]
    if method == "constrained" and pairing == "prompt":
        assert paired_with(config, policy, {}, sampled, None) is None  # of a mixture


def test_a_pairing_in_other_words_is_the_same_trial() -> None:
    assert DualConfig(paired="noise") == DualConfig(paired=True) == DualConfig()
    assert DualConfig(paired="none").model_dump() == DualConfig(paired=False).model_dump()
