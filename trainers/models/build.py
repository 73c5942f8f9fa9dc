"""From a trial's configuration to its policy."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from trainers.config import FrontierConfig, TrialConfig
from trainers.models.base import Policy
from trainers.models.mixture_policy import MixturePolicy

if TYPE_CHECKING:
    from trainers.models.pipeline_policy import Beside


def build_policy(
    config: TrialConfig,
    device: str = "cpu",
    *,
    adapter: Mapping[str, bytes] | None = None,
    beside: "Beside | None" = None,
) -> Policy:
    """Return the trial's model with a fresh residual, a function of its seed; a mixture computes on the CPU anyway.

    Args:
        config: Of the trial.
        device: Where networks compute.
        adapter: Files of one, a plain LoRA of any ranks, in place of a fresh one of a pipeline.
        beside: Of a pipeline: one that is loaded already.

    Raises:
        ValueError: the model or the adapter cannot be used; says why.
    """
    torch.manual_seed(config.seed)
    if config.model.mixture is not None:
        tilts = 0 if config.frontier is None else len(config.acting)
        return MixturePolicy.build(config.model.mixture, config.sampling, config.training.width, tilts)
    assert config.prompts is not None, "a valid spec gives a pipeline prompts"
    # Here, because diffusers takes seconds to import and a mixture needs none of it.
    from trainers.models.pipeline_policy import PipelinePolicy  # noqa: PLC0415

    return PipelinePolicy.build(
        config.model,
        config.prompts,
        config.sampling,
        config.training,
        device,
        adapter=adapter,
        beside=beside,
        # What comes from elsewhere is plain.
        acting=() if config.frontier is None or adapter is not None else config.acting,
        form=(config.frontier or FrontierConfig()).form,
    )


def build_deployed(config: TrialConfig, policy: Policy) -> Policy | None:
    """Return what samples a trial's adapter as ``evaluation.as_deployed`` says; None where it says nothing.

    Raises:
        ValueError: the pipeline cannot be sampled so.
    """
    deployed = config.evaluation.as_deployed
    if deployed is None:
        return None
    assert config.prompts is not None, "a pipeline has prompts"
    from trainers.models.deployed import DeployedPolicy  # noqa: PLC0415 - as above
    from trainers.models.pipeline_policy import PipelinePolicy  # noqa: PLC0415

    assert isinstance(policy, PipelinePolicy), "a mixture is refused at plan"
    found: Any = DeployedPolicy(policy, config.prompts, deployed)
    sampled: Policy = found  # an evaluation asks for no more than it has
    return sampled
