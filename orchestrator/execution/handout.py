"""Trials on their way to Ray and back: a search proposes them, tasks go out, rows come in."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.execution.asking import answers
from orchestrator.execution.driver import Driver
from orchestrator.execution.metrics import SweepGauges
from orchestrator.execution.sampling.baseline import Jobs
from orchestrator.execution.trials import trial as trials
from orchestrator.execution.trials.attempts import Attempts
from orchestrator.execution.trials.packs import Packs
from orchestrator.plan import Plan, PlannedTrial, labels, make_job
from orchestrator.report.page.write import LiveReport
from orchestrator.results.schema import rounds_of
from orchestrator.search.base import Question, Row, Search
from trainers.config import BaselineStatistics, TrialJob

if TYPE_CHECKING:
    from orchestrator.execution.progress import Display, Progress


class Handout:
    """What the driver knows of the trials that it hands out."""

    def __init__(
        self,
        plan: Plan,
        driver: Driver,
        baseline: BaselineStatistics,
        search: Search,
        *,
        gauges: SweepGauges,
        attempts: Attempts,
        packs: Packs | None = None,
    ) -> None:
        """Begin with the trials of a plan, which grows with what the search chooses; packed ones have hosts."""
        self.plan, self._driver, self._store = plan, driver, driver.store
        self._baseline, self._search, self._gauges = baseline, search, gauges
        self._attempts, self._packs = attempts, packs
        self._by_id = {trial.trial_id: trial for trial in plan.trials}
        self._jobs = Jobs(driver.store, baseline, continuable=search.continues)
        self._rounds: dict[str, int] = {}
        """Of the trials that are trained further now."""
        self._asked: dict[str, Question] = {}
        """Of the trials that are asked now."""

    def shown(self, progress: "Progress", display: "Display", live: LiveReport, scratch: str) -> None:
        """Show what goes out and comes in here; ``scratch`` is a folder for what Ray keeps of its own."""
        self._progress, self._display, self._live, self._scratch = progress, display, live, scratch

    def task(self, trial: PlannedTrial) -> dict[str, Any]:
        """Return what a trial process needs."""
        if trial.trial_id not in self._by_id:
            # Written before it starts: whatever dies, the plan knows every trial that has left anything.
            self._by_id[trial.trial_id] = trial
            self.plan = self.plan.with_trial(trial)
            self._store.write_plan(self.plan.to_json(baseline=self._baseline))
            self._progress.add(trial)
            self._gauges.planned(len(self._by_id))
            self._driver.noted(len(self._by_id))
        if isinstance(trial, Question):
            return self._question(trial)
        job = self._jobs(trial)
        if job.rounds > 1:
            self._attempts.forget(trial.trial_id)
            self._rounds[trial.trial_id] = job.rounds
            self._display.say(
                f"{trial.trial_id} is trained further, round {job.rounds}: {labels(self.plan.trials)[trial.trial_id]}"
            )
        return self._sent(job)

    def _question(self, question: Question) -> dict[str, Any]:
        self._attempts.forget(question.trial_id)
        self._asked[question.trial_id] = question
        self._progress.asks(question.trial_id, f"asked for {_thresholds(question)}")
        return self._sent(make_job(question, self._baseline), question.thresholds)

    def _sent(self, job: TrialJob, asked: Mapping[str, float] | None = None) -> dict[str, Any]:
        host = None if self._packs is None else self._packs.place(job.trial_id)
        return trials.task(job, self.plan.resources, self._store, self._scratch, host=host, asked=asked)

    def ended(self, trial: PlannedTrial) -> None:
        """Take note that a trial has ended, well or not; or that it has answered."""
        if isinstance(trial, Question):
            self._answered(trial)
            return
        rounds = self._rounds.pop(trial.trial_id, 1)
        if self._packs is not None:
            self._packs.left(trial.trial_id)
        if rounds > 1:
            self._driver.replaced([trial.trial_id])
        row = self._store.trial(trial.trial_id)
        if self._driver.stop.wanted() and (row is None or rounds_of(row) < rounds):
            return  # it goes on when the sweep is resumed
        if rounds > 1:
            self._store.settle(trial.trial_id)
        self._display.ended(trial.trial_id, row)
        self._driver.noted(len(self._by_id))
        self._live.changed()
        self._search.observe(trial, row)
        self._gauges.ended(row)
        self._known()

    def _known(self) -> None:
        """Tell what the search knows."""
        self._display.noted(self._search.note)
        if (table := self._search.table()) is not None:
            self._store.write_bounds(table)
            self._gauges.known(table)

    def _answered(self, question: Question, error: str | None = None) -> None:
        """Take note of an answer, or why there is none."""
        trial_id = question.trial_id
        self._asked.pop(trial_id, None)
        if self._packs is not None:
            self._packs.left(trial_id)
        self._progress.asks(trial_id, None)
        row = self._answer(question)
        if row is None and self._driver.stop.wanted():
            return  # it is asked again when the sweep is resumed
        came = f"no answer ({error or 'it left none'})"
        if row is not None:
            met = "" if row["feasible"] else ", not met"
            came = f"KL {row['kl']:.3f} nats ({row['kl_low']:.3f} to {row['kl_high']:.3f}){met}"
            self._driver.replaced([trial_id])
        self._display.say(f"{trial_id} at {_thresholds(question)}: {came}")
        self._live.changed()
        self._search.answered(question, row)
        self._known()

    def _answer(self, question: Question) -> Row | None:
        """Return the row of an answer, if there is one."""
        for row in self._store.answers(question.trial_id).to_pylist():
            if answers(row, question.thresholds):
                return dict(row)
        return None

    def give_up(self, trial_id: str, error: str, steps: int) -> None:
        """Write that a trial failed in every attempt, after so many steps; or that it does not answer."""
        if (question := self._asked.get(trial_id)) is not None:
            self._answered(question, error)
            return
        trial = self._by_id[trial_id]
        job = self._jobs(trial).model_copy(update={"rounds": self._rounds.get(trial_id, 1)})
        trials.record(job, trials.failed(error, steps=steps), self._store, started_at=datetime.now(UTC))
        self.ended(trial)


def _thresholds(question: Question) -> str:
    return ", ".join(f"{name} {bound:.4g}" for name, bound in question.thresholds.items())
