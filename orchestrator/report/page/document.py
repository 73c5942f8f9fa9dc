"""The report of a sweep as one JSON document: what ``report.html`` and the dashboard page draw.

Pure data, from the sweep's own files. Whatever is missing or damaged is left out and named under ``problems``; only a
sweep whose spec or plan cannot be read has no document.

    format, sweep, path, generated_at, status           what it is, and how far
    words                                               the outcome in sentences
    objective, rewards, constraints, models, methods    what was asked for
    trials, curves, prompts, images                     what came out, by trial
    comparison                                          constrained against the best weights, by thresholds
    pick                                                what `cdsweep pick` chooses from
    exact, predicted, attained, bounds                  lines of the frontier
    spec, made, reproduce, problems                     how it was made, and what could not be read
    versions                                            of what wrote the document

NaN and infinities are null. A reader ignores keys that it does not know.
"""

import shlex
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from typing import Any

from orchestrator.errors import CdsweepError, StorageError
from orchestrator.frontier.feasibility import tolerance
from orchestrator.frontier.problems import Documents
from orchestrator.frontier.summary import FrontierSummary, plain
from orchestrator.frontier.trials import Trials
from orchestrator.plan import Plan
from orchestrator.report.page.boxes import box_records
from orchestrator.report.page.composed import composed_records
from orchestrator.report.page.curves import training_curves
from orchestrator.report.page.lines import Memory, attained, exact_lines, predicted_lines
from orchestrator.report.page.made import made_with
from orchestrator.report.page.pickable import pickable
from orchestrator.report.page.prompts import prompt_changes, shown_prompts
from orchestrator.report.page.records import MOST, rounded, shown, trial_records
from orchestrator.report.page.thumbnails import thumbnails
from orchestrator.report.spent import spent
from orchestrator.report.status import status_document
from orchestrator.report.sweep import (
    any_config,
    pretrained_rewards,
    read_baseline,
    read_certificates,
    read_plan,
    read_points,
    read_solver,
    read_spec,
    summary_of,
)
from orchestrator.report.units import unit_records
from orchestrator.report.words import Words, words
from orchestrator.results.store import SweepStore
from trainers.config import BaselineStatistics, TrialConfig

FORMAT = 1
"""Of the document; it changes when a key changes its meaning."""


def report_document(
    store: SweepStore, *, images: bool = True, memory: Memory | None = None, outcome: str | None = None
) -> dict[str, Any]:
    """Read a sweep, running or finished, into the report's document.

    Args:
        store: The sweep.
        images: Whether to put pictures in; they are most of its size.
        memory: Kept between calls for one sweep, it spares what has been computed before.
        outcome: See ``status_document``.

    Raises:
        SpecError: Spec or plan are damaged, or of another version.
        StorageError: The storage cannot be read, or this is no complete sweep.
    """
    memory = {} if memory is None else memory
    store = store.tolerant(memory)
    plan = read_plan(store)
    spec = read_spec(store)  # or it is no sweep
    problems: list[str] = []
    baseline = _baseline(store, problems)
    ended = store.trials()
    trials = Trials.of(ended, any_config(plan))
    config, summary = trials.config, None
    if baseline is not None:
        solver = read_solver(store, config, baseline)
        summary = summary_of(plan, trials, baseline, solver)
        trials = summary.trials
    proofs = None if baseline is None else _certificates(store, plan, trials, baseline, memory)
    kept = shown(trials)
    if len(kept) < len(trials):
        problems.append(
            f"{len(trials)} trials have finished, and this report holds {len(kept)} of them (the fronts, and "
            "an even sample of the others); the Parquet files hold all"
        )
    records = trial_records(kept, (*plan.trials, *read_points(store, plan)))
    ids = [record["id"] for record in _by_interest(records)]
    composed = bool(config.model.constituents)
    preview = _optional(store.preview, problems)
    bounds = store.bounds()
    pictures = None
    if images:
        pictures, damaged = thumbnails(store, ids, expected=plan.most, memory=memory)
        problems += damaged
        if pictures is not None:
            shot = next(iter(pictures["trials"]))
            pictures["prompts"] = shown_prompts(store.evaluations(shot), pictures["count"])
    boxes: list[dict[str, Any]] = []
    if baseline is not None and not composed:
        start = pretrained_rewards(store, baseline)
        boxes, damaged = box_records(store, plan, trials, baseline, start, memory, images=images)
        problems += damaged
    simplexes: list[dict[str, Any]] = []
    if composed:
        simplexes, damaged = composed_records(store, plan, trials, memory, images=images)
        problems += damaged
    found = {
        "format": FORMAT,
        "sweep": plan.name,
        "path": store.url(),
        "generated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": status_document(store, outcome=outcome),
        "words": (
            _nothing_yet(plan)
            if summary is None
            else words(
                summary,
                planned=len(plan.trials),
                bounds=bounds,
                preview=preview,
                certificates=proofs,
                spent=spent(spec, store),
            )
        ).to_json(),
        "objective": config.objective.model_dump(mode="json"),
        "rewards": _rewards(store, config, baseline, summary),
        "constraints": [
            {
                **record,
                "tolerance": None if baseline is None else tolerance(c, config.evaluation, baseline),
            }
            for c, record in zip(config.constraints, unit_records(config, baseline), strict=True)
        ],
        "deployed": {}
        if baseline is None
        else {n: rounded(known.mean) for n, known in baseline.deployed.items()},
        "models": [model.name for model in config.model.constituents],
        "methods": _methods(summary),
        "comparison": [] if summary is None else [asdict(cell) for cell in summary.cells],
        "reference_point": None if summary is None else dict(summary.reference_point),
        "trials": records,
        "curves": training_curves(store.history() if len(kept) == len(trials) else _histories(store, ids)),
        "prompts": prompt_changes(store, ids, [reward.name for reward in config.rewards]),
        "images": pictures,
        "pick": (
            None
            if composed or baseline is None
            else pickable(trials, baseline, pretrained_rewards(store, baseline))
        ),
        "boxes": boxes,
        "composed": simplexes,
        "exact": [] if summary is None else exact_lines(summary, memory),
        "predicted": [] if composed else predicted_lines(preview, config.targets),
        "attained": [] if summary is None or composed else attained(summary),
        "bounds": [] if bounds is None else bounds.to_pylist(),
        "certificates": proofs or [],
        "kl_floor": None if baseline is None else baseline.kl_floor,
        "seeds": sorted({trial.config.seed for trial in plan.trials}),
        "spec": store.spec_yaml(),
        "versions": {"cdsweep": installed_version("cdsweep")},
        "made": made_with(ended),
        "reproduce": _reproduce(plan, store),
    }
    found["problems"] = [*store.problems, *problems]
    cleaned: dict[str, Any] = plain(found)
    return cleaned


