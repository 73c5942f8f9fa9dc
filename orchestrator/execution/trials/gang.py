"""A trial of several workers as a Ray Train job.

This module imports next to nothing: Train's controller and the trial's own process load it too, one after the
other, and every second they import is a second before the first training step.
"""

import uuid
from typing import Any


def run_gang(config: dict[str, Any]) -> None:
    """Run the trial of ``trial.task`` in the Tune trial process, which only waits for the workers."""
    from ray import train, tune
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    least, most = config["workers"]
    trainer = TorchTrainer(
        run_worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend=backend(config["worker_resources"])),
        scaling_config=train.ScalingConfig(
            num_workers=most if least == most else (least, most),
            # How soon room that has come up is used: a resize starts all workers again, from their checkpoint.
            elastic_resize_monitor_interval_s=60.0,
            placement_strategy=config["placement"],
            use_gpu="GPU" in config["worker_resources"],
            resources_per_worker=config["worker_resources"],
        ),
        run_config=train.RunConfig(
            # Train resumes by name, from checkpoints of its own; ours are in the sweep, so every attempt is new.
            name=f"{config['trial_id']}-{uuid.uuid4().hex[:8]}",
            storage_path=config["scratch"],
            callbacks=[TuneReportCallback()],
            # Failures go to Tune: there errors of the trial and losses of machines have one place to be counted.
            failure_config=train.FailureConfig(max_failures=0),
        ),
    )
    try:
        trainer.fit()
    except train.WorkerGroupError as error:
        if (own := _own_error(list(error.worker_failures.values()))) is not None:
            from orchestrator.execution.trials.attempts import ERROR

            tune.report({ERROR: own})
        raise


def backend(needs: dict[str, float]) -> str | None:
    """Return what carries the workers' sums; None leaves it to Ray: NCCL between GPUs, gloo between CPUs.

    NCCL refuses two workers on one GPU ("duplicate GPU detected"), which is where parts of a GPU may lie.
    """
    return "gloo" if 0 < needs.get("GPU", 0.0) < 1 else None


def _own_error(failures: list[Exception]) -> str | None:
    """Return the error of the trial itself; None where a worker, a node or the storage was lost."""
    import ray

    from orchestrator.errors import StorageError
    from orchestrator.execution.trials.attempts import one_line

    # Ray wraps what a worker raised, together with its traceback.
    errors = [getattr(failure, "_base_exc", failure) for failure in failures]
    if not errors or any(isinstance(error, ray.exceptions.RayActorError | StorageError) for error in errors):
        return None
    return one_line(errors[0])


def run_worker(config: dict[str, Any]) -> None:
    """Run one rank."""
    from ray import train

    from orchestrator.execution.trials.trial import run_rank

    context = train.get_context()
    run_rank(config, context.get_world_rank(), context.get_world_size())
