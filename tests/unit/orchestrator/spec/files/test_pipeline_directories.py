"""A pipeline's directory is looked at when a spec file is read, without torch."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from orchestrator.errors import SpecError
from orchestrator.spec.files.pipelines import directory_problems
from orchestrator.spec.load import load_spec, parse_spec
from trainers.config import MixtureConfig, ModelConfig
from trainers.models import pipeline
from trainers.pipelines.configs import config_mistake
from trainers.pipelines.families import FAMILIES, STABLE_DIFFUSION, stem_of
from trainers.pipelines.files import INDEX, defining_files
from trainers.pipelines.known import known_configs, known_family, names_of

COMPONENTS = STABLE_DIFFUSION.components
WEIGHTED = {part: stem_of(part) for part in STABLE_DIFFUSION.weighted}
WEIGHTS = save({"one": np.zeros(3, np.float32)})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """What looks like a whole pipeline."""
    for part in COMPONENTS:
        (tmp_path / "sd" / part).mkdir(parents=True)
    for part, stem in WEIGHTED.items():
        (tmp_path / "sd" / part / f"{stem}.safetensors").write_bytes(WEIGHTS)
        (tmp_path / "sd" / part / "config.json").write_text("{}")
    (tmp_path / "sd" / "scheduler" / "scheduler_config.json").write_text("{}")
    (tmp_path / "sd" / INDEX).touch()
    return tmp_path / "sd"


def rules(source: str | Path, variant: str | None = None) -> list[str]:
    return [
        problem.rule for problem in directory_problems(ModelConfig(pretrained=str(source), variant=variant))
    ]


def test_what_is_whole_or_on_the_hub_is_left_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rules(str(directory)) == []
    monkeypatch.chdir(directory.parent)
    assert rules("sd") == rules("./sd") == rules("../" + directory.parent.name + "/sd") == []
    assert rules("owner/name") == rules("name") == rules("embedded") == []
    mixture = MixtureConfig(weights=(1.0,), means=((0.0,),), covariances=(((1.0,),),))
    assert directory_problems(ModelConfig(mixture=mixture)) == []


CONFIGS = (*(f"{part}/config.json" for part in WEIGHTED), "scheduler/scheduler_config.json")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_loading_begins_with_is_there_and_whole(name: str, directory: Path) -> None:
    for content in ("", "{", "[1]", "3"):
        (directory / name).write_text(content)
        assert rules(directory) == [f"has a {name} that is no mapping in JSON: it is damaged"]
    (directory / name).unlink()
    assert rules(directory) == [f"lacks {name}, the configuration of its {name.partition('/')[0]}"]


@pytest.mark.parametrize("entry", [None, [None, None], [], "CLIPTextModel", ["transformers"]])
def test_a_component_that_the_index_leaves_out_is_named(entry: object, directory: Path) -> None:
    (directory / INDEX).write_text(json.dumps({"text_encoder": entry}))
    assert rules(directory) == [
        f"has a {INDEX} that leaves out text_encoder, which a pipeline of SD 1.x, 2.x needs"
    ]


@pytest.mark.parametrize("part", COMPONENTS)
def test_a_missing_component_is_named(directory: Path, part: str) -> None:
    shutil.rmtree(directory / part)
    assert rules(str(directory)) == [f"lacks the component(s) {part}"]


def test_a_directory_without_an_index_is_named_with_what_it_holds(directory: Path) -> None:
    (directory / "model_index.json").unlink()
    (rule,) = rules(str(directory))
    assert "no model_index.json (it holds: scheduler, text_encoder, tokenizer, unet, vae)" in rule
    shutil.rmtree(directory / "vae")
    (directory / "vae").mkdir()
    assert "it holds: nothing" in rules(str(directory / "vae"))[0]


@pytest.mark.parametrize(
    "source",
    [
        "./sd",
        "../sd",
        ".",
        "/no/such/place",
        "a/b/c",
        "~/sd",
        "a/b/" + 300 * "c",
        "my models/sd",
        "owner/name with words",
        "owner/name/",
        "https://huggingface.co/owner/name",
    ],
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


# Weights: variants and shards ------------------------------------------------------------------------


def renamed(directory: Path, mark: str) -> None:
    """Leave the weights of one variant alone."""
    for part, stem in WEIGHTED.items():
        (directory / part / f"{stem}.safetensors").rename(directory / part / f"{stem}.{mark}.safetensors")


def sharded(directory: Path, part: str, count: int = 3, mark: str = "") -> list[Path]:
    """Replace the weights of a component by shards, and return them."""
    stem = WEIGHTED[part]
    (directory / part / f"{stem}.safetensors").unlink()
    names = [f"{stem}{mark}-0000{number + 1}-of-0000{count}.safetensors" for number in range(count)]
    index = {"metadata": {}, "weight_map": {f"layer.{i}.weight": names[i % count] for i in range(10)}}
    (directory / part / f"{stem}.safetensors.index{mark}.json").write_text(json.dumps(index))
    for name in names:
        (directory / part / name).write_bytes(WEIGHTS)
    return [directory / part / name for name in names]


def test_only_a_variant_is_there(directory: Path) -> None:
    renamed(directory, "fp16")
    assert rules(directory) == ["only the fp16 variant is there: model.variant: fp16"]
    assert rules(directory, "fp16") == []
    assert rules(directory, "bf16") == ["has no files of the variant 'bf16'; there are: fp16"]
    (directory / "unet" / "diffusion_pytorch_model.ema.safetensors").touch()
    assert rules(directory, "fp16") == []
    shutil.copy(
        directory / "text_encoder" / "model.fp16.safetensors",
        directory / "text_encoder" / "model.safetensors",
    )
    assert rules(directory) == ["only the variants ema, fp16 are there: model.variant: ema"]


def test_a_component_without_the_variant_is_taken_plain(directory: Path) -> None:
    (directory / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(WEIGHTS)
    assert rules(directory) == rules(directory, "fp16") == []
    plain, half = ({file.name for file in defining_files(directory, variant)} for variant in (None, "fp16"))
    assert half - plain == {"diffusion_pytorch_model.fp16.safetensors"}
    assert "model.safetensors" in half
    assert rules(directory, "fp32") == ["has no files of the variant 'fp32'; there are: fp16"]


def test_a_name_without_a_dot_is_told_where_diffusers_fails_at_it(directory: Path) -> None:
    (directory / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(WEIGHTS)
    (directory / "unet" / "LICENSE").touch()
    assert rules(directory) == []
    (rule,) = rules(directory, "fp16")
    assert rule.startswith("holds unet/LICENSE: diffusers fails at a name without a dot")


def test_no_variant_is_there(directory: Path) -> None:
    assert rules(directory, "fp16") == ["has no files of the variant 'fp16', only plain ones"]


@pytest.mark.parametrize("part", WEIGHTED)
@pytest.mark.parametrize("mark", ["", ".fp16"])
def test_shards_are_whole_or_the_missing_one_is_named(directory: Path, part: str, mark: str) -> None:
    shards = sharded(directory, part, mark=mark)
    variant = mark.removeprefix(".") or None
    assert rules(directory, variant) == []
    assert set(shards) < set(defining_files(directory, variant))
    shards[1].unlink()
    (rule,) = rules(directory, variant)
    assert rule.startswith(f"lacks {part}/{shards[1].name}, one of the 3 shards that {part}/")


def test_damaged_indices_are_named(directory: Path) -> None:
    sharded(directory, "unet")
    for text in ("", "[]", "{}", '{"weight_map": 3}'):
        (directory / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
        assert "is no index of shards" in rules(directory)[0]


def test_weights_that_are_missing_or_pickles_are_named(directory: Path) -> None:
    weights = directory / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    (rule,) = rules(directory)
    assert "its unet has no weights in safetensors, diffusion_pytorch_model.safetensors" in rule
    assert "(it holds: config.json, diffusion_pytorch_model.bin)" in rule
    weights.with_suffix(".bin").unlink()
    assert "(it holds: config.json)" in rules(directory)[0]


def test_a_variant_of_the_shipped_pipeline_and_of_a_mixture_is_refused() -> None:
    text = "name: demo\nmodel: {pretrained: embedded, variant: fp16}\nconstraints: [{reward: clip, at_least: 0.1}]\n"
    with pytest.raises(SpecError, match=r"(?s)model\.variant .*the shipped pipeline has no variants"):
        parse_spec(text)
    with pytest.raises(ValueError, match="'variant' go with 'pretrained'"):
        ModelConfig(
            mixture=MixtureConfig(weights=(1.0,), means=((0.0,),), covariances=(((1.0,),),)), variant="fp16"
        )


# What configurations tell ----------------------------------------------------------------------------


SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("file", "settings", "rule"),
    [
        (
            SCHEDULER,
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "is trained by flow matching (its scheduler is a FlowMatchEulerDiscreteScheduler)",
        ),
        (
            SCHEDULER,
            {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True},
            "is trained by flow matching (its scheduler is a DPMSolverMultistepScheduler: use_flow_sigmas)",
        ),
        (
            SCHEDULER,
            {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"},
            "its prediction_type is 'flow_prediction'; known: epsilon, v_prediction, sample",
        ),
        (SCHEDULER, {"_class_name": "EDMEulerScheduler"}, "has a EDMEulerScheduler, whose noise levels DDIM cannot"),
        (SCHEDULER, {"_class_name": "CogVideoXDDIMScheduler"}, "whose noise levels DDIM cannot use"),
        (
            SCHEDULER,
            {"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"},
            "beta_schedule is 'sigmoid' (scheduler/scheduler_config.json), which DDIM does not have; known: linear,",
        ),
        (SCHEDULER, {"_class_name": "HeunDiscreteScheduler", "beta_schedule": "exp"}, "beta_schedule is 'exp'"),
        (SCHEDULER, {"_class_name": "DDPMScheduler", "beta_schedule": "laplace"}, "beta_schedule is 'laplace'"),
        (SCHEDULER, {"trained_betas": [0.001] * 50}, "with 50 trained_betas and num_train_timesteps 1000 ("),
        (SCHEDULER, {"trained_betas": [0.001] * 1001}, "1001 trained_betas and num_train_timesteps 1000"),
        (SCHEDULER, {"trained_betas": []}, "0 trained_betas"),
        (SCHEDULER, {"trained_betas": [0.001, 1.0, *[0.001] * 998]}, "trained_betas.1 is 1.0"),
        (SCHEDULER, {"beta_start": 0.0}, "has a scheduler whose beta_start is 0.0 (scheduler/scheduler_config.json)"),
        (SCHEDULER, {"beta_end": 1}, "beta_end is 1 "),
        (SCHEDULER, {"prediction_type": "velocity"}, "prediction_type is 'velocity'; known: epsilon,"),
        (
            SCHEDULER,
            {"rescale_betas_zero_snr": True},
            "rescale_betas_zero_snr and prediction_type 'epsilon': at a level without signal",
        ),
        (
            SCHEDULER,
            {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"},
            "timestep_type is 'continuous'",
        ),
        (SCHEDULER, {"timestep_spacing": "even"}, "timestep_spacing is 'even'; known: leading, linspace, trailing"),
        (
            "text_encoder/config.json",
            {"hidden_size": 768},
            "has a text_encoder of width 768 (hidden_size), and its unet takes width 64 (cross_attention_dim)",
        ),
        ("unet/config.json", {"cross_attention_dim": 1024}, "of width 64 (hidden_size), and its unet takes width 1024"),
        ("unet/config.json", {"in_channels": 9}, "is not of the SD 1.x, 2.x family: its unet takes 9 channels"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "conditions besides the prompt"),
        ("unet/config.json", {"_class_name": "UNet3DConditionModel"}, "its unet is a UNet3DConditionModel"),
    ],
)  # fmt: skip
def test_what_cannot_be_sampled_is_told_by_its_files(
    tmp_path: Path, file: str, settings: dict[str, object], rule: str
) -> None:
    (found,) = rules(changed(tmp_path, file, **settings))
    assert rule in found


@pytest.mark.parametrize(
    ("file", "key", "value", "rule"),
    [
        (SCHEDULER, "beta_start", "0.001", "has a scheduler whose config has beta_start '0.001': it must be a number"),
        (SCHEDULER, "beta_end", True, "has beta_end True: it must be a number"),
        (SCHEDULER, "trained_betas", 3, "trained_betas 3: it must be a list of numbers, or null"),
        (SCHEDULER, "num_train_timesteps", "1000", "it must be a whole number above 0"),
        ("vae/config.json", "latent_channels", "4", "has a vae whose config has latent_channels '4'"),
        ("vae/config.json", "block_out_channels", [], "it must be a list of whole numbers above 0"),
        ("vae/config.json", "block_out_channels", 3, "it must be a list of whole numbers above 0"),
        ("unet/config.json", "sample_size", "64", "it must be a whole number above 0, height and width, or null"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_said_and_computed_with_by_none(
    tmp_path: Path, file: str, key: str, value: object, rule: str
) -> None:
    folder = changed(tmp_path, file, **{key: value})
    text = (
        f"name: kinds\nmodel: {{pretrained: {folder}, height: 32, width: 32}}\n"
        "prompts: {train: [a, b], evaluate: [c]}\nconstraints: [{reward: saturation, at_least: 0.5}]\n"
    )
    with pytest.raises(SpecError, match=re.escape(rule)) as caught:
        parse_spec(text, directory=tmp_path)
    assert len(str(caught.value).splitlines()) == 2, "one mistake is one problem"


@pytest.mark.parametrize("content", ["{", "[]", "5", "\x00"])
def test_a_damaged_index_is_said_as_that(directory: Path, content: str) -> None:
    (directory / INDEX).write_text(content)
    assert rules(directory) == ["has a model_index.json that is no mapping in JSON: it is damaged"]


def test_weights_that_are_no_files_are_named(directory: Path) -> None:
    weights = directory / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to("/no/such/blob")
    assert rules(directory) == [
        "holds unet/diffusion_pytorch_model.safetensors, which is a link that leads nowhere"
    ]
    weights.unlink()
    weights.mkdir()
    assert rules(directory) == ["holds unet/diffusion_pytorch_model.safetensors, which is no file"]


@pytest.mark.parametrize("part", WEIGHTED)
def test_weights_that_are_cut_short_are_named_before_anything_is_loaded(directory: Path, part: str) -> None:
    weights = directory / part / f"{WEIGHTED[part]}.safetensors"
    weights.write_bytes(WEIGHTS[:-1])
    assert rules(directory) == [
        f"holds {part}/{weights.name}, which is cut short: 1 of its {len(WEIGHTS)} bytes are missing"
    ]
    for damaged in (b"", WEIGHTS[:20], b"version https://git-lfs.github.com/spec/v1\n"):
        weights.write_bytes(damaged)
        assert rules(directory) == [f"holds {part}/{weights.name}, which is not in the format of safetensors"]


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_configuration_that_is_not_there_is_not_compared(part: str) -> None:
    for name in (name for family in FAMILIES for name in names_of(family)):
        family, configs = known_family(name), known_configs(name)
        assert family is not None
        assert configs is not None
        assert config_mistake(family, {key: value for key, value in configs.items() if key != part}) is None


@pytest.mark.parametrize("part", ["network", "vae", "scheduler"])
@pytest.mark.parametrize("value", [None, "x", -1, 1.5, [], ["x"], {}])
def test_no_value_of_a_known_architecture_is_a_fault_of_ours(part: str, value: object) -> None:
    for name in (name for family in FAMILIES for name in names_of(family)):
        family, configs = known_family(name), known_configs(name)
        assert family is not None
        assert configs is not None
        place = family.network if part == "network" else part
        for key in configs[place]:
            changed_one = {**configs, place: {**configs[place], key: value}}
            mistake = config_mistake(family, changed_one)
            assert mistake is None or mistake.startswith(("has ", "is "))


@pytest.mark.parametrize(
    "settings",
    [
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"beta_schedule": "sigmoid", "trained_betas": [0.001] * 1000},
        {
            "_class_name": "EulerDiscreteScheduler",
            "timestep_spacing": "linspace",
            "timestep_type": "discrete",
        },
        {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": False, "use_karras_sigmas": True},
        {"beta_schedule": None},
        {"beta_schedule": "squaredcos_cap_v2", "beta_start": 0.0, "beta_end": 1.0},
    ],
)
def test_what_can_be_sampled_is(tmp_path: Path, settings: dict[str, object]) -> None:
    assert rules(changed(tmp_path, SCHEDULER, **settings)) == []


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
    shutil.copytree(pipeline.EMBEDDED_DIRECTORY, directory)
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
        ("unet/config.json", "attention_head_dim", 4),
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


def test_what_cannot_be_read_is_not_compared(directory: Path, tmp_path: Path) -> None:
    (directory / "unet" / "config.json").write_text("[")
    (directory / "vae" / "config.json").unlink()
    (directory / "scheduler" / "scheduler_config.json").unlink()
    assert not [line for line in composed(directory, tmp_path) if "than models.one" in line]
    assert composed("owner/name", tmp_path) == []


def test_a_directory_of_a_model_is_looked_at(tmp_path: Path) -> None:
    assert "is not a pipeline in diffusers format" in composed(tmp_path, tmp_path)[1]
    assert "cannot be read as a directory" in composed("./gone", tmp_path)[1]
    assert "is no hub id" in composed("embedde", tmp_path)[1]
