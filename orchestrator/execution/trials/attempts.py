"""How often a trial is started again: what the cluster does to it counts apart from what it does itself."""

from dataclasses import dataclass
from typing import Any

from orchestrator.spec import RetriesSpec

ERROR = "trial_error"
"""Key of a report in which a trial says that it is about to fail by itself."""


@dataclass(kw_only=True)
class _Count:
    errors: int = 0
    """Attempts that the trial ended itself."""
    losses: int = 0
    """Attempts since the last progress that ended with the loss of a process or node."""
    announced: str | None = None
    """The error that is about to end the present attempt."""
    last: str = ""
    """What ended the last attempt."""
    reached: int = 0
    """Step that an attempt has continued from."""


class Attempts:
    """Counts per trial in one run of a sweep; a resumed run counts anew.

    Every failure is a loss but for those that the trial has announced. A loss counts against the trial only if it
    got no further since the one before: a trial of weeks survives any number of preempted machines, and one that
    kills its own process at every start does not go on for ever.
    """

    def __init__(self, retries: RetriesSpec) -> None:
        """Allow so many."""
        self.retries = retries
        self._counts: dict[str, _Count] = {}

    def forget(self, trial_id: str) -> None:
        """Count anew for a trial that is trained for another round."""
        self._counts.pop(trial_id, None)

    def announce(self, trial_id: str, error: str) -> bool:
        """Count an error of the trial itself; returns whether it may be started again after it."""
        count = self._count(trial_id)
        count.errors += 1
        count.announced = error
        return count.errors <= self.retries.errors

    def reached(self, trial_id: str, restored_step: int) -> bool:
        """Take note of the step an attempt continued from; returns whether a loss may follow."""
        count = self._count(trial_id)
        if restored_step > count.reached:
            count.reached, count.losses = restored_step, 0
        return count.losses < self.retries.losses

    def failed(self, trial_id: str) -> bool:
        """Count the end of an attempt; returns whether a loss may follow."""
        count = self._count(trial_id)
        if count.announced is None:
            count.losses += 1
        count.last = count.announced or "its process or node was lost"
        count.announced = None
        return count.losses < self.retries.losses

    def why(self, trial_id: str) -> str:
        """Say what ended the last attempt, in a few words."""
        return self._count(trial_id).last

    def verdict(self, trial_id: str, last: str) -> str:
        """Say why a trial is given up; ``last`` is what Ray says of its last attempt."""
        count = self._count(trial_id)
        if count.announced is not None:
            return f"failed in {count.errors} attempts; the last: {count.announced}"
        return f"lost its process or node {count.losses + 1} times without getting further; the last: {last}"

    def _count(self, trial_id: str) -> _Count:
        return self._counts.setdefault(trial_id, _Count())


def one_line(error: BaseException) -> str:
    """Return kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def announced(result: dict[str, Any]) -> str | None:
    """Return the error that a report announces, if it does."""
    found = result.get(ERROR)
    return None if found is None else str(found)
