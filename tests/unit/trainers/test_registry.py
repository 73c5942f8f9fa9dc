"""Extension points: unknown names and double registrations."""

from importlib.metadata import EntryPoint

import pytest

from trainers import registry
from trainers.config import RewardConfig
from trainers.rewards.base import build_reward


def test_an_unknown_name_lists_the_known_and_the_nearest() -> None:
    known = ", ".join(sorted(registry.registered(registry.REWARDS)))
    assert "linear" in known
    said = rf"unknown name 'linaer' \(did you mean 'linear'\?\); known: {known}$"
    with pytest.raises(ValueError, match=said):
        registry.load(registry.REWARDS, "linaer")


def test_one_name_for_two_classes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [EntryPoint("mine", value, registry.REWARDS) for value in ("a:A", "b:B")]
    monkeypatch.setattr(registry, "entry_points", lambda **_: entries)
    with pytest.raises(ValueError, match="'mine' is registered twice, as a:A and b:B"):
        registry.registered(registry.REWARDS)


def test_a_name_found_twice_with_the_same_class_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [EntryPoint("mine", "a:A", registry.REWARDS)] * 2
    monkeypatch.setattr(registry, "entry_points", lambda **_: entries)
    assert list(registry.registered(registry.REWARDS)) == ["mine"]


def test_parameters_that_the_class_does_not_take_name_the_reward() -> None:
    with pytest.raises(ValueError, match=r"reward 'r' \(linear\): .*slope"):
        build_reward(RewardConfig(name="r", kind="linear", parameters={"slope": 1.0}))
