"""The model card of an adapter: what it is, what it reached, and the lines that sample from it."""

import json

from orchestrator.spec import (
    family_named,
    hub_id,
    known_pipeline,
    parts_left_out,
    preset_line,
    sampler_line,
)
from trainers.config import EMBEDDED, SHIPPED, SamplingConfig, TrialConfig, TrialJob
from trainers.pipelines.asking import called, image_size
from trainers.pipelines.families import STABLE_DIFFUSION, Family
from trainers.types import TrialOutcome

_GOALS = {
    "constrained": "least KL from the pretrained model subject to thresholds on rewards",
    "frontier": "least KL from the pretrained model subject to any thresholds on rewards between two ends",
    "interpolated": "between trained adapters, and measured as these are",
    "weighted": "most of a fixed weighting of rewards less the KL from the pretrained model",
}


def adapter_card(job: TrialJob, outcome: TrialOutcome) -> str:
    """Return the card, in Markdown."""
    config = job.config.tuned
    base = config.model.pretrained
    rows = "\n".join(_rows(job, outcome))
    steps, goal = outcome.steps, _GOALS[config.method]
    kl = "not measured" if outcome.kl is None else f"{outcome.kl.mean:.3f} nats"
    divergence = f"Path-wise KL to the pretrained model: {kl}"
    composition = job.config.model.composition
    if composition is not None:
        names = [model.name for model in composition.models]
        word = {"reverse": "AND", "forward": "OR"}[composition.direction]
        goal = f"one adapter in place of the {config.method} composition ({word}) of {', '.join(names)}"
        steps = 0 if composition.distillation is None else composition.distillation.steps
        kls = [
            f"{name} {outcome.distilled[key].mean:.3f}"
            for name in names
            if (key := f"kl_{name}") in outcome.distilled
        ]
        divergence = f"Path-wise KL, nats: {', '.join(kls) or 'not measured'}"
    made = f"trained by cdsweep ({config.method}, seed {config.seed},\n{steps} optimiser steps)"
    if config.interpolated is not None:
        shares = " + ".join(f"{share:g} · {name}" for name, share in config.interpolated.items())
        made = f"interpolated by cdsweep, not trained\n(ΔW = {shares}, of trials of one sweep)"
    ordered = " of second order" if config.sampling.order == 2 else ""
    return f"""{header(config)}# Adapter {job.trial_id}

A LoRA adapter for `{base}`, {made}: {goal}.

| reward | threshold | reached | 95 % interval | multiplier or weight, nats per unit |
|---|---|---|---|---|
{rows}

{divergence}, over {config.sampling.steps} steps{ordered} with eta {config.sampling.eta:g}.
Feasible: {_word(outcome.feasible)}. Thresholds, rewards and KL hold for this sampler; other step counts or schedules
give other figures.

## Its base

{_base(config)}

## Sampling

```python
{usage(config)}
```

{_differences(config)}## Limits

What the pretrained model cannot draw, the adapter cannot either. Rewards are models of taste: look at the images,
and at their diversity ({_number(outcome.diversity)}; pretrained {_number(job.baseline.diversity)}), before you
trust a figure.
"""


def header(config: TrialConfig) -> str:
    """Return what the hub reads of a card: its base, and what it is."""
    base = config.model.pretrained
    named = None if base is None else hub_id(base)
    known = "" if named is None else f"base_model: {named}\n"
    return f"""---
{known}library_name: diffusers
tags: [lora, diffusers, cdsweep]
{sampler_line(config.sampling)}
{_STATED_BASE}{json.dumps(_held(config))}
---

"""


def usage(config: TrialConfig) -> str:
    """Return the lines that sample as the trial's evaluation does, in plain diffusers; of a ``tuned`` config.

    A flow's levels are those of the evaluation, and its steps without noise: no scheduler of diffusers takes others.
    """
    sampling = config.sampling
    active = sampling.steps - sampling.rest
    family = _family(config)
    flow, pipeline = family.flow, family.pipelines[0]
    scheduler, settings = _scheduler(sampling)
    source = json.dumps(config.model.pretrained, ensure_ascii=False)
    lines = [
        "import torch",
        f"from diffusers import {pipeline}" if flow else f"from diffusers import {scheduler}, {pipeline}",
    ]
    if config.model.pretrained == EMBEDDED:
        lines.append("from trainers.models.pipeline import EMBEDDED_DIRECTORY")
        source = "EMBEDDED_DIRECTORY"
    elif config.model.pretrained in SHIPPED:
        lines.append("from trainers.models.pipeline import source_of")
        source = f"source_of({source})"
    else:
        for key in ("revision", "variant"):
            if (value := getattr(config.model, key)) is not None:
                source += f", {key}={json.dumps(value, ensure_ascii=False)}"
    steps = [f"pipeline.scheduler = {scheduler}.from_config(", *(f"    {line}" for line in settings), ")"]
    absent = parts_left_out(str(config.model.pretrained), config.model.revision)
    source += "".join(f", {part}=None" for part in (*family.undone, *absent))
    lines += [
        "",
        f"pipeline = {pipeline}.from_pretrained({source})",
        *([] if flow else steps),
        'pipeline.load_lora_weights("DIRECTORY")  # where this file is',
        "",
    ]
    own = [f"    eta={sampling.eta:g},"] if sampling.order == 1 else []
    if flow:
        own = [f"    sigmas=[1 - step / {sampling.steps} for step in range({sampling.steps})],"]
    arguments = called(family, config.model, sampling, short=bool(absent))
    call = [
        f"    num_inference_steps={sampling.steps},",
        *own,
        *(f"    {name}={_literal(value)}," for name, value in arguments.items()),
        "    generator=torch.Generator().manual_seed(0),",
    ]
    if sampling.rest:
        lines += [
            "",
            "def rest(pipeline, step, timestep, tensors):",
            f'    """Switch the adapter off for the last {sampling.rest} of {sampling.steps} steps, as in training."""',
            f"    if step == {active - 1}:",
            "        pipeline.disable_lora()",
            "    return tensors",
            "",
            "",
            "pipeline.enable_lora()",
        ]
        call.append("    callback_on_step_end=rest,")
    prompt = config.prompts.in_turn("evaluate", config.evaluation.seed)[0] if config.prompts else ""
    return "\n".join([*lines, "image = pipeline(", f"    prompt={prompt!r},", *call, ").images[0]"])


