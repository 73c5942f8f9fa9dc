"""Estimates of a trial's memory, against what processes were measured to take."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.plan import base_config
from orchestrator.spec import load_spec, parse_spec
from trainers.config import TrialConfig
from trainers.memory.estimate import GIB, estimated_memory
from trainers.pipelines.configs import read_configs
from trainers.pipelines.families import STABLE_DIFFUSION
from trainers.pipelines.known import known_configs

ROOT = Path(__file__).parents[4]
EMBEDDED = ROOT / "trainers" / "models" / "embedded" / "weights" / "pipeline"
CARD = 24e9  # bytes
MEASURE = Path(__file__).with_name("measured_step.py")
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""For glibc: what is freed goes back at once, so that what is measured is what tensors take, not how a heap is cut."""


def config_of(**sections: Any) -> TrialConfig:
    document = {
        "name": "memory",
        "model": {"pretrained": "embedded"},
        "constraints": [{"reward": "saturation", "at_least": 0.5, "unit": "sigma"}],
        **sections,
    }
    return base_config(parse_spec(json.dumps(document)))


CASES = {
    "whole chain": {"training": {"primal": "reward_backprop", "batch_per_worker": 24}},
    "checkpointing": {
        "training": {"primal": "reward_backprop", "batch_per_worker": 48, "gradient_checkpointing": True}
    },
    "log_variance": {"training": {"primal": "log_variance", "batch_per_worker": 24}},
}


@pytest.mark.parametrize("case", CASES)
def test_an_estimate_is_within_15_per_cent_of_the_measured_peak(case: str) -> None:
    config = config_of(sampling={"steps": 6, "rest": 2, "guidance": 3.0}, **CASES[case])
    estimate = estimated_memory(config, STABLE_DIFFUSION, read_configs(EMBEDDED))
    command = [sys.executable, str(MEASURE), config.model_dump_json()]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | RETURNED)
    measured = json.loads(done.stdout.splitlines()[-1])
    assert estimate.on_cpu == pytest.approx(measured, rel=0.15)


def test_checkpointing_and_smaller_batches_take_less() -> None:
    sampling = {"steps": 5, "rest": 2}

    def training(**settings: Any) -> int:
        config = config_of(
            sampling=sampling, training={"primal": "reward_backprop", "batch_per_worker": 4} | settings
        )
        return estimated_memory(config, STABLE_DIFFUSION, read_configs(EMBEDDED)).training

    whole = training()
    assert training(gradient_checkpointing=True) < whole / 2
    assert training(batch_per_worker=2) == pytest.approx(whole / 2, rel=0.1)


@pytest.mark.parametrize("name", ["sd15_mps_saturation_contrast", "sd15_single_rewards"])
def test_the_sweeps_of_sd_15_run_on_a_card_of_24_gb(name: str) -> None:
    config = base_config(load_spec(str(ROOT / "sweeps" / f"{name}.yaml")))
    configs = known_configs(str(config.model.pretrained))
    assert configs is not None
    estimate = estimated_memory(config, STABLE_DIFFUSION, configs)
    assert estimate.weights > 1.7e9, "UNet and autoencoder in float16 have 944 million parameters"
    assert estimate.on_gpu < 0.95 * CARD, f"{estimate.on_gpu / GIB:.1f} GiB"
