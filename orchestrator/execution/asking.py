"""A question to a finished trial for a box of thresholds, on a worker: its answer is kept beside the others."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.execution.nearest import nearest_of
from orchestrator.execution.trials.answered import least_at
from orchestrator.execution.trials.rounds import charged
from orchestrator.report.images import strip
from orchestrator.report.sweep import held_out
from orchestrator.results import layout
from orchestrator.results.schema import answers_table
from orchestrator.results.store import SweepStore
from orchestrator.results.tables import joined
from trainers.config import TrialJob
from trainers.types import Answer

if TYPE_CHECKING:
    from orchestrator.execution.trials.ports import StorePort


def put(asked: Mapping[str, float], job: TrialJob, port: "StorePort", *, gpus: float) -> None:
    """Answer thresholds, and keep the answer, and what later ones begin with; one that is there is not asked for again.

    Args:
        asked: By constraint, units of the quantities.
        job: Of the trial.
        port: To the sweep's files.
        gpus: Held meanwhile.

    Raises:
        ValueError: What is stored of the trial cannot be used; says why.
        OutOfMemory: The memory does not hold one sample.
    """
    from trainers.alignment.boxed.stored import open_stored
    from trainers.alignment.boxed.stored_looks import looks_file

    store, began = port.store, time.monotonic()
    known, rounds = store.answers(job.trial_id), store.beside_round(job.trial_id)
    if any(answers(row, asked) for row in known.to_pylist()):
        return  # an attempt before was lost after it had kept it
    answering = open_stored(job, store.adapter(job.trial_id), port.reference(), port.device)
    box = answering.frontier.box
    thresholds = np.array([asked[constraint.name] for constraint in job.config.constraints])
    answer = answering.reply(box.clipped(thresholds)).answer
    drawn = store.baseline_samples()
    least = least_at(job, [answer], None if drawn is None else held_out(drawn))
    shown = layout.answer_image(job.trial_id, known.num_rows, rounds)
    if (picture := _picture(answer, known.to_pylist(), store, rounds)) is not None:
        store.write_file(shown, picture)
    else:
        store.remove_file(shown)  # of a trial that has been begun anew
    store.write_adapter(job.trial_id, looks_file(answering.looks), rounds)
    seconds = time.monotonic() - began
    took = {"wall_seconds": seconds, "gpu_seconds": gpus * seconds}
    nearest = nearest_of(job, [answer], [look for _, look in answering.looks])
    row = answers_table(job, [answer], least, nearest=nearest, took=took)
    before = store.stored_trial(job.trial_id) if gpus else None
    if before is not None:  # first: what was spent is spent, also where the answer is lost
        store.replace_trial(charged(job.config, before, gpus * seconds))
    store.write_answers(job.trial_id, joined([known, row]) if known.num_rows else row, rounds)


def _picture(
    answer: Answer, known: Sequence[Mapping[str, Any]], store: SweepStore, rounds: int
) -> bytes | None:
    """Return its strip of images; of one that an earlier look answers that of the row which has it."""
    if answer.evaluation is not None and answer.evaluation.images is not None:
        return strip(answer.evaluation.images)
    for place, row in enumerate(known):
        if all(row[f"multiplier_{name}"] == price for name, price in answer.multipliers.items()):
            return store.read_file(layout.answer_image(row["trial_id"], place, rounds))
    return None


def answers(row: Mapping[str, Any], asked: Mapping[str, float]) -> bool:
    """Whether a row of ``answers/`` is of these thresholds."""
    return all(
        abs(row[f"threshold_{name}"] - bound) <= _SAME * max(1.0, abs(bound)) for name, bound in asked.items()
    )


_SAME = 1e-12
"""Shares of a threshold that are rounding."""
