"""An adapter under the sampler that will be used: equal to plain diffusers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline

from tests.support import tiny_pipeline
from trainers.config import DeployedConfig, PromptsConfig
from trainers.evaluate import evaluate
from trainers.models.deployed import DeployedPolicy
from trainers.rewards.attributes import Brightness, Saturation
from trainers.workers.collective import Collective

PROMPTS = PromptsConfig(train=("red square",), evaluate=("red square", "blue circle"))


@pytest.mark.parametrize(
    ("deployed", "scheduler"),
    [
        (DeployedConfig(steps=6), DDIMScheduler),
        (DeployedConfig(steps=5, eta=0.7, guidance=3.0), DDIMScheduler),
        (DeployedConfig(sampler="dpmsolver++", steps=7, guidance=2.0), DPMSolverMultistepScheduler),
    ],
)
def test_figures_are_those_of_plain_diffusers(
    tmp_path: Path, deployed: DeployedConfig, scheduler: Any
) -> None:
    folder = tiny_pipeline.write(tmp_path / "pipeline")
    policy = tiny_pipeline.policy(folder, trained=0.3)
    for name, content in policy.adapter().items():
        (tmp_path / name).write_bytes(content)
    plain = StableDiffusionPipeline.from_pretrained(folder)
    plain.scheduler = scheduler.from_config(plain.scheduler.config)
    plain.set_progress_bar_config(disable=True)

    def images(count: int) -> torch.Tensor:
        return plain(
            [PROMPTS.in_turn("evaluate", 11)[place % 2] for place in range(count)],
            num_inference_steps=deployed.steps,
            guidance_scale=deployed.guidance or 1.0,
            eta=deployed.eta,
            generator=[torch.Generator().manual_seed(11 + place) for place in range(count)],
            output_type="pt",
        ).images

    without = images(6)
    plain.load_lora_weights(tmp_path)
    expected = images(6)
    assert (expected - without).abs().max() > 0.01
    sampler: Any = DeployedPolicy(policy, PROMPTS, deployed)
    rewards = {"bright": Brightness(), "saturation": Saturation()}
    for reference, shown in ((False, expected), (True, without)):
        found = evaluate(
            sampler, rewards, samples=6, seed=11, collective=Collective(), reference=reference, batch=4
        )
        for name, reward in rewards.items():
            torch.testing.assert_close(
                torch.tensor(found.rewards[name]), reward(shown).double(), rtol=0, atol=2e-5
            )
    with torch.no_grad():  # training goes on as before
        again = tiny_pipeline.policy(folder, trained=0.3)
        draw = policy.draw(2, 3)
        torch.testing.assert_close(policy.rollout(draw).samples, again.rollout(draw).samples)
