"""Chains of adapters, prompts and pipelines: against policies, and against plain diffusers written out."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from support import tiny_pipeline
from torch import Tensor

from trainers.adapters.files import CONFIG, WEIGHTS
from trainers.composition.networks.pipelines import PipelineChains, build_chains
from trainers.config import (
    BaseConfig,
    CompositionConfig,
    ConstituentConfig,
    ConvergenceConfig,
    DualConfig,
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    ObjectiveConfig,
    PromptsConfig,
    SamplingConfig,
    TrainingConfig,
    TrialConfig,
)
from trainers.models.base import Draw

EVALUATE = ("red square", "blue circle")
PROMPTS = PromptsConfig(train=tiny_pipeline.PROMPTS, evaluate=EVALUATE)
PREDICTIONS = ("epsilon", "v_prediction")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pipelines by prediction type, and adapters of the first."""
    root = tmp_path_factory.mktemp("pipelines")
    for prediction in PREDICTIONS:
        tiny_pipeline.write(root / prediction, prediction=prediction)
    tiny_pipeline.adapter(root / "epsilon", root / "bright", seed=1, rank=3, alpha=5.0)
    tiny_pipeline.adapter(root / "epsilon", root / "dark", seed=2, rank=1, targets=("to_v", "to_k"))
    tiny_pipeline.write(root / "other", widths=(8,), cross=8, length=6)
    return root


def chains(
    models: dict[str, dict[str, Any]],
    *,
    base: Path | None = None,
    prompts: PromptsConfig | None = PROMPTS,
    guidance: float | None = None,
    rest: int = 0,
    steps: int = 4,
    precision: Any = "fp32",
) -> PipelineChains:
    return build_chains(
        TrialConfig(
            model=ModelConfig(
                composition=CompositionConfig(
                    models=tuple(
                        ConstituentConfig(name=name, **{k: str(v) for k, v in kind.items()})
                        for name, kind in models.items()
                    ),
                    base=None if base is None else BaseConfig(pretrained=str(base)),
                )
            ),
            prompts=prompts,
            sampling=SamplingConfig(steps=steps, guidance=guidance, rest=rest),
            rewards=(),
            objective=ObjectiveConfig(kind="minmax_kl", target="models"),
            constraints=(),
            method="constrained",
            weights={},
            seed=0,
            training=TrainingConfig(precision=precision),
            duals=DualConfig(),
            convergence=ConvergenceConfig(),
            evaluation=EvaluationConfig(),
        )
    )


def adapted(root: Path, **settings: Any) -> PipelineChains:
    models = {name: {"adapter": root / name} for name in ("bright", "dark")}
    return chains(models, base=root / "epsilon", **settings)


def sample(built: PipelineChains, driver: str | int, draw: Draw, weights: Sequence[float] = ()) -> Tensor:
    state = draw.noise[0]
    for step in range(built.steps):
        control = built.control(driver, step, state, draw, weights)
        state = built.advance(step, state, control, draw.noise[step + 1])
    return built.decode(state)


class ByHand:
    """Controls from a pipeline as diffusers loads it, one prompt and one pass at a time."""

    def __init__(self, folder: Path, built: PipelineChains, guidance: float | None) -> None:
        """Load it a second time, so that nothing is shared with the chains."""
        self.pipeline = tiny_pipeline.plain(folder)
        self.scheduler = self.pipeline.scheduler
        self.scheduler.set_timesteps(built.steps)
        self.guidance = max(1.0, guidance or 0.0)

    def __call__(self, step: int, state: Tensor, prompts: Sequence[str]) -> Tensor:
        t = self.scheduler.timesteps[step]
        unet = self.pipeline.unet
        with torch.no_grad():
            text, empty = self.pipeline.encode_prompt(list(prompts), "cpu", 1, True)
            with_text = unet(state, t, encoder_hidden_states=text).sample
            without = unet(state, t, encoder_hidden_states=empty).sample
        output = without + self.guidance * (with_text - without)
        silent = torch.zeros_like(state)

        def mean(output: Tensor) -> Tensor:
            moved: Tensor = self.scheduler.step(output, t, state, eta=1.0, variance_noise=silent).prev_sample
            return moved

        noisy = self.scheduler.step(output, t, state, eta=1.0, variance_noise=silent + 1).prev_sample
        sigma = (noisy - mean(output)).mean()
        # The share of the state in the mean is what is left of it at a clean guess of zero.
        level = self.scheduler.alphas_cumprod[t]
        epsilon = self.scheduler.config.prediction_type == "epsilon"
        blank = state / (1 - level).sqrt() if epsilon else state * (level / (1 - level)).sqrt()
        return ((mean(output) - mean(blank)) / sigma).flatten(1)


