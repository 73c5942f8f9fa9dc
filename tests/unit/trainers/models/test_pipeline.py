"""Loading pipelines, those that cannot be used, and whole trials on one that is not the shipped one."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.utils.logging import enable_progress_bar
from support import tiny_pipeline
from support.tiers import exhaustive
from torch import Tensor

from trainers import registry
from trainers.alignment import paired
from trainers.config import (
    BaselineStatistics,
    ConstraintConfig,
    ConvergenceConfig,
    DualConfig,
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    ObjectiveConfig,
    PromptsConfig,
    RewardConfig,
    RewardStatistics,
    SamplingConfig,
    TrainingConfig,
    TrialConfig,
    TrialJob,
)
from trainers.evaluate import evaluate
from trainers.models.build import build_policy
from trainers.models.families.base import CLEAN
from trainers.models.pipeline import Parts, load_parts
from trainers.models.pipeline_policy import PipelinePolicy
from trainers.pipelines.configs import PREDICTIONS
from trainers.problem import run_trial
from trainers.rewards.attributes import Saturation
from trainers.rewards.base import build_reward
from trainers.trial_io import LocalTrialIO
from trainers.types import StepRecord, TrialOutcome
from trainers.workers.collective import Collective

GUIDED = SamplingConfig(guidance=2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with other sizes than the shipped one, which predicts velocities."""
    return tiny_pipeline.write(
        tmp_path_factory.mktemp("foreign"),
        widths=(4, 8),
        cross=8,
        length=6,
        latent=8,
        prediction="v_prediction",
    )


@pytest.fixture(autouse=True)
def new_process() -> None:
    """No scores of the reference from another test."""
    paired._known.clear()


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def loaded(source: Path | str, precision: str = "fp32") -> Parts:
    return load_parts(ModelConfig(pretrained=str(source)), precision)


def reconfigured(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


# What is loaded.


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_parts_are_frozen(folder: Path, precision: str, dtype: torch.dtype) -> None:
    parts = loaded(folder, precision)
    assert parts.latent_shape == (4, 8, 8)
    for part in (parts.network, parts.vae, parts.pipeline.text_encoder):
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())
    assert parts.network.dtype == parts.vae.dtype == parts.dtype == dtype
    assert parts.pipeline.safety_checker is None


