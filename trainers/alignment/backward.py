"""The gradient of one micro-batch, in two halves where the memory is too small: on all workers, or on none.

What is found does not depend on the halves: gradients add up, and the means that an estimator asks for are those of
the whole micro-batch over all workers.
"""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trainers.alignment.state import TrainState
from trainers.config import TrialJob
from trainers.duality.lagrangian import Coefficients
from trainers.failures import OutOfMemory
from trainers.models.base import Draw
from trainers.primal.base import GlobalMean, PrimalEstimate
from trainers.rewards.grouped import scored_rows
from trainers.workers.collective import Collective
from trainers.workers.memory import Attempt

_log_of_trials = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What was measured on one micro-batch of one worker, without gradients."""

    path_kl: Tensor
    """``[batch]``, nats."""
    rewards: Mapping[str, Tensor]
    """``[batch]`` each."""
    about: Mapping[str, Tensor]
    """Which of the samples a reward is about, ``[batch]`` each: those of its group of prompts, if it has one."""
    reference: Mapping[str, Tensor]
    """What the duals are paired with (``paired``), ``[batch]`` each; empty where it is nothing."""


def backward(
    job: TrialJob,
    state: TrainState,
    collective: Collective,
    coefficients: Coefficients,
    draw: Draw,
    count: int,
) -> MicroBatch:
    """Add the gradient of one of ``count`` micro-batches, in two halves from now on if the memory is too small.

    Raises:
        OutOfMemory: also the halves do not fit; raised by all workers together.
    """
    training = job.config.training
    gradients = [parameter.grad for parameter in state.parameters.values()]
    before = [None if gradient is None else gradient.clone() for gradient in gradients]
    while True:
        attempt = Attempt(collective)
        # What an elastic trial computes must not depend on which workers are there: no mean across them.
        mean: GlobalMean = Tensor.detach if job.config.elastic else attempt.mean
        found = attempt(partial(_in_parts, state, mean, coefficients, draw, count))
        if found is not None:
            return found
        advice = (
            f"out of memory at step {state.step + 1} with training.batch_per_worker "
            f"{training.batch_per_worker}: halve it and double training.accumulation (now "
            f"{training.accumulation}), or set training.gradient_checkpointing: true"
        )
        if state.splits > 1 or len(draw) < 2:
            raise OutOfMemory(advice)
        state.splits = 2
        note = f"{advice}. Going on with micro-batches of half the size, twice as many"
        state.notes.append(note)
        _log_of_trials.warning("trial %s: %s", job.trial_id, note)
        for parameter, gradient in zip(state.parameters.values(), before, strict=True):
            parameter.grad = gradient


def _in_parts(
    state: TrainState, mean: GlobalMean, coefficients: Coefficients, draw: Draw, count: int
) -> MicroBatch:
    """Add the gradient of one micro-batch, computed in ``state.splits`` parts."""
    setup, size = state.setup, len(draw)
    edges = [size * part // state.splits for part in range(state.splits + 1)]
    parts = [draw.part(first, last) for first, last in itertools.pairwise(edges)]

    def estimate(part: Draw, answer: GlobalMean) -> PrimalEstimate:
        first = part.first - draw.first
        own = coefficients.part(first, first + len(part))
        return setup.estimator(setup.policy, setup.rewards, own, part, answer)

    means, estimates, references = _WholeMeans(estimate, parts, mean), [], []
    for part in parts:
        found = estimate(part, means.of(part))
        share = len(part) / (size * count)
        setup.backward(state.scaler.scale(found.loss * share))
        estimates.append(found)
    drawn = [part if found.draw is None else found.draw for part, found in zip(parts, estimates, strict=True)]
    if setup.paired is not None:
        references = [setup.paired(each) for each in drawn]
    return MicroBatch(
        path_kl=torch.cat([e.path_kl for e in estimates]),
        rewards={name: torch.cat([e.rewards[name] for e in estimates]) for name in setup.rewards},
        about={
            name: torch.cat([scored_rows(reward, each.prompts, len(each)) for each in drawn])
            for name, reward in setup.rewards.items()
        },
        reference={name: torch.cat([r[name] for r in references]) for name in setup.rewards if references},
    )


class _WholeMeans:
    """Answers an estimator that sees a part with means over the whole micro-batch.

    The first part that asks waits until the others have been measured, without gradients.
    """

    def __init__(
        self,
        estimate: Callable[[Draw, GlobalMean], PrimalEstimate],
        parts: Sequence[Draw],
        over_workers: GlobalMean,
    ) -> None:
        """Take the parts, and what averages one number over all workers."""
        self._estimate, self._parts, self._over_workers = estimate, parts, over_workers
        self._known: list[Tensor] = []

    def of(self, part: Draw) -> GlobalMean:
        """Return what answers the estimator of a part."""
        numbers = itertools.count()

        def answer(value: Tensor) -> Tensor:
            number = next(numbers)
            if number == len(self._known):
                size = sum(len(each) for each in self._parts)
                values = [
                    (value if each is part else self._asked(each)[number]).detach() * (len(each) / size)
                    for each in self._parts
                ]
                self._known.append(self._over_workers(torch.stack(values).sum()))
            return self._known[number]

        return answer

    @torch.no_grad()
    def _asked(self, part: Draw) -> list[Tensor]:
        """Return what the estimator of a part asks for, in order; it hears what is known, and then its own."""
        values: list[Tensor] = []

        def answer(value: Tensor) -> Tensor:
            values.append(value)
            return self._known[len(values) - 1] if len(values) <= len(self._known) else value

        self._estimate(part, answer)
        return values
