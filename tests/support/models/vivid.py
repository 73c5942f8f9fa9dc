"""Short trials of a tiny pipeline that is to become vivid."""

from pathlib import Path
from typing import Any

from support import tiny_pipeline
from trainers.config import (
    BaselineStatistics,
    ConstraintConfig,
    ConvergenceConfig,
    DualConfig,
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    ObjectiveConfig,
    PromptsConfig,
    RewardConfig,
    RewardStatistics,
    SamplingConfig,
    TrainingConfig,
    TrialConfig,
    TrialJob,
)


def vivid_job(
    folder: Path,
    seed: int,
    bound: float,
    *,
    steps: int = 5,
    images: int = 6,
    workers: int = 1,
    **training: Any,
) -> TrialJob:
    """A constrained trial, or of odd seeds a weighted one."""
    config = TrialConfig(
        model=ModelConfig(
            pretrained=str(folder), lora=LoraConfig(rank=2, targets=("to_q", "to_out.0", "conv1"))
        ),
        prompts=PromptsConfig(train=tiny_pipeline.PROMPTS, evaluate=("red square", "blue triangle")),
        sampling=SamplingConfig(steps=4, rest=1, order=2, guidance=2.0),
        rewards=(RewardConfig(name="vivid", kind="saturation"),),
        objective=ObjectiveConfig(),
        constraints=(
            ConstraintConfig(name="vivid", kind="reward", target="vivid", bound=bound, unit="sigma"),
        ),
        method="weighted" if seed % 2 else "constrained",
        weights={"vivid": bound} if seed % 2 else {},
        seed=seed,
        workers=workers,
        training=TrainingConfig(
            **{
                "steps": steps,
                "batch_per_worker": 4,
                "learning_rate": 1e-2,
                "primal": "reward_backprop",
                "checkpoint_every": 2,
                **training,
            }
        ),
        duals=DualConfig(start=1.0),
        convergence=ConvergenceConfig(window=4),
        evaluation=EvaluationConfig(images=images, baseline_images=12, every=1),
    )
    statistics = {"vivid": RewardStatistics(mean=0.3, std=0.1)}
    return TrialJob(
        trial_id=f"{seed}-{bound}",
        config=config,
        baseline=BaselineStatistics(rewards=statistics, samples=12),
        thresholds={"vivid": 0.3 + 0.1 * bound},
        start=() if seed % 2 else (1.0,),
    )