def test_bars_are_not_drawn_where_nobody_wants_them(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``HF_HUB_DISABLE_PROGRESS_BARS`` holds for the bars that diffusers draws by itself, too."""
    enable_progress_bar()
    monkeypatch.setattr("trainers.models.pipeline.are_progress_bars_disabled", lambda: False)
    loaded(folder)
    assert "Loading pipeline components" in capfd.readouterr().err
    monkeypatch.setattr("trainers.models.pipeline.are_progress_bars_disabled", lambda: True)
    loaded(folder)
    assert "Loading pipeline components" not in capfd.readouterr().err
    enable_progress_bar()


def test_prompts_are_encoded_as_diffusers_encodes_them(folder: Path) -> None:
    parts, pipeline = loaded(folder), tiny_pipeline.plain(folder)
    with torch.no_grad():
        embedding, empty = pipeline.encode_prompt("red circle", "cpu", 1, do_classifier_free_guidance=True)
    assert embedding.shape == (1, 6, 8)
    assert (embedding - empty).abs().amax() > 0.1
    asked = parts.asked(GUIDED)
    assert torch.equal(parts.texts.away(asked).sequence, empty)
    assert torch.equal(parts.texts.encode(("red circle",), asked).sequence, embedding)


def test_images_are_in_range_and_carry_gradients(folder: Path) -> None:
    latents = (20 * torch.randn(2, 4, 8, 8)).requires_grad_()
    images = loaded(folder).decode(latents)
    assert images.shape == (2, 3, 16, 16)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    (gradient,) = torch.autograd.grad(images.sum(), latents)
    assert gradient.abs().amax() > 0


def test_latents_need_not_be_square(copy: Path) -> None:
    reconfigured(copy / "unet" / "config.json", sample_size=[8, 16])
    assert loaded(copy).latent_shape == (4, 8, 16)
    policy = tiny_pipeline.policy(copy, steps=1)
    with torch.no_grad():
        assert policy.rollout(policy.draw(1, 0)).samples.shape == (1, 3, 16, 32)


def test_a_text_encoder_stored_in_half_precision(copy: Path) -> None:
    pipeline = tiny_pipeline.plain(copy)
    pipeline.text_encoder.half().save_pretrained(copy / "text_encoder")
    parts = loaded(copy)
    assert parts.pipeline.text_encoder.dtype == torch.float16, "its own precision"
    rough, exact = (
        parts.texts.encode(("red circle",), parts.asked(GUIDED)).sequence,
        tiny_pipeline.plain(copy),
    )
    assert rough.dtype == torch.float32
    with torch.no_grad():
        embedding, _ = exact.encode_prompt("red circle", "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(rough, embedding.float(), rtol=0, atol=1e-2)


# What cannot be used.


def test_a_directory_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"not a pipeline in diffusers format: .*model_index\.json .*nothing"
    ):
        loaded(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model_index\.json \(it holds: model\.safetensors\)"):
        loaded(tmp_path)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.pretrained: there is no directory .*nowhere"):
        loaded(tmp_path / "nowhere")


def test_a_missing_component_is_named(copy: Path) -> None:
    shutil.rmtree(copy / "vae")
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(ValueError, match=r"lacks the component\(s\) tokenizer, vae"):
        loaded(copy)


@pytest.mark.parametrize(
    ("component", "file"),
    [
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
    ],
)
def test_missing_weights_are_named(copy: Path, component: str, file: str) -> None:
    (copy / component / file).unlink()
    with pytest.raises(ValueError, match=rf"its {component} has no weights in safetensors, {file}"):
        loaded(copy)


def test_pickles_are_not_loaded(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(tiny_pipeline.plain(copy).unet.state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match=r"no weights in safetensors, .*it holds: .*\.bin"):
        loaded(copy)


def test_a_variant_is_loaded_and_shards_are_whole(copy: Path) -> None:
    plain = loaded(copy).network.state_dict()
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    half = tiny_pipeline.plain(copy).unet.half()
    half.save_pretrained(copy / "unet", variant="fp16", max_shard_size="10KB")
    weights.unlink()
    assert len(list(copy.glob("unet/*fp16-0000*-of-*.safetensors"))) > 1
    with pytest.raises(ValueError, match=r"only the fp16 variant is there: model\.variant: fp16"):
        loaded(copy)
    found = load_parts(ModelConfig(pretrained=str(copy), variant="fp16"), "fp32").network.state_dict()
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor.half().float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"channels": 9}, r"its unet takes 9 channels and its vae has 4 \(an inpainting or depth model\?\)"),
        (
            {
                "unet": {
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 4,
                    "projection_class_embeddings_input_dim": 32,
                }
            },
            r"wants conditions besides the prompt \(an SDXL, upscaling or LCM model\?\)",
        ),
        ({"unet": {"num_class_embeds": 10}}, "wants conditions besides the prompt"),
        ({"unet": {"time_cond_proj_dim": 8}}, "wants conditions besides the prompt"),
    ],
)
def test_another_family_is_refused(tmp_path: Path, settings: dict[str, Any], problem: str) -> None:
    source = tiny_pipeline.write(tmp_path, **settings)
    with pytest.raises(ValueError, match=rf"is not of the SD 1\.x, 2\.x family: .*{problem}"):
        loaded(source)


def test_another_prediction_type_is_refused(copy: Path) -> None:
    reconfigured(copy / "scheduler" / "scheduler_config.json", prediction_type="flow_prediction")
    with pytest.raises(ValueError, match=r"'flow_prediction'; known: epsilon, v_prediction, sample"):
        tiny_pipeline.policy(copy)


def test_a_scheduler_of_flows_is_refused(copy: Path) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(copy / "scheduler")
    index = json.loads((copy / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"by flow matching \(its scheduler is a FlowMatchEulerDiscreteSch"):
        tiny_pipeline.policy(copy)


def test_a_text_encoder_of_another_width_is_refused(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "text_encoder")
    tiny_pipeline.write(tmp_path / "other", cross=16, length=6)
    shutil.copytree(tmp_path / "other" / "text_encoder", copy / "text_encoder")
    with pytest.raises(ValueError, match=r"text_encoder of width 16 .*its unet takes width 8"):
        loaded(copy)


def test_known_predictions_are_those_of_the_network() -> None:
    assert {*PREDICTIONS, "flow"} == set(CLEAN)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError,
        match=r"nobody/nothing cannot be loaded .*hub id \(downloaded once with `hf download nobody/",
    ):
        loaded("nobody/nothing")


@pytest.mark.parametrize("name", ["a b", "owner/" + 300 * "c"])
def test_what_is_no_hub_id_is_one_message(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^model\.pretrained: .* cannot be loaded as a Stable Diffusion"):
        loaded(name)


def test_a_hub_id_of_which_only_a_variant_is_there(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded at a commit from the hub's cache; what is wrong with it is told as of a directory."""
    commit = 40 * "a"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    tiny_pipeline.plain(copy).to(dtype=torch.float16).save_pretrained(
        tmp_path / "hub" / "models--owner--name" / "snapshots" / commit, variant="fp16"
    )
    with pytest.raises(ValueError, match=r"owner/name only the fp16 variant is there: model\.variant: fp16"):
        load_parts(ModelConfig(pretrained="owner/name", revision=commit), "fp32")
    load_parts(ModelConfig(pretrained="owner/name", revision=commit, variant="fp16"), "fp32")


def test_targets_that_match_nothing(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.lora\.targets: 'query' ends the name of no layer"):
        PipelinePolicy.build(
            ModelConfig(pretrained=str(folder), lora=LoraConfig(targets=("query",))),
            PromptsConfig(train=("red circle",), evaluate=("red circle",)),
            SamplingConfig(steps=2),
            TrainingConfig(),
        )


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
def test_scheduler_settings_of_other_programs(copy: Path) -> None:
    """A final ᾱ of 1, clipping and no offset, as old conversions have them: none of it reaches the sampler."""
    DDIMScheduler(
        set_alpha_to_one=True, clip_sample=True, steps_offset=0, prediction_type="v_prediction"
    ).save_pretrained(copy / "scheduler")
    policy = tiny_pipeline.policy(copy, trained=0.1)
    assert policy.steps == 4
    with torch.no_grad():
        assert torch.isfinite(policy.rollout(policy.draw(2, 0)).path_kl).all()


# Whole trials.


def job(folder: Path, **training: Any) -> TrialJob:
    config = TrialConfig(
        model=ModelConfig(pretrained=str(folder), lora=LoraConfig(rank=2, alpha=3.0)),
        prompts=PromptsConfig(train=tiny_pipeline.PROMPTS, evaluate=("red square", "blue triangle")),
        sampling=SamplingConfig(steps=3, guidance=2.0, rest=1),
        rewards=(
            RewardConfig(name="vivid", kind="saturation"),
            RewardConfig(name="dark", kind="brightness", parameters={"aim": "low"}),
        ),
        objective=ObjectiveConfig(),
        constraints=(
            ConstraintConfig(name="vivid", kind="reward", target="vivid", bound=0.3, unit="sigma"),
            ConstraintConfig(name="dark", kind="reward", target="dark", bound=0.1, unit="sigma"),
        ),
        method="constrained",
        weights={},
        seed=5,
        training=TrainingConfig(
            **{
                "steps": 6,
                "batch_per_worker": 4,
                "learning_rate": 1e-2,
                "primal": "reward_backprop",
                "checkpoint_every": 3,
                **training,
            }
        ),
        duals=DualConfig(start=1.0),
        convergence=ConvergenceConfig(window=4),
        evaluation=EvaluationConfig(images=10, baseline_images=12, every=2),
    )
    drawn = evaluate(
        build_policy(config),
        {reward.name: build_reward(reward) for reward in config.rewards},
        samples=12,
        seed=0,
        collective=Collective(),
        reference=True,
        prompts=tiny_pipeline.PROMPTS,
    )
    statistics = {
        name: RewardStatistics(mean=float(values.mean()), std=float(values.std()))
        for name, values in drawn.rewards.items()
    }
    return TrialJob(
        trial_id="foreign",
        config=config,
        baseline=BaselineStatistics(rewards=statistics, samples=12),
        thresholds={
            c.name: statistics[c.target].mean + c.bound * statistics[c.target].std for c in config.constraints
        },
    )


class Interrupted(Exception):  # noqa: N818 - it stands for a kill, not for an error
    """Stops a trial from inside."""


class Stopping(LocalTrialIO):
    """Ends the trial at the report after a step."""

    def report(self, record: StepRecord) -> None:
        super().report(record)
        if record.step >= 4:
            raise Interrupted


def untimed(outcome: TrialOutcome) -> list[dict[str, Any]]:
    timed = {"seconds", "images_per_second"}
    rows = [dataclasses.asdict(record) for record in outcome.history]
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


@pytest.mark.parametrize(
    "training",
    [
        *exhaustive({}),
        {"primal": "log_variance", "accumulation": 2},
        {
            "primal": "truncated_backprop",
            "primal_parameters": {"steps": 2, "random": True},
            "precision": "bf16",
            "gradient_checkpointing": True,
        },
    ],
)
def test_an_interrupted_trial_ends_as_one_that_was_not(folder: Path, training: dict[str, Any]) -> None:
    trial = job(folder, **training)
    undisturbed = run_trial(trial, LocalTrialIO())
    assert undisturbed.status == "succeeded"
    assert undisturbed.steps == 6
    assert [record.step for record in undisturbed.history] == [2, 4, 6]
    assert undisturbed.history[-1].kl > 0
    assert undisturbed.kl is not None
    assert undisturbed.kl.mean > 0
    assert set(undisturbed.adapter) == {"pytorch_lora_weights.safetensors", "adapter_config.json"}
    evaluation = undisturbed.evaluation
    assert evaluation is not None
    assert trial.config.prompts is not None
    assert evaluation.prompts == trial.config.prompts.in_turn("evaluate", trial.config.evaluation.seed) * 5
    assert evaluation.images is not None
    assert evaluation.images.shape == (10, 16, 16, 3)

    paired._known.clear()
    port = Stopping()
    with pytest.raises(Interrupted):
        run_trial(trial, port)
    assert port.checkpoint is not None
    resumed = run_trial(trial, LocalTrialIO(checkpoint=port.checkpoint))
    assert untimed(resumed) == untimed(undisturbed)
    assert resumed.adapter == undisturbed.adapter
    assert resumed.multipliers == undisturbed.multipliers
    assert resumed.evaluation is not None
    assert np.array_equal(resumed.evaluation.kl, evaluation.kl)
    assert evaluation.log_ratio is not None
    assert np.array_equal(resumed.evaluation.log_ratio, evaluation.log_ratio)
    assert not np.array_equal(evaluation.log_ratio, evaluation.kl)


def test_the_evaluated_images_are_those_of_a_plain_pipeline_with_the_files(
    folder: Path, tmp_path: Path
) -> None:
    outcome = run_trial(job(folder, learning_rate=5e-2), LocalTrialIO())
    policy = tiny_pipeline.policy(folder, steps=3, guidance=2.0)
    evaluation = outcome.evaluation
    assert evaluation is not None
    draw = policy.fixed_draw(int(evaluation.seeds[0]), 0, 10, evaluation.prompts)
    with torch.no_grad():
        before = Saturation()(policy.rollout(draw, reference=True).samples)
    assert np.abs(evaluation.rewards["vivid"] - before.numpy()).max() > 0.004

    for name, content in outcome.adapter.items():
        (tmp_path / name).write_bytes(content)
    pipeline = tiny_pipeline.plain(folder)
    pipeline.load_lora_weights(tmp_path)

    def rested(pipe: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            pipe.disable_lora()
        return tensors

    for row in range(3):
        pipeline.enable_lora()
        image = pipeline(
            (evaluation.prompts or ())[row],
            num_inference_steps=3,
            eta=1.0,
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(int(evaluation.seeds[row])),
            output_type="pt",
            callback_on_step_end=rested,
        ).images
        assert float(Saturation()(image)) == pytest.approx(evaluation.rewards["vivid"][row], abs=2e-5)


def test_a_reward_that_is_not_a_number_ends_the_trial(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = job(folder)
    calls = []

    class Breaking(Saturation):
        def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
            calls.append(prompts)
            return super().__call__(samples, prompts) * (float("nan") if len(calls) > 9 else 1.0)

    load = registry.load
    monkeypatch.setattr(
        registry, "load", lambda group, name: Breaking if name == "saturation" else load(group, name)
    )
    port = LocalTrialIO()
    outcome = run_trial(trial, port)
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert outcome.error.startswith(f"diverged at step {outcome.steps + 1}: ")
    assert "the last good state is the checkpoint before" in outcome.error
    assert "A smaller training.learning_rate (now 0.01) often helps" in outcome.error
    assert outcome.steps >= 3
    assert outcome.evaluation is None
    assert outcome.adapter == {}
    assert port.checkpoint is not None
