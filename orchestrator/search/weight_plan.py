"""A search over fixed weights as a search of a sweep: trials of its plan, and their results in σ."""

import tempfile
from pathlib import Path

from orchestrator.frontier.dominance import sought_rewards
from orchestrator.plan import PlannedTrial, base_config, weighted_trial
from orchestrator.results import layout
from orchestrator.search.base import Row, Search, SearchContext
from orchestrator.search.weights import WeightedResult, WeightSearch
from orchestrator.spec import WeightSearchSpec
from trainers.config import TrialConfig


class WeightPlan(Search):
    """One search of one seed; weighted trials of other settings are not its own."""

    def __init__(self, context: SearchContext, settings: WeightSearchSpec, seed: int) -> None:
        """Open the study, or go on with it."""
        super().__init__(context)
        self._base, self._seed = base_config(context.spec), seed
        self._rewards = sought_rewards(self._base)
        self._rows: dict[str, Row | None] = dict(context.finished)
        self._own: set[str] = set()
        self.name = settings.study(seed)
        mine = [trial for trial in context.plan.trials if trial.origin == self.name]
        finished = [trial for trial in mine if trial.trial_id in context.finished]
        # Beside a sweep in an object store there is no file to append to: the study is made again from the plan.
        folder = context.directory or Path(tempfile.mkdtemp(prefix="cdsweep-"))
        self._search = WeightSearch(
            settings,
            self._rewards,
            [constraint.name for constraint in self._base.constraints],
            sweep=context.spec.name,
            problem=weighted_trial(self._base, {}, seed).trial_id,
            seed=seed,
            storage=folder / layout.STUDIES,
            finished=[self._result(trial, context.finished[trial.trial_id]) for trial in finished],
            started=[self._weights(trial.config) for trial in mine],
        )

    def propose(self) -> PlannedTrial | None:
        """Return a trial at the next weights; one that has its result already is told at once."""
        while self.context.spending.allows(1) and (weights := self._search.ask()) is not None:
            trial = weighted_trial(self._base, weights, self._seed)
            self._own.add(trial.trial_id)
            if trial.trial_id not in self._rows:
                return trial.model_copy(update={"origin": self.name})
            self._tell(trial)
        return None

    @property
    def exhausted(self) -> bool:
        """Whether all its trials were asked for, or the budget is spent."""
        return self._search.exhausted or self.context.spending.spent(1)

    def observe(self, trial: PlannedTrial, row: Row | None) -> None:
        """Tell the study of a trial of its own."""
        self._rows[trial.trial_id] = row
        if trial.trial_id in self._own:
            self._tell(trial)

    def _tell(self, trial: PlannedTrial) -> None:
        row = self._rows[trial.trial_id]
        if row is None:
            self._search.fail(self._weights(trial.config), trial.trial_id)
        else:
            self._search.tell(self._result(trial, row))

    def _weights(self, config: TrialConfig) -> dict[str, float]:
        return {name: config.weights[name] for name in self._rewards}

    def _result(self, trial: PlannedTrial, row: Row) -> WeightedResult:
        known = self.context.baseline.rewards
        weights = self._weights(trial.config)
        if row["status"] == "failed" or row["kl"] is None:
            return WeightedResult(weights=weights, trial_id=trial.trial_id)
        rewards = {
            name: (row[f"reward_{name}"] - known[name].mean) / known[name].std for name in self._rewards
        }
        violations = {
            c.name: row[f"violation_{c.name}"] / (1.0 if c.kind == "kl" else known[c.target].std)
            for c in trial.config.constraints
        }
        return WeightedResult(
            weights=weights, trial_id=trial.trial_id, kl=row["kl"], rewards=rewards, violations=violations
        )
