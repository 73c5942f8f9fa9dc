"""Results of equal trials in other sweeps of the storage: they are copied, not made again."""

from collections.abc import Iterator

from rich.console import Console

from orchestrator.errors import CdsweepError
from orchestrator.plan import Plan, PlannedTrial, resolve_thresholds
from orchestrator.report.sweep import read_baseline, read_plan
from orchestrator.results import layout
from orchestrator.results.catalog import list_sweeps
from orchestrator.results.schema import rounds_of
from orchestrator.results.store import SweepStore
from orchestrator.spec import meaning
from trainers.config import BaselineStatistics


def take_over(plan: Plan, store: SweepStore, baseline: BaselineStatistics, console: Console) -> None:
    """Copy what other sweeps of the storage have of trials that have no results here, and say so."""
    here = store.trial_ids()
    missing = {trial.trial_id: trial for trial in plan.trials if trial.trial_id not in here}
    for name in list_sweeps(store.storage) if missing else ():
        other = SweepStore(store.storage, name)
        common = sorted(other.trial_ids() & missing.keys()) if name != store.name else []
        if not common:
            continue
        try:
            taken = list(_equal([missing[trial_id] for trial_id in common], other, baseline))
        except CdsweepError as error:
            console.print(f"warning: {other.url()} has trials of this sweep, but {error}", soft_wrap=True)
            continue
        for trial_id in taken:
            _copy(trial_id, other, store)
            del missing[trial_id]
        if taken:
            console.print(
                f"taken over from {name}: {len(taken)} equal trials, {', '.join(taken)} (--fresh runs them again)",
                soft_wrap=True,
            )


def _equal(trials: list[PlannedTrial], other: SweepStore, baseline: BaselineStatistics) -> Iterator[str]:
    """Yield the ids of trials that have succeeded in another sweep, with the same meaning to the last default."""
    known = {trial.trial_id: trial.config for trial in read_plan(other).trials}
    if read_baseline(other) != baseline:
        return
    for trial in trials:
        row, there = other.trial(trial.trial_id), known.get(trial.trial_id)
        if row is None or there is None or row["status"] != "succeeded" or row["base_trial"] is not None:
            continue
        asked = 1 if trial.config.frontier is None else trial.config.frontier.rounds
        if rounds_of(row) != asked:  # a search had it trained further, or it was left before its last round
            continue
        bounds = resolve_thresholds(trial.config, baseline)
        same = all(row[f"threshold_{name}"] == bound for name, bound in bounds.items())
        if same and meaning(there) == meaning(trial.config):
            yield trial.trial_id


def _copy(trial_id: str, other: SweepStore, store: SweepStore) -> None:
    """Copy the files of a trial; its row comes last, and with it the trial has finished."""
    rounds = other.beside_round(trial_id)
    store.write_adapter(trial_id, other.adapter(trial_id), rounds)
    answers = range(other.answers(trial_id).num_rows)
    images = [layout.image(trial_id, rounds)]
    images += [layout.answer_image(trial_id, place, rounds) for place in answers]
    tables = [layout.table(folder, trial_id, rounds) for folder in (layout.EVALUATIONS, layout.ANSWERS)]
    tables += [layout.table(folder, trial_id) for folder in (layout.HISTORY, layout.TRIALS)]
    for path in (*images, *tables):
        if (data := other.read_file(path)) is not None:
            store.write_file(path, data)
    store.settle(trial_id)
