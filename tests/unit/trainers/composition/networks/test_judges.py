"""Judges: texts of their own, the least of several, and what a composition retains."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers import registry
from trainers.composition.networks.alone import retention
from trainers.composition.networks.judges import Judges
from trainers.config import RewardConfig


class _Length:
    """Pixels' mean times the length of the prompt; counts how often it is built."""

    built = 0

    def __init__(self) -> None:
        type(self).built += 1

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        assert prompts is not None
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        return samples.flatten(1).mean(dim=1) * lengths


@pytest.fixture
def _length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda group, name: _Length)  # noqa: ARG005 - one reward


@pytest.mark.usefixtures("_length")
def test_texts_of_their_own_and_the_least_image_by_image() -> None:
    _Length.built = 0
    judges = Judges(
        [
            RewardConfig(name="a", kind="length"),
            RewardConfig(name="b", kind="length", text="xx"),
            RewardConfig(name="c", kind="length", text="xxxx"),
            RewardConfig(name="least", kind="least", parameters={"of": ["a", "b", "c"]}),
        ]
    )
    images = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1).expand(2, 3, 4, 4)
    scores = judges(images, ["xxx", "x"])
    assert scores.tolist() == [[3.0, -1.0], [2.0, -2.0], [4.0, -4.0], [2.0, -4.0]]
    assert _Length.built == 1


@pytest.mark.usefixtures("_length")
def test_the_least_of_what_nothing_judges_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the least of 'd' is asked for, which nothing judges: a, least"):
        Judges(
            [
                RewardConfig(name="a", kind="length"),
                RewardConfig(name="least", kind="least", parameters={"of": ["d"]}),
            ]
        )


def test_retention_is_a_share_of_the_improvement_with_an_interval_that_covers() -> None:
    rng, covered, rounds = np.random.default_rng(0), 0, 300
    for _ in range(rounds):
        prompts = np.repeat(rng.normal(size=32), 8)  # what prompts have in common cancels
        base = prompts + 0.1 * rng.normal(size=256)
        alone, kept = base + 1.0 + 0.2 * rng.normal(size=256), base + 0.4 + 0.2 * rng.normal(size=256)
        share = retention({"r": kept}, {"r": alone}, {"r": base}, ("r",))
        assert share is not None
        assert share.mean == pytest.approx(0.4, abs=0.1)
        covered += share.low <= 0.4 <= share.high
    assert 0.91 <= covered / rounds <= 0.98


def test_of_several_rewards_the_least_counts_and_none_that_does_not_improve() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=64)
    alone = {"a": base + 1, "b": base + 2, "worse": base - 1}
    kept = {"a": base + 0.5, "b": base + 0.2, "worse": base}
    zero = dict.fromkeys(alone, base)
    share = retention(kept, alone, zero, ("a", "b", "worse"))
    assert share is not None
    assert share.mean == pytest.approx(0.1)
    assert retention(kept, alone, zero, ("worse",)) is None


def test_what_is_retained_of_one_group_has_no_error_that_is_known() -> None:
    share = retention({"r": np.full(8, 0.5)}, {"r": np.ones(8)}, {"r": np.zeros(8)}, ("r",))
    assert share is not None
    assert (share.mean, share.low, share.high) == (0.5, -np.inf, np.inf)
