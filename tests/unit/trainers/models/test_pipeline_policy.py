"""The policy on a pipeline: its images are those of diffusers, its KL and gradients those computed by hand."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
from support import tiny_pipeline
from support.tiers import exhaustive, further
from torch import Tensor

from trainers import registry
from trainers.config import LoraConfig, ModelConfig, PromptsConfig, SamplingConfig, TrainingConfig
from trainers.duality.lagrangian import Coefficients
from trainers.models import denoiser
from trainers.models.base import Draw, Start
from trainers.models.pipeline_policy import PipelinePolicy
from trainers.models.shifted import Shifted
from trainers.primal.log_variance import LogVariance
from trainers.primal.reward_backprop import RewardBackprop
from trainers.rewards.attributes import Brightness, GlobalContrast
from trainers.testing import check_primal_estimator

KINDS: dict[str, dict[str, Any]] = {
    "epsilon": {},
    "velocity": {
        "prediction": "v_prediction",
        "scheduler": PNDMScheduler,
        "alpha_to_one": True,
        "skip_prk_steps": True,
        "widths": (4, 8, 8),
        "cross": 8,
        "length": 7,
        "latent": 8,
    },
    "sample": {"prediction": "sample", "timestep_spacing": "trailing", "widths": (8,)},
    "linspace": {"timestep_spacing": "linspace"},
}
COEFFICIENTS = Coefficients(kl=1.3, rewards={"brightness": 8.0, "contrast": 5.0})
REWARDS = {"brightness": Brightness(), "contrast": GlobalContrast()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: tiny_pipeline.write(root / name, **settings) for name, settings in KINDS.items()}


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path]) -> Path:
    return folders["epsilon"]


class ChainedDDIM(DDIMScheduler):
    """The step of diffusers, down to the level of the next timestep in place of ``T // steps`` timesteps lower."""

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        eta: float = 0.0,
        generator: Any = None,
        **how: Any,
    ) -> Any:
        lower = [int(t) for t in self.timesteps if t < timestep]
        down = int(timestep) - max(lower, default=-1)
        trained, steps = self.config.num_train_timesteps, self.num_inference_steps
        self.register_to_config(num_train_timesteps=down)
        self.num_inference_steps = 1
        try:
            return super().step(model_output, timestep, sample, eta=eta, generator=generator, **how)
        finally:
            self.register_to_config(num_train_timesteps=trained)
            self.num_inference_steps = steps


def images(
    pipeline: StableDiffusionPipeline, draw: Draw, steps: int, guidance: float | None, **arguments: Any
) -> Tensor:
    """Sample with diffusers, image by image."""
    drawn = [
        pipeline(
            prompt,
            num_inference_steps=steps,
            eta=1.0,
            guidance_scale=1.0 if guidance is None else guidance,
            generator=torch.Generator().manual_seed(int(seed)),
            output_type="pt",
            **arguments,
        ).images
        for prompt, seed in zip(draw.prompts or (), draw.seeds, strict=True)
    ]
    return torch.cat(drawn)


