"""A pipeline's directory is looked at when a spec file is read, without torch."""

from pathlib import Path

import pytest

from orchestrator.spec.load import parse_spec
from orchestrator.spec.pipelines import COMPONENTS, directory_problems
from trainers.config import MixtureConfig, ModelConfig
from trainers.models import pipeline


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """What looks like a whole pipeline."""
    for part in COMPONENTS:
        (tmp_path / "sd" / part).mkdir(parents=True)
    (tmp_path / "sd" / "model_index.json").touch()
    return tmp_path / "sd"


def rules(source: str) -> list[str]:
    return [problem.rule for problem in directory_problems(ModelConfig(pretrained=source))]


def test_the_components_are_those_that_loading_wants() -> None:
    assert COMPONENTS == pipeline._COMPONENTS


def test_what_is_whole_or_on_the_hub_is_left_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rules(str(directory)) == []
    monkeypatch.chdir(directory.parent)
    assert rules("sd") == rules("./sd") == rules("../" + directory.parent.name + "/sd") == []
    assert rules("owner/name") == rules("name") == rules("embedded") == []
    mixture = MixtureConfig(weights=(1.0,), means=((0.0,),), covariances=(((1.0,),),))
    assert directory_problems(ModelConfig(mixture=mixture)) == []


@pytest.mark.parametrize("part", COMPONENTS)
def test_a_missing_component_is_named(directory: Path, part: str) -> None:
    (directory / part).rmdir()
    assert rules(str(directory)) == [f"lacks the component(s) {part}"]


def test_a_directory_without_an_index_is_named_with_what_it_holds(directory: Path) -> None:
    (directory / "model_index.json").unlink()
    (rule,) = rules(str(directory))
    assert "no model_index.json (it holds: scheduler, text_encoder, tokenizer, unet, vae)" in rule
    assert "it holds: nothing" in rules(str(directory / "unet"))[0]


@pytest.mark.parametrize(
    "source", ["./sd", "../sd", ".", "/no/such/place", "a/b/c", "~/sd", "a/b/" + 300 * "c"]
)
def test_paths_that_lead_nowhere_are_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(rules(source)) == 1


@pytest.mark.parametrize("source", ["owner/name", 300 * "c", "owner/" + 300 * "c"])
def test_what_may_be_a_hub_id_is_left_to_the_hub(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert rules(source) == []


def test_a_spec_that_comes_from_a_sweep_may_outlive_its_pipeline(tmp_path: Path) -> None:
    text = (
        f"name: demo\nmodel: {{pretrained: {tmp_path / 'gone'}}}\nprompts: {{train: [a], evaluate: [b]}}\n"
        "constraints: [{reward: saturation, at_least: 0.1}]\n"
    )
    assert parse_spec(text).model.pretrained == str(tmp_path / "gone")
