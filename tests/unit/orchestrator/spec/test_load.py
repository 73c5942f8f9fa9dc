"""Valid specs: defaults, overrides, the round trip, the schema, names of rewards, extensions."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import jsonschema
import pytest
import yaml
from support.sweeps import SWEEPS, plannable

from orchestrator.errors import SpecError
from orchestrator.spec.load import dump_spec, json_schema, load_spec, parse_spec
from orchestrator.spec.records import registry
from orchestrator.spec.records.models import SweepSpec
from orchestrator.spec.records.rewards import resolve_rewards
from orchestrator.spec.records.terms import RewardConstraint

MODEL = """
name: small
model: {mixture: {weights: [1], means: [[0, 0]], covariances: [[[1, 0], [0, 1]]]}}
"""
MINIMAL = MODEL + "constraints: [{reward: {linear: {direction: [1, 0]}}, at_least: 0.5}]\n"
FULL = (
    MODEL
    + """
sampling: {steps: 10, eta: 0.5, guidance: 2}
objective: {reward: {quadratic: {center: [0, 1]}}, name: near}
constraints:
  - reward: {linear: {direction: [1, 0]}}
    name: right
    at_least: {grid: ["+50%", "-10%", 2]}
    unit: relative
  - {reward: right, name: right-sigma, at_least: 1, unit: sigma}
  - {reward: near, at_least: -3}
  - {kl: pretrained, at_most: {grid: [1, 2e0]}}
methods:
  - constrained
  - weighted: {}
  - weighted: {weights: {near: 1e-3, right: {grid: [0, 1]}}, scale: {grid: [0.1, 1]}}
seeds: [3, 1]
training: {learning_rate: 1e-3}
duals: {start: 0.5, paired: false}
resources: {workers: 2, gpus_per_worker: 0.5, cpus_per_worker: 2, concurrent_trials: 3, price_per_gpu_hour: 2}
storage: s3://bucket/sweeps
"""
)


def test_defaults() -> None:
    spec = parse_spec(MINIMAL)
    assert spec.methods == ("constrained",)
    assert spec.seeds == (0,)
    assert spec.storage == "results"
    assert spec.resources.concurrent_trials == "auto"
    assert spec.constraints[0].label == "linear"


@pytest.mark.parametrize("text", [MINIMAL, FULL])
def test_a_dumped_spec_loads_to_an_equal_one(text: str) -> None:
    spec = parse_spec(text)
    dumped = dump_spec(spec)
    assert parse_spec(dumped) == spec
    assert dump_spec(parse_spec(dumped)) == dumped
    as_json = json.dumps(spec.model_dump(mode="json"))
    assert parse_spec(as_json, "spec.json") == spec


@pytest.mark.parametrize("name", ["1e3", "0x10", "12", "off", "null", "2024-01-01", "1.0"])
def test_names_that_look_like_other_things_survive(name: str) -> None:
    spec = parse_spec(MINIMAL.replace("name: small", f"name: '{name}'"))
    assert spec.name == name
    assert parse_spec(dump_spec(spec)) == spec
    assert yaml.safe_load(dump_spec(spec))["name"] == name, "also to readers of YAML 1.1"


def test_overrides() -> None:
    spec = parse_spec(
        FULL,
        overrides=[
            "training.learning_rate=2e-4",
            "constraints.1.at_least=0.25",
            "convergence.window=7",
            "methods=[constrained]",
            "storage=yes",
            "convergence.window=8",
        ],
    )
    assert spec.training.learning_rate == 2e-4
    assert isinstance(spec.constraints[1], RewardConstraint)
    assert spec.constraints[1].at_least == 0.25
    assert spec.convergence.window == 8
    assert spec.methods == ("constrained",)
    assert spec.storage == "yes"


def test_overrides_make_an_incomplete_spec_whole(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(MODEL)
    item = "constraints=[{reward: {linear: {direction: [1, 0]}}, at_least: 0.5}]"
    assert load_spec(str(path), [item]) == parse_spec(MINIMAL)


def test_percentages() -> None:
    constraint = parse_spec(FULL).constraints[0]
    assert constraint.values == (0.5, -0.1, 2.0)
    assert constraint.loosest == -0.1


def test_rewards_are_resolved_by_name() -> None:
    rewards = resolve_rewards(parse_spec(FULL))
    assert list(rewards.by_name) == ["near", "right"]
    assert rewards.targets["constraints", 1] == "right"
    assert rewards.by_name["near"].parameters == {"center": [0.0, 1.0], "scale": 1.0}


def test_the_same_definition_may_be_written_twice() -> None:
    text = (
        MODEL
        + """
