"""A trained adapter under the sampler that will be used: a scheduler of diffusers, on the trial's own network."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trainers.config import DeployedConfig, PromptsConfig
from trainers.models.base import Draw, Rollout
from trainers.models.decoding import decoded
from trainers.models.denoiser import Denoiser
from trainers.models.pipeline_policy import PipelinePolicy
from trainers.pipelines.asking import deployed_mistakes


class DeployedPolicy:
    """Samples as ``pipeline(prompt, generator=…)`` does with that scheduler: an evaluation may ask it as any policy.

    Its noise is that of the evaluation, the first draw of each image's generator. Paths have no KL here.
    """

    paired_samples = False

    def __init__(self, policy: PipelinePolicy, prompts: PromptsConfig, deployed: DeployedConfig) -> None:
        """Take the policy whose adapter it is.

        Raises:
            ValueError: the pipeline is not sampled so, or steps go beyond its noise levels.
        """
        self.chunk, self._policy, self._prompts, self._config = policy.chunk, policy, prompts, deployed
        parts = policy.parts
        for (_, key), rule, value in deployed_mistakes(
            parts.family.form, parts.configs, parts.model, deployed
        ):
            raise ValueError(f"evaluation.as_deployed.{key} {rule}, got {value!r}")
        self._denoiser = Denoiser(parts, deployed.asked)
        self._denoiser.timesteps = self._scheduler().timesteps.tolist()

    def _scheduler(self) -> Any:
        """Return the scheduler; one counts its steps, and remembers some."""
        parts = self._policy.parts
        return parts.family.deployed(parts.pipeline.scheduler.config, self._config, parts.latent_shape)

    def fixed_draw(self, seed: int, first: int, last: int, prompts: Sequence[str] | None = None) -> Draw:
        """Return the seeds and prompts of samples of the evaluation's sequence; noise is drawn as it is needed."""
        asked = self._prompts.in_turn("evaluate", seed) if prompts is None else tuple(prompts)
        numbers = np.arange(first, last)
        return Draw(
            noise=torch.zeros(1, len(numbers)),
            seeds=(seed + numbers).astype(np.int64),
            prompts=tuple(asked[number % len(asked)] for number in numbers),
            seed=seed,
        )

    @torch.no_grad()
    def rollout(self, draw: Draw, *, reference: bool = False) -> Rollout:
        """Sample with the adapter, or without."""
        assert draw.prompts is not None
        parts, scheduler = self._policy.parts, self._scheduler()
        generators = [torch.Generator().manual_seed(seed) for seed in draw.seeds.tolist()]
        drawn = [torch.randn((1, *parts.latent_shape), generator=each) for each in generators]
        state = torch.cat(drawn).to(parts.device)
        conditions = self._denoiser.conditions(draw.prompts)
        noisy = {"eta": self._config.eta, "generator": generators} if self._config.eta > 0 else {}
        for step, level in enumerate(scheduler.timesteps):
            output = self._denoiser.output(
                step, state, conditions, prepare=lambda: self._policy.switch(on=not reference)
            )
            state = scheduler.step(output, level, state, **noisy).prev_sample
        nothing = torch.zeros(len(draw))
        return Rollout(samples=decoded(parts, state), path_kl=nothing, log_ratio=nothing, final=state)
