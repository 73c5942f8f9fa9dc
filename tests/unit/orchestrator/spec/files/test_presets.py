"""What a spec need not say of a pipeline whose family is known."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.plan import Plan, make_plan
from orchestrator.report.terminal.tables import plan_table
from orchestrator.spec.files import presets
from orchestrator.spec.load import dump_spec, load_spec, parse_spec
from orchestrator.spec.records.models import SweepSpec
from orchestrator.terminal import stdout
from trainers.config import PIPELINE_DEFAULTS, LoraConfig, ModelConfig
from trainers.pipelines.asking import mistakes
from trainers.pipelines.families import FAMILIES, FLUX_1
from trainers.pipelines.files import INDEX
from trainers.pipelines.known import known_configs, known_family, names_of
from trainers.pipelines.presets import PRESETS, preset_of

SWEEPS = Path(__file__).parents[5] / "sweeps"
SD3 = "stabilityai/stable-diffusion-3.5-medium"
TEXT = {
    "name": "least",
    "prompts": {"train": ["a cat"], "evaluate": ["a dog"]},
    "constraints": [{"reward": "saturation", "at_least": 0.5, "unit": "sigma"}],
}


def loaded(folder: Path, model: Any = SD3, **sections: Any) -> SweepSpec:
    file = folder / "spec.yaml"
    named = {"pretrained": model} if isinstance(model, str) else model
    file.write_text(json.dumps({**TEXT, "model": named, **sections}))
    return load_spec(file)


def trained(spec: SweepSpec) -> tuple[Any, ...]:
    assert spec.model is not None
    assert spec.model.lora is not None
    return spec.sampling, spec.training, spec.model.lora


def test_every_family_has_a_preset_that_its_models_take() -> None:
    assert PRESETS.keys() == set(FAMILIES)
    for name in (name for family in FAMILIES for name in names_of(family)):
        family, configs = known_family(name), known_configs(name)
        assert family is not None
        assert configs is not None
        preset = preset_of(family, configs, name)
        spec = parse_spec(
            json.dumps({**TEXT, "model": {"pretrained": name}, **without_lora(preset.sections)})
        )
        assert list(mistakes(family, configs, ModelConfig(pretrained=name), spec.sampling)) == []


def without_lora(sections: dict[str, Any]) -> dict[str, Any]:
    return {name: fields for name, fields in sections.items() if name != "lora"}


@pytest.mark.parametrize("name", ["sdxl", "sd35_medium", "flux2_klein", "z_image"])
def test_a_spec_names_model_and_thresholds(name: str, tmp_path: Path) -> None:
    """The shipped sweeps write their settings out; left out, they are the same."""
    shipped = SWEEPS / f"{name}_pick_score.yaml"
    short = yaml.safe_load(shipped.read_text())
    for key in ("sampling", "training"):
        del short[key]
    del short["model"]["lora"]
    short["evaluation"] = {"every": short["evaluation"]["every"]}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(short))
    ids = [
        [trial.trial_id for trial in make_plan(load_spec(file)).trials]
        for file in (shipped, tmp_path / "short.yaml")
    ]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("model", "steps", "guidance"),
    [
        ("black-forest-labs/FLUX.1-dev", 20, 3.5),
        ("black-forest-labs/flux.1-schnell", 4, None),
        ("black-forest-labs/FLUX.2-klein-base-4B", 20, 4.0),
        ("black-forest-labs/FLUX.2-klein-4B", 4, None),
        ("Tongyi-MAI/Z-Image-Turbo", 8, None),
        ("Tongyi-MAI/Z-Image", 20, 4.0),
    ],
)
def test_models_that_were_distilled_draw_in_few_steps(
    model: str, steps: int, guidance: float | None, tmp_path: Path
) -> None:
    sampling = loaded(tmp_path, model).sampling
    assert (sampling.steps, sampling.guidance) == (steps, guidance)


def test_what_is_written_stays(tmp_path: Path) -> None:
    spec = loaded(
        tmp_path,
        {"pretrained": SD3, "lora": {"rank": 2}},
        sampling={"steps": 2, "guidance": None},
        training={"precision": "fp32"},
    )
    sampling, training, lora = trained(spec)
    assert (sampling.steps, sampling.rest, sampling.guidance) == (2, 1, None)
    assert (training.precision, training.learning_rate) == ("fp32", 3.0e-4)
    assert lora == LoraConfig(rank=2)


@pytest.mark.parametrize(
    ("sections", "batch"),
    [
        ({}, (1, 32)),
        ({"training": {"batch_per_worker": 4}}, (4, 1)),
        ({"training": {"accumulation": 4}}, (1, 4)),
        ({"training": {"images_per_prompt": 4}}, (8, 1)),
        ({"training": {"primal": "log_variance"}}, (8, 1)),
        ({"training": {"primal": "low_variance"}}, (1, 32)),
    ],
)
def test_batches_go_with_what_is_written(
    sections: dict[str, Any], batch: tuple[int, int], tmp_path: Path
) -> None:
    training = loaded(tmp_path, **sections).training
    assert (training.batch_per_worker, training.accumulation) == batch
    assert training.gradient_checkpointing


def test_second_order_has_its_own_rest_and_spacing(tmp_path: Path) -> None:
    sampling = loaded(tmp_path, sampling={"order": 2}).sampling
    assert (sampling.rest, sampling.spacing, sampling.steps) == (1, "trailing", 20)


def test_what_is_read_back_has_no_preset_added(tmp_path: Path) -> None:
    """None stands for off, and is left out of what is written."""
    spec = loaded(tmp_path, sampling={"guidance": 1.0})
    assert spec.sampling.guidance is None
    file = tmp_path / "resolved.yaml"
    file.write_text(dump_spec(spec))
    assert parse_spec(file.read_text()) == load_spec(file, resolved=True) == load_spec(file) == spec
    assert make_plan(spec).trials == make_plan(load_spec(file)).trials


def test_a_directory_is_known_by_its_index(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"_class_name": "Flux2KleinPipeline", "is_distilled": True}))
    told = presets.preset_told({"pretrained": str(tmp_path)})
    assert told is not None
    assert (told.steps, told.guidance) == (4, None)


@pytest.mark.parametrize("model", [None, 3, {}, {"pretrained": []}, {"pretrained": SD3, "revision": 3}])
def test_what_is_no_name_has_no_preset(model: object) -> None:
    assert presets.preset_told(model) is None


def test_what_is_shipped_has_the_defaults_of_any_pipeline(tmp_path: Path) -> None:
    for name in ("embedded", "embedded-flow"):
        spec = loaded(tmp_path, name)
        assert spec.sampling.steps == PIPELINE_DEFAULTS["sampling"]["steps"]
        assert make_plan(spec).preset is None


def test_the_hub_tells_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "class_of", lambda *_: FLUX_1.pipelines[0])
    spec = loaded(tmp_path, "owner/tuned")
    assert (spec.sampling.guidance, spec.training.precision) == (3.5, "bf16")
    assert make_plan(spec).preset is not None


def test_a_plan_says_what_it_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(loaded(tmp_path))
    words = (
        "SD 3: 20 steps, eta 1, guidance 4.5, adapter off in the last 2; bf16, learning rate 0.0003, rank 8"
    )
    assert plan.preset is not None
    assert plan.preset.startswith(words)
    assert plan.preset.endswith("the family's preset")
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    stdout().print(plan_table(plan.to_json()), soft_wrap=True)
    assert plan.preset in capsys.readouterr().out

    other = make_plan(loaded(tmp_path, sampling={"guidance": None}, training={"precision": "fp16"})).preset
    assert other is not None
    assert other.endswith("the family's preset, but for sampling.guidance, training.precision")


def test_a_plan_says_where_no_family_is_known(tmp_path: Path) -> None:
    warnings = " ".join(make_plan(loaded(tmp_path, "owner/unknown")).warnings)
    assert "the family of owner/unknown is not known" in warnings
    assert "sampling.steps 8 and training.learning_rate 0.003 are the defaults of any pipeline" in warnings
    written = {"sampling": {"steps": 9}, "training": {"learning_rate": 1e-4}}
    assert "family of" not in " ".join(make_plan(loaded(tmp_path, "owner/unknown", **written)).warnings)
