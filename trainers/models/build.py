"""From a trial's configuration to its policy."""

import torch

from trainers.config import TrialConfig
from trainers.models.base import Policy
from trainers.models.mixture_policy import MixturePolicy


def build_policy(config: TrialConfig, device: str = "cpu") -> Policy:
    """Return the trial's model with a fresh residual, a function of its seed; a mixture computes on the CPU anyway.

    Raises:
        ValueError: the model cannot be used; says why.
    """
    torch.manual_seed(config.seed)
    if config.model.mixture is not None:
        return MixturePolicy.build(config.model.mixture, config.sampling, config.training.width)
    assert config.prompts is not None, "a valid spec gives a pipeline prompts"
    # Here, because diffusers takes seconds to import and a mixture needs none of it.
    from trainers.models.pipeline_policy import PipelinePolicy  # noqa: PLC0415

    return PipelinePolicy.build(config.model, config.prompts, config.sampling, config.training, device)
