"""A search of ours as a Ray Tune searcher."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from orchestrator.plan import PlannedTrial
from orchestrator.search.base import Search


class PlanSearcher(Searcher):
    """Hands Tune the trials that a search proposes, each with its whole task as config."""

    def __init__(self, search: Search, task_of: Callable[[PlannedTrial], dict[str, Any]]) -> None:
        """Ask ``search``; ``task_of`` turns a trial into its config."""
        super().__init__()
        self._search, self._task_of = search, task_of

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # noqa: ARG002 - Tune's own id
        """Return the next config, None to wait, or FINISHED."""
        trial = self._search.propose()
        if trial is not None:
            return self._task_of(trial)
        return Searcher.FINISHED if self._search.exhausted else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing to learn on a grid."""

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:  # noqa: ARG002
        """Accept whatever Tune says: the search has its own plan."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Write a marker: a search is rebuilt from the sweep's own files."""
        Path(checkpoint_path).write_text("rebuilt from the sweep's files\n", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to read."""
