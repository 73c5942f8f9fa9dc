"""What the doctor says of a trial's memory."""

import json
from typing import Any

import pytest

from orchestrator.doctor.finding import Patient
from orchestrator.doctor.memory import check_memory, memory_of, smallest_card
from orchestrator.spec import SweepSpec, parse_spec

PROMPTS = {"train": ["a cat"], "evaluate": ["a dog"]}


def spec_of(pretrained: str, **sections: Any) -> SweepSpec:
    document = {
        "name": "memory",
        "model": {"pretrained": pretrained},
        "prompts": PROMPTS,
        "sampling": {"steps": 2, "rest": 1},
        "training": {"batch_per_worker": 2},
        "evaluation": {"batch": 2},
        "constraints": [{"reward": "saturation", "at_least": 0.5, "unit": "sigma"}],
        **sections,
    }
    return parse_spec(json.dumps(document))


@pytest.mark.parametrize(
    ("needed", "card"), [(1e9, 8), (7.7e9, 12), (22.7e9, 24), (22.9e9, 32), (1e12, None)]
)
def test_a_card_is_the_smallest_with_room_for_its_driver_too(needed: float, card: int | None) -> None:
    assert smallest_card(needed) == card


def test_a_trial_of_the_shipped_pipeline_is_told() -> None:
    (finding,) = check_memory(Patient(spec=spec_of("embedded")))
    assert finding.status == "ok"
    assert "GiB for a process" in finding.found


def test_what_is_not_known_here_is_not_told() -> None:
    (finding,) = check_memory(Patient(spec=spec_of("owner/name")))
    assert (finding.status, finding.mend) == ("ok", "")
    assert "not told" in finding.found


def test_a_layer_that_the_model_has_not_is_said() -> None:
    model = {"pretrained": "runwayml/stable-diffusion-v1-5", "lora": {"targets": ["to_nowhere"]}}
    (finding,) = check_memory(Patient(spec=spec_of("embedded", model=model)))
    assert finding.status == "fail"
    assert "to_nowhere" in finding.found


def test_nothing_is_said_of_mixtures_and_of_no_spec() -> None:
    mixture = {"weights": [1.0], "means": [[0.0]], "covariances": [[[1.0]]]}
    reward = {"linear": {"direction": [1.0]}}
    document = {
        "name": "exact",
        "model": {"mixture": mixture},
        "constraints": [{"reward": reward, "name": "x", "at_least": 0.5, "unit": "sigma"}],
    }
    spec = parse_spec(json.dumps(document))
    assert memory_of(spec) is None
    assert list(check_memory(Patient(spec=spec))) == list(check_memory(Patient())) == []
