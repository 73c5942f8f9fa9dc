"""Chains of second order of a pipeline: images, KLs and gradients by schedulers of diffusers, each with a memory."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from support import tiny_pipeline
from support.tiers import exhaustive, further
from torch import Tensor

from trainers import registry
from trainers.config import LoraConfig, ModelConfig, PromptsConfig, SamplingConfig, TrainingConfig
from trainers.diffusion.schedule import Levels, gaussian_steps
from trainers.duality.lagrangian import Coefficients
from trainers.models.base import Draw, Guesses, Start
from trainers.models.pipeline_policy import PipelinePolicy
from trainers.primal.reward_backprop import RewardBackprop
from trainers.rewards.attributes import Brightness, GlobalContrast
from trainers.testing import check_primal_estimator

STEPS = 5
COEFFICIENTS = Coefficients(kl=1.3, rewards={"brightness": 8.0, "contrast": 5.0})
REWARDS = {"brightness": Brightness(), "contrast": GlobalContrast()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline.write(tmp_path_factory.mktemp("pipelines") / "epsilon")


def second(folder: Path, *, rest: int = 1, trained: float = 0.1, **settings: Any) -> PipelinePolicy:
    return tiny_pipeline.policy(folder, steps=STEPS, order=2, rest=rest, trained=trained, **settings)


def forked(scheduler: Any) -> Any:
    """Return one that remembers the same, and goes on for itself."""
    fork = copy.copy(scheduler)
    fork.model_outputs = list(scheduler.model_outputs)
    return fork


class TwoSchedulers:
    """Policy and reference, each by a network of its own and a scheduler that remembers its own guesses."""

    def __init__(self, folder: Path, policy: PipelinePolicy, guidance: float | None) -> None:
        """Load the reference a second time, so that nothing is shared with the policy."""
        self.plain, self.policy, self.guidance = tiny_pipeline.multistep(folder), policy, guidance
        self.plain.unet.requires_grad_(requires_grad=False)
        self.scheduler = self.plain.scheduler
        self.scheduler.set_timesteps(STEPS)
        self.timesteps = self.scheduler.timesteps.tolist()

    def noise(self, unet: Any, prompts: Sequence[str], t: int, state: Tensor) -> Tensor:
        with torch.no_grad():
            text, empty = self.plain.encode_prompt(list(prompts), "cpu", 1, do_classifier_free_guidance=True)
        found: Tensor = unet(state, t, encoder_hidden_states=text).sample
        if self.guidance is None:
            return found
        bare: Tensor = unet(state, t, encoder_hidden_states=empty).sample
        return bare + self.guidance * (found - bare)

    def walk(self, draw: Draw) -> dict[str, Tensor]:
        """Return images, KLs and log ratios of the policy's paths, step by step as Gaussians."""
        assert draw.prompts is not None
        ours, other = forked(self.scheduler), forked(self.scheduler)
        state, silent = draw.noise[0], torch.zeros_like(draw.noise[0])
        path_kl, log_ratio = torch.zeros(len(draw)), torch.zeros(len(draw))
        self.policy._adapter.switch(on=True)
        for step, t in enumerate(self.timesteps):
            base = self.noise(self.plain.unet, draw.prompts, t, state)
            chosen = base
            if step < self.policy.active_steps:
                chosen = self.noise(self.policy.parts.network, draw.prompts, t, state)
            elif step == self.policy.active_steps:
                ours = forked(other)  # the adapter rests: the policy goes on as the reference would
            deviation = float(
                forked(other).step(base, t, state, variance_noise=silent + 1.0).prev_sample.flatten()[0]
                - forked(other).step(base, t, state, variance_noise=silent).prev_sample.flatten()[0]
            )
            reference = other.step(base, t, state, variance_noise=silent).prev_sample
            mean = ours.step(chosen, t, state, variance_noise=silent).prev_sample
            state = mean + deviation * draw.noise[step + 1]
            path_kl = path_kl + (mean - reference).square().sum(dim=(1, 2, 3)) / (2 * deviation**2)
            ends = [(state - m).square().sum(dim=(1, 2, 3)) / (2 * deviation**2) for m in (mean, reference)]
            log_ratio = log_ratio + (ends[1] - ends[0]).detach()
        decoded = self.plain.vae.decode(state / self.plain.vae.config.scaling_factor).sample
        return {
            "samples": (decoded / 2 + 0.5).clamp(0, 1),
            "path_kl": path_kl,
            "log_ratio": log_ratio,
        }


def loss_of(samples: Tensor, path_kl: Tensor) -> Tensor:
    rewards = sum(weight * REWARDS[name](samples).mean() for name, weight in COEFFICIENTS.rewards.items())
    return COEFFICIENTS.kl * path_kl.mean() - rewards


