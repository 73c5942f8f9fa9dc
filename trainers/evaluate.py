"""Held-out evaluation: fixed noise and prompts, confidence intervals, feasibility, diversity."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.duality.constraint import Constraint
from trainers.duality.lagrangian import KL
from trainers.estimates import Estimate, controlled, stratified
from trainers.failures import OutOfMemory
from trainers.models.base import Draw, Policy
from trainers.rewards.base import Reward, gaps_of, noise_of, refuse_missing, versions
from trainers.rewards.grouped import as_measured
from trainers.rewards.together import together
from trainers.types import Evaluation, FloatArray, ImageArray, Interval
from trainers.workers.collective import Collective, Shard
from trainers.workers.memory import Attempt, Batches

State = TypeVar("State")

Embedder = Callable[[Tensor], Tensor]
"""Images ``[batch, 3, h, w]`` to unit embeddings ``[batch, d]``."""

SHOWN = 16
"""Images of an evaluation that are kept for a grid."""

_FEWEST = 4
"""Samples that have a standard error."""
_WORTH_A_NOTE = 0.25
"""Share of the variance of a mean."""


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
    batch: int | None = None,
) -> Evaluation:
    """Sample the policy, or its reference, and score it.

    Sample ``i`` is a function of the seed and ``i`` alone, whatever the number of workers and of samples, and however
    many are drawn at a time, to the rounding of kernels that are chosen by the size of a batch.

    Args:
        policy: What samples.
        rewards: By name.
        samples: How many.
        seed: Of the evaluation noise.
        collective: The workers that share the sampling.
        reference: Leave the residual out.
        prompts: In place of the held-out ones.
        embedder: With it the diversity is measured.
        batch: Samples at a time, as long as the memory holds them; by default the policy's own.

    Raises:
        OutOfMemory: a worker's memory does not hold a single sample; raised by all workers together.
    """
    rewards, size = as_measured(rewards), batch or policy.chunk
    # Dealt in shares that have the first images together, of however few each is put together.
    unit = max(size, policy.chunk)
    what = "sampling the pretrained model" if reference else "the evaluation"
    batches = Batches(size, what, fixed=collective.in_step)
    score = partial(_score, policy, rewards, embedder, reference=reference)
    seeds, asked = [], list[str]()

    def sample() -> list[_Scored]:
        found: list[_Scored] = []
        for number, start in enumerate(range(0, samples, unit)):
            draw = policy.fixed_draw(seed, start, min(start + unit, samples), prompts)
            seeds.append(draw.seeds)
            asked.extend(draw.prompts or ())
            if number % collective.world_size == collective.rank:
                found += batches(len(draw), partial(score, draw, start))
        missing = 0 if found else 1
        if collective.in_step:  # as often as whoever is asked most
            missing = -(-len(seeds) // collective.world_size) * -(-unit // size) - len(found)
        idle = [score(policy.fixed_draw(seed, 0, 1, prompts), 0, 0, 1) for _ in range(missing)]
        # Where nothing falls to a worker it joins the sums with no rows, of embeddings as wide as the others'.
        return found or [idle[0].without_rows()]

    if (scored := Attempt(collective)(sample)) is None:
        raise OutOfMemory(batches.no_room())
    table = collective.sum(_rows(scored, [one.columns.T for one in scored], samples)).T.double().numpy()
    embeddings = None
    if embedder is not None:
        own = _rows(scored, [one.embeddings for one in scored], samples)
        embeddings = collective.sum(own).double().numpy()
    images = [one.images for one in scored if one.images is not None]
    scores = dict(zip(rewards, table[2 : 2 + len(rewards)], strict=True))
    noise = zip(rewards, table[2 + len(rewards) : -1], strict=True)
    refuse_missing(rewards, scores, "the pretrained model" if reference else "the evaluation", asked)
    return Evaluation(
        kl=table[0],
        log_ratio=table[1],
        rewards=scores,
        seeds=np.concatenate(seeds),
        prompts=tuple(asked) or None,
        paired=policy.paired_samples,
        embeddings=embeddings,
        velocity=None if np.isnan(table[-1]).any() else table[-1],
        images=np.concatenate(images) if images else None,
        noise={name: errors for name, errors in noise if not np.isnan(errors).all()},
        notes=batches.notes(collective),
        versions=versions(rewards),
        gaps=gaps_of(rewards),
    )


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """Samples that were drawn at a time, from the sample ``first`` on; float32 on the CPU."""

    first: int
    columns: Tensor
    """``[3 + 2R, n]``: path-wise KL, log ratio, rewards and their standard errors, and velocity, NaN where there are
    none."""
    embeddings: Tensor
    """``[n, d]``; without embedder ``[n, 0]``."""
    images: ImageArray | None
    """Those that are kept of them."""

    def without_rows(self) -> "_Scored":
        """Return the same of no samples."""
        return _Scored(first=0, columns=self.columns[:, :0], embeddings=self.embeddings[:0], images=None)


def _score(
    policy: Policy,
    rewards: Mapping[str, Reward],
    embedder: Embedder | None,
    draw: Draw,
    start: int,
    first: int,
    last: int,
    *,
    reference: bool,
) -> _Scored:
    """Sample and score part of a draw, which begins with the sample ``start``."""
    part = draw.part(first, last)
    drawn = policy.rollout(part, reference=reference)
    with together():
        scores = [reward(drawn.samples, part.prompts) for reward in rewards.values()]
        errors = [noise_of(reward, len(part)) for reward in rewards.values()]
        embeddings = torch.zeros(len(part), 0) if embedder is None else embedder(drawn.samples)
    nothing = torch.full((len(part),), torch.nan)
    velocity = nothing if drawn.velocity is None else drawn.velocity
    kept = SHOWN - start - first if start == 0 and drawn.samples.ndim == 4 else 0
    return _Scored(
        first=start + first,
        columns=torch.stack(
            [column.float().cpu() for column in (drawn.path_kl, drawn.log_ratio, *scores, *errors, velocity)]
        ),
        embeddings=embeddings.float().cpu(),
        images=pixels(drawn.samples[:kept]) if kept > 0 else None,
    )


def _rows(scored: Sequence[_Scored], values: Sequence[Tensor], samples: int) -> Tensor:
    """Return values ``[n, …]`` in their places among all samples, ``[samples, …]``; zeros elsewhere."""
    whole = torch.zeros(samples, *values[0].shape[1:])
    for one, rows in zip(scored, values, strict=True):
        whole[one.first : one.first + len(rows)] = rows
    return whole


def pixels(images: Tensor) -> ImageArray:
    """Return images ``[n, 3, h, w]`` in [0, 1] as bytes ``[n, h, w, 3]``."""
    return np.asarray((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def diversity(evaluation: Evaluation) -> float | None:
    """Return the mean over prompts of the variance of unit embeddings, in [0, 1]; None where it was not measured.

    A policy that answers a prompt with one picture for all noise has 0.
    """
    spreads = diversities(evaluation)
    return float(np.mean(spreads)) if spreads else None


def diversities(evaluation: Evaluation) -> list[float]:
    """Return the variance of unit embeddings of each prompt that has several; nothing where it was not measured."""
    if evaluation.embeddings is None:
        return []
    groups: dict[str, list[int]] = {}
    for row in range(len(evaluation.embeddings)):
        groups.setdefault("" if evaluation.prompts is None else evaluation.prompts[row], []).append(row)
    return [
        float(evaluation.embeddings[group].var(axis=0, ddof=1).sum())
        for group in groups.values()
        if len(group) > 1
    ]


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

    Scores that carry noise vary with it from sample to sample, so that their spread has it already; what is known of
    the noise alone is the least that the error can be, where a few samples happen to agree.
    """
    values = evaluation.kl if name == KL else evaluation.rewards[name]
    known = None if name == KL or evaluation.reference is None else evaluation.reference.get(name)
    turns = _turns(evaluation, len(values))
    noise = _noise_of_mean(evaluation, name)
    if len(values) >= _FEWEST and evaluation.paired:
        values, known = _pairs(values), None if known is None else _pairs(known)
    known = None if known is None or len(known) <= len(values) else known
    rows, order = _there(values, known) if name in evaluation.gaps else (slice(None), slice(None))
    strata = (np.arange(len(values)) % turns)[rows]
    values = values[rows]
    if len(values) < _FEWEST:
        return Estimate(mean=float(values.mean()), error=float("inf"))
    if known is None:
        found = stratified(values, strata)
    else:
        found = controlled(values, strata, known[order], (np.arange(len(known)) % turns)[order])
    return dataclasses.replace(found, error=max(found.error, noise), looks=evaluation.looks)


