"""One Tune trial: in this process if it has one worker, else as a Ray Train job.

    Tune trial -> run_alone -> trainers.loop
    Tune trial -> run_gang -> TorchTrainer -> run_worker on every rank -> trainers.loop

Both end with the trial's rows in the sweep's own files, written by rank 0 of the trial itself.
"""

import math
import uuid
from datetime import UTC, datetime
from typing import Any

from orchestrator.execution.ports import StorePort, TrainPort, TunePort
from orchestrator.frontier.exact import ExactProblem
from orchestrator.results.schema import evaluations_table, history_table, trial_table
from orchestrator.results.store import SweepStore
from orchestrator.spec.models import ResourcesSpec
from trainers.config import TrialConfig, TrialJob
from trainers.types import TrialOutcome

WORKER_FAILURES = 3
"""How often Ray Train starts a trial's workers again from the last checkpoint."""


def task(job: TrialJob, resources: ResourcesSpec, storage: str, sweep: str) -> dict[str, Any]:
    """Return what a trial process needs, as plain JSON: the dashboard shows it, so there is no secret in it."""
    return {
        "trial_id": job.trial_id,
        "job": job.model_dump_json(),
        "resources": resources.model_dump_json(),
        "storage": storage,
        "sweep": sweep,
    }


def run_alone(config: dict[str, Any]) -> None:
    """Run a single-worker trial in the Tune trial process, which is reused for the next one."""
    job, resources, store = _unpack(config)
    _run(job, resources, TunePort(job, store))


def run_gang(config: dict[str, Any]) -> None:
    """Run a trial of several workers as a Ray Train job."""
    from ray import train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    job, resources, store = _unpack(config)
    trainer = TorchTrainer(
        run_worker,
        train_loop_config=config,
        scaling_config=train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=worker_resources(resources),
        ),
        run_config=train.RunConfig(
            # Train resumes by name, from checkpoints of its own; ours are in the sweep, so every attempt is new.
            name=f"{job.trial_id}-{uuid.uuid4().hex[:8]}",
            storage_path=store.url(".ray"),
            callbacks=[TuneReportCallback()],
            failure_config=train.FailureConfig(max_failures=WORKER_FAILURES),
        ),
    )
    trainer.fit()


def run_worker(config: dict[str, Any]) -> None:
    """Run one rank of a Ray Train job."""
    from ray import train

    job, resources, store = _unpack(config)
    context = train.get_context()
    port = TrainPort(job, store, rank=context.get_world_rank(), world_size=context.get_world_size())
    _run(job, resources, port)


def worker_resources(resources: ResourcesSpec) -> dict[str, float]:
    """Return Ray's resources of one worker."""
    needs = {"CPU": float(resources.cpus_per_worker)}
    if resources.gpus_per_worker:
        needs["GPU"] = float(resources.gpus_per_worker)
    return needs


def _unpack(config: dict[str, Any]) -> tuple[TrialJob, ResourcesSpec, SweepStore]:
    return (
        TrialJob.model_validate_json(config["job"]),
        ResourcesSpec.model_validate_json(config["resources"]),
        SweepStore(config["storage"], config["sweep"]),
    )


def _run(job: TrialJob, resources: ResourcesSpec, port: StorePort) -> None:
    """Run this rank's share; rank 0 writes the rows."""
    import torch

    from trainers.loop import run_trial

    torch.set_num_threads(max(1, math.floor(resources.cpus_per_worker)))
    try:
        outcome = run_trial(job, port)
    except ValueError as error:
        # The config is wrong: another attempt would end the same way.
        outcome = failed(str(error))
    if port.rank == 0:
        record(job, outcome, port.store, started_at=port.started_at, gpus=_gpus(resources))


def record(
    job: TrialJob, outcome: TrialOutcome, store: SweepStore, *, started_at: datetime, gpus: float = 0.0
) -> None:
    """Write the results of a trial; the row comes last, and with it the trial has finished."""
    if outcome.evaluation is not None:
        store.write_evaluations(job.trial_id, evaluations_table(job, outcome.evaluation))
    if outcome.history:
        store.write_history(job.trial_id, history_table(job, outcome.history))
    row = trial_table(
        job,
        outcome,
        started_at=started_at,
        finished_at=datetime.now(UTC),
        gpu_seconds=gpus * outcome.wall_seconds,
        kl_least=_least(job.config, outcome),
    )
    store.write_trial(row)
    if outcome.status == "succeeded":
        store.drop_checkpoints(job.trial_id)


def failed(error: str) -> TrialOutcome:
    """Return the outcome of a trial that never got to the end of its training."""
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
        steps=0,
        wall_seconds=0.0,
        evaluation=None,
        history=(),
    )


def _gpus(resources: ResourcesSpec) -> float:
    return resources.workers * resources.gpus_per_worker


def _least(config: TrialConfig, outcome: TrialOutcome) -> float | None:
    """Return the exact least KL at the rewards reached by objective and constraints, where it is known."""
    if not outcome.rewards or not ExactProblem.supported(config.rewards):
        return None
    sought = {c.target for c in config.constraints if c.kind == "reward"} | set(config.weights)
    if config.objective.kind == "reward":
        sought.add(config.objective.target)
    exact = ExactProblem(config.model.mixture, config.rewards)
    optimum = exact.least_kl({name: outcome.rewards[name].mean for name in sorted(sought)})
    return optimum.kl if optimum.reachable else None
