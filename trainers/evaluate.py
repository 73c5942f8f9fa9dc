"""Held-out evaluation: fixed noise and prompts, confidence intervals, feasibility, diversity."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from trainers.collective import Collective, Shard
from trainers.duality.constraint import Constraint
from trainers.duality.lagrangian import KL
from trainers.estimates import Estimate, controlled, stratified
from trainers.models.base import Policy
from trainers.rewards.base import Reward
from trainers.types import Evaluation, FloatArray, ImageArray, Interval

State = TypeVar("State")

Embedder = Callable[[Tensor], Tensor]
"""Images ``[batch, 3, h, w]`` to unit embeddings ``[batch, d]``."""

SHOWN = 16
"""Images of an evaluation that are kept for a grid."""

_FEWEST = 4
"""Samples that have a standard error."""


@torch.no_grad()
def evaluate(
    policy: Policy,
    rewards: Mapping[str, Reward],
    *,
    samples: int,
    seed: int,
    collective: Collective | Shard,
    reference: bool = False,
    prompts: Sequence[str] | None = None,
    embedder: Embedder | None = None,
) -> Evaluation:
    """Sample the policy, or its reference, and score it.

    Sample ``i`` is a function of the seed and ``i`` alone, whatever the number of workers and of samples.

    Args:
        policy: What samples.
        rewards: By name.
        samples: How many.
        seed: Of the evaluation noise.
        collective: The workers that share the sampling.
        reference: Leave the residual out.
        prompts: In place of the held-out ones.
        embedder: With it the diversity is measured.
    """
    size = policy.chunk
    chunks = -(-samples // size)
    mine = torch.zeros(chunks, 1 + len(rewards), size)
    embeddings: Tensor | None = None
    shown: ImageArray | None = None
    seeds, asked = [], list[str]()
    for chunk in range(chunks):
        draw = policy.fixed_draw(seed, chunk * size, min((chunk + 1) * size, samples), prompts)
        seeds.append(draw.seeds)
        asked.extend(draw.prompts or ())
        if chunk % collective.world_size != collective.rank:
            continue
        drawn = policy.rollout(draw, reference=reference)
        columns = [drawn.path_kl, *(reward(drawn.samples, draw.prompts) for reward in rewards.values())]
        mine[chunk, :, : len(draw)] = torch.stack([c.float().cpu() for c in columns])
        if embedder is not None:
            found = embedder(drawn.samples).float().cpu()
            if embeddings is None:
                embeddings = torch.zeros(samples, found.shape[1])
            embeddings[chunk * size : chunk * size + len(draw)] = found
        if chunk == 0 and drawn.samples.ndim == 4:
            shown = pixels(drawn.samples[:SHOWN])
    if embedder is not None and embeddings is None:
        # No chunk fell to this worker: it joins the sum with zeros, as wide as the others' embeddings.
        one = policy.rollout(policy.fixed_draw(seed, 0, 1, prompts), reference=True).samples
        embeddings = torch.zeros(samples, embedder(one).shape[1])
    table = collective.sum(mine).transpose(0, 1).flatten(1)[:, :samples].double().numpy()
    return Evaluation(
        kl=table[0],
        rewards=dict(zip(rewards, table[1:], strict=True)),
        seeds=np.concatenate(seeds),
        prompts=tuple(asked) or None,
        paired=policy.paired_samples,
        embeddings=None if embeddings is None else collective.sum(embeddings).double().numpy(),
        images=shown,
    )


def pixels(images: Tensor) -> ImageArray:
    """Return images ``[n, 3, h, w]`` in [0, 1] as bytes ``[n, h, w, 3]``."""
    return np.asarray((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def diversity(evaluation: Evaluation) -> float | None:
    """Return the mean over prompts of the variance of unit embeddings, in [0, 1]; None where it was not measured.

    A policy that answers a prompt with one picture for all noise has 0.
    """
    if evaluation.embeddings is None:
        return None
    groups: dict[str, list[int]] = {}
    for row in range(len(evaluation.embeddings)):
        groups.setdefault("" if evaluation.prompts is None else evaluation.prompts[row], []).append(row)
    spreads = [
        float(evaluation.embeddings[group].var(axis=0, ddof=1).sum())
        for group in groups.values()
        if len(group) > 1
    ]
    return float(np.mean(spreads)) if spreads else None


def mean_interval(evaluation: Evaluation, name: str) -> Interval:
    """Return the mean of a reward, or of the KL, with its two-sided 95 % interval; unbounded for few samples."""
    return estimate(evaluation, name).interval()


def feasible(evaluation: Evaluation, constraints: Sequence[Constraint]) -> bool:
    """Whether the one-sided 95 % bound of every violation is within its allowance."""
    for constraint in constraints:
        found = estimate(evaluation, constraint.quantity)
        if not constraint.violation(found.mean) + found.margin() <= constraint.allowance:
            return False
    return True


def first_feasible(
    states: Sequence[State], evaluated: Callable[[State], Evaluation], constraints: Sequence[Constraint]
) -> tuple[State, Evaluation]:
    """Return the first state that is feasible, or else the first one, with its evaluation.

    States are evaluated in turn, on the same samples, until one is found. All of them count as looks, also those that
    were not needed: intervals and bounds are so much wider that a choice errs no more often than a single look.
    """
    kept: tuple[State, Evaluation] | None = None
    for state in states:
        evaluation = dataclasses.replace(evaluated(state), looks=len(states))
        if feasible(evaluation, constraints):
            return state, evaluation
        kept = kept or (state, evaluation)
    assert kept is not None, "a state"
    return kept


def estimate(evaluation: Evaluation, name: str) -> Estimate:
    """Return the expectation of a reward, or of the KL.

    Where the pretrained model was sampled on the same noise, its rewards are a control variate (``controlled``).
    Antithetic neighbours count as one draw. Prompts take turns. With two images each they are strata of equal weight:
    the whole of the held-out set, so that only the spread within each counts. With fewer the whole spread counts: it
    holds that between prompts, and so the chance of which were asked, where they are a share of the set. Of fewer than
    4 samples no error is known.
    """
    values = evaluation.kl if name == KL else evaluation.rewards[name]
    known = None if name == KL or evaluation.reference is None else evaluation.reference[name]
    if len(values) < _FEWEST:
        return Estimate(mean=float(values.mean()), error=float("inf"))
    turns = _turns(evaluation, len(values))
    if evaluation.paired:
        values, known = _pairs(values), None if known is None else _pairs(known)
    strata = np.arange(len(values)) % turns
    if known is None or len(known) <= len(values):
        found = stratified(values, strata)
    else:
        found = controlled(values, strata, known, np.arange(len(known)) % turns)
    return dataclasses.replace(found, looks=evaluation.looks)


def _pairs(values: FloatArray) -> FloatArray:
    """Return the means of neighbours; a last one alone is left out."""
    means: FloatArray = values[: len(values) // 2 * 2].reshape(-1, 2).mean(axis=1)
    return means


def _turns(evaluation: Evaluation, count: int) -> int:
    """Return after how many samples the strata begin again: prompts with two samples each, else all are one."""
    if evaluation.paired or evaluation.prompts is None:
        return 1
    prompts = len(set(evaluation.prompts))
    return prompts if count >= 2 * prompts else 1