class ByHand:
    """The chain of an ε-prediction model with two networks and the scheduler of diffusers."""

    def __init__(self, folder: Path, policy: PipelinePolicy, guidance: float) -> None:
        """Load the reference a second time, so that nothing is shared with the policy."""
        self.reference, self.policy, self.guidance = tiny_pipeline.plain(folder), policy, guidance
        self.reference.unet.requires_grad_(requires_grad=False)
        self.scheduler: DDIMScheduler = self.reference.scheduler
        self.scheduler.set_timesteps(policy.steps)

    def noise(self, unet: Any, prompts: Sequence[str], t: int, state: Tensor) -> Tensor:
        with torch.no_grad():
            embedding, empty = self.reference.encode_prompt(
                list(prompts), "cpu", 1, do_classifier_free_guidance=True
            )
        conditional = unet(state, t, encoder_hidden_states=embedding).sample
        unconditional = unet(state, t, encoder_hidden_states=empty).sample
        return unconditional + self.guidance * (conditional - unconditional)

    def pair(self, draw: Draw, t: int, state: Tensor, *, reference_gradient: bool = True) -> list[Tensor]:
        assert draw.prompts is not None
        self.policy._adapter.switch(on=True)
        ours = self.noise(self.policy.parts.network, draw.prompts, t, state)
        with nullcontext() if reference_gradient else torch.no_grad():
            return [ours, self.noise(self.reference.unet, draw.prompts, t, state)]

    def next(self, t: int, state: Tensor, noise: Tensor, fresh: Tensor) -> Tensor:
        moved: Tensor = self.scheduler.step(noise, t, state, eta=1.0, variance_noise=fresh).prev_sample
        return moved

    def sample(self, draw: Draw, *, reference_gradient: bool = True) -> tuple[Tensor, Tensor]:
        """Return images and ``Σ_t w_t ‖ε_p − ε_q‖²`` of each."""
        assert draw.prompts is not None
        table = self.policy.table
        state, path_kl = draw.noise[0], torch.zeros(len(draw))
        for step, t in enumerate(self.scheduler.timesteps.tolist()):
            if step < self.policy.active_steps:
                chosen, other = self.pair(draw, t, state, reference_gradient=reference_gradient)
                weight = 0.5 * (table.gain(step) * table.levels.sigma[step] / table.levels.alpha[step]) ** 2
                path_kl = path_kl + weight * (chosen - other).square().sum(dim=(1, 2, 3))
            else:
                chosen = self.noise(self.reference.unet, draw.prompts, t, state)
            state = self.next(t, state, chosen, draw.noise[step + 1])
        vae = self.reference.vae
        decoded = vae.decode(state / vae.config.scaling_factor).sample
        return (decoded / 2 + 0.5).clamp(0, 1), path_kl


def loss_of(samples: Tensor, path_kl: Tensor) -> Tensor:
    rewards = sum(weight * REWARDS[name](samples).mean() for name, weight in COEFFICIENTS.rewards.items())
    return COEFFICIENTS.kl * path_kl.mean() - rewards


def gradient(policy: PipelinePolicy, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters().values()))])


def estimated(policy: PipelinePolicy, draw: Draw) -> Tensor:
    return gradient(policy, RewardBackprop()(policy, REWARDS, COEFFICIENTS, draw, Tensor.detach).loss)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


# Images.


@pytest.mark.parametrize(
    ("kind", "guidance"),
    [
        ("epsilon", 3.0),
        ("velocity", None),
        ("sample", 3.0),
        ("linspace", 3.0),
        *further(("epsilon", None), ("velocity", 3.0), ("sample", None), ("linspace", None)),
    ],
)
def test_the_reference_samples_what_diffusers_samples(
    folders: dict[str, Path], kind: str, guidance: float | None
) -> None:
    policy = tiny_pipeline.policy(folders[kind], guidance=guidance, trained=0.1)
    draw = policy.fixed_draw(11, 0, 5)
    with torch.no_grad():
        drawn = policy.rollout(draw, reference=True)
    plain = tiny_pipeline.plain(folders[kind])
    if kind == "linspace":  # where diffusers leaves the state at another level than it then tells the network
        plain.scheduler = ChainedDDIM.from_config(plain.scheduler.config)
    expected = images(plain, draw, 4, guidance)
    assert expected.flatten(1).std(dim=0).mean() > 0.05  # they differ
    torch.testing.assert_close(drawn.samples, expected, rtol=0, atol=1e-4)
    assert torch.equal(drawn.path_kl, torch.zeros(5))


