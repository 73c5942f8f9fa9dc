"""What a search is: it decides which trial runs next."""

from abc import ABC, abstractmethod

from orchestrator.plan import Plan, PlannedTrial


class Search(ABC):
    """Proposes trials of one sweep, one at a time, while others run.

    A search holds no truth of its own: after a crash it is built again from the plan and what has finished.
    """

    def __init__(self, plan: Plan, finished: frozenset[str]) -> None:
        """Begin, or go on after ``finished`` trials.

        Args:
            plan: Of the sweep.
            finished: Ids of the trials that have results.
        """
        self.plan = plan
        self.finished = finished

    @abstractmethod
    def propose(self) -> PlannedTrial | None:
        """Return a trial to start now, or None to wait for a running one or because there is no more."""

    @property
    @abstractmethod
    def exhausted(self) -> bool:
        """Whether no trial will be proposed any more."""
