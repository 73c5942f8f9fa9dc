"""What one residual for a whole box of thresholds answers at some of them, on the same noise."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

from trainers.alignment.boxed.answering import Answering, Reply
from trainers.alignment.boxed.stored_looks import looks_file
from trainers.alignment.state import Candidate, TrainState
from trainers.config import TrialJob
from trainers.types import FloatArray
from trainers.workers.collective import Collective

if TYPE_CHECKING:
    from trainers.models.base import Conditional


_ENDS = 2


def answers(
    job: TrialJob,
    state: TrainState,
    collective: Collective,
    candidate: Candidate,
    reference: Mapping[str, FloatArray] | None,
) -> tuple[tuple[Reply, ...], dict[str, bytes]]:
    """Answer a design of thresholds with a state, the loosest first; returns replies, and files of their looks.

    Every point has the noise of every evaluation, so that differences between points are far better known than the
    points themselves; the two ends are looked at whole. Those that miss what they were asked are told to the state's
    notes.

    Args:
        job: Of the trial.
        state: Of its end.
        collective: The workers.
        candidate: What answers.
        reference: Rewards of the pretrained model on the evaluation noise, ``[N]`` each.
    """
    frontier = state.setup.frontier
    assert frontier is not None, "thresholds move"
    assert job.config.frontier is not None, "thresholds move"
    assert candidate.multipliers is not None, "the state has multipliers of its own"
    answering = Answering(
        job.config,
        frontier,
        np.array(candidate.multipliers),
        cast("Conditional", state.setup.policy),
        state.setup.scored,
        collective=collective,
        reference=reference,
    )
    with state.using(candidate.parameters):
        found = answering.replies(list(frontier.design(job.config.frontier.points)), whole=_ENDS)
    state.notes += [_missed(reply) for reply in found if not reply.held]
    for reply in found:
        drawn = reply.answer.evaluation
        state.notes += [note for note in (drawn.notes if drawn else ()) if note not in state.notes]
    return tuple(found), looks_file(answering.looks)


def _missed(reply: Reply) -> str:
    """Say that thresholds are cut from what the trial answers, with the evidence."""
    answer = reply.answer
    asked = ", ".join(f"{name} {bound:.4g}" for name, bound in answer.thresholds.items())
    short = ", ".join(f"{name} by {gap:.3g}" for name, gap in answer.violations.items() if gap > 0)
    prices = ", ".join(f"{name} {price:.3g}" for name, price in answer.multipliers.items())
    return f"thresholds {asked} were not met: short {short or 'within the noise'} at multipliers {prices}"