def gradient(policy: PipelinePolicy, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters().values()))])


def estimated(policy: PipelinePolicy, draw: Draw) -> Tensor:
    return gradient(policy, RewardBackprop()(policy, REWARDS, COEFFICIENTS, draw, Tensor.detach).loss)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def drawn_by(
    pipeline: StableDiffusionPipeline, draw: Draw, guidance: float | None, **arguments: Any
) -> Tensor:
    """Sample with diffusers, image by image."""
    return torch.cat(
        [
            pipeline(
                prompt,
                num_inference_steps=STEPS,
                guidance_scale=1.0 if guidance is None else guidance,
                generator=torch.Generator().manual_seed(int(seed)),
                output_type="pt",
                **arguments,
            ).images
            for prompt, seed in zip(draw.prompts or (), draw.seeds, strict=True)
        ]
    )


# Images.


@pytest.mark.parametrize(
    ("kind", "guidance"),
    [
        ("epsilon", 3.0),
        ("v_prediction", None),
        ("sample", 3.0),
        *further(("epsilon", None), ("v_prediction", 3.0), ("sample", None)),
    ],
)
def test_the_reference_samples_what_diffusers_samples(
    tmp_path: Path, kind: str, guidance: float | None
) -> None:
    folder = tiny_pipeline.write(tmp_path / kind, prediction=kind)
    policy = second(folder, guidance=guidance)
    draw = policy.fixed_draw(11, 0, 4)
    with torch.no_grad():
        drawn = policy.rollout(draw, reference=True)
        first = tiny_pipeline.policy(folder, steps=STEPS, guidance=guidance).rollout(draw, reference=True)
    expected = drawn_by(tiny_pipeline.multistep(folder), draw, guidance)
    torch.testing.assert_close(drawn.samples, expected, rtol=0, atol=2e-4)
    assert (drawn.samples - first.samples).abs().max() > 0.01
    assert torch.equal(drawn.path_kl, torch.zeros(4))


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_the_adapter_s_files_give_plain_diffusers_the_same_images(
    folder: Path, tmp_path: Path, guidance: float | None
) -> None:
    policy = second(folder, guidance=guidance, trained=0.2)
    draw = policy.fixed_draw(5, 0, 2)
    with torch.no_grad():
        drawn = policy.rollout(draw).samples
        assert (drawn - policy.rollout(draw, reference=True).samples).abs().max() > 0.02
    for name, content in policy.adapter().items():
        (tmp_path / name).write_bytes(content)
    pipeline = tiny_pipeline.multistep(folder)
    pipeline.load_lora_weights(tmp_path)

    def rested(pipe: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == policy.active_steps - 1:
            pipe.disable_lora()
        return tensors

    for row in range(len(draw)):
        pipeline.enable_lora()
        expected = drawn_by(pipeline, draw.part(row, row + 1), guidance, callback_on_step_end=rested)
        torch.testing.assert_close(drawn[row : row + 1], expected, rtol=0, atol=2e-4)


# The KL.


@pytest.mark.parametrize(("guidance", "rest"), [(None, 2), (3.0, 1), *further((None, 1), (3.0, 2))])
def test_the_kl_is_the_sum_of_the_steps_kls_of_two_chains_with_memories(
    folder: Path, guidance: float | None, rest: int
) -> None:
    policy = second(folder, guidance=guidance, rest=rest)
    draw = policy.draw(6, 3)
    with torch.no_grad():
        drawn = policy.rollout(draw, keep=True)
        expected = TwoSchedulers(folder, policy, guidance).walk(draw)
    assert policy.active_steps == STEPS - rest
    assert drawn.path_kl.min() > 0.001
    torch.testing.assert_close(drawn.samples, expected["samples"], rtol=0, atol=2e-4)
    torch.testing.assert_close(drawn.path_kl, expected["path_kl"], rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(drawn.log_ratio, expected["log_ratio"], rtol=2e-3, atol=5e-3)
    # Every step's own: what is kept redoes the controls.
    assert drawn.inputs is not None
    with torch.no_grad():
        controls = policy.controls(draw, drawn.inputs)
    torch.testing.assert_close(0.5 * controls.square().sum(dim=(0, 2)), drawn.path_kl, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rest", [1, 3, *exhaustive(2)])
def test_a_resting_adapter_costs_nothing_though_its_steps_remember(folder: Path, rest: int) -> None:
    """The first resting step begins at the policy's state, and goes on from the reference's guess before it."""
    policy = second(folder, rest=rest, trained=0.3)
    draw, active = policy.draw(4, 0), STEPS - rest
    with torch.no_grad():
        whole = policy.rollout(draw, keep=True)
        assert whole.inputs is not None
        assert len(whole.inputs) == active
        state, before = whole.inputs[0], None
        conditions = policy._denoiser.conditions(draw.prompts or ())
        for step in range(active):  # the policy's states; the guesses of the reference at them
            before, state = policy._pair(step, whole.inputs[step], conditions, draw.tilt), whole.inputs[step]
        assert before is not None
        table = policy.table
        last = policy._pair(active - 2, whole.inputs[-2], conditions, draw.tilt) if active > 1 else None
        clean, shift = policy._extrapolated(active - 1, before, last)
        assert shift is not None
        state = table.mean(active - 1, state, clean + shift)
        state = state + float(table.noise[active - 1]) * draw.noise[active]
        resting = [
            policy.rollout(draw, reference=off, start=Start(step=active, state=state, before=before))
            for off in (False, True)
        ]
    for found in resting:
        assert torch.equal(found.path_kl, torch.zeros(4))
        assert torch.equal(found.log_ratio, torch.zeros(4))
        torch.testing.assert_close(found.samples, whole.samples, rtol=0, atol=1e-6)
    if rest > 1:  # a guess of the policy, or none, would lead elsewhere
        assert table.extrapolation[active] > 0.1
        assert before.shift is not None
        for wrong in (Guesses(clean=before.clean + before.shift), None):
            with torch.no_grad():
                astray = policy.rollout(draw, start=Start(step=active, state=state, before=wrong))
            assert (astray.samples - whole.samples).abs().max() > 1e-4


@pytest.mark.parametrize("step", [1, 3, *exhaustive(2)])
def test_a_path_goes_on_from_a_state_and_the_guesses_before_it(folder: Path, step: int) -> None:
    policy = second(folder, guidance=2.0)
    draw = policy.draw(4, 1)
    with torch.no_grad():
        whole = policy.rollout(draw, keep=True)
        assert whole.inputs is not None
        conditions = policy._denoiser.conditions(draw.prompts or ())
        before = policy._pair(step - 1, whole.inputs[step - 1], conditions, draw.tilt)
        rest = policy.rollout(draw, start=Start(step=step, state=whole.inputs[step], before=before))
        controls = policy.controls(draw, whole.inputs)[step:]
    torch.testing.assert_close(rest.samples, whole.samples, rtol=0, atol=1e-5)
    torch.testing.assert_close(rest.path_kl, 0.5 * controls.square().sum(dim=(0, 2)), rtol=1e-4, atol=1e-6)
    assert rest.before is not None
    assert whole.before is not None
    torch.testing.assert_close(rest.before.clean, whole.before.clean)


@pytest.mark.parametrize("precision", ["fp32", "fp16", *exhaustive("bf16")])
def test_a_fresh_adapter_has_no_kl_at_all(folder: Path, precision: str) -> None:
    policy = second(folder, guidance=3.0, trained=0.0, precision=precision)
    drawn = policy.rollout(policy.draw(4, 0))
    assert torch.equal(drawn.path_kl, torch.zeros(4))
    assert torch.equal(drawn.log_ratio, torch.zeros(4))
    assert drawn.samples.dtype == drawn.path_kl.dtype == torch.float32
    found = torch.autograd.grad(loss_of(drawn.samples, drawn.path_kl), list(policy.parameters().values()))
    assert all(torch.isfinite(g).all() for g in found)


@pytest.mark.parametrize("precision", [*exhaustive("fp16"), "bf16"])
@torch.no_grad()
def test_the_kl_in_half_precision_measures_no_rounding(precision: str) -> None:
    """Along one path: rounding leads to other paths, whose KLs are others."""
    for size in (0.0, 1e-5, 1e-2):
        full, half = shipped("fp32", size), shipped(precision, size)
        draw = full.fixed_draw(0, 0, 2)
        path = full.rollout(draw, keep=True)
        assert path.inputs is not None
        found = 0.5 * half.controls(draw, path.inputs).square().sum(dim=(0, 2))
        torch.testing.assert_close(found, path.path_kl, rtol=0.03, atol=0)
        assert bool(size) == bool((found > 0).all())


def shipped(precision: str, size: float) -> PipelinePolicy:
    """Return the shipped pipeline in five steps, its adapter ``size`` times a random one."""
    policy = PipelinePolicy.build(
        ModelConfig(pretrained="embedded", lora=LoraConfig()),
        PromptsConfig(train=("a red circle",), evaluate=("a red circle", "a blue square")),
        SamplingConfig(steps=STEPS, guidance=5.0, order=2, spacing="trailing", rest=1),
        TrainingConfig(precision=precision),
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.parameters().items():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * (size if ".lora_B." in name else 0.5))
    return policy


# Other noise levels.


@torch.no_grad()
def test_wrapped_as_a_flow_the_shipped_pipeline_is_the_same_chain() -> None:
    """``t = √(1 − ᾱ) / (√ᾱ + √(1 − ᾱ))``, states times ``√((1 − t)² + t²)``, velocity ``(x − x̂_0) / t``."""
    policy = shipped("fp32", 1e-2)
    draw = policy.fixed_draw(0, 0, 3)
    expected = policy.rollout(draw)

    denoiser, levels = policy._denoiser, policy.table.levels
    times = levels.sigma / (levels.alpha + levels.sigma)
    flow = gaussian_steps(Levels.flow(times), 1.0, 2)
    scale = torch.tensor(((1 - times) ** 2 + times**2) ** 0.5, dtype=torch.float32)
    pair, guess = denoiser.pair, denoiser.guess

    def rewritten(step: int, state: Tensor, clean: Tensor) -> Tensor:
        """Through the velocity, and back: ``x̂_0 = x − t v``."""
        velocity = (state - clean) / times[step]
        return state - float(times[step]) * velocity

    def pair_of_flow(step: int, state: Tensor, *given: Any, **how: Any) -> tuple[Tensor, Tensor]:
        denoiser.table = vp
        clean, shift = pair(step, state / scale[step], *given, **how)
        denoiser.table = flow
        return rewritten(step, state, clean), shift

    def guess_of_flow(step: int, state: Tensor, *given: Any, **how: Any) -> Tensor:
        denoiser.table = vp
        clean = guess(step, state / scale[step], *given, **how)
        denoiser.table = flow
        return rewritten(step, state, clean)

    vp = denoiser.table
    denoiser.table = policy.table = flow
    denoiser.pair, denoiser.guess = pair_of_flow, guess_of_flow  # type: ignore[method-assign]
    draw.noise[0] *= scale[0]
    found = policy.rollout(draw)
    assert expected.path_kl.min() > 0.01
    images = policy.parts.decode(found.final / scale[-1])
    torch.testing.assert_close(images, expected.samples, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.path_kl, expected.path_kl, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.log_ratio, expected.log_ratio, rtol=1e-3, atol=1e-3)


# Gradients.


@pytest.mark.parametrize(("guidance", "rest"), [(None, 1), (3.0, 2)])
def test_backpropagation_is_that_of_two_chains_written_out(
    folder: Path, guidance: float | None, rest: int
) -> None:
    policy = second(folder, guidance=guidance, rest=rest)
    draw = policy.draw(4, 1)
    found = estimated(policy, draw)
    walked = TwoSchedulers(folder, policy, guidance).walk(draw)
    assert apart(found, gradient(policy, loss_of(walked["samples"], walked["path_kl"]))) < 2e-3


def test_checkpointing_and_compiling_find_the_same_gradient(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda network: network)
    plain, *others = (
        second(folder, guidance=3.0, **how)
        for how in ({}, {"gradient_checkpointing": True}, {"compile": True})
    )
    draw = plain.draw(4, 1)
    expected = estimated(plain, draw)
    for other in others:
        assert apart(estimated(other, draw), expected) < 1e-4


def test_truncation_keeps_the_direct_gradient_of_the_kl(folder: Path) -> None:
    """At states that are taken as given a step's control moves with the network's guesses of two steps."""
    policy = second(folder)
    draw = policy.draw(4, 1)
    truncated = gradient(policy, policy.rollout(draw, through=0).path_kl.mean())
    with torch.no_grad():
        kept = policy.rollout(draw, keep=True)
    assert kept.inputs is not None
    controls = policy.controls(draw, kept.inputs)
    direct = gradient(policy, 0.5 * controls.square().sum(dim=(0, 2)).mean())
    assert apart(truncated, direct) < 1e-4
    whole = gradient(policy, policy.rollout(draw, through=policy.active_steps).path_kl.mean())
    assert apart(whole, gradient(policy, policy.rollout(draw).path_kl.mean())) < 1e-6
    assert apart(whole, direct) > 5 * apart(truncated, direct)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        *further(("reward_backprop", {}), ("truncated_backprop", {"steps": 2})),
        ("clipped_backprop", {"limit": 1.0}),
        ("low_variance", {"copies": 2}),
        ("log_variance", {}),
    ],
)
def test_estimators_keep_their_contract(folder: Path, name: str, parameters: dict[str, Any]) -> None:
    policy = second(folder, guidance=2.0)
    estimator = registry.load(registry.PRIMAL_ESTIMATORS, name)(**parameters)
    check_primal_estimator(estimator, policy, REWARDS, samples=16)
