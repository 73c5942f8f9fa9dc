"""The gradient of one optimiser step: over the micro-batches of all workers, with what was measured on them."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.alignment.backward import backward
from trainers.alignment.boxed.frontier import Asked
from trainers.alignment.state import TrainState
from trainers.config import TrialJob
from trainers.duality.covariance import RewardCovariance
from trainers.duality.lagrangian import KL
from trainers.rewards.base import most_missing
from trainers.types import FloatArray
from trainers.workers.collective import Collective


@dataclass(frozen=True, kw_only=True)
class StepMeans:
    """What was measured on the micro-batches of all workers; not always finite."""

    means: dict[str, float]
    """KL and those rewards that had a score; with paired duals a reward's mean is that of ``r_θ`` less what it is
    paired with, plus the reference's mean."""
    moments: FloatArray
    """``[1 + R, 1 + R]``, second ones of 1 and the rewards, less the reference's means."""
    complete: bool
    """Whether every reward, and every two of them, were seen on some sample."""
    gaps: FloatArray | None = None
    """Where thresholds move: ``[N m]``, local means of scaled violations at the nodes of their box."""

    def covariance(self) -> RewardCovariance:
        """Return that of the rewards."""
        spread = self.moments[1:, 1:] - np.outer(self.moments[0, 1:], self.moments[0, 1:])
        return RewardCovariance(names=tuple(name for name in self.means if name != KL), values=spread)


def add_gradient(
    job: TrialJob, state: TrainState, collective: Collective, multipliers: FloatArray
) -> StepMeans:
    """Add the gradient of the Lagrangian, averaged over micro-batches and workers.

    Args:
        job: Of the trial.
        state: Whose parameters get it.
        collective: The workers.
        multipliers: ``[m]`` per scaled violation; where thresholds move, of every node of their box, ``[N m]``.

    Raises:
        OutOfMemory: half a micro-batch does not fit either.
    """
    config, setup = job.config, state.setup
    training, frontier = config.training, setup.frontier
    # An optimiser step is accumulation × workers micro-batches, however many workers there are to share them.
    batch = training.batch_per_worker * config.workers
    mine = range(collective.rank, training.accumulation * config.workers, collective.world_size)
    count = len(setup.rewards)
    holes = torch.tensor([False, *(most_missing(reward) > 0 for reward in setup.rewards.values())])
    sums = torch.zeros(3, 2, 1 + count, dtype=torch.float64)
    moments = torch.zeros(3, 2, 2, 1 + count, 1 + count, dtype=torch.float64)
    gaps_at_nodes = torch.zeros(len(multipliers), dtype=torch.float64)
    for number in mine:
        micro, part = divmod(number, config.workers)
        first = part * training.batch_per_worker
        last = first + training.batch_per_worker
        batch_number = state.step * training.accumulation + micro
        draw = None if setup.paired is None else setup.paired.draw(batch_number, first, last)
        if draw is None:
            seed = _noise_seed(config.seed, state.step, micro)
            draw = setup.policy.draw(batch, seed, first=first, last=last)
        draw = replace(draw, batch=micro)
        if frontier is None:
            asked = Asked(draw=draw, coefficients=setup.lagrangian.coefficients(multipliers))
        else:
            asked = frontier.ask(multipliers, draw, batch_number, batch, first)
        measured = backward(job, state, collective, asked.coefficients, asked.draw, len(mine))
        scores = measured.rewards
        centred = [scores[name].double() - setup.reference_means[name] for name in setup.rewards]
        ones = torch.ones(len(draw), dtype=torch.float64)
        rows = torch.stack([ones, *(c.cpu() for c in centred)])  # [1 + R, batch]
        whole = torch.ones(len(draw), dtype=torch.bool)
        about = torch.stack([whole, *(measured.about[name] for name in setup.rewards)])
        parts = _in_parts(rows, holes, about)
        moments += parts[:, :, None] @ parts[:, None].transpose(-1, -2) / len(draw)
        if measured.reference:
            scores = {
                name: scores[name] - measured.reference[name] + setup.reference_means[name]
                for name in setup.rewards
            }
        columns = [value.double().cpu() for value in (measured.path_kl, *scores.values())]
        if frontier is not None and asked.thresholds is not None:
            own = frontier.gaps(
                asked.thresholds, {KL: measured.path_kl, **scores}, {KL: whole, **measured.about}
            )
            gaps_at_nodes += torch.from_numpy(own)
        sums += _in_parts(torch.stack(columns), holes, about).mean(dim=-1)

    collective.average_gradients(state.parameters.values())
    values, seen = _of_all(collective.mean(sums) / len(mine), (0,))
    means = {
        name: float(value)
        for name, value, there in zip((KL, *setup.rewards), values, seen, strict=True)
        if there
    }
    seconds, pairs = _of_all(collective.mean(moments) / len(mine), (0, 1))
    local = None if frontier is None else (collective.mean(gaps_at_nodes) / len(mine)).numpy()
    return StepMeans(means=means, moments=seconds, complete=bool(pairs.all()), gaps=local)


def _in_parts(rows: Tensor, gaps: Tensor, about: Tensor) -> Tensor:
    """Return values of rows ``[r, batch]``, 1 for those that are there, and 1 for all, ``[3, 2, r, batch]``.

    Of the samples that a row is ``about``, and of the others: a score that is missing in a group of prompts counts as
    the others of its group, not as those outside of it. NaN is there, but in rows with gaps.
    """
    known, part = ~(rows.isnan() & gaps[:, None]), torch.stack([about, ~about])
    there = known & part
    return torch.stack([torch.where(there, rows, 0.0), there.to(rows.dtype), part.to(rows.dtype)])


def _of_all(sums: Tensor, parts: tuple[int, ...]) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return means in which each part of the samples weighs as if all of it were there, and whether some of each was.

    A part without samples misses nothing: of a batch without a prompt of a group the others say what there is to say.

    Args:
        sums: Over samples, ``[3, …]``: of values, of what is there, of all.
        parts: Dimensions of the parts, behind the first.
    """
    values, there, asked = sums.numpy()
    means = np.divide(values * asked, there, out=np.zeros_like(values), where=there > 0)
    return means.sum(axis=parts), ((there > 0) | (asked == 0)).all(axis=parts)


def _noise_seed(seed: int, step: int, micro: int) -> int:
    """Return the seed of a micro-batch's noise, so that it does not depend on how the trial got there."""
    return int(np.random.SeedSequence((seed, step, micro)).generate_state(1, np.uint64)[0] >> np.uint64(1))
