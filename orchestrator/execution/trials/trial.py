"""One Tune trial: in this process if it has one worker, else as a Ray Train job.

    Tune trial -> run_alone -> trainers.problem
    Tune trial -> packs.run_packed -> an actor -> run_beside -> trainers.problem, beside other trials
    Tune trial -> gang.run_gang -> TorchTrainer -> gang.run_worker on every rank -> run_rank -> trainers.problem

All end with the trial's rows in the sweep's own files, written by rank 0 of the trial itself.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.errors import StorageError
from orchestrator.execution.asking import put
from orchestrator.execution.cluster.places import SweepPlaces
from orchestrator.execution.metrics import shown
from orchestrator.execution.nearest import nearest_of
from orchestrator.execution.trials.answered import least_at
from orchestrator.execution.trials.attempts import ERROR, one_line
from orchestrator.execution.trials.device import assigned
from orchestrator.execution.trials.paths import absolute
from orchestrator.execution.trials.ports import PackPort, StorePort, TrainPort, TunePort
from orchestrator.execution.trials.provenance import provenance, source_commit
from orchestrator.execution.trials.rounds import better, continued, distance_of, kept
from orchestrator.frontier.dominance import sought_rewards
from orchestrator.report.boxed_card import boxed_card
from orchestrator.report.card import adapter_card
from orchestrator.report.images import strip
from orchestrator.report.sweep import held_out, read_solver
from orchestrator.results import layout
from orchestrator.results.schema import (
    answers_table,
    evaluations_table,
    history_table,
    rounds_of,
    trial_table,
)
from orchestrator.results.store import SweepStore
from orchestrator.spec import ResourcesSpec
from trainers.adapters.files import CARD
from trainers.config import TrialJob
from trainers.failures import OutOfMemory
from trainers.types import TrialOutcome

if TYPE_CHECKING:
    from trainers.hosts.alone import Host
    from trainers.hosts.pack import Pack

_SECONDS_TO_SHOW = 3.0


def task(
    job: TrialJob,
    resources: ResourcesSpec,
    store: SweepStore,
    scratch: str,
    *,
    host: Mapping[str, Any] | None = None,
    asked: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return what a trial process needs, as plain JSON: the dashboard shows it, so there is no secret in it.

    Args:
        job: To be run.
        resources: What it may use.
        store: Where its results go.
        scratch: A folder for what Ray keeps of its own, which nobody reads again.
        host: Of a packed trial, see ``packs``.
        asked: Thresholds that the finished trial is to answer, by constraint; None: it is trained.
    """
    workers = [resources.least_workers, resources.most_workers]
    return {
        "workers": workers if asked is None else [1, 1],
        "asked": None if asked is None else dict(asked),
        "placement": resources.placement.upper(),
        "worker_resources": worker_resources(resources),
        "scratch": scratch,
        "host": None if host is None else dict(host),
        "trial_id": job.trial_id,
        "job": job.model_copy(update={"config": absolute(job.config)}).model_dump_json(),
        "resources": resources.model_dump_json(),
        "storage": store.storage,
        "sweep": store.name,
        "lease": store.lease,
        "commit": source_commit(),
    }


def run_alone(config: dict[str, Any]) -> None:
    """Run a single-worker trial in the Tune trial process, which is reused for the next one."""
    job, resources, store = _unpack(config)
    port = TunePort(job, store, device=assigned())
    try:
        with port.waits_told():
            _run(job, resources, port, config)
    except StorageError:
        raise  # not the trial's fault
    except Exception as error:
        port.publish({ERROR: one_line(error)})
        raise


def run_beside(
    config: dict[str, Any],
    pack: "Pack",
    report: Callable[[dict[str, Any]], None],
    share: Callable[[], float],
) -> None:
    """Run a single-worker trial beside others, in a thread of its own.

    Args:
        config: Of ``task``.
        pack: The trials of the process.
        report: Takes what the trial publishes.
        share: Tells its mean share of the process, since it began.
    """
    job, resources, store = _unpack(config)
    port = PackPort(job, store, report, device=assigned())
    try:
        # What trials of a pack do together a question has no part in.
        with port.waits_told(), pack.trial() if config["asked"] is None else nullcontext() as host:
            _run(job, resources, port, config, host=host, share=share)
    except StorageError:
        raise  # not the trial's fault
    except Exception as error:
        port.publish({ERROR: one_line(error)})
        raise


def run_rank(config: dict[str, Any], rank: int, world_size: int) -> None:
    """Run one rank of a trial with several workers."""
    job, resources, store = _unpack(config)
    try:
        port = TrainPort(job, store, rank=rank, world_size=world_size, device=assigned())
        _run(job, resources, port, config, host=_splitting() if resources.shard else None)
    except Exception:
        # Where another rank has died this one fails too, and is seen first: the cause shall have time to show.
        time.sleep(_SECONDS_TO_SHOW if world_size > 1 else 0.0)
        raise


def _splitting() -> "Host":
    from trainers.hosts.sharded import ShardedHost

    return ShardedHost()


def worker_resources(resources: ResourcesSpec) -> dict[str, float]:
    """Return Ray's resources of one worker."""
    needs = {"CPU": float(resources.cpus_per_worker)}
    if resources.gpus_per_worker:
        needs["GPU"] = float(resources.gpus_per_worker)
    return needs


def _unpack(config: dict[str, Any]) -> tuple[TrialJob, ResourcesSpec, SweepStore]:
    store = SweepStore(config["storage"], config["sweep"])
    if config["lease"] is not None:
        store.hold(config["lease"])
    return (
        TrialJob.model_validate_json(config["job"]),
        ResourcesSpec.model_validate_json(config["resources"]),
        store,
    )


