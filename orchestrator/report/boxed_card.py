"""What lies beside the residual of a trial for a whole box of thresholds, or for all weights of a composition."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.report.card import header, usage
from trainers.adapters.files import CARD, CONTROL, FRONTIER_LORA, MULTIPLIERS
from trainers.config import CompositionConfig, TrialConfig, TrialJob
from trainers.types import Answer, Interval, TrialOutcome

ANSWER = "answer.json"
"""Beside the residual at one point of a box: thresholds, multipliers, rewards and KL."""


def boxed_card(job: TrialJob, outcome: TrialOutcome) -> str:
    """Return the card of the residual, or the LoRA, for a whole box, or for all weights, in Markdown."""
    if (composition := job.config.model.composition) is not None:
        return _composed_card(job, outcome, composition)
    base = job.config.model.pretrained
    what, before, file, is_what = "Residual", "", CONTROL, "the network, which takes the tilt of the optimum"
    first = "One control for every threshold of a box, of an exact mixture"
    if base is not None:
        what, before, file = "Adapter", header(job.config), FRONTIER_LORA
        first = f"One LoRA for every threshold of a box, for `{base}`"
        is_what = "a LoRA with gates on its columns, functions of the multipliers, at any of which it is a plain one"
    ends = "\n".join(
        f"| {name} | {bound:.4g} | {job.tightest.get(name, bound):.4g} |"
        for name, bound in job.thresholds.items()
    )
    rows = "\n".join(
        f"| {_named(answer.thresholds)} | {_named(answer.multipliers)} | {answer.kl.mean:.3f} | "
        f"{'yes' if answer.feasible else 'no'} |"
        for answer in outcome.answers
    )
    return f"""{before}# {what} {job.trial_id}

{first}, trained by cdsweep ({job.config.method}, seed {job.config.seed}, {outcome.steps} optimiser steps).

| constraint | loosest | tightest |
|---|---|---|
{ends}

| thresholds | multipliers, nats per unit | KL, nats | feasible |
|---|---|---|---|
{rows}

`{file}` is {is_what}; `{MULTIPLIERS}` has multipliers at nodes of the box.
`cdsweep export SWEEP {job.trial_id} DIR --at-least REWARD=VALUE` writes the plain one for a point, measured.
"""


def _composed_card(job: TrialJob, outcome: TrialOutcome, composition: CompositionConfig) -> str:
    config, names = job.config.tuned, [model.name for model in composition.models]
    rows = "\n".join(
        f"| {_named(answer.multipliers)} | {_cells(names, answer.constituents)} | {_cells(names, answer.retention)} |"
        for answer in outcome.answers
    )
    heads = ["weights", *(f"KL to {name}, nats" for name in names), *(f"kept of {name}" for name in names)]
    steps = 0 if composition.distillation is None else composition.distillation.steps
    return f"""{header(config)}# Adapter {job.trial_id}

One LoRA for all weights of {", ".join(names)}, composed, for `{config.model.pretrained}`, trained by cdsweep
({config.method}, seed {config.seed}, {steps} optimiser steps).

| {" | ".join(heads)} |
|{"---|" * len(heads)}
{rows}

`{FRONTIER_LORA}` is a LoRA with gates on its columns, functions of the weights, at any of which it is a plain one.
`cdsweep export SWEEP {job.trial_id} DIR --multiplier {names[0]}=1` writes the plain one at weights, measured.
"""


def _cells(names: Sequence[str], figures: Mapping[str, Interval]) -> str:
    return " | ".join(
        f"{figures[name].mean:.3f}" if name in figures and np.isfinite(figures[name].mean) else ""
        for name in names
    )


def answer_files(trial_id: str, config: TrialConfig, answer: Answer) -> dict[str, bytes]:
    """Return the files beside the plain residual, or LoRA, of one point: figures, and a card."""
    composed = config.model.composition is not None
    config = config.tuned
    document: dict[str, Any] = {
        "format": 1,
        "trial_id": trial_id,
        "thresholds": dict(answer.thresholds),
        "multipliers": dict(answer.multipliers),
        **dict(zip(("kl", "kl_low", "kl_high"), answer.kl.ends, strict=True)),
        "rewards": {name: found.ends[0] for name, found in answer.rewards.items()},
        "rewards_low": {name: found.ends[1] for name, found in answer.rewards.items()},
        "rewards_high": {name: found.ends[2] for name, found in answer.rewards.items()},
    }
    told = [(name, found) for name, found in answer.rewards.items()]
    if composed:
        for key, figures in (("kls", answer.constituents), ("retention", answer.retention)):
            document[key] = {name: found.ends for name, found in figures.items()}
        told += [(f"KL to {name}, nats", found) for name, found in answer.constituents.items()]
        told += [(f"kept of {name}", found) for name, found in answer.retention.items()]
    rows = "\n".join(
        f"| {name} | {found.mean:.4g} | {found.low:.4g} to {found.high:.4g} |"
        for name, found in told
        if np.isfinite(found.mean)
    )
    kl = answer.kl
    spent = f"a KL of {kl.mean:.3f} nats ({kl.low:.3f} to {kl.high:.3f})"
    if not np.isfinite(kl.mean):
        spent = "a KL that is not known"
    base = config.model.pretrained
    what, before, first, after = "Residual", "", "The control of an exact mixture for one optimum", ""
    if base is not None:
        what, before = "Adapter", header(config)
        first = f"A plain LoRA for `{base}`, what one for {'all weights' if composed else 'many thresholds'} is at one "
        first += "composition" if composed else "optimum"
        after = f"\n## Sampling\n\n```python\n{usage(config)}\n```\n"
    at, of, unit = answer.thresholds, "multipliers", " nats per unit"
    if composed:
        at, of, unit = answer.multipliers, "weights", ""
    card = f"""{before}# {what} of trial {trial_id} at {_named(at)}

{first}, of {of} {_named(answer.multipliers)}{unit}. On held-out
samples it has {spent}{" to the model that is farthest" if composed else ""}.

| {"figure" if composed else "reward"} | measured | 95 % interval |
|---|---|---|
{rows}
{after}"""
    return {ANSWER: (json.dumps(document, indent=1) + "\n").encode(), CARD: card.encode()}


def _named(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