def _literal(value: str | float) -> str:
    """Return a value as Python writes it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else f"{value:g}"


def _family(config: TrialConfig) -> Family:
    return family_named(str(config.model.pretrained), config.model.revision) or STABLE_DIFFUSION


_STATED_BASE = "cdsweep_base: "
"""Begins the line of the front matter that says in JSON how the base was held and asked."""


def _held(config: TrialConfig) -> dict[str, str | int | None]:
    """Return how the base was held and asked; a size that nothing here tells is None."""
    model = config.model
    known = None if model.pretrained is None else known_pipeline(model.pretrained, model.revision)
    height, width = model.height, model.width
    if known is not None and {known[0].network, "vae"} <= known[1].keys():
        height, width = image_size(*known, model)
    return {
        "precision": config.training.precision,
        "quantise": model.quantise,
        "variant": model.variant,
        "height": height,
        "width": width,
        "max_sequence_length": model.max_sequence_length,
    }


def _base(config: TrialConfig) -> str:
    """Return a paragraph on how the base was held and asked, and by which preset."""
    held = _held(config)
    size = "" if held["height"] is None else f", on images of {held['width']} x {held['height']} pixels"
    packed = ""
    if held["quantise"] is not None:
        packed = (
            f"Its linear layers were quantised ({held['quantise']} of bitsandbytes), and figures and KL are to that "
            "network:\nthe whole one, which the lines below load, draws images that differ a little.\n"
        )
    line = preset_line(config)
    preset = "" if line is None else f"Settings of {line}.\n"
    return (
        f"The frozen network was held in {held['precision']}, in training and evaluation{size}; the adapter is in "
        f"float32.\n{packed}{preset}"
    ).rstrip()


def _scheduler(sampling: SamplingConfig) -> tuple[str, list[str]]:
    """Return the class of diffusers that takes the same steps, and the arguments that make it, by line."""
    if sampling.order == 2:
        return "DPMSolverMultistepScheduler", [
            "pipeline.scheduler.config,",
            'algorithm_type="sde-dpmsolver++",',
            "solver_order=2,",
            'solver_type="midpoint",',
            'timestep_spacing="trailing",',
            'final_sigmas_type="sigma_min",',
            "euler_at_final=True,",
            "thresholding=False,",
            "use_karras_sigmas=False,",
        ]
    spaced = "" if sampling.spacing is None else f', timestep_spacing="{sampling.spacing}"'
    plain = "pipeline.scheduler.config, set_alpha_to_one=False, clip_sample=False, thresholding=False"
    return "DDIMScheduler", [plain + spaced]


def _differences(config: TrialConfig) -> str:
    """Return a paragraph on where diffusers' scheduler does not take the same steps."""
    sampling = config.sampling
    if _family(config).flow:
        return """\
These figures are for steps with noise, which diffusers does not take with this model; without noise, on the same
levels, images are nearly as the figures say.

"""
    if sampling.order == 1:
        return """\
Where the scheduler's config has `timestep_spacing: linspace`, or the steps do not divide its timesteps,
diffusers' DDIM goes to other noise levels than these figures are for, and its images differ.

"""
    if sampling.rest == 1:
        return ""
    return """\
In the first step without the adapter diffusers goes on from the adapter's last guess, and these figures are for that
of the pretrained model: images differ a little.

"""


def _rows(job: TrialJob, outcome: TrialOutcome) -> list[str]:
    rows = []
    for reward in job.config.rewards:
        name = reward.name
        reached = outcome.distilled.get(f"reward_{name}", outcome.rewards.get(name))
        price = outcome.multipliers.get(name, outcome.weights.get(name))
        cells = [
            name,
            _number(job.thresholds.get(name)),
            _number(None if reached is None else reached.mean),
            "–" if reached is None else f"{reached.low:.4g} to {reached.high:.4g}",  # noqa: RUF001 - stands for nothing
            _number(price),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    judged = {reward.name: outcome.rewards.get(reward.name) for reward in job.config.measured}
    rows += [
        f"| {name} (measured only) | – | {_number(found.mean)} | {found.low:.4g} to {found.high:.4g} | – |"  # noqa: RUF001 - stands for nothing
        for name, found in judged.items()
        if found is not None
    ]
    rows += [
        f"| {name} as deployed{_before(job, name)} | – | {_number(found.mean)} | "  # noqa: RUF001 - stands for nothing
        f"{found.low:.4g} to {found.high:.4g} | – |"  # noqa: RUF001 - the same
        for name, found in outcome.deployed.items()
    ]
    return rows


def _before(job: TrialJob, name: str) -> str:
    """Return what the pretrained model has under the sampler that will be used, in brackets; nothing where unknown."""
    known = job.baseline.deployed.get(name)
    return "" if known is None else f" (pretrained {known.mean:.4g})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"  # noqa: RUF001 - stands for nothing


def _word(feasible: bool | None) -> str:
    return {True: "yes", False: "no", None: "not evaluated"}[feasible]
