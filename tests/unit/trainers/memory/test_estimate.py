"""Estimates of a trial's memory, against what processes were measured to take."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from support.tiers import exhaustive

from orchestrator.plan import base_config
from orchestrator.spec import load_spec, parse_spec
from trainers.config import TrialConfig
from trainers.memory.estimate import GIB, MemoryEstimate, estimated_memory
from trainers.pipelines.configs import read_configs
from trainers.pipelines.families import STABLE_DIFFUSION, STABLE_DIFFUSION_3
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


@pytest.mark.parametrize("case", ["whole chain", "checkpointing", *exhaustive("log_variance")])
def test_an_estimate_is_within_15_per_cent_of_the_measured_peak(case: str) -> None:
    config = config_of(sampling={"steps": 6, "rest": 2, "guidance": 3.0}, **CASES[case])
    estimate = estimated_memory(config, STABLE_DIFFUSION, read_configs(EMBEDDED))
    command = [sys.executable, str(MEASURE), config.model_dump_json()]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | RETURNED)
    measured = json.loads(done.stdout.splitlines()[-1])
    assert estimate.on_cpu == pytest.approx(measured, rel=0.15)


def test_checkpointing_and_smaller_batches_take_less() -> None:
    sampling = {"steps": 4, "rest": 2}

    def training(**settings: Any) -> int:
        config = config_of(
            sampling=sampling, training={"primal": "reward_backprop", "batch_per_worker": 4} | settings
        )
        return estimated_memory(config, STABLE_DIFFUSION, read_configs(EMBEDDED)).training

    whole = training()
    assert training(gradient_checkpointing=True) < whole / 2
    assert training(batch_per_worker=2) == pytest.approx(whole / 2, rel=0.1)


@pytest.mark.parametrize("name", ["sd15_single_rewards", *exhaustive("sd15_mps_saturation_contrast")])
def test_the_sweeps_of_sd_15_run_on_a_card_of_24_gb(name: str) -> None:
    config = base_config(load_spec(str(ROOT / "sweeps" / f"{name}.yaml")))
    configs = known_configs(str(config.model.pretrained))
    assert configs is not None
    estimate = estimated_memory(config, STABLE_DIFFUSION, configs)
    assert estimate.weights > 1.7e9, "UNet and autoencoder in float16 have 944 million parameters"
    assert estimate.on_gpu < 0.95 * CARD, f"{estimate.on_gpu / GIB:.1f} GiB"


def test_an_autoencoder_elsewhere_counts_only_while_it_decodes() -> None:
    configs = read_configs(EMBEDDED)

    def estimate(*, offload: bool) -> MemoryEstimate:
        config = config_of(
            sampling={"steps": 2, "rest": 1},
            training={"batch_per_worker": 2, "offload": offload},
            evaluation={"batch": 2},
            resources={"gpus_per_worker": 1},
        )
        return estimated_memory(config, STABLE_DIFFUSION, configs)

    here, there = estimate(offload=False), estimate(offload=True)
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(configs["vae"])
    decoder = 4 * sum(p.numel() for p in (*vae.decoder.parameters(), *vae.post_quant_conv.parameters()))
    assert here.weights - there.weights == 4 * sum(p.numel() for p in vae.parameters())
    assert there.tensors < here.tensors
    for name in ("training", "evaluation"):
        more = getattr(there, name) - getattr(here, name)
        assert 0 <= more <= 1.1 * decoder, "at most what decodes"


def test_workers_that_hold_a_network_between_them_take_their_share() -> None:
    config = config_of(
        model={"pretrained": "embedded-flow"},
        sampling={"steps": 3, "rest": 1},
        training={"batch_per_worker": 2},
        evaluation={"batch": 2},
    )
    configs = read_configs(EMBEDDED.with_name("flow"))
    whole, two, four = (
        estimated_memory(config, STABLE_DIFFUSION_3, configs, shards=shards) for shards in (1, 2, 4)
    )
    with torch.device("meta"):
        network = SD3Transformer2DModel.from_config(configs["transformer"])
    size = sum(4 * p.numel() for p in network.parameters())
    blocks = [sum(4 * p.numel() for p in block.parameters()) for block in network.transformer_blocks]
    assert len(blocks) > 2
    assert two.weights - four.weights == pytest.approx(size / 4, rel=0.01)
    together = size - sum(blocks) + 2 * max(blocks)
    assert two.weights == pytest.approx(whole.weights - size / 2 + together, rel=0.01)
    assert (whole.unsplit, two.training) == (0, whole.training)
    assert two.weights + two.unsplit == whole.weights, "single workers sample the pretrained model"
    assert two.tensors >= whole.weights + whole.evaluation