def rows(built: PipelineChains, calls: list[int]) -> None:
    """Note how many rows go through each network in each call."""
    for network in built._networks.each:
        network.denoiser.parts.network.register_forward_pre_hook(
            lambda _, inputs: calls.append(len(inputs[0]))
        )


# Models alone.


@pytest.mark.parametrize(("guidance", "rest"), [(None, 0), (3.0, 1)])
def test_a_vertex_is_the_policy_with_that_adapter(root: Path, guidance: float | None, rest: int) -> None:
    built = adapted(root, guidance=guidance, rest=rest)
    draw = built.draw(5, 1, 11, held_out=True)
    for index, (name, lora) in enumerate(
        {
            "bright": LoraConfig(rank=3, alpha=5.0),
            "dark": LoraConfig(rank=1, targets=("to_v", "to_k")),
        }.items()
    ):
        policy = tiny_pipeline.policy(root / "epsilon", guidance=guidance, rest=rest, lora=lora)
        policy.load_adapter({file: (root / name / file).read_bytes() for file in (WEIGHTS, CONFIG)})
        fixed = policy.fixed_draw(11, 0, 5)
        assert torch.equal(draw.noise, fixed.noise)
        assert draw.seeds.tolist() == fixed.seeds.tolist()
        assert draw.prompts == fixed.prompts
        with torch.no_grad():
            expected, reference = policy.rollout(fixed), policy.rollout(fixed, reference=True)
        assert (expected.samples - reference.samples).abs().amax() > 0.01
        torch.testing.assert_close(sample(built, index, draw), expected.samples, rtol=0, atol=2e-5)
        torch.testing.assert_close(sample(built, "base", draw), reference.samples, rtol=0, atol=2e-5)

        kl, state = torch.zeros(len(draw)), draw.noise[0]
        for step in range(built.steps):
            ours, base = (
                built.controls(step, state, draw)[index],
                built.control("base", step, state, draw, ()),
            )
            kl = kl + 0.5 * (ours - base).square().sum(dim=1)
            state = built.advance(step, state, ours, draw.noise[step + 1])
        assert expected.path_kl.min() > 0.01
        torch.testing.assert_close(kl, expected.path_kl, rtol=1e-3, atol=1e-4)


