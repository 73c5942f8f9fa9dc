"""What trials for all weights of a composition are at some of them, measured in this process."""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.errors import PlacementError, StorageError, UsageError
from orchestrator.execution.sampling.replies import MOST_POINTS, Gridded, unfit
from orchestrator.execution.trials.device import own
from orchestrator.frontier.composed_adapters import answer_of
from orchestrator.plan import Plan, PlannedTrial
from orchestrator.report.boxed_card import answer_files
from orchestrator.results.schema import samples_of
from orchestrator.results.store import SweepStore
from orchestrator.spec import SIMPLEX_TOLERANCE, suggestion
from trainers.config import TrialConfig
from trainers.failures import OutOfMemory
from trainers.types import Answer

if TYPE_CHECKING:
    from trainers.composition.networks.student import Student

_SAME = 1e-9
"""Between weights that are the same."""


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """A trial at weights of its models, and its adapter, which folds there."""

    trial_id: str
    config: TrialConfig
    student: Callable[[], "Student"]
    """Opens it, with its models, once."""
    answer: Answer

    @property
    def at(self) -> dict[str, float]:
        """Its weights, by model."""
        return dict(self.answer.multipliers)

    @property
    def held(self) -> bool:
        """Whether it is an answer: at any weights."""
        return True

    def files(self) -> dict[str, bytes]:
        """Return the plain LoRA that the trial's is at these weights, with its figures and a card."""
        asked = np.array(list(self.answer.multipliers.values()))
        return {
            **self.student().folded(asked),
            **answer_files(self.trial_id, self.config, self.answer),
        }


def on_simplex(config: TrialConfig, trial_id: str, given: Mapping[str, float]) -> dict[str, float]:
    """Return weights of all models of a trial, 0 for those that are not given.

    Raises:
        UsageError: One is of no model, or they are not on the simplex.
    """
    names = [model.name for model in config.model.constituents]
    for name in given:
        if name not in names:
            raise UsageError(
                f"trial {trial_id} composes no model {name!r}{suggestion(name, names, 'its models')}"
            )
    total = math.fsum(given.values())
    if not all(weight >= 0 for weight in given.values()) or not abs(total - 1.0) <= SIMPLEX_TOLERANCE:
        told = ", ".join(f"{name}={weight:g}" for name, weight in given.items())
        raise UsageError(
            f"--multiplier gives weights of the models of trial {trial_id} ({', '.join(names)}), each at least 0 and "
            f"1 together; got {told}, together {total:g}"
        )
    return {name: float(given.get(name, 0.0)) / total for name in names}


def weighed(store: SweepStore, plan: Plan, trial_id: str, given: Mapping[str, float]) -> Weighed:
    """Return a trial for all weights of a composition at some, as it was measured there, or is now.

    Args:
        store: The sweep.
        plan: Its own.
        trial_id: Of the trial.
        given: Weights by model.

    Raises:
        UsageError: They are not on the simplex, or the trial has not finished.
        PlacementError: The memory does not hold one image.
        StorageError: What is stored cannot be read.
    """
    trial = next(trial for trial in plan.trials if trial.trial_id == trial_id)
    asked = on_simplex(trial.config, trial_id, given)
    return _at(store, trial, _opening(store, trial), asked, _stored(store, trial))


def weighed_grid(store: SweepStore, plan: Plan, trial_id: str, count: int) -> Gridded:
    """Return a trial for all weights at a grid of them.

    Args:
        store: The sweep.
        plan: Its own.
        trial_id: Of the trial.
        count: Values of every weight from 0 to 1, both among them.

    Raises:
        UsageError: The grid has more points than ``MOST_POINTS``, or the trial has not finished.
        PlacementError: The memory does not hold one image.
        StorageError: What is stored cannot be read.
    """
    trial = next(trial for trial in plan.trials if trial.trial_id == trial_id)
    names = [model.name for model in trial.config.model.constituents]
    points = math.comb(count - 1 + len(names) - 1, len(names) - 1)
    if points > MOST_POINTS:
        raise UsageError(
            f"--grid {count} has {points} points over the weights of {len(names)} models, and each is measured: take "
            f"one of at most {MOST_POINTS}"
        )
    student, known = _opening(store, trial), _stored(store, trial)
    every = itertools.product(range(count), repeat=len(names) - 1)
    design = [(*parts, count - 1 - sum(parts)) for parts in every if sum(parts) < count]

    def found(left: Collection[int]) -> Iterator[tuple[int, Weighed]]:
        for place, shares in enumerate(design):
            if place in left:
                weights = {name: part / (count - 1) for name, part in zip(names, shares, strict=True)}
                yield place, _at(store, trial, student, weights, known)

    return Gridded(size=points, found=found)


def opened(store: SweepStore, trial: PlannedTrial) -> "Student":
    """Return the adapter of a finished trial, beside its models.

    Raises:
        UsageError: It has not finished, or failed, or its models cannot be used; says why.
    """
    return _opening(store, trial)()


def _opening(store: SweepStore, trial: PlannedTrial) -> Callable[[], "Student"]:
    """Return what ``opened`` does, but for that the models are opened by the first call: seconds, and their memory.

    Raises:
        UsageError: It has not finished, or failed.
    """
    files, row = store.adapter(trial.trial_id), store.stored_trial(trial.trial_id)
    if (state := unfit(row, files)) is not None:
        raise UsageError(f"trial {trial.trial_id} {state}: it has no adapter for weights of its models")

    @cache
    def student() -> "Student":
        from trainers.composition.networks.student import Student

        try:
            return Student.opened(trial.config, files, own())
        except ValueError as error:
            raise UsageError(f"trial {trial.trial_id} cannot be measured: {error}") from error

    return student


def _stored(store: SweepStore, trial: PlannedTrial) -> list[Answer]:
    return [answer_of(trial.config, row) for row in store.answers(trial.trial_id).to_pylist()]


def _at(
    store: SweepStore,
    trial: PlannedTrial,
    student: Callable[[], "Student"],
    weights: Mapping[str, float],
    known: Sequence[Answer],
) -> Weighed:
    """Return it at weights of all models, as is stored among the answers that are ``known``, or measured now."""
    answer = next((found for found in known if _same(found.multipliers, weights)), None)
    if answer is None:
        opened_now, table = student(), store.baseline_samples()

        def reference(of: str) -> dict[str, np.ndarray] | None:
            found = {} if table is None else samples_of(table, of)
            return found if any(len(values) for values in found.values()) else None

        try:
            answer = opened_now.answer(np.array(list(weights.values())), reference)
        except OutOfMemory as error:
            raise PlacementError(str(error)) from error
        except ValueError as error:
            raise StorageError(f"trial {trial.trial_id} cannot be measured: {error}") from error
    return Weighed(trial_id=trial.trial_id, config=trial.config, student=student, answer=answer)


def _same(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return all(abs(one[name] - weight) <= _SAME for name, weight in other.items())
