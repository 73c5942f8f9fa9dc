"""The card says what was reached, and its lines are Python that samples like the evaluation."""

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.plan import make_job, make_plan
from orchestrator.report.card import adapter_card, usage
from orchestrator.spec.load import parse_spec
from trainers.config import (
    BaselineStatistics,
    MeanStatistics,
    ModelConfig,
    RewardStatistics,
    TrialConfig,
    TrialJob,
)
from trainers.types import Interval, TrialOutcome

SPEC = """\
name: demo
model: {pretrained: embedded}
prompts: {train: [a cat], evaluate: ["a dog's \\"bone\\""]}
sampling: {steps: 6, rest: 2, eta: 0.5, guidance: 3.5}
constraints: [{reward: saturation, at_least: 0.5, unit: sigma}]
methods: [constrained, {weighted: {weights: equal, scale: 2.0}}]
"""
CONCEPTS = """\
name: demo
models: {a: {prompt: red circle}, b: {prompt: blue square}}
objective: {minmax_kl: [a, b]}
distillation: {steps: 30}
"""
BASELINE = BaselineStatistics(
    rewards={"saturation": RewardStatistics(mean=0.4, std=0.1)}, samples=8, diversity=0.25
)


def jobs(old: str = "", new: str = "") -> list[TrialJob]:
    """The constrained and the weighted trial."""
    return [make_job(trial, BASELINE) for trial in make_plan(parse_spec(SPEC.replace(old, new))).trials]


def config(old: str = "", new: str = "") -> TrialConfig:
    return jobs(old, new)[0].config


def outcome() -> TrialOutcome:
    return TrialOutcome(
        status="succeeded",
        error=None,
        feasible=True,
        kl=Interval(mean=1.25, low=1.0, high=1.5),
        kl_estimator="path",
        rewards={"saturation": Interval(mean=0.46, low=0.44, high=0.48)},
        violations={"saturation": -0.01},
        multipliers={"saturation": 7.5},
        weights={},
        steps=80,
        wall_seconds=1.0,
        evaluation=None,
        diversity=0.125,
        history=(),
    )


def calls(code: str) -> dict[str, dict[int | str, Any]]:
    """Arguments of every call, by the called name; constants as values, the rest as source."""
    found: dict[str, dict[int | str, Any]] = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            placed: dict[int | str, ast.expr] = dict(enumerate(node.args))
            placed |= {str(keyword.arg): keyword.value for keyword in node.keywords}
            found[ast.unparse(node.func)] = {
                key: value.value if isinstance(value, ast.Constant) else ast.unparse(value)
                for key, value in placed.items()
            }
    return found


def test_figures_as_deployed_stand_beside_the_pretrained_models() -> None:
    job = jobs()[0]
    known = job.baseline.model_copy(update={"deployed": {"saturation": MeanStatistics(mean=0.5)}})
    found = replace(outcome(), deployed={"saturation": Interval(mean=0.75, low=0.7, high=0.8)})
    card = adapter_card(job.model_copy(update={"baseline": known}), found)
    assert "| saturation as deployed (pretrained 0.5) | – | 0.75 | 0.7 to 0.8 | – |" in card  # noqa: RUF001 - dashes
    assert "| saturation as deployed | – | 0.75 |" in adapter_card(job, found)  # noqa: RUF001 - a dash


def test_the_lines_sample_with_the_trials_own_sampler() -> None:
    code = usage(config())
    made = calls(code)
    assert made["StableDiffusionPipeline.from_pretrained"] == {
        0: "EMBEDDED_DIRECTORY",
        "safety_checker": None,
    }
    assert "from trainers.models.pipeline import EMBEDDED_DIRECTORY" in code
    assert made["DDIMScheduler.from_config"] == {
        0: "pipeline.scheduler.config",
        "set_alpha_to_one": False,
        "clip_sample": False,
        "thresholding": False,
    }
    assert made["pipeline.load_lora_weights"] == {0: "DIRECTORY"}
    assert made["pipeline"] == {
        "prompt": 'a dog\'s "bone"',
        "num_inference_steps": 6,
        "eta": 0.5,
        "guidance_scale": 3.5,
        "generator": "torch.Generator().manual_seed(0)",
        "callback_on_step_end": "rest",
    }


