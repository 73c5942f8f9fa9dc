"""The embedded pipeline under three rewards: the trials that the benchmarks run, and their samples.

Prompts are the shipped sets for tuning choices (``shapes-tune`` to train, ``shapes-check`` to judge), so that the
held-out set of reported results stays unseen.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from orchestrator.plan import PlannedTrial, make_job, make_plan
from orchestrator.spec.load import parse_spec
from trainers.alignment.start import start_of
from trainers.config import TrialConfig, TrialJob
from trainers.problem import sample_pretrained, statistics
from trainers.types import Evaluation

REWARDS = ("saturation", "local_contrast", "clip")
WEIGHTS = {"saturation": 0.3, "local_contrast": 2.0, "clip": 1.5}
"""Of the fixed-weight problem, nats per σ."""
THRESHOLDS = {"saturation": 0.5, "local_contrast": 0.5, "clip": 0.05}
"""Of the constrained problem, σ above the pretrained model's mean on the training prompts."""


def planned(*, weights: Mapping[str, float] | None = None, seed: int = 0, **sections: Any) -> PlannedTrial:
    """Return a trial as a spec would give it, with the defaults of a pipeline.

    Args:
        weights: Of a fixed-weight trial, nats per σ; without them the trial is constrained.
        seed: Of the trial.
        sections: Of the spec, where they differ from the defaults, such as ``training={"steps": 60}``.
    """
    document = {
        "name": "embedded",
        "model": {"pretrained": "embedded"},
        "prompts": {"train": "shapes-tune", "evaluate": "shapes-check"},
        "constraints": [{"reward": name, "at_least": THRESHOLDS[name], "unit": "sigma"} for name in REWARDS],
        "methods": ["constrained"] if weights is None else [{"weighted": {"weights": dict(weights)}}],
        "seeds": [seed],
        **sections,
    }
    return make_plan(parse_spec(json.dumps(document))).trials[0]


def sampled(config: TrialConfig) -> dict[str, Evaluation]:
    """Return samples of the pretrained model, without what only a report shows."""
    return {name: bare(evaluation) for name, evaluation in sample_pretrained(config).items()}


def bare(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation without images and embeddings, small enough to hand to another process."""
    return Evaluation(
        kl=evaluation.kl,
        log_ratio=evaluation.log_ratio,
        rewards=evaluation.rewards,
        seeds=evaluation.seeds,
        prompts=evaluation.prompts,
        reference=evaluation.reference,
    )


def job_of(
    trial: PlannedTrial, samples: Mapping[str, Evaluation], *, unit: Mapping[str, Evaluation] | None = None
) -> TrialJob:
    """Return the trial with thresholds resolved and multipliers started from samples of the pretrained model.

    Args:
        trial: As it was planned.
        samples: Of the trial's own chain.
        unit: Of the chain whose σ is the unit of thresholds and weights; by default the same.
    """
    baseline = statistics(samples)
    if unit is not None:
        known = statistics(unit).rewards
        rewards = {
            name: r.model_copy(update={"std": known[name].std}) for name, r in baseline.rewards.items()
        }
        baseline = baseline.model_copy(update={"rewards": rewards})
    return start_of(make_job(trial, baseline), samples["train"].rewards, samples["train"].prompts)


def start_worker() -> None:
    """Prepare a process that is measured: one thread, no progress bars."""
    torch.set_num_threads(1)
    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
