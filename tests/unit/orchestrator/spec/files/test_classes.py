"""An estimator that differentiates rewards is refused at plan beside one that says it has no gradient."""

import sys
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.files.classes import says
from orchestrator.spec.load import parse_spec
from trainers import registry

MODULES = {
    "__init__.py": "",
    "base.py": "import torch_of_no_machine\n\nclass BlackBox:\n    differentiable: bool = False\n",
    "counts.py": (
        "import torch_of_no_machine\nfrom .base import BlackBox\nfrom .base import BlackBox as Other\n\n"
        "class Counts(BlackBox):\n    '''Counts.'''\n\n"
        "class Smooth(Other):\n    differentiable = True\n\n"
        "class Silent:\n    differentiable = property(lambda self: False)\n\n"
        "class Climber:\n    needs_gradients = False\n"
    ),
}


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the user's own, whose modules nothing can import."""
    (tmp_path / "boxes").mkdir()
    for name, text in MODULES.items():
        (tmp_path / "boxes" / name).write_text(text)
    info = tmp_path / "boxes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: boxes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[cdsweep.rewards]\ncounts = boxes.counts:Counts\nsmooth = boxes.counts:Smooth\n"
        "silent = boxes.counts:Silent\naway = boxes.nowhere:Away\n"
        "[cdsweep.primal_estimators]\nclimber = boxes.counts:Climber\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"), [("counts", False), ("smooth", True), ("silent", None), ("away", None), ("none", None)]
)
def test_what_a_class_says_is_read_without_importing_it(name: str, said: bool | None) -> None:
    assert says(registry.REWARDS, name, "differentiable") is said
    assert "boxes" not in sys.modules


def spec(reward: str, primal: str, methods: str = "[constrained]", more: str = "") -> str:
    return (
        "name: demo\nmodel: {pretrained: embedded}\n"
        f"constraints:\n- {{reward: {{{reward}: {{}}}}, name: wish, at_least: 0.5, unit: sigma}}\n{more}"
        f"methods: {methods}\ntraining: {{primal: {primal}}}\n"
    )


@pytest.mark.parametrize(
    "primal", ["reward_backprop", "truncated_backprop", "low_variance", "clipped_backprop"]
)
def test_an_estimator_that_needs_gradients_refuses_a_reward_without(primal: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(spec("counts", primal))
    message = str(caught.value)
    assert "training.primal" in message
    for part in (primal, "'wish'", "counts", "log_variance", "climber"):
        assert part in message
    assert message.count("has no gradient") == 1


@pytest.mark.parametrize("primal", ["log_variance", "climber"])
def test_one_that_needs_none_takes_it(primal: str) -> None:
    parse_spec(spec("counts", primal))


def test_a_reward_that_does_not_say_so_has_gradients() -> None:
    parse_spec(spec("smooth", "reward_backprop"))
    parse_spec(spec("silent", "reward_backprop"))


def test_what_is_only_measured_needs_no_gradient() -> None:
    more = "- {reward: saturation, at_least: 0.5, unit: sigma}\n"
    parse_spec(spec("counts", "reward_backprop", "[weighted: {weights: {saturation: 1.0}}]", more))
    with pytest.raises(SpecError, match="has no gradient"):
        parse_spec(spec("counts", "reward_backprop", "[weighted: {weights: equal}]", more))
