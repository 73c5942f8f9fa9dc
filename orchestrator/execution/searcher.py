"""A search of ours as a Ray Tune searcher."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from orchestrator.plan import PlannedTrial
from orchestrator.search.base import Search


class PlanSearcher(Searcher):
    """Hands Tune the trials that a search proposes, each with its whole task as config."""

    def __init__(
        self,
        search: Search,
        task_of: Callable[[PlannedTrial], dict[str, Any]],
        ended: Callable[[PlannedTrial], None],
        limit: Callable[[], int],
    ) -> None:
        """Ask ``search`` while less than ``limit()`` trials are under way.

        ``task_of`` turns a trial into its config, ``ended`` is told of every one that has ended.
        """
        super().__init__()
        self._limit = limit
        self._search, self._task_of, self._ended = search, task_of, ended
        self._running: dict[str, PlannedTrial] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave everything behind: Tune stores its searcher, and nothing reads it back."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next config, None to wait, or FINISHED; ``trial_id`` is Tune's own."""
        if len(self._running) >= self._limit():
            return Searcher.FINISHED if self._search.exhausted else None
        trial = self._search.propose()
        if trial is not None:
            self._running[trial_id] = trial
            return self._task_of(trial)
        return Searcher.FINISHED if self._search.exhausted else None

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,  # noqa: ARG002 - the sweep's own files have the results
        error: bool = False,
    ) -> None:
        """A trial has ended; of one that was given up Tune tells the watcher next, who writes its row first."""
        trial = self._running.pop(trial_id, None)
        if trial is not None and not error:
            self._ended(trial)

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:  # noqa: ARG002
        """Accept whatever Tune says: the search has its own plan."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Write a marker: a search is rebuilt from the sweep's own files."""
        Path(checkpoint_path).write_text("rebuilt from the sweep's files\n", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to read."""