@pytest.mark.parametrize("kind", ["velocity", "flow"])
def test_the_velocity_of_a_path_is_what_a_network_of_velocities_predicts(
    folders: dict[str, Path], kind: str
) -> None:
    if kind == "flow":
        asked = PromptsConfig(train=("a red circle",), evaluate=("a red circle", "a blue moon"))
        sampling = SamplingConfig(steps=4, rest=1)
        model = ModelConfig(pretrained="embedded-flow", lora=LoraConfig())
        policy = PipelinePolicy.build(model, asked, sampling, TrainingConfig())
    else:
        policy = tiny_pipeline.policy(folders[kind], trained=0.3)
    predicted: list[Tensor] = []
    seen = policy.parts.network.register_forward_hook(lambda *found: predicted.append(found[2][0]))
    with torch.no_grad():
        drawn = policy.rollout(policy.fixed_draw(11, 0, 3), reference=True)
    seen.remove()
    assert len(predicted) == policy.steps
    expected = torch.stack([output.square().flatten(1).mean(dim=1) for output in predicted]).mean(dim=0)
    assert drawn.velocity is not None
    torch.testing.assert_close(drawn.velocity, expected.sqrt(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        moved = policy.rollout(policy.fixed_draw(11, 0, 3))
    assert moved.velocity is not None
    assert (kind == "flow") == torch.allclose(moved.velocity, drawn.velocity), "a fresh adapter moves nothing"


@pytest.mark.parametrize("guidance", [0.0, 1.0, 1.5, *exhaustive(0.5)])
def test_guidance_of_one_or_less_is_off_as_in_diffusers(folder: Path, guidance: float) -> None:
    """The prompt counts then, and the network is asked once."""
    policy = tiny_pipeline.policy(folder, guidance=guidance)
    rows: list[int] = []
    policy.parts.network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    draw = policy.fixed_draw(11, 0, 4)
    with torch.no_grad():
        drawn = policy.rollout(draw, reference=True).samples
    assert rows == [8 if guidance > 1 else 4] * 4
    expected = images(tiny_pipeline.plain(folder), draw, 4, guidance)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-4)
    # The same noise under the other prompt is another picture.
    with torch.no_grad():
        swapped = policy.rollout(
            replace(draw, prompts=draw.prompts[::-1] if draw.prompts else None), reference=True
        )
    assert (swapped.samples - drawn).abs().amax() > 1e-3


@pytest.mark.parametrize(
    ("kind", "rest", "guidance"),
    [
        ("epsilon", 2, 3.0),
        ("velocity", 0, 3.0),
        *further(("epsilon", 0, None), ("velocity", 2, None)),
    ],
)
def test_the_adapter_s_files_give_plain_diffusers_the_same_images(
    folders: dict[str, Path], tmp_path: Path, kind: str, rest: int, guidance: float | None
) -> None:
    policy = tiny_pipeline.policy(folders[kind], guidance=guidance, rest=rest, alpha=7.0, trained=0.2)
    draw = policy.fixed_draw(5, 0, 3)
    with torch.no_grad():
        drawn = policy.rollout(draw)
        untrained = policy.rollout(draw, reference=True)
    assert (drawn.samples - untrained.samples).abs().amax() > 0.02
    for name, content in policy.adapter().items():
        (tmp_path / name).write_bytes(content)
    pipeline = tiny_pipeline.plain(folders[kind])
    pipeline.load_lora_weights(tmp_path)

    def rested(pipe: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == policy.active_steps - 1:
            pipe.disable_lora()
        return tensors

    for row in range(len(draw)):
        pipeline.enable_lora()
        part = draw.part(row, row + 1)
        expected = images(pipeline, part, 4, guidance, callback_on_step_end=rested if rest else None)
        torch.testing.assert_close(drawn.samples[row : row + 1], expected, rtol=0, atol=1e-4)


# The KL.


@pytest.mark.parametrize(("guidance", "rest"), [(None, 0), (3.0, 2), *further((None, 2), (3.0, 0))])
def test_the_kl_is_the_weighted_difference_of_noise_predictions(
    folder: Path, guidance: float | None, rest: int
) -> None:
    policy = tiny_pipeline.policy(folder, guidance=guidance, rest=rest, trained=0.1)
    draw = policy.draw(6, 3)
    with torch.no_grad():
        drawn = policy.rollout(draw)
        samples, path_kl = ByHand(folder, policy, guidance or 1.0).sample(draw)
    assert path_kl.min() > 0.005
    torch.testing.assert_close(drawn.path_kl, path_kl, rtol=2e-4, atol=1e-5)
    torch.testing.assert_close(drawn.samples, samples, rtol=0, atol=1e-4)


def test_a_resting_adapter_costs_nothing(folder: Path) -> None:
    """The steps that rest are the last ones, and the images after them are decoded all the same."""
    policy = tiny_pipeline.policy(folder, rest=1, trained=0.1)
    draw = policy.draw(4, 0)
    with torch.no_grad():
        state = torch.randn(4, *policy.parts.latent_shape)
        for rested in (
            policy.rollout(draw, start=Start(step=3, state=state)),
            policy.rollout(draw, reference=True),
        ):
            assert torch.equal(rested.path_kl, torch.zeros(4))
            assert torch.equal(rested.log_ratio, torch.zeros(4))
        assert (policy.rollout(draw, start=Start(step=2, state=state)).path_kl > 0).all()
        assert torch.equal(
            policy.rollout(draw, start=Start(step=3, state=state)).samples,
            policy.rollout(draw, reference=True, start=Start(step=3, state=state)).samples,
        )
    kept = policy.rollout(draw, keep=True)
    assert kept.inputs is not None
    assert len(kept.inputs) == policy.active_steps == 3


@pytest.mark.parametrize(
    ("guidance", "precision"),
    [
        (None, "fp32"),
        (3.0, "bf16"),
        (3.0, "fp16"),
        *further((3.0, "fp32"), (None, "bf16"), (None, "fp16")),
    ],
)
def test_a_fresh_adapter_has_no_kl_at_all(folder: Path, guidance: float | None, precision: str) -> None:
    policy = tiny_pipeline.policy(folder, guidance=guidance, precision=precision)
    draw = policy.draw(4, 0)
    drawn = policy.rollout(draw)
    assert torch.equal(drawn.path_kl, torch.zeros(4))
    assert torch.equal(drawn.log_ratio, torch.zeros(4))
    assert torch.isfinite(drawn.samples).all()
    assert (
        drawn.samples.dtype
        == drawn.path_kl.dtype
        == drawn.log_ratio.dtype
        == drawn.final.dtype
        == torch.float32
    )
    parameters = list(policy.parameters().values())
    assert {p.dtype for p in parameters} == {torch.float32}
    found = torch.autograd.grad(loss_of(drawn.samples, drawn.path_kl), parameters)
    assert {g.dtype for g in found} == {torch.float32}
    assert all(torch.isfinite(g).all() for g in found)
    assert any(g.abs().amax() > 0 for g in found)


def test_half_precision_is_near_full_precision(folder: Path) -> None:
    """Of a KL that is far above the rounding of two predictions, whose squared difference always adds to it."""
    full, half = (
        tiny_pipeline.policy(folder, rest=2, precision=precision, trained=0.3)
        for precision in ("fp32", "bf16")
    )
    with torch.no_grad():
        exact, rough = (policy.rollout(policy.draw(8, 2)) for policy in (full, half))
    assert (exact.samples - rough.samples).abs().mean() < 0.02
    assert float(rough.path_kl.mean()) == pytest.approx(float(exact.path_kl.mean()), rel=0.03)


def shipped(precision: str, size: float) -> PipelinePolicy:
    """Return the shipped pipeline without rest, its adapter ``size`` times a random one."""
    policy = PipelinePolicy.build(
        ModelConfig(pretrained="embedded"),
        PromptsConfig(train=("a red circle",), evaluate=("a red circle", "a blue square")),
        SamplingConfig(steps=8, guidance=5.0),
        TrainingConfig(precision=precision),
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.parameters().items():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * (size if ".lora_B." in name else 0.5))
    return policy


@torch.no_grad()
def rollouts(precision: str, size: float, *, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Return KLs and log ratios of two samples."""
    policy = shipped(precision, size)
    drawn = [policy.rollout(policy.fixed_draw(0, first, first + batch)) for first in range(0, 2, batch)]
    return torch.cat([one.path_kl for one in drawn]), torch.cat([one.log_ratio for one in drawn])


def measured(precision: str, size: float, *, batch: int = 2) -> float:
    return float(rollouts(precision, size, batch=batch)[0].mean())


@pytest.mark.parametrize("precision", [*exhaustive("fp16"), "bf16"])
def test_the_kl_in_half_precision_measures_no_rounding(precision: str) -> None:
    """Two passes differ by 0.2 nats in fp16 and 10 in bf16 before the adapter does anything."""
    assert measured(precision, 0.0) == 0.0
    assert measured(precision, 1e-7) < 1e-6
    for size in (1e-4, 1e-2):
        exact = measured("fp32", size)
        assert measured(precision, size) == pytest.approx(exact, rel=0.01)
    assert measured(precision, 1e-4, batch=1) == pytest.approx(measured(precision, 1e-4), rel=0.01)


@pytest.mark.parametrize(("precision", "roundings"), [("fp16", 0.05), *further(("bf16", 0.75))])
def test_the_log_ratio_in_half_precision_is_that_of_the_path_drawn(precision: str, roundings: float) -> None:
    """Exactly, as ``½ ‖u + ε‖² − ½ ‖ε‖²``; that of full precision but for what rounding does to single controls.

    The spread of a log ratio is ``√(2 KL)``. Its mean is the KL, which knows no rounding. In bfloat16 the
    share depends on how a processor sums: up to 0.2 on some, 0.5 on others.
    """
    assert torch.equal(rollouts(precision, 0.0)[1], torch.zeros(2))
    for size in (1e-4, 1e-2):
        kl, exact = rollouts("fp32", size)
        rough = rollouts(precision, size)[1]
        assert ((rough - exact).abs() < roundings * (2 * kl).sqrt()).all()
    policy = shipped(precision, 1e-2)
    draw = policy.fixed_draw(0, 0, 2)
    with torch.no_grad():
        drawn = policy.rollout(draw, keep=True)
    assert drawn.shifts is not None
    noise = draw.noise[1 : policy.active_steps + 1].flatten(2).double()
    expected = 0.5 * (drawn.shifts.double().square() - noise.square()).sum(dim=(0, 2))
    torch.testing.assert_close(drawn.log_ratio.double(), expected, rtol=1e-5, atol=1e-4)


def test_convolutions_in_tf32_add_nothing_to_the_kl(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ampere's tensor cores round what a float32 convolution reads to 10 bits; policies are pairs on GPUs."""
    monkeypatch.setattr(denoiser, "exact", lambda _: False)
    plain, rounded = F.conv2d, 0

    def cut(value: Any) -> Any:
        return (value.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)

    def tf32(value: Any, weight: Tensor, *rest: Any) -> Any:
        nonlocal rounded
        rounded += 1
        if isinstance(value, Shifted):
            return plain(Shifted(cut(value.base), cut(value.shift)), cut(weight), *rest)
        return plain(cut(value), cut(weight), *rest)

    @torch.no_grad()
    def kl(size: float) -> float:
        policy = tiny_pipeline.policy(folder, guidance=5.0, trained=size)
        return float(policy.rollout(policy.draw(4, 1)).path_kl.mean())

    exact = [kl(0.01), kl(0.1)]
    monkeypatch.setattr(F, "conv2d", tf32)
    assert [kl(0.01), kl(0.1)] == pytest.approx(exact, rel=0.01)
    assert kl(1e-5) < 1e-9
    assert rounded > 0


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_the_log_ratio_is_that_of_trajectories_and_its_mean_the_kl(
    folder: Path, guidance: float | None
) -> None:
    """Densities of every step at the states that were kept, by networks and scheduler of diffusers."""
    policy = tiny_pipeline.policy(folder, guidance=guidance, trained=0.12)
    draw = policy.draw(128, 9)
    by_hand = ByHand(folder, policy, guidance or 1.0)
    with torch.no_grad():
        drawn = policy.rollout(draw, keep=True)
        assert drawn.inputs is not None
        states = [*drawn.inputs, drawn.final]
        log_ratio, silent = torch.zeros(len(draw), dtype=torch.float64), torch.zeros_like(drawn.final)
        for step, t in enumerate(by_hand.scheduler.timesteps.tolist()):
            sigma = float(policy.table.noise[step])
            means = [
                by_hand.next(t, states[step], noise, silent).double()
                for noise in by_hand.pair(draw, t, states[step])
            ]
            ours, other = (
                -(states[step + 1].double() - mean).square().sum(dim=(1, 2, 3)) / (2 * sigma**2)
                for mean in means
            )
            log_ratio += ours - other
    torch.testing.assert_close(drawn.log_ratio.double(), log_ratio, rtol=1e-4, atol=1e-3)
    difference = (log_ratio - drawn.path_kl).numpy()
    assert drawn.path_kl.mean() > 0.05
    assert abs(difference.mean()) < 3.5 * difference.std() / np.sqrt(len(draw))
    # Σ u·ε has the variance 2 KL: the noise of a log ratio, no more.
    assert difference.std() == pytest.approx(np.sqrt(2 * float(drawn.path_kl.mean())), rel=0.3)


# Gradients.


@pytest.mark.parametrize(("guidance", "rest"), [(None, 0), (3.0, 1)])
@pytest.mark.parametrize("reference_gradient", [True, False])
def test_backpropagation_is_that_of_a_chain_written_out(
    folder: Path, guidance: float | None, rest: int, reference_gradient: bool
) -> None:
    policy = tiny_pipeline.policy(
        folder, guidance=guidance, rest=rest, trained=0.1, reference_gradient=reference_gradient
    )
    draw, by_hand = policy.draw(4, 1), ByHand(folder, policy, guidance or 1.0)
    found = estimated(policy, draw)
    whole, detached = (
        gradient(policy, loss_of(*by_hand.sample(draw, reference_gradient=kept))) for kept in (True, False)
    )
    assert apart(whole, detached) > 0.01
    assert apart(found, whole if reference_gradient else detached) < 1e-3


@pytest.mark.parametrize("precision", [*exhaustive("fp32"), "bf16"])
def test_what_is_compiled_is_the_same_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Traced for every size of a batch, by parameters that go on being trained."""
    given: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda network: given.append(network) or network)
    plain, compiled = (
        tiny_pipeline.policy(folder, guidance=3.0, rest=1, trained=0.1, precision=precision, compile=on)
        for on in (False, True)
    )
    for size, factor in ((4, 1.0), (3, 1.0), (4, 1.5)):
        with torch.no_grad():
            for parameter in (*plain.parameters().values(), *compiled.parameters().values()):
                parameter.mul_(factor)
        draw = plain.draw(size, 1)
        found, expected = compiled.rollout(draw), plain.rollout(draw)
        torch.testing.assert_close(found.path_kl, expected.path_kl, rtol=1e-4, atol=0)
        torch.testing.assert_close(found.log_ratio, expected.log_ratio, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.samples, expected.samples, rtol=0, atol=1e-5)
        one, other = (gradient(p, r.path_kl.mean()) for p, r in ((compiled, found), (plain, expected)))
        assert apart(one, other) < 1e-4
    assert len(given) == 3  # the UNet, and its pairs for two sizes


def test_layers_before_all_others_can_be_adapted(folder: Path) -> None:
    """Of the time and of the text, which are values of both networks until there."""
    lora = LoraConfig(rank=2, targets=("linear_1", "time_emb_proj", "conv1", "proj_in", "to_k", "conv_out"))
    policy = tiny_pipeline.policy(folder, guidance=3.0, trained=0.05, lora=lora)
    draw, by_hand = policy.draw(4, 1), ByHand(folder, policy, 3.0)
    samples, path_kl = by_hand.sample(draw)
    drawn = policy.rollout(draw)
    assert path_kl.min() > 0.005
    torch.testing.assert_close(drawn.path_kl, path_kl, rtol=1e-3, atol=1e-5)
    assert apart(estimated(policy, draw), gradient(policy, loss_of(samples, path_kl))) < 1e-3


def test_the_gradient_is_the_finite_difference(folder: Path) -> None:
    policy = tiny_pipeline.policy(folder, guidance=2.0, rest=1, trained=0.1)
    draw = policy.draw(8, 1)
    found = estimated(policy, draw)
    parameters = list(policy.parameters().values())
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(found.shape, generator=generator)
    for direction in (found, random / random.norm() * found.norm() + 0.5 * found):
        unit = direction / direction.norm()
        pieces = unit.split([p.numel() for p in parameters])
        ends = []
        with torch.no_grad():
            for step in (5e-3, -1e-2, 5e-3):  # up, down, and back
                for parameter, piece in zip(parameters, pieces, strict=True):
                    parameter.add_(step * piece.view_as(parameter))
                drawn = policy.rollout(draw)
                ends.append(float(loss_of(drawn.samples, drawn.path_kl)))
        assert (ends[0] - ends[1]) / 1e-2 == pytest.approx(float(found @ unit), rel=0.02)


def test_checkpointing_finds_the_same_gradient_in_less_memory(folder: Path) -> None:
    found, held = [], []
    for checkpointing in (False, "selective", True, "blocks"):
        policy = tiny_pipeline.policy(
            folder, guidance=3.0, rest=1, trained=0.1, gradient_checkpointing=checkpointing
        )
        weights = {p.untyped_storage().data_ptr() for p in policy.parts.network.parameters()}
        weights |= {p.untyped_storage().data_ptr() for p in policy.parts.vae.parameters()}
        saved: dict[int, Tensor] = {}

        def keep(tensor: Tensor, saved: dict[int, Tensor] = saved) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = RewardBackprop()(policy, REWARDS, COEFFICIENTS, policy.draw(4, 1), Tensor.detach).loss
        held.append(sum(t.untyped_storage().nbytes() for at, t in saved.items() if at not in weights))
        found.append(gradient(policy, loss))
    assert torch.equal(found[1], found[0])
    assert held[1] < 0.8 * held[0]
    assert apart(found[2], found[0]) < 1e-5
    assert held[2] < 0.1 * held[0]
    assert torch.equal(found[3], found[2])


def test_truncation_keeps_the_direct_gradient_of_the_kl(folder: Path) -> None:
    """Through no state at all, the KL's gradient is that at states which are taken as given."""
    policy = tiny_pipeline.policy(folder, rest=1, trained=0.1)
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
    assert apart(whole, direct) > 0.003


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        *further(("reward_backprop", {}), ("truncated_backprop", {"steps": 2})),
        ("truncated_backprop", {"steps": 3, "random": True}),
        ("low_variance", {"copies": 2}),
        ("clipped_backprop", {"limit": 0.5}),
        ("log_variance", {}),
    ],
)
def test_estimators_keep_their_contract(folder: Path, name: str, parameters: dict[str, Any]) -> None:
    policy = tiny_pipeline.policy(folder, steps=3, guidance=2.0, rest=1, trained=0.1)
    estimator = registry.load(registry.PRIMAL_ESTIMATORS, name)(**parameters)
    check_primal_estimator(estimator, policy, REWARDS, samples=16)


def test_noised_samples_have_the_level_of_the_step(folder: Path) -> None:
    policy = tiny_pipeline.policy(folder)
    final, noise = torch.randn(2, 3, *policy.parts.latent_shape)
    scheduler = tiny_pipeline.plain(folder).scheduler
    for step, t in enumerate(policy._timesteps):
        expected = scheduler.add_noise(final, noise, torch.tensor([t]))
        torch.testing.assert_close(policy.noised(final, step, noise), expected)


# Noise and prompts.


def test_a_worker_draws_its_part_of_the_batch(folder: Path) -> None:
    policy = tiny_pipeline.policy(folder)
    whole = policy.draw(7, 4)
    for first, last in ((0, 3), (3, 7), (2, 4)):
        for part in (policy.draw(7, 4, first=first, last=last), whole.part(first, last)):
            assert torch.equal(part.noise, whole.noise[:, first:last])
            assert part.seeds.tolist() == whole.seeds[first:last].tolist()
            assert part.prompts == (whole.prompts or ())[first:last]
            assert (part.seed, part.first, part.count, len(part)) == (4, first, 7, last - first)
    assert len(set(whole.seeds.tolist())) == 7
    assert not torch.equal(whole.noise, policy.draw(7, 5).noise)
    with torch.no_grad():
        torch.testing.assert_close(
            policy.rollout(whole.part(2, 4)).samples, policy.rollout(whole).samples[2:4], rtol=0, atol=1e-5
        )


def test_neighbours_share_a_prompt_where_each_has_several_images(folder: Path) -> None:
    known = tuple(f"{colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square"))
    policy = tiny_pipeline.policy(folder, train=known, images_per_prompt=3)
    whole = policy.draw(12, 1).prompts
    assert whole is not None
    assert [len(set(whole[first : first + 3])) for first in range(0, 12, 3)] == [1] * 4
    assert set(whole) == set(known)
    assert policy.draw(12, 1, first=3, last=9).prompts == whole[3:9]


