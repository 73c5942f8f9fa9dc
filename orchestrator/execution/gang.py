"""A trial of several workers as a Ray Train job.

This module imports next to nothing: Train's controller and the trial's own process load it too, one after the
other, and every second they import is a second before the first training step.
"""

import uuid
from typing import Any

WORKER_FAILURES = 3
"""How often Ray Train starts a trial's workers again from the last checkpoint."""


def run_gang(config: dict[str, Any]) -> None:
    """Run the trial of ``trial.task`` in the Tune trial process, which only waits for the workers."""
    from ray import train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    trainer = TorchTrainer(
        run_worker,
        train_loop_config=config,
        scaling_config=train.ScalingConfig(
            num_workers=config["workers"],
            use_gpu="GPU" in config["worker_resources"],
            resources_per_worker=config["worker_resources"],
        ),
        run_config=train.RunConfig(
            # Train resumes by name, from checkpoints of its own; ours are in the sweep, so every attempt is new.
            name=f"{config['trial_id']}-{uuid.uuid4().hex[:8]}",
            storage_path=config["scratch"],
            callbacks=[TuneReportCallback()],
            failure_config=train.FailureConfig(max_failures=WORKER_FAILURES),
        ),
    )
    trainer.fit()


def run_worker(config: dict[str, Any]) -> None:
    """Run one rank."""
    from ray import train

    from orchestrator.execution.trial import run_rank

    context = train.get_context()
    run_rank(config, context.get_world_rank(), context.get_world_size())
