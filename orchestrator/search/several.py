"""All searches of a sweep as one: what is planned first, then each search in turn."""

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

import pyarrow as pa

from orchestrator.plan import PlannedTrial
from orchestrator.search.base import Question, Row, Search, SearchContext
from orchestrator.search.box_rounds import BoxRounds
from orchestrator.search.certified_box import CertifiedBox
from orchestrator.search.grid import GridSearch
from orchestrator.spec import CERTIFIED, GRID, asks_box


class Several(Search):
    """Asks its searches in turn."""

    def __init__(self, context: SearchContext, searches: Sequence[Search]) -> None:
        """Take the searches; the first is asked until it is exhausted."""
        super().__init__(context)
        self._first, self._others = searches[0], list(searches[1:])
        self._proposed = {trial.trial_id for trial in context.plan.trials}
        self._ended = set(context.finished)

    def propose(self) -> PlannedTrial | None:
        """Return the next trial; one that another search proposed already is passed over."""
        if (trial := self._next()) is not None and not isinstance(trial, Question):
            self.context.spending.begin(trial.trial_id)
        return trial

    def _next(self) -> PlannedTrial | None:
        if (trial := self._first.propose()) is not None:
            self._proposed.add(trial.trial_id)
            return trial
        for _ in range(len(self._others)):
            search = self._others.pop(0)
            self._others.append(search)
            while (trial := search.propose()) is not None:
                again = isinstance(trial, Question) or (search.continues and trial.trial_id in self._ended)
                if again or trial.trial_id not in self._proposed:
                    self._proposed.add(trial.trial_id)
                    return trial
        return None

    def observe(self, trial: PlannedTrial, row: Row | None) -> None:
        """Tell all of them."""
        self._ended.add(trial.trial_id)
        self.context.spending.end(trial.trial_id, row)
        for search in (self._first, *self._others):
            search.observe(trial, row)

    def answered(self, question: Question, row: Row | None) -> None:
        """Tell all of them."""
        self.context.spending.answered(row)
        for search in (self._first, *self._others):
            search.answered(question, row)

    @property
    def exhausted(self) -> bool:
        """Whether all are."""
        return self._first.exhausted and all(search.exhausted for search in self._others)

    @property
    def continues(self) -> bool:
        """Whether any of them does."""
        return any(search.continues for search in (self._first, *self._others))

    @property
    def note(self) -> str | None:
        """What they say."""
        return "; ".join(note for search in self._others if (note := search.note)) or None

    def table(self) -> pa.Table | None:
        """The first there is."""
        return next((table for search in self._others if (table := search.table()) is not None), None)


def build_search(context: SearchContext) -> Search:
    """Return the search of a sweep: the missing trials of its plan, then what the spec asks for beside it."""
    kind = context.spec.search.kind
    searches: list[Search] = (
        [_load(kind)(context)] if kind not in {GRID, CERTIFIED} else [GridSearch(context)]
    )
    if asks_box(context.spec):
        searches.append(CertifiedBox(context))
    elif kind == CERTIFIED:
        searches.append(_load(kind)(context))
    if not asks_box(context.spec) and any(found.rounds > 1 for _, found in context.spec.frontiers):
        searches.append(BoxRounds(context))
    settings = [found.search for _, found in context.spec.weightings if found.search is not None]
    if settings:
        # Here, because Optuna takes a second to import and most sweeps do without.
        from orchestrator.search.weight_plan import WeightPlan  # noqa: PLC0415

        searches += [WeightPlan(context, found, seed) for found in settings for seed in context.spec.seeds]
    return Several(context, searches)


def _load(kind: str) -> Any:
    """Return the registered class; the spec has checked the name."""
    return next(iter(entry_points(group="cdsweep.searches", name=kind))).load()