def _run(
    job: TrialJob,
    resources: ResourcesSpec,
    port: StorePort,
    config: Mapping[str, Any],
    *,
    host: "Host | None" = None,
    share: Callable[[], float] = lambda: 1.0,
) -> None:
    """Run this rank's part, alone or on a host of several trials, or answer; rank 0 writes the rows."""
    import torch

    from trainers.problem import run_trial
    from trainers.rewards.served.places import sharing

    torch.set_num_threads(max(1, math.floor(resources.cpus_per_worker)))
    if (asked := config["asked"]) is not None:
        with sharing(SweepPlaces()):
            put(asked, job, port, gpus=resources.gpus_per_worker * share())
        return
    try:
        with shown(port), sharing(SweepPlaces()):
            outcome = run_trial(job, port, host)
    except (ValueError, OutOfMemory) as error:
        # The config is wrong, or asks for too much: another attempt would end the same way.
        outcome = failed(str(error))
    if port.rank == 0:
        outcome = replace(outcome, notes=(*outcome.notes, *port.interruptions))
        made = provenance(job.config, device=port.device, commit=config["commit"])
        made |= {f"reward_{name}": version for name, version in job.baseline.versions.items()}
        gpus = _gpus(resources) * share()
        record(job, outcome, port.store, started_at=port.started_at, gpus=gpus, made=made)


def record(
    job: TrialJob,
    outcome: TrialOutcome,
    store: SweepStore,
    *,
    started_at: datetime,
    gpus: float = 0.0,
    made: Mapping[str, str] | None = None,
) -> None:
    """Write the results of a trial; the row comes last, and with it the trial has finished.

    A trial that was trained further leaves what it had, where it has come to nothing better: its row says so. What is
    better lies beside what there was, under a name of its own, until the row is written.
    """
    before = store.stored_trial(job.trial_id) if job.rounds > 1 else None
    if before is not None and rounds_of(before) >= job.rounds:
        return  # an attempt before was lost after it had written its row
    gpu_seconds = gpus * outcome.wall_seconds
    answers = store.answers(job.trial_id).to_pylist() if before is not None and outcome.answers else []
    if before is not None and not better(job.config, outcome, before, answers):
        store.replace_trial(kept(job, outcome, before, gpu_seconds=gpu_seconds))
        return
    _write_tables(job, outcome, store)
    adapter = None
    if outcome.adapter:
        card = (boxed_card if job.config.method == "frontier" else adapter_card)(job, outcome).encode()
        adapter = store.write_adapter(job.trial_id, {**outcome.adapter, CARD: card}, job.rounds)
    if outcome.evaluation is not None and outcome.evaluation.images is not None:
        beside = store.read_file(layout.PRETRAINED_IMAGE)
        store.write_file(
            layout.image(job.trial_id, job.rounds), strip(outcome.evaluation.images, above=beside)
        )
    table = trial_table(
        job,
        outcome,
        started_at=started_at,
        finished_at=datetime.now(UTC),
        gpu_seconds=gpu_seconds,
        adapter=adapter,
        base_trial=job.base,
        kl_least=_least(job, outcome, store),
        distance=distance_of(job, outcome),
        provenance=made,
    )
    if before is None:
        store.write_trial(table)
    else:
        store.replace_trial(continued(table, before))
    if not (job.continuable and outcome.status == "succeeded"):
        store.drop_checkpoints(job.trial_id)  # nothing goes on from them any more


def _write_tables(job: TrialJob, outcome: TrialOutcome, store: SweepStore) -> None:
    """Write what there is beside the row: samples, answers with their images, logged steps."""
    if outcome.evaluation is not None:
        store.write_evaluations(job.trial_id, evaluations_table(job, outcome.evaluation), job.rounds)
    if outcome.answers:
        drawn = store.baseline_samples()
        least = least_at(job, outcome.answers, None if drawn is None else held_out(drawn))
        from trainers.alignment.boxed.stored_looks import stored_looks

        looks = [look for _, look in stored_looks(job.config, outcome.adapter)]
        nearest = nearest_of(job, outcome.answers, looks)
        table = answers_table(job, outcome.answers, least, nearest=nearest)
        store.write_answers(job.trial_id, table, job.rounds)
    for place, answer in enumerate(outcome.answers):
        if answer.evaluation is not None and answer.evaluation.images is not None:
            path = layout.answer_image(job.trial_id, place, job.rounds)
            store.write_file(path, strip(answer.evaluation.images))
    if outcome.history:
        store.write_history(job.trial_id, history_table(job, outcome.history))


def failed(error: str, *, steps: int = 0) -> TrialOutcome:
    """Return the outcome of a trial that never got to the end of its training; ``steps`` it is known to have done."""
    return TrialOutcome(
        status="failed",
        error=error,
        feasible=None,
        kl=None,
        kl_estimator="path",
        rewards={},
        violations={},
        multipliers={},
        weights={},
        steps=steps,
        wall_seconds=0.0,
        evaluation=None,
        history=(),
    )


def _gpus(resources: ResourcesSpec) -> float:
    return resources.most_workers * resources.gpus_per_worker


def _least(job: TrialJob, outcome: TrialOutcome, store: SweepStore) -> float | None:
    """Return the least KL at what the trial is held against: exact, or as samples predict it."""
    config = job.config
    if outcome.kl is None:
        return None
    problem = read_solver(store, config, job.baseline)
    if problem is None:
        return None
    asked = {target: job.thresholds[name] for name, target in config.targets.items()}
    sought = {*sought_rewards(config), *config.weights}
    reached = {name: outcome.rewards[name].mean for name in sorted(sought & outcome.rewards.keys())}
    optimum = problem.least_kl(problem.held(asked, reached))
    return optimum.kl if math.isfinite(optimum.kl) else None