def test_half_precision_is_the_policy_s(root: Path) -> None:
    built = adapted(root, precision="bf16", guidance=2.0)
    draw = built.draw(3, 1, 2, held_out=True)
    policy = tiny_pipeline.policy(
        root / "epsilon", precision="bf16", guidance=2.0, lora=LoraConfig(rank=3, alpha=5.0)
    )
    policy.load_adapter({file: (root / "bright" / file).read_bytes() for file in (WEIGHTS, CONFIG)})
    controls = built.controls(0, draw.noise[0], draw)
    assert controls.dtype == torch.float32
    asked, state = policy._denoiser, draw.noise[0]
    for on, found in ((True, controls[0]), (False, built.control("base", 0, state, draw, ()))):
        with torch.no_grad():
            clean = asked.guess(
                0, state, asked.conditions(draw.prompts), prepare=partial(policy._adapter.switch, on=on)
            )
        torch.testing.assert_close(found, asked.control(0, clean[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance", [None, 0.0, 4.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_prompts_are_separate_calls_of_diffusers(root: Path, prediction: str, guidance: float | None) -> None:
    """One pass without a prompt serves all; the calls by hand make one for each."""
    texts = {"a": "red circle", "b": "blue square", "c": "green triangle"}
    built = chains(
        {name: {"prompt": text} for name, text in texts.items()},
        base=root / prediction,
        prompts=None,
        guidance=guidance,
    )
    by_hand = ByHand(root / prediction, built, guidance)
    draw = built.draw(2, 2, 5)
    joint = "red circle, blue square, green triangle"
    assert draw.prompts == (joint,) * 4
    assert built.count == 3
    state = draw.noise[0]
    for step in range(built.steps):
        found = built.controls(step, state, draw)
        for index, text in enumerate(texts.values()):
            expected = by_hand(step, state, [text] * 4)
            torch.testing.assert_close(found[index], expected, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(
                built.control(index, step, state, draw, ()), found[index], rtol=1e-4, atol=1e-4
            )
        assert (found[0] - found[1]).abs().amax() > 0.05
        torch.testing.assert_close(
            built.control("joint", step, state, draw, ()),
            by_hand(step, state, [joint] * 4),
            rtol=1e-3,
            atol=1e-3,
        )
        state = built.advance(step, state, found[2], draw.noise[step + 1])


def test_convolutions_of_a_composition_are_true_float32(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    adapted(root)
    assert not torch.backends.cudnn.allow_tf32


def test_pipelines_of_their_own(root: Path) -> None:
    """With a text encoder of their own, on the first one's latents."""
    built = chains(
        {"one": {"pretrained": root / "epsilon"}, "two": {"pretrained": root / "other"}}, guidance=2.0
    )
    draw = built.draw(2, 1, 7, held_out=True)
    by_hand = [ByHand(root / name, built, 2.0) for name in ("epsilon", "other")]
    for step in range(built.steps):
        found = built.controls(step, draw.noise[0], draw)
        for control, plain in zip(found, by_hand, strict=True):
            expected = plain(step, draw.noise[0], draw.prompts or ())
            torch.testing.assert_close(control, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="no base to compare with"):
        built.control("base", 0, draw.noise[0], draw, ())


def test_all_kinds_at_once(root: Path) -> None:
    built = chains(
        {
            "bright": {"adapter": root / "bright"},
            "red": {"prompt": "red circle"},
            "foreign": {"pretrained": root / "other"},
            "same": {"pretrained": root / "epsilon"},
        },
        base=root / "epsilon",
        guidance=2.0,
        rest=1,
    )
    assert len(built._networks.each) == 2  # what is the base is not loaded again
    calls: list[int] = []
    rows(built, calls)
    draw = built.draw(2, 2, 1)
    assert set(draw.prompts or ()) <= set(tiny_pipeline.PROMPTS)
    plain, other = ByHand(root / "epsilon", built, 2.0), ByHand(root / "other", built, 2.0)
    bright = ByHand(root / "epsilon", built, 2.0)
    bright.pipeline.load_lora_weights(root / "bright")
    prompts, state = draw.prompts or (), draw.noise[0]
    for step in range(built.steps):
        resting = step == 3
        expected = [
            (plain if resting else bright)(step, state, prompts),
            plain(step, state, ["red circle"] * 4),
            other(step, state, prompts),
            plain(step, state, prompts),
        ]
        found = built.controls(step, state, draw)
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-3)
    assert sum(calls) == 4 * built.evaluations == 4 * (3 * (2 + 3 + 2) + (3 + 2))
    assert built.active_steps == 4


# Baselines.


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_merged_is_a_network_with_the_weighted_sum_of_updates(root: Path, guidance: float | None) -> None:
    built = adapted(root, guidance=guidance, rest=1)
    draw, weights = built.draw(2, 2, 4), (0.3, 0.7)
    by_hand = ByHand(root / "epsilon", built, guidance)
    unet = by_hand.pipeline.unet
    state = draw.noise[0]
    torch.testing.assert_close(
        built.control("merged", 3, state, draw, weights),
        by_hand(3, state, draw.prompts or ()),
        rtol=1e-3,
        atol=1e-3,
    )
    for name, scale in (("bright", 0.3 * 5.0 / 3.0), ("dark", 0.7)):
        tensors = load((root / name / WEIGHTS).read_bytes())
        for key, down in tensors.items():
            if ".lora_A" in key:
                layer = unet.get_submodule(key.removeprefix("unet.").split(".lora_A")[0])
                with torch.no_grad():
                    layer.weight += scale * tensors[key.replace("lora_A", "lora_B")] @ down
    for step in range(3):
        found = built.control("merged", step, state, draw, weights)
        torch.testing.assert_close(found, by_hand(step, state, draw.prompts or ()), rtol=1e-3, atol=1e-3)
        apart = built.controls(step, state, draw)
        assert (found - 0.3 * apart[0] - 0.7 * apart[1]).abs().amax() > 1e-3  # not the same thing
        for index, corner in enumerate(((1.0, 0.0), (0.0, 1.0))):
            torch.testing.assert_close(
                built.control("merged", step, state, draw, corner), apart[index], rtol=1e-5, atol=1e-5
            )


def test_baselines_that_the_models_do_not_have(root: Path) -> None:
    adapters = adapted(root)
    texts = chains({"a": {"prompt": "red"}, "b": {"prompt": "blue"}}, base=root / "epsilon")
    mixed = chains({"a": {"prompt": "red"}, "b": {"adapter": root / "dark"}}, base=root / "epsilon")
    for built, driver, problem in (
        (adapters, "joint", "only prompts have a joint one"),
        (adapters, "student", "no baseline 'student'; known: base, merged, joint"),
        (texts, "merged", "only adapters can be merged"),
        (texts, "base", "no base to compare with"),
        (mixed, "merged", "not all of these models are adapters"),
        (mixed, "joint", "not all of these models are prompts"),
    ):
        draw = built.draw(1, 1, 0)
        with pytest.raises(ValueError, match=problem):
            built.control(driver, 0, draw.noise[0], draw, (0.5, 0.5))


# Cost.


@pytest.mark.parametrize(
    ("guidance", "rest", "expected"), [(None, 0, 8), (None, 1, 7), (3.0, 0, 16), (3.0, 2, 12)]
)
def test_adapters_that_rest_are_one_question(
    root: Path, guidance: float | None, rest: int, expected: int
) -> None:
    built = adapted(root, guidance=guidance, rest=rest)
    calls: list[int] = []
    rows(built, calls)
    draw = built.draw(1, 3, 0)
    for step in range(4):
        first, second = built.controls(step, draw.noise[0], draw)
        assert torch.equal(first, second) == (step >= 4 - rest)
    assert sum(calls) == 3 * expected
    assert built.evaluations == expected
    assert built.active_steps == 4 - rest


@pytest.mark.parametrize(("guidance", "each"), [(None, 2), (0.0, 2), (1.0, 2), (3.0, 3)])
def test_prompts_share_the_pass_without_one(root: Path, guidance: float | None, each: int) -> None:
    built = chains(
        {"a": {"prompt": "red"}, "b": {"prompt": "blue"}},
        base=root / "epsilon",
        prompts=None,
        guidance=guidance,
    )
    calls: list[int] = []
    rows(built, calls)
    draw = built.draw(1, 2, 0)
    built.controls(0, draw.noise[0], draw)
    assert calls == [2 * each]
    assert built.evaluations == 4 * each


# Draws.


def test_held_out_draws_are_one_sequence(root: Path) -> None:
    built = adapted(root)
    whole = built.draw(5, 3, 100, held_out=True)
    assert whole.seeds.tolist() == list(range(100, 115))
    order = PROMPTS.in_turn("evaluate", 100)
    assert whole.prompts == tuple(order[g % 2] for g in range(5) for _ in range(3))
    later = built.draw(2, 3, 100, first=3, held_out=True)
    assert torch.equal(later.noise, whole.noise[:, 9:])
    assert later.prompts == (whole.prompts or ())[9:]
    assert later.seed == 100


def test_training_draws_are_shuffled_by_group(root: Path) -> None:
    built = adapted(root)
    whole = built.draw(6, 2, 3)
    prompts = (whole.prompts or ())[::2]
    assert (whole.prompts or ())[1::2] == prompts
    assert set(prompts[:3]) == set(prompts[3:]) == set(tiny_pipeline.PROMPTS)
    later = built.draw(2, 2, 3, first=4)
    assert torch.equal(later.noise, whole.noise[:, 8:])
    assert later.prompts == (whole.prompts or ())[8:]
    assert len(set(whole.seeds.tolist())) == 12
    assert not torch.equal(built.draw(6, 2, 4).noise, whole.noise)
    policy = tiny_pipeline.policy(root / "epsilon")
    single = built.draw(7, 1, 9)
    assert torch.equal(single.noise, policy.draw(7, 9).noise)
    assert single.prompts == policy.draw(7, 9).prompts
    assert len({built.draw(3, 1, seed).prompts for seed in range(8)}) > 1


# A student.


def test_only_the_student_is_trained(root: Path, tmp_path: Path) -> None:
    built = adapted(root, guidance=2.0, rest=1)
    draw = built.draw(2, 2, 1)
    state = draw.noise[0]
    before = built.controls(0, state, draw)
    built.student(LoraConfig(rank=2, targets=("to_q", "conv1")), seed=3)
    parameters = built.student_parameters()
    assert {p.dtype for p in parameters} == {torch.float32}
    unet = built._networks.each[0].denoiser.parts.network
    assert {id(p) for p in unet.parameters() if p.requires_grad} == {id(p) for p in parameters}
    base = built.control("base", 0, state, draw, ())
    assert torch.equal(built.student_control(0, state, draw), base)  # its update is zero at first

    optimizer = torch.optim.Adam(parameters, lr=0.02)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        carried = state.clone().requires_grad_()
        target = built.controls(0, carried, draw).mean(dim=0)
        loss = 0.5 * (built.student_control(0, carried, draw) - target).square().sum(dim=1).mean()
        loss.backward()  # type: ignore[no-untyped-call] # torch's
        assert carried.grad is None
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is None for p in unet.parameters() if not p.requires_grad)
    assert torch.equal(built.controls(0, state, draw), before)
    taught = built.student_control(0, state, draw)
    assert torch.equal(built.control("student", 0, state, draw, ()), taught)
    assert not built.control("student", 0, state, draw, ()).requires_grad
    resting = built.student_control(3, state, draw)
    assert not resting.requires_grad
    assert torch.equal(resting, built.control("base", 3, state, draw, ()))

    for name, content in built.student_files().items():
        (tmp_path / name).write_bytes(content)
    plain = ByHand(root / "epsilon", built, 2.0)
    plain.pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(taught.detach(), plain(0, state, draw.prompts or ()), rtol=1e-3, atol=1e-3)


def test_a_student_of_prompts_is_asked_with_all_in_one(root: Path) -> None:
    built = chains(
        {"a": {"prompt": "red circle"}, "b": {"prompt": "blue square"}},
        base=root / "v_prediction",
        prompts=None,
        rest=1,
    )
    built.student(LoraConfig())
    draw = built.draw(1, 2, 0)
    assert built.active_steps == 3  # in the last one all concepts are asked in one, and the student rests
    for step in range(4):
        found = built.student_control(step, draw.noise[0], draw)
        assert found.requires_grad == (step < 3)
        joint = built.control("joint", step, draw.noise[0], draw, ())
        torch.testing.assert_close(found.detach(), joint)
        models = built.controls(step, draw.noise[0], draw)
        assert torch.equal(models[0], models[1]) == (step == 3)
    torch.testing.assert_close(models[0], joint)


def test_a_student_is_a_function_of_its_seed(root: Path) -> None:
    files = [adapted(root).student(LoraConfig(), seed).files() for seed in (1, 1, 2)]
    assert files[0] == files[1] != files[2]


# What does not go together.


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"latent": 8}, "latents 4×4×4 and 4×8×8"),
        ({"prediction": "v_prediction"}, "prediction type epsilon and v_prediction"),
        ({"timestep_spacing": "trailing"}, r"timesteps 751, .* and 999, "),
        ({"num_train_timesteps": 500}, r"timesteps 751, .* and 376, "),
    ],
)
def test_pipelines_without_a_chain_in_common(
    root: Path, tmp_path: Path, settings: dict[str, Any], problem: str
) -> None:
    other = tiny_pipeline.write(tmp_path, **settings)
    match = f"one and two cannot be composed, because they have no chain in common: {problem}"
    with pytest.raises(ValueError, match=match):
        chains({"one": {"pretrained": root / "epsilon"}, "two": {"pretrained": other}})
    with pytest.raises(ValueError, match="the base and two cannot be composed"):
        chains({"one": {"adapter": root / "bright"}, "two": {"pretrained": other}}, base=root / "epsilon")


