"""A search as Tune asks it: configs, waiting, the end; and what is heard of trials that end."""

import pickle
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher
from support.searched import GRID, Sweep, spec_of

from orchestrator.execution.progress import Progress
from orchestrator.execution.searcher import PlanSearcher
from orchestrator.plan import PlannedTrial, describe, make_plan
from orchestrator.search.base import Search

SWEEP = Sweep(spec_of(GRID), None)


class Scripted(Search):
    """Proposes two trials, with a pause between them."""

    def __init__(self) -> None:
        """Begin."""
        super().__init__(SWEEP.context())
        self.answers: list[PlannedTrial | None] = [SWEEP.plan.trials[0], None, SWEEP.plan.trials[1]]

    def propose(self) -> PlannedTrial | None:
        return self.answers.pop(0) if self.answers else None

    @property
    def exhausted(self) -> bool:
        return not self.answers


def test_it_hands_out_configs_waits_and_ends(tmp_path: Path) -> None:
    ended: list[str] = []

    def task_of(trial: PlannedTrial) -> dict[str, Any]:
        return {"trial_id": trial.trial_id}

    limit = 1
    searcher = PlanSearcher(Scripted(), task_of, lambda trial: ended.append(trial.trial_id), lambda: limit)
    first, second = SWEEP.plan.trials
    assert searcher.suggest("a") == {"trial_id": first.trial_id}
    assert searcher.suggest("b") is None, "there is no room"
    limit = 2
    assert searcher.suggest("b") is None, "the search waits"
    assert searcher.suggest("b") == {"trial_id": second.trial_id}
    assert searcher.suggest("c") == Searcher.FINISHED
    searcher.on_trial_complete("b", error=True)
    searcher.on_trial_complete("a", {"kl": 1.0})
    searcher.on_trial_complete("a")
    searcher.on_trial_complete("never")
    assert ended == [first.trial_id], (
        "once; of one that was given up the watcher tells, after its row is written"
    )
    assert pickle.loads(pickle.dumps(searcher)).__dict__ == {}  # noqa: S301 - our own bytes
    searcher.save(str(tmp_path / "state"))
    searcher.restore(str(tmp_path / "state"))


def test_progress_counts_what_searches_add() -> None:
    spec = spec_of(GRID)
    plan = make_plan(spec)
    progress = Progress(plan, frozenset({plan.trials[0].trial_id}))
    assert (progress.planned, progress.ended()) == (len(plan.trials) + 16, 1)
    sweep = Sweep(spec, None)
    sweep.drive(most=3)
    chosen = sweep.of("constrained")[0]
    progress.add(chosen)
    progress.update(chosen.trial_id, "running", {"step": 3, "kl": 0.5})
    (running,) = progress.heartbeat()
    assert running["trial_id"] == chosen.trial_id
    assert running["label"] == describe(chosen.config)
    progress.update(chosen.trial_id, "succeeded")
    assert progress.ended() == 2
    assert progress.planned == plan.most, "the trial was counted before it was chosen"
