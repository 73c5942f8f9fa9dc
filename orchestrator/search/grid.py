"""Every combination of the plan, once, in the order of the spec."""

from collections import deque

from orchestrator.plan import PlannedTrial
from orchestrator.search.base import Search, SearchContext


class GridSearch(Search):
    """Runs what is missing from the plan."""

    def __init__(self, context: SearchContext) -> None:
        """Queue the unfinished trials."""
        super().__init__(context)
        self._missing = deque(
            trial for trial in context.plan.trials if trial.trial_id not in context.finished
        )

    def propose(self) -> PlannedTrial | None:
        """Return the next missing trial."""
        return self._missing.popleft() if self._missing else None

    @property
    def exhausted(self) -> bool:
        """Whether the queue is empty."""
        return not self._missing