def test_other_noise_levels(root: Path, tmp_path: Path) -> None:
    other = tiny_pipeline.plain(root / "epsilon")
    other.scheduler = type(other.scheduler).from_config(other.scheduler.config, beta_end=0.02)
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"noise levels ᾱ 0\.\d+, .* and 0\.\d+, "):
        chains({"one": {"pretrained": root / "epsilon"}, "two": {"pretrained": tmp_path}})


def test_errors_name_the_model(root: Path, tmp_path: Path) -> None:
    good = {"adapter": root / "bright"}
    with pytest.raises(ValueError, match=r"models\.bad\.adapter: there is no directory nowhere, .*shipped: "):
        chains({"good": good, "bad": {"adapter": "nowhere"}}, base=root / "epsilon")
    with pytest.raises(ValueError, match=r"models\.bright\.adapter: .* does not fit the base: size mismatch"):
        chains({"bright": good, "red": {"prompt": "red"}}, base=root / "other")
    with pytest.raises(ValueError, match=r"models\.bad\.pretrained: .* has no model_index\.json"):
        chains({"good": good, "bad": {"pretrained": tmp_path}}, base=root / "epsilon")
    with pytest.raises(
        ValueError, match=r"prompts: adapters and pipelines are asked with the trial's prompts"
    ):
        chains({"good": good, "red": {"prompt": "red"}}, base=root / "epsilon", prompts=None)


def test_adapters_of_the_embedded_pipeline_by_name() -> None:
    built = chains({name: {"adapter": name} for name in ("saturation", "contrast")}, guidance=2.0, steps=2)
    draw = built.draw(1, 2, 0)
    assert (built.controls(0, draw.noise[0], draw).diff(dim=0).abs().amax()) > 1e-3
    images = built.decode(draw.noise[0])
    assert images.shape[:2] == (2, 3)
    assert not images.requires_grad
    assert np.isfinite(images.numpy()).all()
