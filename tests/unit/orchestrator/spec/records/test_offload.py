"""Where an autoencoder can lie, and what a trial is known by all the same."""

import json
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.plan import Plan, make_plan
from orchestrator.spec.load import parse_spec


def planned(gpus: float, **training: Any) -> Plan:
    document = {
        "name": "offload",
        "model": {"pretrained": "embedded"},
        "constraints": [{"reward": "saturation", "at_least": 0.5, "unit": "sigma"}],
        "training": training,
        "resources": {"gpus_per_worker": gpus},
    }
    return make_plan(parse_spec(json.dumps(document)))


def test_where_an_autoencoder_lies_is_no_part_of_what_a_trial_is() -> None:
    away, here = planned(1, offload=True), planned(1)
    assert away.trials[0].config.training.offload
    assert away.trials[0].trial_id == here.trials[0].trial_id


def test_without_a_gpu_there_is_nowhere_else() -> None:
    with pytest.raises(SpecError, match=r"training\.offload = true\s+must be false: without a GPU"):
        planned(0, offload=True)


def test_a_mixture_has_no_autoencoder() -> None:
    text = """
name: exact
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints: [{reward: {linear: {direction: [1.0]}}, name: right, at_least: 0.5}]
training: {offload: true}
resources: {gpus_per_worker: 1}
"""
    with pytest.raises(SpecError, match=r"training\.offload = true\s+must be false: only the autoencoder"):
        parse_spec(text)
