"""A pipeline's directory is looked at when a spec file is read, without torch."""

import json
import shutil
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.load import load_spec, parse_spec
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


# Pipelines that are composed ---------------------------------------------------------------------------

PROMPTED = "prompts: {train: [a cat], evaluate: [a dog]}\n"
COMPOSED = """\
name: composed
models:
  one: {pretrained: embedded}
  two: {pretrained: SOURCE}
objective: {minmax_kl: [one, two]}
"""


def composed(source: Path | str, tmp_path: Path, more: str = "") -> list[str]:
    """Return the problems of composing the shipped pipeline with another."""
    file = tmp_path / "spec.yaml"
    file.write_text(COMPOSED.replace("SOURCE", str(source)) + more)
    try:
        load_spec(file)
    except SpecError as error:
        return str(error).split("\n")
    return []


def changed(tmp_path: Path, file: str = "", **values: object) -> Path:
    """Copy the configurations of the shipped pipeline, with other values in one file; None leaves a key out."""
    directory = tmp_path / "copy"
    shutil.copytree(
        pipeline.EMBEDDED_DIRECTORY,
        directory,
        ignore=shutil.ignore_patterns("*.safetensors", "tokenizer.json"),
    )
    if file:
        config = json.loads((directory / file).read_text()) | values
        kept = {key: value for key, value in config.items() if value is not None}
        (directory / file).write_text(json.dumps(kept))
    return directory


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("scheduler/scheduler_config.json", "timestep_spacing", "trailing"),
        ("scheduler/scheduler_config.json", "_class_name", "PNDMScheduler"),
        ("scheduler/scheduler_config.json", "prediction_type", None),
        ("scheduler/scheduler_config.json", "rescale_betas_zero_snr", None),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 1000.0),
        ("unet/config.json", "block_out_channels", [32, 64]),
        ("unet/config.json", "cross_attention_dim", 32),
    ],
)
def test_what_makes_no_other_chain_is_composed(tmp_path: Path, file: str, key: str, value: object) -> None:
    assert composed(changed(tmp_path, file, **{key: value}), tmp_path) == []


@pytest.mark.parametrize(
    ("file", "key", "value", "noun", "wanted"),
    [
        ("unet/config.json", "in_channels", 9, "other latents", "4"),
        ("unet/config.json", "sample_size", 16, "other latents", "8"),
        ("vae/config.json", "latent_channels", 8, "other latents", "4"),
        ("vae/config.json", "scaling_factor", None, "other latents", "1.0"),
        ("scheduler/scheduler_config.json", "beta_start", 0.001, "another scheduler", "0.00085"),
        ("scheduler/scheduler_config.json", "beta_schedule", None, "another scheduler", '"scaled_linear"'),
        ("scheduler/scheduler_config.json", "rescale_betas_zero_snr", True, "another scheduler", "false"),
        (
            "scheduler/scheduler_config.json",
            "prediction_type",
            "v_prediction",
            "another prediction type",
            '"eps',
        ),
    ],
)
def test_pipelines_that_are_no_chains_on_one_noise(
    tmp_path: Path, file: str, key: str, value: object, noun: str, wanted: str
) -> None:
    source = changed(tmp_path, file, **{key: value})
    place, rule = composed(source, tmp_path)
    default = {"scaling_factor": 0.18215, "beta_schedule": "linear"}
    shown = json.dumps(default[key] if value is None else value)
    assert f'line 4, column 21: models.two.pretrained = "{source}"' in place
    assert f"has {noun} than models.one.pretrained, so they cannot be composed: " in rule
    assert f"{key} {shown} in {source}/{file}, {wanted}" in rule
    assert f" in embedded/{file}" in rule


def test_each_difference_is_one_problem_and_the_base_comes_first(tmp_path: Path) -> None:
    source = changed(tmp_path, "scheduler/scheduler_config.json", beta_end=0.02, prediction_type="sample")
    assert len(composed(source, tmp_path)) == 4
    with_base = composed(source, tmp_path, f"model: {{pretrained: {source}}}\n{PROMPTED}")
    assert "models.one.pretrained" in with_base[0]
    assert "another scheduler than model.pretrained" in with_base[1]


def test_what_cannot_be_read_is_left_to_loading(directory: Path, tmp_path: Path) -> None:
    assert composed(directory, tmp_path) == [], "no configurations"
    (directory / "unet" / "config.json").write_text("[")
    (directory / "vae" / "config.json").write_text("[]")
    assert composed(directory, tmp_path) == []
    assert composed("owner/name", tmp_path) == []


def test_a_directory_of_a_model_is_looked_at(tmp_path: Path) -> None:
    assert "is not a pipeline in diffusers format" in composed(tmp_path, tmp_path)[1]
    assert "cannot be read as a directory" in composed("./gone", tmp_path)[1]
    assert "is no hub id" in composed("embedde", tmp_path)[1]
