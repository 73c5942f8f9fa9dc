"""What a search is: it decides which trial runs next."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator.plan import Plan, PlannedTrial
from orchestrator.search.spending import Spending
from orchestrator.spec import SweepSpec
from trainers.config import BaselineStatistics

Row = Mapping[str, Any]
"""One row of ``trials/*.parquet``, by column."""


class Question(PlannedTrial):
    """Thresholds that a finished trial for a box of them is to answer; it is not trained."""

    thresholds: dict[str, float]
    """By constraint, units of the quantities."""


@dataclass(frozen=True, kw_only=True)
class SearchContext:
    """What a search may know when it begins, or begins again."""

    spec: SweepSpec
    """Of the sweep."""
    plan: Plan
    """The trials that are planned, those that searches chose in earlier runs among them."""
    baseline: BaselineStatistics
    """Of the pretrained model, to which thresholds refer."""
    finished: Mapping[str, Row] = field(default_factory=dict)
    """Trials that have results, by id."""
    pretrained: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Mean and standard error of each reward of the pretrained model, on what trials are evaluated on."""
    continuable: frozenset[str] = frozenset()
    """Ids of the trials that left what another round of training goes on from."""
    answers: Callable[[str], Sequence[Row]] = lambda _: ()
    """Rows of ``answers/`` of a finished trial for a box of thresholds, as they are now."""
    spending: Spending = field(default_factory=Spending)
    """Of the sweep's budget; whoever hands out trials tells it what begins and ends. Without one all is allowed."""
    directory: Path | None = None
    """Where a search may keep files of its own; None where the sweep lies in an object store."""


class Search(ABC):
    """Proposes trials of one sweep, one at a time, while others run.

    A search holds no truth of its own: after a crash it is built again from the plan and what has finished.
    """

    def __init__(self, context: SearchContext) -> None:
        """Begin, or go on after the finished trials."""
        self.context = context

    @abstractmethod
    def propose(self) -> PlannedTrial | None:
        """Return a trial to start now, or None to wait for a running one or because there is no more.

        A trial that has finished is one to be trained further, where the search ``continues``, or a ``Question``.
        """

    @property
    @abstractmethod
    def exhausted(self) -> bool:
        """Whether no trial will be proposed any more."""

    def observe(self, trial: PlannedTrial, row: Row | None) -> None:  # noqa: B027 - a grid has nothing to learn
        """Learn of a trial that has ended, whoever proposed it.

        Args:
            trial: Of this sweep.
            row: Its results; None if it left none.
        """

    def answered(self, question: Question, row: Row | None) -> None:  # noqa: B027 - most ask nothing
        """Learn what a question came to, which it proposed.

        Args:
            question: Of a trial of this sweep.
            row: Of ``answers/``; None if there was no answer.
        """

    @property
    def continues(self) -> bool:
        """Whether it may propose a trial that has finished again, to be trained for another round."""
        return False

    @property
    def note(self) -> str | None:
        """How far the search is, in a few words for whoever watches."""
        return None

    def table(self) -> pa.Table | None:
        """Return what ``bounds.parquet`` shows: how well the frontier was known after every trial."""
        return None