objective: {reward: {linear: {direction: [1, 0]}}}
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, at_least: 0.5}
  - {kl: pretrained, at_most: 3}
"""
    )
    assert list(resolve_rewards(parse_spec(text)).by_name) == ["linear"]


def test_schema(validator: jsonschema.Draft202012Validator) -> None:
    for text in (MINIMAL, FULL):
        validator.validate(yaml.safe_load(text.replace("1e-3", "0.001").replace("2e0", "2")))
        validator.validate(json.loads(parse_spec(text).model_dump_json(exclude_none=True)))
    wrong = yaml.safe_load(MINIMAL) | {"sedes": [0]}
    assert not validator.is_valid(wrong)
    wrong = yaml.safe_load(MINIMAL) | {
        "constraints": [{"reward": {"linear": {"direction": 1}}, "at_least": 1}]
    }
    assert not validator.is_valid(wrong)


def test_every_field_is_described_in_the_schema() -> None:
    schema = json_schema()
    records = [schema, *schema["$defs"].values()]
    assert [
        f"{record['title']}.{name}"
        for record in records
        for name, field in record["properties"].items()
        if "description" not in field
    ] == []


def test_shipped_specs(tmp_path: Path, validator: jsonschema.Draft202012Validator) -> None:
    for path in SWEEPS:
        spec = load_spec(plannable(path, tmp_path))
        validator.validate(json.loads(spec.model_dump_json(exclude_none=True)))


def test_rewards_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(group: str) -> EntryPoints:
        points = [EntryPoint("sharpness", "not_installed:Class", "cdsweep.rewards")]
        points += [EntryPoint("hps.v2", "not_installed:Class", "cdsweep.rewards")]
        return EntryPoints(points).select(group=group)

    monkeypatch.setattr(registry, "entry_points", entry_points)
    one = MODEL + "constraints: [{reward: sharpness, at_least: 0.5}]"
    other = MODEL + "constraints: [{reward: {sharpness: {gain: [1, {a: b}]}}, name: light, at_least: 0.5}]"
    assert resolve_rewards(parse_spec(one)).by_name["sharpness"].parameters == {}
    assert resolve_rewards(parse_spec(other)).by_name["light"].kind == "sharpness"
    assert parse_spec(dump_spec(parse_spec(other))) == parse_spec(other)
    jsonschema.validate(yaml.safe_load(other), json_schema())
    with pytest.raises(SpecError, match="did you mean 'sharpness'"):
        parse_spec(one.replace("sharpness", "sharpnes"))
    with pytest.raises(SpecError, match="give the reward a name"):
        parse_spec(one.replace("sharpness", "hps.v2"))
    named = parse_spec(one.replace("reward: sharpness", "reward: hps.v2, name: hps"))
    assert resolve_rewards(named).by_name["hps"].kind == "hps.v2"


def test_neither_torch_nor_ray_is_imported() -> None:
    code = "import sys, orchestrator.spec.load, orchestrator.plan; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert not loaded & {"torch", "ray", "matplotlib", "scipy", "pyarrow", "rich", "typer"}


def test_the_spec_is_frozen() -> None:
    spec = parse_spec(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "other"  # type: ignore[misc]
    assert isinstance(spec, SweepSpec)