def _certificates(
    store: SweepStore, plan: Plan, trials: Trials, baseline: BaselineStatistics, memory: Memory
) -> Documents | None:
    """Return what path weights prove at the planned thresholds, once for each set of finished trials."""
    key = "certificates", tuple(sorted(trials.ids[trials.succeeded].tolist()))
    if key not in memory:
        memory[key] = read_certificates(store, plan, trials, baseline)
    found: Documents | None = memory[key]
    return found


def _baseline(store: SweepStore, problems: list[str]) -> BaselineStatistics | None:
    try:
        return read_baseline(store) if store.has_baseline() else None
    except (CdsweepError, ValueError) as error:
        problems.append(f"{store.url('baseline.json')}: damaged, so no figures can be compared ({error})")
        return None


def _optional(read: Any, problems: list[str]) -> Any:
    try:
        return read()
    except StorageError as error:
        problems.append(str(error))
        return None


def _nothing_yet(plan: Plan) -> Words:
    return Words(
        bought="No trial has finished yet.",
        take="There is no trial to take yet.",
        taken=None,
        thresholds={},
        holds={},
        uncertain=(
            f"The pretrained model is still to be sampled, and none of {len(plan.trials)} trials has run.",
        ),
    )


def _by_interest(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trials that come first where not all can have pictures: fronts, then feasible ones, then by KL."""
    return sorted(
        records,
        key=lambda record: (
            not record["front"],
            not record.get("feasible"),
            record.get("kl", [float("inf")])[0],
        ),
    )


def _rewards(
    store: SweepStore,
    config: TrialConfig,
    baseline: BaselineStatistics | None,
    summary: FrontierSummary | None,
) -> list[dict[str, Any]]:
    held_out = {} if baseline is None else pretrained_rewards(store, baseline)
    found = []
    for reward in config.rewards:
        known = None if baseline is None else baseline.rewards.get(reward.name)
        mean, error = held_out.get(reward.name, (None, None))
        found.append(
            {
                "name": reward.name,
                "kind": reward.kind,
                "sought": summary is not None and reward.name in summary.sought,
                "mean": None if known is None else rounded(known.mean, 9),
                "std": None if known is None else rounded(known.std, 9),
                "held_out_mean": rounded(mean, 9),
                "held_out_error": rounded(error),
            }
        )
    return found


def _methods(summary: FrontierSummary | None) -> list[dict[str, Any]]:
    if summary is None:
        return []
    names = ("method", "planned", "trials", "succeeded", "feasible", "hypervolume")
    return [
        {name: getattr(method, name) for name in names} | {"front": len(method.front)}
        for method in summary.methods
    ]


def _histories(store: SweepStore, ids: list[str]) -> Any:
    """Logged steps of some trials."""
    import pyarrow as pa  # noqa: PLC0415 - of very large sweeps only

    return pa.concat_tables([store.history(trial_id) for trial_id in ids[:MOST]], promote_options="default")


def _reproduce(plan: Plan, store: SweepStore) -> list[str]:
    """Commands that make the sweep again from its spec; finished trials are not run again."""
    directory = shlex.quote(store.url())
    return [
        f"cdsweep run {shlex.quote(store.url('spec.yaml'))} --storage elsewhere --name {shlex.quote(plan.name)}",
        f"cdsweep resume {directory}",
        f"cdsweep frontier {directory}",
        f"cdsweep report {directory}",
    ]
