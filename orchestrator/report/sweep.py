"""A sweep's files as a summary."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.errors import UsageError
from orchestrator.frontier.problems import Documents, LeastKL, exact_solver
from orchestrator.frontier.sampled import may_join, predicted_problem
from orchestrator.frontier.summary import FrontierSummary, summarise
from orchestrator.frontier.trials import Trials
from orchestrator.plan import Plan, PlannedTrial, interpolated_point, resolve_tightest
from orchestrator.report.certified import weighable
from orchestrator.report.figures.composition import composition_figure
from orchestrator.report.figures.frontier import frontier_figure
from orchestrator.results.schema import samples_of
from orchestrator.results.store import SweepStore
from orchestrator.spec import SweepSpec, parse_spec
from trainers.config import INTERPOLATED, BaselineStatistics, TrialConfig


def read_plan(store: SweepStore) -> Plan:
    """Return the stored plan.

    Raises:
        SpecError: It is damaged, or of another version.
        StorageError: It is missing.
    """
    return Plan.from_json(store.plan())


def read_spec(store: SweepStore) -> SweepSpec:
    """Return the stored spec."""
    return parse_spec(store.spec_yaml(), store.url("spec.yaml"))


def read_baseline(store: SweepStore) -> BaselineStatistics:
    """Return the stored statistics of the pretrained model.

    Raises:
        UsageError: It has not been sampled yet.
    """
    if not store.has_baseline():
        raise UsageError(f"{store.url()} has no results yet: its pretrained model is still to be sampled")
    return BaselineStatistics.model_validate(store.baseline())


def known_baseline(store: SweepStore) -> BaselineStatistics | None:
    """Return the stored statistics of the pretrained model, if it has been sampled."""
    return read_baseline(store) if store.has_baseline() else None


def pretrained_rewards(store: SweepStore, baseline: BaselineStatistics) -> dict[str, tuple[float, float]]:
    """Return mean and standard error of every reward of the pretrained model on the held-out prompts."""
    table = None if baseline.samples is None else store.baseline_samples()
    if table is None:
        return {name: (known.mean, 0.0) for name, known in baseline.rewards.items()}
    drawn = samples_of(table, "evaluate")
    return {
        name: (
            float(np.nanmean(values)),
            float(np.nanstd(values, ddof=1) / np.sqrt(np.isfinite(values).sum())),
        )
        for name, values in drawn.items()
    }


def read_points(store: SweepStore, plan: Plan) -> tuple[PlannedTrial, ...]:
    """Return what was measured between the trials of a plan, as trials that are in no plan."""
    rows = store.trials()
    found = rows.filter(pc.equal(rows["method"], INTERPOLATED)).to_pylist()
    return tuple(_point(row, plan) for row in found)


def read_trial(store: SweepStore, plan: Plan, trial_id: str) -> PlannedTrial:
    """Return a trial of the plan, or a point that was measured between its trials."""
    planned = next((trial for trial in plan.trials if trial.trial_id == trial_id), None)
    if planned is not None:
        return planned
    return next(point for point in read_points(store, plan) if point.trial_id == trial_id)


def _point(row: dict[str, Any], plan: Plan) -> PlannedTrial:
    names = {c.target: c.name for c in reversed(plan.base.constraints)}
    asked = {r.name: row.get(f"threshold_{names.get(r.name, r.name)}") for r in plan.base.rewards}
    return interpolated_point(
        plan.base,
        json.loads(row["interpolated"]),
        {name: bound for name, bound in asked.items() if bound is not None},
        row["seed"],
    )


def read_trials(store: SweepStore, plan: Plan) -> Trials:
    """Return what has finished so far."""
    return Trials.of(store.trials(), any_config(plan))


def any_config(plan: Plan) -> TrialConfig:
    """Return the config of one trial: rewards, constraints and objective are those of all."""
    return plan.trials[0].config if plan.trials else plan.base


def read_predicted(
    store: SweepStore,
    config: TrialConfig,
    baseline: BaselineStatistics,
    trials: Trials | None = None,
    *,
    replicates: int = 0,
) -> LeastKL | None:
    """Return the least KL as samples tell it; None for a composition, and where no samples or too few were kept.

    Args:
        store: The sweep.
        config: Any trial of it.
        baseline: σ of the rewards.
        trials: Finished ones, whose samples join where they fit.
        replicates: Of the bootstrap.
    """
    table = None if config.model.composition is not None else store.baseline_samples()
    if table is None:
        return None
    asked = None if trials is None else may_join(trials)
    drawn = {} if asked is None else {name: store.evaluations(name) for name in asked.ids}
    try:
        return predicted_problem(
            config,
            baseline,
            held_out(table),
            drawn,
            replicates=replicates,
        )
    except ValueError:  # too few samples of a prompt
        return None


def read_paths(
    store: SweepStore, plan: Plan, *, without: str | None = None
) -> tuple[pa.Table | None, list[pa.Table]]:
    """Return held-out samples of the pretrained model, if any are kept, and of finished trials with log ratios.

    Args:
        store: The sweep.
        plan: Its own.
        without: A trial that is left out.
    """
    pretrained = store.baseline_samples()
    asked = [name for name in may_join(read_trials(store, plan)).ids.tolist() if name != without]
    found = [store.evaluations(name) for name in asked]
    return None if pretrained is None else held_out(pretrained), [t for t in found if weighable(t)]


def held_out(samples: pa.Table) -> pa.Table:
    """Return the samples of the pretrained model that are on the prompts and noise of evaluations."""
    return samples.filter(pc.equal(samples["set"], "evaluate"))


def read_solver(
    store: SweepStore,
    config: TrialConfig,
    baseline: BaselineStatistics,
    trials: Trials | None = None,
    *,
    replicates: int = 0,
) -> LeastKL | None:
    """Return what trials are held against: the exact solution, else the one that samples predict."""
    return exact_solver(config) or read_predicted(store, config, baseline, trials, replicates=replicates)


def read_certificates(
    store: SweepStore, plan: Plan, trials: Trials, baseline: BaselineStatistics
) -> Documents | None:
    """Return what path weights prove at the planned thresholds; None where the least KL is exact, or nothing does."""
    solver = read_solver(store, trials.config, baseline, trials)
    return None if solver is None else solver.certified([trial.config for trial in plan.trials], baseline)


def read_summary(store: SweepStore) -> FrontierSummary:
    """Summarise what has finished so far."""
    plan, baseline = read_plan(store), read_baseline(store)
    trials = read_trials(store, plan)
    return summary_of(plan, trials, baseline, read_solver(store, trials.config, baseline, trials))


def summary_of(
    plan: Plan,
    trials: Trials,
    baseline: BaselineStatistics,
    solver: LeastKL | None,
) -> FrontierSummary:
    """Summarise the finished trials of a plan."""
    return summarise(
        replace(trials, tightest=_tightest(plan, trials, baseline)),
        sweep=plan.name,
        baseline=baseline,
        exact=solver,
        planned=Counter(trial.config.method for trial in plan.trials),
    )


def _tightest(plan: Plan, trials: Trials, baseline: BaselineStatistics) -> dict[str, float]:
    """Return the far ends of the boxes that finished trials were asked for, by constraint; a budget's is its least."""
    ended, found = set(trials.ids.tolist()), dict[str, float]()
    for trial in plan.trials:
        if trial.config.method == "frontier" and trial.trial_id in ended:
            for name, end in resolve_tightest(trial.config, baseline).items():
                found[name] = max(end, found.get(name, end))
    return found


def write_frontier(store: SweepStore, summary: FrontierSummary) -> dict[str, str]:
    """Write ``frontier.parquet`` and the figure; returns the path or URI of each figure by its name."""
    store.write_frontier(summary.to_table())
    figures = (composition_figure if summary.composed else frontier_figure)(summary)
    return {name: store.write_figure(name, data) for name, data in figures.items()}
