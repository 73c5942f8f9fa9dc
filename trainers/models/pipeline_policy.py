"""A diffusers pipeline with a LoRA adapter, as a policy.

Symbols: ``x_t`` latents, ``x̂_0`` (``clean``) the denoised guess after guidance, ``u`` the control. A step draws
``x ← A x + B x̂ + C ε`` (``diffusion.schedule``), so policy and reference differ by ``u = (B / C) (x̂_p − x̂_q)``, and the
path-wise KL is ``½ Σ ‖u‖²``: the formula on noise predictions, ``Σ w_t ‖ε_p − ε_q‖²``, in terms that hold for every
prediction type.

In a chain of second order each of the two extrapolates from its own guess of the step before, both asked at the states
of the policy's path; means are functions of the path so far, and the KL is exact all the same. What is extrapolated is
the pair, ``(x̂_q, x̂_p − x̂_q)``. In the first step in which the adapter rests both go on from the reference's: what
differed before would have a KL there, and an infinite one in a step without noise.

The reference is the same network without its adapter. Both are asked in one call, which gives the reference's guess
and the difference, the latter exact whatever the precision (``models.shifted``). The reference's guess carries its
gradient to the state: its parameters are frozen, but the policy chooses the states at which it is asked.

Where thresholds move in a box the adapter has gates, functions of the tilt that a sample is asked for, each its own
(``models.conditional``).
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from trainers.config import (
    Checkpointing,
    LoraConfig,
    ModelConfig,
    PromptsConfig,
    SamplingConfig,
    TrainingConfig,
)
from trainers.diffusion.path_kl import along_noise, path_kl_from_controls
from trainers.models.base import Draw, Guesses, Rollout, Start, Tap
from trainers.models.compiled import Network
from trainers.models.conditional.form import PRICE
from trainers.models.decoding import again, decoded
from trainers.models.denoiser import Denoiser, on_its_own, random_seeds, shuffled
from trainers.models.families.base import Conditions
from trainers.models.layers.trained_lora import USUAL, Adapter
from trainers.models.pipeline import Parts, load_parts
from trainers.types import FloatArray


class Join(Protocol):
    """Lets the network of a policy be asked together with those of others."""

    def __call__(self, adapter: Adapter, network: Network, *, paired: bool | None) -> Network:
        """Return what gives the same answers; see ``denoiser.Joined``."""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A place among policies on one network."""

    parts: Parts
    """Theirs."""
    name: str = USUAL
    """Of the adapter."""
    join: Join | None = None
    """Asks the network together with them."""


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
        gradient_checkpointing: Checkpointing = False,
        compiled: bool = False,
        paired: bool = False,
        images_per_prompt: int = 1,
        join: Join | None = None,
        listed: Sequence[str] = (),
    ) -> None:
        """Tabulate the sampler's steps.

        Args:
            parts: Of the pipeline.
            adapter: On its network.
            prompts: Of training and evaluation.
            sampling: The sampler.
            reference_gradient: Let the reference's prediction carry its gradient to the state.
            gradient_checkpointing: Compute steps and decoder again in the backward pass, or part of them.
            compiled: Compile the network.
            paired: Ask for pairs, also where rows would do.
            images_per_prompt: Neighbours of a batch that share a prompt.
            join: Asks the network together with those of others.
            listed: Prompts of which training asks for all; they are encoded before its first batch.

        Raises:
            ValueError: steps, a size or guidance that the model does not have, or a prediction type that is not known.
        """
        parts.check(sampling)
        self.parts, self._adapter, self._prompts = parts, adapter, prompts
        self._images_per_prompt = images_per_prompt
        self._strata = tuple(prompts.train_metadata.values())
        joined = {} if join is None else {"joined": partial(join, adapter)}
        self._denoiser = Denoiser(
            parts,
            sampling,
            compiled=compiled,
            paired=paired,
            # Blocks are computed again by themselves, when no step is under way.
            sparing=gradient_checkpointing in (True, "selective"),
            listed=listed,
            **joined,
        )
        self._tilt: Tensor | None = None
        self._timesteps, self.table = self._denoiser.timesteps, self._denoiser.table
        self._reference_gradient, self._checkpointing = reference_gradient, gradient_checkpointing
        if gradient_checkpointing == "blocks":
            parts.network.enable_gradient_checkpointing()

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
        beside: Beside | None = None,
        acting: Sequence[str] = (),
        form: str = PRICE,
    ) -> "PipelinePolicy":
        """Load the pipeline onto a device, and add a fresh adapter to it, or one from elsewhere by its files.

        Args:
            model: The pipeline and its adapter.
            prompts: Of training and evaluation.
            sampling: The sampler.
            training: Arithmetic.
            device: Where it computes.
            adapter: Files of one.
            beside: A pipeline that is loaded already, with adapters of others on it.
            acting: Rewards of whose tilt the adapter is a function; none where it is for one optimum.
            form: Of that function.

        Raises:
            ValueError: the pipeline or the adapter cannot be used; says why.
        """
        parts = (
            load_parts(model, training.precision, device, offload=training.offload)
            if beside is None
            else beside.parts
        )
        return cls(
            parts,
            Adapter(
                parts.network,
                adapter or model.lora or LoraConfig(),
                USUAL if beside is None else beside.name,
                rewards=acting,
                form=form,
            ),
            prompts,
            sampling,
            reference_gradient=training.reference_gradient,
            gradient_checkpointing=training.gradient_checkpointing,
            compiled=training.compile,
            images_per_prompt=training.images_per_prompt,
            join=None if beside is None else beside.join,
            listed=_all_asked(prompts, training),
        )

    @property
    def trained(self) -> Adapter:
        """What is trained."""
        return self._adapter

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

    def at(self, tilt: FloatArray) -> "PipelinePolicy":
        """Return the policy at one tilt ``[R]``; it shares network and adapter."""
        there = copy.copy(self)
        there._tilt = torch.as_tensor(tilt, dtype=torch.float32, device=self.parts.device)  # noqa: SLF001 - its own kind
        return there

    def expect(self, tilts: FloatArray) -> None:
        """Scale the gates for tilts ``[n, R]``."""
        assert self._adapter.form is not None, "an adapter without gates knows no tilts"
        self._adapter.form.expect(tilts)

    def folded(self, tilt: FloatArray) -> dict[str, bytes]:
        """Return the plain LoRA that the adapter is at one tilt ``[R]``, in the diffusers format."""
        return self._adapter.folded(torch.as_tensor(tilt, dtype=torch.float32, device=self.parts.device))

    def switch(self, *, on: bool) -> None:
        """Switch the adapter on or off for whoever asks the network next."""
        self._adapter.switch(on=on)

    # ------------------------------------------------------------------ noise and prompts

    def draw(self, count: int, seed: int, *, first: int = 0, last: int | None = None) -> Draw:
        """Return part of a batch; its prompts are a random choice without repetition, as far as they go.

        Each of them stands for as many neighbours as there are images of a prompt.
        """
        self._denoiser.read_list()
        seeds, each = random_seeds(count, seed), self._images_per_prompt
        asked = shuffled(self._prompts.train, -(-count // each), seed, self._strata)
        part = slice(first, count if last is None else last)
        return Draw(
            noise=self._denoiser.noise(seeds[part]),
            seeds=seeds[part],
            prompts=tuple(asked[place // each] for place in range(count))[part],
            seed=seed,
            first=first,
            count=count,
            tilt=self._tilts(len(seeds[part])),
        )

    def _tilts(self, count: int) -> Tensor | None:
        """Return the tilt of every one of ``count`` samples, where all have one."""
        return None if self._tilt is None else self._tilt.expand(count, -1)

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
            tilt=self._tilts(len(numbers)),
        )

    # ------------------------------------------------------------------ sampling

    def rollout(
        self,
        draw: Draw,
        *,
        reference: bool = False,
        through: int | None = None,
        keep: bool = False,
        start: Start | None = None,
        tap: Tap | None = None,
    ) -> Rollout:
        """Sample from the policy, or from the reference."""
        assert draw.prompts is not None
        conditions, table = self._denoiser.conditions(draw.prompts), self.table
        start = start or Start(step=0, state=draw.noise[0])
        state, before, redo = start.state, start.before, None
        path_kl = along = torch.zeros(len(draw), device=state.device)
        inputs, controls, shifts, squares = [], [], [], []
        for step in range(start.step, self.steps):
            noise = draw.noise[step + 1]
            if step == self.active_steps - 1:
                redo = before
            if not reference and step < self.active_steps:
                guesses = self._pair(step, on_its_own(state), conditions, draw.tilt)
            else:
                guesses = Guesses(clean=self._reference(step, on_its_own(state), conditions))
            clean, shift = self._extrapolated(step, guesses, before)
            if shift is not None:
                control = self._denoiser.control(step, shift)
                path_kl = path_kl + path_kl_from_controls(control[None])
                along = along + along_noise(control[None], noise[None])
                clean = clean + shift
                if keep:
                    inputs.append(state)
                    controls.append(control)
                    shifts.append(control + noise.flatten(1))
            squares.append(self._denoiser.squared_velocity(step, state.detach(), clean.detach()))
            state, before = table.mean(step, state, clean) + float(table.noise[step]) * noise, guesses
            if through is not None and step + 1 <= self.active_steps - through:
                state = state.detach()
            if tap is not None and shift is not None:
                tap(state, float(table.noise[step]))
        return Rollout(
            samples=decoded(self.parts, state, checkpointing=self._checkpointing),
            path_kl=path_kl,
            log_ratio=path_kl.detach() + along,
            final=state,
            before=None if redo is None else redo.detached(),
            inputs=torch.stack(inputs) if keep else None,
            controls=torch.stack(controls) if keep else None,
            shifts=torch.stack(shifts) if keep else None,
            velocity=torch.stack(squares).mean(dim=0).sqrt() if squares else None,
        )

    def traced(self, draw: Draw) -> tuple[Rollout, Tensor]:
        """Sample with the gradients of every step's control at a state that is taken as given."""
        drawn = self.rollout(draw, through=0, keep=True)
        assert drawn.controls is not None
        assert drawn.shifts is not None
        without = replace(drawn, path_kl=drawn.path_kl.detach(), shifts=drawn.shifts.detach())
        return without, drawn.controls

    def controls(self, draw: Draw, inputs: Tensor) -> Tensor:
        """Return the controls at a rollout's states."""
        assert draw.prompts is not None
        conditions = self._denoiser.conditions(draw.prompts)
        controls, before = list[Tensor](), None
        for step, state in enumerate(inputs):
            guesses = self._pair(step, state, conditions, draw.tilt)
            shift = self._extrapolated(step, guesses, before)[1]
            assert shift is not None, "the adapter acts"
            controls.append(self._denoiser.control(step, shift))
            before = guesses
        return torch.stack(controls)

    def noised(self, final: Tensor, step: int, noise: Tensor) -> Tensor:
        """Return final latents noised to the start of a step."""
        return self.table.noised(step, final, noise)

    def _reference(self, step: int, state: Tensor, conditions: Conditions) -> Tensor:
        """Return the reference's ``x̂_0``, float32, shape of ``state``, where the adapter rests."""
        return self._denoiser.guess(
            step,
            state,
            conditions,
            prepare=partial(self._adapter.switch, on=False),
            checkpointed=again(self._checkpointing),
        )[0]

    def _pair(self, step: int, state: Tensor, conditions: Conditions, tilts: Tensor | None) -> Guesses:
        """Return the reference's ``x̂_0`` and ``x̂_p − x̂_q``, float32, each of the shape of ``state``."""
        clean, shift = self._denoiser.pair(
            step,
            state,
            conditions,
            prepare=partial(self._adapter.switch_beside_reference, paired=self._denoiser.paired, tilts=tilts),
            detached=not self._reference_gradient,
            checkpointed=again(self._checkpointing),
        )
        return Guesses(clean=clean[0], shift=shift[0])

    def _extrapolated(
        self, step: int, guesses: Guesses, before: Guesses | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the reference's ``x̂``, and ``x̂_p − x̂_q`` where the adapter acts."""
        clean, shift = guesses.clean, guesses.shift
        clean = self.table.extrapolated(step, on_its_own(clean), None if before is None else before.clean)
        if shift is None:
            return clean, None
        known = None if before is None else before.shift
        return clean, self.table.extrapolated(step, on_its_own(shift), known)


def _all_asked(prompts: PromptsConfig, training: TrainingConfig) -> tuple[str, ...]:
    """Return all prompts, where training draws at least as many; none of lists of which it sees a small part."""
    texts = tuple(dict.fromkeys((*prompts.train, *prompts.evaluate)))
    drawn = training.steps * training.accumulation * training.batch_per_worker // training.images_per_prompt
    return texts if len(texts) <= drawn else ()