def noise_notes(evaluation: Evaluation) -> list[str]:
    """Say of each reward whose noise is a good part of what is not known of its mean how much it is."""
    notes = []
    for name in evaluation.noise:
        noise, found = _noise_of_mean(evaluation, name), estimate(evaluation, name)
        share = (noise / found.error) ** 2 if np.isfinite(found.error) and found.error > 0 else 0.0
        if share >= _WORTH_A_NOTE:
            notes.append(
                f"noise of the scores of {name!r} is {share:.0%} of the variance of its mean: more repeats narrow it"
            )
    return notes


def _noise_of_mean(evaluation: Evaluation, name: str) -> float:
    """Return the standard error of a mean by the noise of its scores alone; 0 where none is known."""
    errors = evaluation.noise.get(name)
    known = None if errors is None else errors[~np.isnan(errors)]
    return 0.0 if known is None or not len(known) else float(np.sqrt(np.mean(known**2) / len(known)))


def _there(values: FloatArray, known: FloatArray | None) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the places of values ``[n]`` that are numbers, and of what is known ``[N]`` on these samples, then others.

    With something known a value counts only where that is a number too.
    """
    there = ~np.isnan(values)
    if known is None:
        return np.flatnonzero(there), np.zeros(0, dtype=np.intp)
    rest = ~np.isnan(known)
    there &= rest[: len(values)]
    rest[: len(values)] &= ~there
    rows = np.flatnonzero(there)
    return rows, np.concatenate([rows, np.flatnonzero(rest)])


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