def test_the_lines_of_second_order_are_those_of_its_own_scheduler() -> None:
    """No eta, which that scheduler does not know; the spacing that is written, whatever the config says."""
    second = config("steps: 6, rest: 2, eta: 0.5", "steps: 5, order: 2")
    code = usage(second)
    made = calls(code)
    assert "from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline" in code
    assert made["DPMSolverMultistepScheduler.from_config"] == {
        0: "pipeline.scheduler.config",
        "algorithm_type": "sde-dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "timestep_spacing": "trailing",
        "final_sigmas_type": "sigma_min",
        "euler_at_final": True,
        "thresholding": False,
        "use_karras_sigmas": False,
    }
    assert made["pipeline"]["num_inference_steps"] == 5
    assert "eta" not in made["pipeline"]
    assert "if step == 3:" in code
    card = adapter_card(jobs("steps: 6, rest: 2, eta: 0.5", "steps: 5, order: 2")[0], outcome())
    assert "over 5 steps of second order with eta 1" in card
    assert '"rest": 1, "order": 2, "spacing": "trailing"' in card
    assert "differ" not in card
    rested = jobs("rest: 2, eta: 0.5", "rest: 2, order: 2")[0]
    assert "goes on from the adapter's last guess" in adapter_card(rested, outcome())
    spaced = calls(usage(config("eta: 0.5", "spacing: trailing")))["DDIMScheduler.from_config"]
    assert spaced["timestep_spacing"] == "trailing"


def test_the_adapter_is_switched_off_after_its_last_active_step() -> None:
    switched: list[tuple[str, int]] = []

    class Pipeline:
        """Stands in for a pipeline: counts the steps and remembers the switches."""

        step = 0

        def enable_lora(self) -> None:
            switched.append(("on", self.step))

        def disable_lora(self) -> None:
            switched.append(("off", self.step))

    pipeline = Pipeline()
    code = usage(config())
    rest = code[code.index("def rest") : code.index("image = ")]
    names: dict[str, Any] = {"pipeline": pipeline}
    exec(rest, names)  # noqa: S102 - what users are told to run
    for step in range(6):
        pipeline.step = step
        assert names["rest"](pipeline, step, 0, {"latents": 1}) == {"latents": 1}
    assert switched == [("on", 0), ("off", 3)], "called at the end of step 3, the fourth of four active ones"


def test_without_rest_nothing_is_switched() -> None:
    code = usage(config("rest: 2", "rest: 0"))
    assert "rest" not in code
    assert "lora()" not in code
    assert "callback_on_step_end" not in calls(code)["pipeline"]


@pytest.mark.parametrize("written", ["", ", guidance: 0", ", guidance: 0.5", ", guidance: 1"])
def test_without_guidance_the_scale_is_one(written: str) -> None:
    assert calls(usage(config(", guidance: 3.5", written)))["pipeline"]["guidance_scale"] == 1


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("{pretrained: owner/name}", {0: "owner/name"}),
        ("{pretrained: owner/name, revision: v1.5}", {0: "owner/name", "revision": "v1.5"}),
        ("{pretrained: /data/sd15}", {0: "/data/sd15"}),
        ("{pretrained: 'C:\\data\\new'}", {0: "C:\\data\\new"}),
    ],
)
def test_other_models_are_loaded_by_their_name(model: str, expected: dict[Any, str]) -> None:
    code = usage(config("{pretrained: embedded}", model))
    assert "trainers" not in code, "a user of diffusers needs no more"
    loaded = calls(code)["StableDiffusionPipeline.from_pretrained"]
    assert loaded == {**expected, "safety_checker": None}


@pytest.mark.parametrize("t5", [False, True])
def test_a_flow_is_sampled_on_its_own_levels(tmp_path: Path, t5: bool) -> None:
    index: dict[str, Any] = {"_class_name": "StableDiffusion3Pipeline"}
    index |= {"text_encoder_3": ["transformers", "T5EncoderModel"]} if t5 else {}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    made = calls(usage(config("{pretrained: embedded}", f"{{pretrained: {tmp_path}}}")))
    absent = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    assert made["StableDiffusion3Pipeline.from_pretrained"] == {0: str(tmp_path), **absent}
    assert made["pipeline"]["sigmas"] == "[1 - step / 6 for step in range(6)]"
    assert made["pipeline"].get("max_sequence_length") == (None if t5 else 0)
    assert "eta" not in made["pipeline"]


def test_the_card_has_thresholds_and_figures() -> None:
    constrained, weighted = jobs()
    card = adapter_card(constrained, outcome())
    assert card.startswith("---\nlibrary_name: diffusers\n"), "the shipped pipeline is not on the hub"
    assert '\ncdsweep_sampling: {"steps": 6, "eta": 0.5, ' in card.split("---")[1]
    assert f"# Adapter {constrained.trial_id}" in card
    assert "| saturation | 0.45 | 0.46 | 0.44 to 0.48 | 7.5 |" in card
    for said in ("1.250 nats", "over 6 steps with eta 0.5", "Feasible: yes", "(0.125; pretrained 0.25)"):
        assert said in card
    assert usage(constrained.config) in card

    fixed = replace(outcome(), multipliers={}, weights={"saturation": 20.0}, feasible=False)
    card = adapter_card(weighted, fixed)
    assert "| 20 |" in card
    assert "Feasible: no" in card
    assert "fixed weighting" in card


