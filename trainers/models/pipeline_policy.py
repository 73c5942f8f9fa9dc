"""A Stable Diffusion pipeline with a LoRA adapter, as a policy.

Symbols: ``x_t`` latents, ``x̂_0`` (``clean``) the denoised guess after guidance, ``σ`` the noise of a step, ``u`` the
control. A step draws ``x ← from_state · x + from_clean · x̂_0 + σ ε`` (``diffusion.schedule``), so policy and
reference differ by ``u = (from_clean / σ) (x̂_p − x̂_q)``, and the path-wise KL is ``½ Σ ‖u‖²``: the formula on noise
predictions, ``Σ w_t ‖ε_p − ε_q‖²``, in terms that hold for v-prediction too.

The reference is the same network without its adapter. Both are asked in one call, which gives the reference's guess
and the difference, the latter exact whatever the precision (``models.shifted``). The reference's guess carries its
gradient to the state: its parameters are frozen, but the policy chooses the states at which it is asked.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainers.config import LoraConfig, ModelConfig, PromptsConfig, SamplingConfig, TrainingConfig
from trainers.diffusion.path_kl import along_noise, path_kl_from_controls
from trainers.models.base import Draw, Rollout, noised
from trainers.models.denoiser import Denoiser, random_seeds, shuffled
from trainers.models.pipeline import Parts, load_parts
from trainers.models.trained_lora import Adapter


class PipelinePolicy:
    """The frozen pipeline with its trainable adapter."""

    chunk = 32
    paired_samples = False

    def __init__(
        self,
        parts: Parts,
        adapter: Adapter,
        prompts: PromptsConfig,
        sampling: SamplingConfig,
        *,
        reference_gradient: bool = True,
        gradient_checkpointing: bool = False,
        compiled: bool = False,
    ) -> None:
        """Tabulate the sampler's steps.

        Raises:
            ValueError: steps that the model does not have, or a prediction type that is not known.
        """
        self.parts, self._adapter, self._prompts = parts, adapter, prompts
        self._denoiser = Denoiser(parts, sampling, compiled=compiled)
        self._timesteps, self.table = self._denoiser.timesteps, self._denoiser.table
        self._reference_gradient, self._checkpointing = reference_gradient, gradient_checkpointing

    @classmethod
    def build(
        cls,
        model: ModelConfig,
        prompts: PromptsConfig,
        sampling: SamplingConfig,
        training: TrainingConfig,
        device: str = "cpu",
        *,
        adapter: Mapping[str, bytes] | None = None,
    ) -> "PipelinePolicy":
        """Load the pipeline onto a device, and add a fresh adapter to it, or one from elsewhere by its files.

        Raises:
            ValueError: the pipeline or the adapter cannot be used; says why.
        """
        parts = load_parts(model, training.precision, device)
        return cls(
            parts,
            Adapter(parts.unet, adapter or model.lora or LoraConfig()),
            prompts,
            sampling,
            reference_gradient=training.reference_gradient,
            gradient_checkpointing=training.gradient_checkpointing,
            compiled=training.compile,
        )

    @property
    def steps(self) -> int:
        """Gaussian steps K of the sampler."""
        return len(self._timesteps)

    @property
    def active_steps(self) -> int:
        """The first steps; in the others the adapter rests."""
        return self._denoiser.adapted_steps

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the adapter's matrices."""
        return self._adapter.parameters()

    def adapter(self) -> dict[str, bytes]:
        """Return the adapter in the diffusers LoRA format."""
        return self._adapter.files()

    def load_adapter(self, files: Mapping[str, bytes]) -> None:
        """Take the adapter that ``adapter()`` returned.

        Raises:
            ValueError: it does not fit this UNet and this rank.
        """
        self._adapter.load(files)

    # ------------------------------------------------------------------ noise and prompts

    def draw(self, count: int, seed: int, *, first: int = 0, last: int | None = None) -> Draw:
        """Return part of a batch; its prompts are a random choice without repetition, as far as they go."""
        seeds = random_seeds(count, seed)
        part = slice(first, count if last is None else last)
        return Draw(
            noise=self._denoiser.noise(seeds[part]),
            seeds=seeds[part],
            prompts=shuffled(self._prompts.train, count, seed)[part],
            seed=seed,
            first=first,
            count=count,
        )

    def fixed_draw(self, seed: int, first: int, last: int, prompts: Sequence[str] | None = None) -> Draw:
        """Return samples of the sequence: sample ``i`` has seed ``seed + i`` and prompt ``i`` modulo their number.

        Prompts are in the order in which they are given; the held-out ones in that of ``in_turn``.
        """
        asked = self._prompts.in_turn("evaluate", seed) if prompts is None else tuple(prompts)
        numbers = np.arange(first, last)
        seeds = (seed + numbers).astype(np.int64)
        return Draw(
            noise=self._denoiser.noise(seeds),
            seeds=seeds,
            prompts=tuple(asked[i % len(asked)] for i in numbers),
            seed=seed,
        )

    # ------------------------------------------------------------------ sampling

    def rollout(
        self,
        draw: Draw,
        *,
        reference: bool = False,
        through: int | None = None,
        keep: bool = False,
        start: tuple[int, Tensor] | None = None,
    ) -> Rollout:
        """Sample from the policy, or from the reference."""
        assert draw.prompts is not None
        embedding = self._denoiser.embedding(draw.prompts)
        first, state = (0, draw.noise[0]) if start is None else start
        path_kl = along = torch.zeros(len(draw), device=state.device)
        inputs, shifts = [], []
        for step in range(first, self.steps):
            noise = draw.noise[step + 1]
            if not reference and step < self.active_steps:
                clean, shift = self._pair(step, state, embedding)
                control = self._denoiser.control(step, shift)
                path_kl = path_kl + path_kl_from_controls(control[None])
                along = along + along_noise(control[None], noise[None])
                clean = clean + shift
                if keep:
                    inputs.append(state)
                    shifts.append(control + noise.flatten(1))
            else:
                clean = self._reference(step, state, embedding)
            state = self._next(step, state, clean, noise)
            if through is not None and step + 1 <= self.active_steps - through:
                state = state.detach()
        return Rollout(
            samples=self._decode(state),
            path_kl=path_kl,
            log_ratio=path_kl.detach() + along,
            final=state,
            inputs=torch.stack(inputs) if keep else None,
            shifts=torch.stack(shifts) if keep else None,
        )

    def controls(self, draw: Draw, inputs: Tensor) -> Tensor:
        """Return the controls at a rollout's states."""
        assert draw.prompts is not None
        embedding = self._denoiser.embedding(draw.prompts)
        return torch.stack(
            [
                self._denoiser.control(step, self._pair(step, state, embedding)[1])
                for step, state in enumerate(inputs)
            ]
        )

    def noised(self, final: Tensor, step: int, noise: Tensor) -> Tensor:
        """Return final latents noised to the start of a step."""
        return noised(self.table, final, step, noise)

    def _reference(self, step: int, state: Tensor, embedding: Tensor) -> Tensor:
        """Return the reference's ``x̂_0``, float32, shape of ``state``, where the adapter rests."""
        return self._denoiser.guess(
            step,
            state,
            embedding,
            prepare=partial(self._adapter.switch, on=False),
            checkpointed=self._checkpointing,
        )[0]

    def _pair(self, step: int, state: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reference's ``x̂_0`` and ``x̂_p − x̂_q``, float32, each of the shape of ``state``."""
        clean, shift = self._denoiser.pair(
            step,
            state,
            embedding,
            prepare=self._adapter.switch_as_shift,
            detached=not self._reference_gradient,
            checkpointed=self._checkpointing,
        )
        return clean[0], shift[0]

    def _next(self, step: int, state: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
        table = self.table
        mean = float(table.from_state[step]) * state + float(table.from_clean[step]) * clean
        return mean + float(table.sigma[step]) * noise

    def _decode(self, state: Tensor) -> Tensor:
        if self._checkpointing and torch.is_grad_enabled():
            decoded: Tensor = checkpoint(
                self.parts.decode, state, use_reentrant=False, preserve_rng_state=False
            )
            return decoded
        return self.parts.decode(state)