def test_prompts_do_not_repeat_before_all_were_used(folder: Path) -> None:
    known = tuple(
        f"{colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square", "square")
    )
    known = tuple(dict.fromkeys(known))
    policy = tiny_pipeline.policy(folder, steps=1, train=known)
    orders = set()
    for seed in range(8):
        prompts = policy.draw(11, seed).prompts
        assert prompts is not None
        assert set(prompts[:4]) == set(prompts[4:8]) == set(known)
        assert len(set(prompts[8:])) == 3
        orders.add(prompts)
    assert len(orders) > 1


def test_an_evaluation_of_fewer_images_than_prompts_is_spread_over_them(folder: Path) -> None:
    texts = tuple(
        f"{color} {shape}" for color in ("red", "blue") for shape in ("circle", "square", "ring", "moon")
    )
    tags = {"shape": ("round", "square", "round", "round") * 2}
    policy = tiny_pipeline.policy(folder)
    policy._prompts = PromptsConfig(train=texts, evaluate=texts, evaluate_metadata=tags)
    for seed in range(6):
        asked = policy.fixed_draw(seed, 0, 4).prompts or ()
        assert len(set(asked)) == 4
        assert sum("square" in text for text in asked) == 1
        assert 1 <= sum("red" in text for text in asked) <= 3
        assert asked + (policy.fixed_draw(seed, 4, 8).prompts or ()) == policy.fixed_draw(seed, 0, 8).prompts


