"""The first multipliers of a job, previewed on the rewards of the pretrained model."""

from collections.abc import Mapping, Sequence

import numpy as np

from trainers.alignment.boxed.frontier import at_nodes, box_of
from trainers.alignment.lagrangian import build_lagrangian
from trainers.config import TrialConfig, TrialJob
from trainers.duality.lagrangian import KL, Lagrangian
from trainers.duality.tilting import tilt_within_budget, tilted_start
from trainers.estimates import complete
from trainers.types import FloatArray

_START_LIMIT = 10.0


def start_of(
    job: TrialJob, train: Mapping[str, FloatArray], prompts: Sequence[str] | None = None
) -> TrialJob:
    """Return the job with its first multipliers.

    Args:
        job: To be started.
        train: Rewards of the pretrained model on training prompts, ``[n]`` each.
        prompts: Of these samples, ``[n]``; None for a model without prompts.
    """
    start = starts(job, build_lagrangian(job), train, prompts)
    return job.model_copy(update={"start": tuple(start.tolist())})


def starts(
    job: TrialJob, lagrangian: Lagrangian, reference: Mapping[str, FloatArray], prompts: Sequence[str] | None
) -> FloatArray:
    """Return the first multipliers, ``[m]``; where thresholds move, of every node of their box in turn, ``[N m]``."""
    there = at_nodes(box_of(job), lagrangian)
    return np.concatenate([first_multipliers(job.config, one, reference, prompts) for one in there])


def first_multipliers(
    config: TrialConfig,
    lagrangian: Lagrangian,
    reference: Mapping[str, FloatArray],
    prompts: Sequence[str] | None,
) -> FloatArray:
    """Return the first multipliers, ``[m]``, per scaled violation; none for a weighted trial."""
    if config.method == "weighted":
        return np.zeros(0)
    constraints = lagrangian.constraints
    start = np.zeros(len(constraints))
    if config.duals.start != "preview":
        return start + config.duals.start
    reference, prompts = complete(config, reference, prompts)
    bounded = [i for i, c in enumerate(constraints) if c.quantity != KL]
    rewards = np.stack([reference[constraints[i].quantity] for i in bounded], axis=1) if bounded else None
    scales = np.array([constraints[i].scale for i in bounded])
    margins = np.array([constraints[i].margin for i in bounded])
    bounds = np.array([constraints[i].bound for i in bounded]) / scales + margins
    if lagrangian.objective == KL:
        if rewards is not None:
            found = tilted_start(rewards / scales, bounds, limit=_START_LIMIT, prompts=prompts)
            start[bounded] = found.multipliers
        return start
    objective = reference[lagrangian.objective] / lagrangian.objective_scale
    others = np.zeros((len(objective), 0)) if rewards is None else rewards / scales
    budgets = [i for i, c in enumerate(constraints) if c.quantity == KL]
    tightest = min(budgets, key=lambda i: constraints[i].bound)
    price, prices = tilt_within_budget(
        objective, others, bounds, constraints[tightest].bound, limit=_START_LIMIT, prompts=prompts
    )
    start[tightest], start[bounded] = price, prices
    return start
