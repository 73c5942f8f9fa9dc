"""An adapter under the sampler that will be used: equal to plain diffusers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from support import tiny_pipeline
from support.models.families.flows import write_flow
from support.models.families.flux import SIZE, write_flux
from support.models.families.flux_2 import write_flux_2
from support.models.families.qwen_image import write_qwen_image
from support.models.families.z_image import write_z_image

from orchestrator.plan import make_plan
from orchestrator.results.sample_cache import samples_key
from orchestrator.spec.load import parse_spec
from trainers.config import DeployedConfig, ModelConfig, PromptsConfig, SamplingConfig, TrainingConfig
from trainers.evaluate import evaluate
from trainers.models.deployed import DeployedPolicy
from trainers.models.families.base import call_of
from trainers.models.pipeline_policy import PipelinePolicy
from trainers.problem import sample_pretrained, statistics
from trainers.rewards.attributes import Brightness, Saturation
from trainers.types import DEPLOYED
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


TEXT = SIZE | {"max_sequence_length": 60}
LONG = SIZE | {"max_sequence_length": 400, "negative_prompt": "a green triangle"}
OWN: dict[str, tuple[Callable[[Path], Path], dict[str, Any], DeployedConfig]] = {
    "StableDiffusion3Pipeline": (write_flow, {}, DeployedConfig(steps=4, guidance=3.0)),
    "FluxPipeline": (
        write_flux,
        SIZE | {"negative_prompt": "green"},
        DeployedConfig(steps=3, guidance=3.0, true_guidance=2.0),
    ),
    "Flux2KleinPipeline": (write_flux_2, TEXT, DeployedConfig(steps=3, guidance=2.0)),
    "ZImagePipeline": (write_z_image, TEXT, DeployedConfig(steps=3)),
    "QwenImagePipeline": (write_qwen_image, LONG, DeployedConfig(steps=3, guidance=2.0)),
}


@pytest.mark.parametrize("name", OWN)
def test_flows_are_sampled_as_their_pipelines_sample_by_themselves(tmp_path: Path, name: str) -> None:
    """With a number of steps alone: no levels, no noise but a generator for each image."""
    write, sizes, deployed = OWN[name]
    write(tmp_path)
    model, prompts = ModelConfig(pretrained=str(tmp_path), **sizes), ("red circle", "blue circle")
    policy = PipelinePolicy.build(
        model,
        PromptsConfig(train=prompts, evaluate=prompts),
        SamplingConfig(steps=3, rest=1, guidance=deployed.guidance, true_guidance=deployed.true_guidance),
        TrainingConfig(batch_per_worker=2),
        "cpu",
    )
    sampler: Any = DeployedPolicy(policy, PromptsConfig(train=prompts, evaluate=prompts), deployed)
    draw = sampler.fixed_draw(11, 0, 2)
    found = sampler.rollout(draw, reference=True).samples
    plain = policy.parts.family.load(str(tmp_path))
    plain.set_progress_bar_config(disable=True)
    expected = plain(
        num_inference_steps=deployed.steps,
        generator=[torch.Generator().manual_seed(seed) for seed in draw.seeds.tolist()],
        output_type="pt",
        **call_of(policy.parts.asked(deployed.asked), list(draw.prompts)),
    ).images
    assert type(plain).__name__ == name
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


SPEC = """\
name: s
model: {{pretrained: {}}}
prompts: {{train: [red square], evaluate: [red square, blue circle]}}
sampling: {{steps: 3, rest: 1}}
constraints: [{{reward: saturation, at_least: 0.3}}]
rewards: [{{reward: local_contrast}}]
evaluation: {{images: 6, baseline_images: 8, seed: 11{}}}
"""


def test_the_pretrained_model_is_judged_so_too(tmp_path: Path) -> None:
    folder = tiny_pipeline.write(tmp_path / "pipeline")
    text = SPEC.format(folder, ", as_deployed: {steps: 5, eta: 0.7, guidance: 3.0}")
    config = make_plan(parse_spec(text)).trials[0].config
    samples = sample_pretrained(config)
    plain = StableDiffusionPipeline.from_pretrained(folder)
    plain.scheduler = DDIMScheduler.from_config(plain.scheduler.config)
    plain.set_progress_bar_config(disable=True)
    images = plain(
        [config.prompts.in_turn("evaluate", 11)[place % 2] for place in range(6)] if config.prompts else [],
        num_inference_steps=5,
        guidance_scale=3.0,
        eta=0.7,
        generator=[torch.Generator().manual_seed(11 + place) for place in range(6)],
        output_type="pt",
    ).images
    expected = Saturation()(images).double()
    torch.testing.assert_close(
        torch.tensor(samples[DEPLOYED].rewards["saturation"]), expected, rtol=0, atol=2e-5
    )
    found = statistics(samples).deployed
    assert {"saturation", "local_contrast", "brightness"} <= found.keys()
    assert found["saturation"].mean == pytest.approx(expected.mean().item(), abs=2e-5)
    assert found["saturation"].low is not None
    assert found["saturation"].low < found["saturation"].mean
    plainly = make_plan(parse_spec(SPEC.format(folder, ""))).trials[0].config
    assert samples_key(plainly) != samples_key(config)
    assert DEPLOYED not in sample_pretrained(plainly)


def test_steps_beyond_the_noise_levels_are_refused(tmp_path: Path) -> None:
    policy = tiny_pipeline.policy(tiny_pipeline.write(tmp_path / "pipeline"))
    for steps in (1001, 1000):  # leading, and one off, 1000 begin at level 1000
        with pytest.raises(ValueError, match=f"as_deployed.steps: {steps} steps of ode go beyond the 1000"):
            DeployedPolicy(policy, PROMPTS, DeployedConfig(steps=steps))


def test_what_a_flow_is_not_sampled_with_is_refused_when_its_trial_starts(tmp_path: Path) -> None:
    """As of a model on the hub, whose family no plan knows."""
    write_z_image(tmp_path)
    prompts = PromptsConfig(train=("red circle",), evaluate=("blue circle",))
    policy = PipelinePolicy.build(
        ModelConfig(pretrained=str(tmp_path), **TEXT),
        prompts,
        SamplingConfig(steps=3, rest=1),
        TrainingConfig(batch_per_worker=2),
    )
    for deployed, expected in (
        (
            DeployedConfig(sampler="dpmsolver++"),
            r"as_deployed\.sampler must be 'ode' for Z-Image.* got 'dpmsolver\+\+'",
        ),
        (DeployedConfig(eta=0.5), r"as_deployed\.eta must be 0 for Z-Image.* got 0\.5"),
    ):
        with pytest.raises(ValueError, match=expected):
            DeployedPolicy(policy, prompts, deployed)
