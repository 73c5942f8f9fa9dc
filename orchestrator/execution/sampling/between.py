"""Points between finished trials: their adapters interpolated, measured in this process, and kept beside trials.

    thresholds b
      -> the cheapest mixture of trials that holds b at 95 % confidence, probabilities w        (``cdsweep pick``)
      -> one adapter Σ w_k ΔW_k in place of a draw; it is measured on the held-out samples of every evaluation
      -> where its bound lies short of b, b is raised by what is lacking and solved for again. All looks count.

One network that lies between two often costs less KL than drawing from one or the other, and is never sure to: it is
measured. Every look leaves a row of the method ``interpolated``, which is a finished point from then on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from orchestrator.errors import PlacementError, UsageError
from orchestrator.execution.trials.device import CPU, own
from orchestrator.execution.trials.ports import StorePort
from orchestrator.execution.trials.provenance import provenance, source_commit
from orchestrator.execution.trials.trial import record
from orchestrator.frontier.bounds import FrontierPoint, OutOfReachError, pick
from orchestrator.frontier.feasibility import joint_deviations
from orchestrator.frontier.sampled import PRETRAINED
from orchestrator.frontier.trials import Trials
from orchestrator.plan import Plan, interpolated_point, make_job
from orchestrator.report.picked import candidates
from orchestrator.report.sweep import pretrained_rewards, read_baseline, read_trials
from orchestrator.results.store import SweepStore
from trainers.adapters.interpolation import interpolated
from trainers.config import TrialJob
from trainers.failures import OutOfMemory

LOOKS = 3
"""Adapters that are measured for one answer, at most."""
FEWEST = 2
"""Adapters that something lies between."""
_TRAINED = ("constrained", "weighted")
"""Methods whose trials leave one plain adapter."""
_PAST = 1.1
"""Thresholds are raised by so many times what is lacking."""
_ROUNDED = 1e-6
"""Weights below it are none."""


@dataclass(frozen=True, kw_only=True)
class Between:
    """What was done for an answer."""

    looked: tuple[str, ...]
    """Ids of the points that were looked at, in turn; the last one holds what was asked, if any does."""
    measured: tuple[str, ...]
    """Those of them that were measured for it; the others were there."""
    held: bool
    """Whether the last one holds it."""


def measure_between(
    store: SweepStore, plan: Plan, at_least: Mapping[str, float], say: Callable[[str], None]
) -> Between:
    """Look for an interpolated adapter that holds thresholds together at 95 % confidence.

    Args:
        store: The sweep, which nobody drives.
        plan: Its own.
        at_least: By reward of the sweep, reward units.
        say: Told what is measured.

    Raises:
        UsageError: The sweep is running; its model is a mixture; fewer than two trials have left an adapter; or these
            cannot be interpolated, or used here.
        PlacementError: The memory does not hold one image.
        StorageError: The storage cannot be read or written.
    """
    if plan.base.model.mixture is not None:
        raise UsageError(
            f"the model of {store.name} is a mixture, whose trials leave networks: a weighted sum of two networks is "
            "none, so nothing lies between them. Leave out --measure, or add the method frontier"
        )
    store.await_driver(say)
    trials, baseline = read_trials(store, plan), read_baseline(store)
    kept = [name is not None for name in trials.provenance["adapter"].to_pylist()]
    parents = trials.take(np.isin(trials.methods, _TRAINED) & np.array(kept, dtype=np.bool_))
    if len(parents) < FEWEST:
        raise UsageError(
            f"{len(parents)} of the constrained and weighted trials of {store.name} have left an adapter, and it takes "
            f"{FEWEST} for something to lie between"
        )
    known = candidates(parents, pretrained_rewards(store, baseline))
    names, points = [name for name, _ in known], [point for _, point in known]
    asked = np.array([at_least.get(name, -np.inf) for name in trials.rewards])
    deviations, raised = joint_deviations(len(at_least)), asked.copy()
    looked, measured, held = list[str](), list[str](), False
    while len(looked) < LOOKS and not held:
        try:
            found = pick(points, raised, deviations=deviations)
        except OutOfReachError:
            break  # what there is without it is picked, or refused in its words
        shares = dict(zip((names[k] for k in found.members), found.probabilities, strict=True))
        weights = {name: w for name, w in shares.items() if name != PRETRAINED and w > _ROUNDED}
        if not weights or (len(weights) == 1 and max(weights.values()) > 1 - _ROUNDED):
            break  # the pretrained model, or one trial as it is
        seed = int(parents.seeds[parents.ids == max(weights, key=lambda name: weights[name])][0])
        point = interpolated_point(plan.base, weights, at_least, seed)
        if store.trial(point.trial_id) is None:
            say(
                f"measuring {' + '.join(f'{w:.3g}·{name}' for name, w in weights.items())} on held-out samples"
            )
            _measure(make_job(point, baseline), store)
            measured.append(point.trial_id)
        looked.append(point.trial_id)
        missing = _missing(_point(store, plan, trials, point.trial_id), asked, deviations)
        held = not missing.any()
        raised = raised + _PAST * missing
    return Between(looked=tuple(looked), measured=tuple(measured), held=held)


def _measure(job: TrialJob, store: SweepStore) -> None:
    """Measure a point as the trials of its sweep were, and write its row."""
    from trainers.alignment.outcome import measured

    started, device = datetime.now(UTC), own()
    parts = [(name, store.adapter(name), weight) for name, weight in (job.config.interpolated or {}).items()]
    try:
        outcome = measured(
            job,
            interpolated(parts),
            reference=StorePort(job, store).reference(),
            looks=LOOKS,
            device=device,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OutOfMemory as error:
        raise PlacementError(str(error)) from error
    record(
        job,
        outcome,
        store,
        started_at=started,
        gpus=float(device != CPU),
        made=provenance(job.config, device=device, commit=source_commit()),
    )


def _point(store: SweepStore, plan: Plan, like: Trials, trial_id: str) -> FrontierPoint:
    """Return what a point that was measured is picked by."""
    found = read_trials(store, plan)
    [(_, point)] = candidates(found.take(found.ids == trial_id), dict.fromkeys(like.rewards, (0.0, 0.0)))[1:]
    return point


def _missing(point: FrontierPoint, asked: np.ndarray, deviations: float) -> np.ndarray:
    """Return by how much the bounds of a point fall short of thresholds, ``[m]``, at least 0."""
    try:
        pick([point], asked, deviations=deviations, mix=False)
    except OutOfReachError as error:
        short = error.missing
        return np.zeros_like(asked) if short is None else np.maximum(short, 0.0)
    return np.zeros_like(asked)