def test_an_evaluation_sample_depends_on_its_seed_alone(folder: Path) -> None:
    policy = tiny_pipeline.policy(folder)
    whole = policy.fixed_draw(100, 0, 6)
    assert whole.seeds.tolist() == list(range(100, 106))
    assert whole.prompts == policy._prompts.in_turn("evaluate", 100) * 3
    assert set(whole.prompts) == {"red square", "blue circle"}
    later, shifted = policy.fixed_draw(100, 3, 6), policy.fixed_draw(103, 0, 3)
    assert torch.equal(later.noise, whole.noise[:, 3:])
    assert torch.equal(shifted.noise, whole.noise[:, 3:])
    assert later.prompts == (whole.prompts or ())[3:]
    asked = policy.fixed_draw(100, 0, 6, tiny_pipeline.PROMPTS)
    assert asked.prompts == tiny_pipeline.PROMPTS * 2
    assert torch.equal(asked.noise, whole.noise)


@pytest.mark.parametrize("guidance", [3.0, *exhaustive(None)])
def test_rows_of_one_call_are_pairs_of_passes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, guidance: float | None
) -> None:
    """Of projections and of convolutions, where the reference and the policy are rows of one call and where not."""
    lora = LoraConfig(rank=2, alpha=5.0, targets=("to_q", "to_out.0", "conv1"))
    found = []
    for exact in (True, False):
        monkeypatch.setattr(denoiser, "exact", lambda _, exact=exact: exact)
        policy = tiny_pipeline.policy(folder, guidance=guidance, rest=1, trained=0.1, lora=lora)
        drawn = policy.rollout(policy.draw(5, 1))
        found.append((drawn, gradient(policy, loss_of(drawn.samples, drawn.path_kl))))
    (rows, one), (pairs, other) = found
    torch.testing.assert_close(rows.path_kl, pairs.path_kl, rtol=1e-4, atol=0)
    torch.testing.assert_close(rows.samples, pairs.samples, rtol=0, atol=1e-5)
    assert apart(one, other) < 1e-4


