"""The first prompts, however many, are a fair share of all: spread over the file and over what is known of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiers import exhaustive

from trainers.config import PromptsConfig
from trainers.turns import turns


@given(count=st.integers(1, 60), seed=st.integers(0, 2**40), values=st.integers(1, 9))
def test_every_prompt_has_one_turn(count: int, seed: int, values: int) -> None:
    column = tuple(str(place % values) if place % 7 else None for place in range(count))
    order = turns(count, seed, (column,))
    assert sorted(order) == list(range(count))
    assert order == turns(count, seed, (column,))


@pytest.mark.parametrize("count", [3, 7, *exhaustive(12)])
def test_every_prompt_is_among_the_first_with_the_same_probability(count: int) -> None:
    """Of n of S with n / S, whether strata are metadata or places, and wherever the list is cut."""
    trials = 4000
    column = tuple("ab"[place in {1, 4}] for place in range(count))
    for columns in ((), (column,)):
        first = np.zeros((count, count))  # [n, prompt]
        for seed in range(trials):
            first[np.arange(count), turns(count, seed, columns)] += 1
        shares = np.arange(1, count + 1)[:, None] / count
        error = np.sqrt(shares * (1 - shares) / trials)
        assert (np.abs(first.cumsum(axis=0) / trials - shares) <= 5 * error + 1e-12).all()


@pytest.mark.parametrize("columns", [(), (("x",) * 48,), (tuple(map(str, range(48))),)])
def test_of_a_list_in_two_parts_both_are_asked_alike(columns: tuple[tuple[str, ...], ...]) -> None:
    """Metadata that is the same for all, or for none, says nothing."""
    for seed in range(20):
        later = np.array(turns(48, seed, columns)) >= 24
        found = later.cumsum()
        assert (np.abs(found - np.arange(1, 49) / 2) <= 0.5).all()
        # Quarters are blocks of blocks.
        quarters = np.array(turns(48, seed, columns)) // 12
        for quarter in range(4):
            assert (np.abs((quarters == quarter).cumsum() - np.arange(1, 49) / 4) < 2).all()


def test_categories_are_asked_by_their_share_wherever_they_stand() -> None:
    """48 prompts in random order: 24 animals, 16 texts and 8 of no category; half of each hard."""
    rng = np.random.default_rng(0)
    places = rng.permutation(48)
    kinds = np.array([*["animal"] * 24, *["text"] * 16, *[None] * 8])[places]
    hard = np.array(["yes", "no"] * 24)[places]
    columns = (tuple(map(str, range(48))), tuple(kinds.tolist()), tuple(hard.tolist()))
    for seed in range(20):
        order = list(turns(48, seed, columns))
        for count in (6, 12, 18, 24, 36, 48):
            asked = order[:count]
            for value, share in (("yes", 0.5), ("no", 0.5)):
                assert abs((hard[asked] == value).sum() - share * count) <= 0.5
            for value, share in (("animal", 1 / 2), ("text", 1 / 3), (None, 1 / 6)):
                assert abs((kinds[asked] == value).sum() - share * count) <= 2
        # A random order of the same size is not so even.
    loose = [abs((kinds[rng.permutation(48)[:24]] == "animal").sum() - 12) for _ in range(50)]
    assert max(loose) > 2


def test_ten_thousand_prompts_in_order() -> None:
    columns = tuple(tuple(str(place // 10**power % 10) for place in range(10_000)) for power in range(4))
    assert sorted(turns(10_000, 1, columns)) == list(range(10_000))


def test_prompts_take_turns_with_their_metadata() -> None:
    texts = tuple(f"{place}" for place in range(8))
    tags = {"tag": ("a", "a", "b", "b") * 2}
    prompts = PromptsConfig(train=texts, evaluate=texts, evaluate_metadata=tags)
    assert sorted(prompts.in_turn("train", 3)) == sorted(texts)
    assert prompts.in_turn("train", 3) != prompts.in_turn("train", 4)
    for seed in range(10):
        first = prompts.in_turn("evaluate", seed)[:2]
        assert {tags["tag"][int(text)] for text in first} == {"a", "b"}
