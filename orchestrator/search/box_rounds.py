"""Further rounds of the trials for a box of thresholds: each as often as its settings say, while other trials run."""

from collections import deque

from orchestrator.plan import PlannedTrial
from orchestrator.results.schema import rounds_of
from orchestrator.search.base import Row, Search, SearchContext
from trainers.config import TrialConfig


def trained_in_rounds(config: TrialConfig) -> bool:
    """Whether a trial is for a box of thresholds, and trained more than once."""
    return config.frontier is not None and config.frontier.rounds > 1


class BoxRounds(Search):
    """Proposes a trial for a box again as soon as a round of it has ended well and another is asked for."""

    def __init__(self, context: SearchContext) -> None:
        """Begin; of the trials that have finished those go on that left what they go on from."""
        super().__init__(context)
        mine = [trial for trial in context.plan.trials if trained_in_rounds(trial.config)]
        self._ready = deque(
            trial
            for trial in mine
            if trial.trial_id in context.continuable
            and box_goes_on(trial, context.finished.get(trial.trial_id))
        )
        ready = {trial.trial_id for trial in self._ready}
        self._open = {trial.trial_id for trial in mine if trial.trial_id not in context.finished} | ready
        """Ids of those that have not come to their end."""

    def propose(self) -> PlannedTrial | None:
        """Return the next one whose round has ended."""
        if not self._ready or not self.context.spending.allows(1):
            return None
        return self._ready.popleft()

    def observe(self, trial: PlannedTrial, row: Row | None) -> None:
        """Queue it again, or be done with it."""
        if trial.trial_id not in self._open:
            return
        if box_goes_on(trial, row):
            self._ready.append(trial)
        else:
            self._open.remove(trial.trial_id)

    @property
    def exhausted(self) -> bool:
        """Whether all have come to their end, or the budget has."""
        return not self._open or self.context.spending.spent(1)

    @property
    def continues(self) -> bool:
        """It does nothing else."""
        return True


def box_goes_on(trial: PlannedTrial, row: Row | None) -> bool:
    """Whether a trial with this row is trained once more."""
    most = 1 if trial.config.frontier is None else trial.config.frontier.rounds
    return row is not None and row["status"] == "succeeded" and rounds_of(row) < most