@pytest.mark.parametrize(
    ("source", "known"),
    [
        ("owner/name", True),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", True),
        ("./pipeline", False),
        ("/data/sd15", False),
        ("../sd15", False),
        ("models/here", False),  # a directory beside the working directory
        ("a/b/c", False),
        ("C:\\data", False),
        ("s3://bucket", False),
    ],
)
def test_the_base_of_a_card_is_an_id_of_the_hub_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, known: bool
) -> None:
    (tmp_path / "models" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    job = jobs()[0]
    model = job.config.model.model_copy(update={"pretrained": source})
    card = adapter_card(replace_config(job, model), outcome())
    head = card.split("---\n")[1]
    assert ("base_model:" in head) == known
    assert not known or f"base_model: {source}\n" in head


def replace_config(job: TrialJob, model: ModelConfig) -> TrialJob:
    return job.model_copy(update={"config": job.config.model_copy(update={"model": model})})


def test_a_card_of_what_was_not_evaluated() -> None:
    job = jobs()[0]
    nothing = replace(outcome(), kl=None, rewards={}, feasible=None, diversity=None)
    card = adapter_card(job, nothing)
    assert "not measured" in card
    assert "Feasible: not evaluated" in card


def test_a_distilled_composition_names_its_base_and_what_the_one_adapter_reached() -> None:
    [trial] = make_plan(parse_spec(CONCEPTS)).trials
    job = make_job(trial, BaselineStatistics(rewards={}, samples=None))
    config = job.config.tuned
    assert config.model.pretrained == "embedded"
    assert config.prompts is not None
    assert config.prompts.evaluate == ("red circle, blue square",)
    found = replace(
        outcome(),
        rewards={},
        distilled={
            "kl_a": Interval(mean=1.25, low=1.0, high=1.5),
            "kl_b": Interval(mean=2.5, low=2.0, high=3.0),
        },
    )
    card = adapter_card(job, found)
    assert "base_model" not in card
    assert "A LoRA adapter for `embedded`" in card
    assert "30 optimiser steps): one adapter in place of the constrained composition (AND) of a, b." in card
    assert "Path-wise KL, nats: a 1.250, b 2.500, over" in card
    assert "from_pretrained(EMBEDDED_DIRECTORY" in card
    assert "'red circle, blue square'" in card


def test_the_lines_tell_a_pipeline_what_the_trial_told_it() -> None:
    model = "{pretrained: black-forest-labs/FLUX.1-dev, height: 512, negative_prompt: 'a \"blur\"'}"
    spec = SPEC.replace("{pretrained: embedded}", model).replace(
        "guidance: 3.5", "guidance: 3.5, true_guidance: 2"
    )
    told = make_plan(parse_spec(spec.replace(", eta: 0.5", ""))).trials[0].config
    made = calls(usage(told))
    assert made["FluxPipeline.from_pretrained"] == {0: "black-forest-labs/FLUX.1-dev"}
    asked = {
        key: made["pipeline"].get(key) for key in ("height", "width", "negative_prompt", "guidance_scale")
    }
    assert asked == {"height": 512, "width": None, "negative_prompt": 'a "blur"', "guidance_scale": 3.5}
    assert made["pipeline"]["true_cfg_scale"] == 2


def test_the_card_says_how_the_base_was_held() -> None:
    card = adapter_card(jobs()[0], outcome())
    stated = next(line for line in card.splitlines() if line.startswith("cdsweep_base: "))
    held = {"precision": "fp32", "quantise": None, "height": 32, "width": 32}
    assert json.loads(stated.removeprefix("cdsweep_base: ")).items() >= held.items()
    assert "held in fp32, in training and evaluation, on images of 32 x 32 pixels" in card
    assert "quantised" not in card

    model = "{pretrained: stabilityai/stable-diffusion-3.5-medium, quantise: nf4, height: 512}"
    [job, _] = jobs("{pretrained: embedded}", f"{model}\ntraining: {{precision: bf16}}")
    card = adapter_card(job, outcome())
    assert '"quantise": "nf4", "variant": null, "height": 512, "width": 1024' in card
    assert "Its linear layers were quantised (nf4 of bitsandbytes)" in card
    assert "Settings of SD 3: 6 steps, eta 0.5, guidance 3.5" in card
    assert "the family's preset, but for model.lora.rank" in card

    unknown = adapter_card(jobs("embedded", "owner/name")[0], outcome())
    assert '"height": null' in unknown
    assert "in training and evaluation; the adapter" in unknown