def test_log_variance_asks_the_network_once_for_every_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And finds the gradient at states that are taken as given."""
    policy = tiny_pipeline.policy(folder, rest=1, trained=0.1)
    draw, asked = policy.draw(5, 1), 0
    whole = type(policy.parts.network).forward

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal asked
        asked += 1
        return whole(*arguments, **named)

    monkeypatch.setattr(type(policy.parts.network), "forward", counted)
    estimate = LogVariance()(policy, REWARDS, COEFFICIENTS, draw, Tensor.detach)
    assert asked == policy.steps
    assert not estimate.path_kl.requires_grad
    with torch.no_grad():
        drawn = policy.rollout(draw, keep=True)
    assert drawn.inputs is not None
    assert drawn.shifts is not None
    controls = policy.controls(draw, drawn.inputs)
    ratio = (controls * drawn.shifts).sum(dim=(0, 2)) - 0.5 * controls.square().sum(dim=(0, 2))
    bracket = ratio - sum(w * estimate.rewards[name] for name, w in COEFFICIENTS.tilt().items())
    expected = 0.5 * (bracket - bracket.detach().mean()).square().mean()
    torch.testing.assert_close(estimate.loss, expected)
    assert apart(gradient(policy, estimate.loss), gradient(policy, expected)) < 1e-4
