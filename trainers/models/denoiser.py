"""A pipeline's network at the steps of the sampler: noise, text, and guided guesses at the clean image.

Symbols: ``x_t = α x_0 + σ ε`` latents, ``x̂_0`` (``clean``) the denoised guess after guidance. A step draws
``x ← A x + B x̂ + C ε`` (``diffusion.schedule``), so the mean's shift in units of its noise is ``u = (B / C) x̂``: terms
that hold for every prediction type.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainers.config import SamplingConfig
from trainers.models.compiled import CompiledPairs, Network
from trainers.models.families.base import CLEAN, Conditions, clean_of
from trainers.models.layers.remade import remaking
from trainers.models.pipeline import Parts
from trainers.models.shifted import Shifted
from trainers.models.texts import Reader
from trainers.turns import Column, turns


class Joined(Protocol):
    """Lets a network be asked together with others'."""

    def __call__(self, network: Network, *, paired: bool | None) -> Network:
        """Return a network that gives the same answers.

        Args:
            network: The own one.
            paired: Whether an adapter acts beside the reference in pairs, or as rows; None where none acts.
        """


class Denoiser:
    """The frozen network, asked at the noise levels of the sampler."""

    def __init__(
        self,
        parts: Parts,
        sampling: SamplingConfig,
        *,
        compiled: bool = False,
        paired: bool = False,
        sparing: bool = False,
        joined: Joined = lambda network, *, paired: network,  # noqa: ARG005 - alone
        listed: Sequence[str] = (),
    ) -> None:
        """Tabulate the sampler's steps.

        Args:
            parts: Of the pipeline.
            sampling: Of its chain.
            compiled: Compile the network.
            paired: Ask for pairs, also where rows would do.
            sparing: Keep less for the backward pass (``remade``).
            joined: Lets the network be asked together with that of others.
            listed: Texts of which all will be asked for.

        Raises:
            ValueError: steps that the model does not have, or a prediction type that is not known.
        """
        self.parts, self._sparing = parts, sparing
        config = parts.pipeline.scheduler.config
        self._family = parts.family
        self.timesteps, self.table = self._family.steps(config, sampling, parts.latent_shape)
        self.prediction = self._family.prediction(config)
        if self.prediction not in CLEAN:
            raise ValueError(
                f"the scheduler's prediction_type is {self.prediction!r}; known: {', '.join(CLEAN)}"
            )
        self._told = parts.asked(sampling)
        # A noiseless last step, which the sampler leaves out, counts among those in which adapters rest.
        self.adapted_steps = min(sampling.steps - sampling.rest, self.steps)
        alone: Network = partial(self._asked, torch.compile(parts.network) if compiled else parts.network)
        self._network = joined(alone, paired=None)
        self.paired = paired or compiled or not exact(parts)
        """Whether ``pair`` has values in pairs (``shifted``); else the policy's are rows after the reference's."""
        pairs: Network = partial(self._asked if self.paired else self._side_by_side, parts.network)
        self._pairs = joined(CompiledPairs(pairs) if compiled else pairs, paired=self.paired)
        self._reader = Reader(parts.texts, self._told, listed)

    @property
    def steps(self) -> int:
        """Gaussian steps K of the sampler."""
        return len(self.timesteps)

    @property
    def guided(self) -> bool:
        """Whether the network is asked without a prompt too."""
        return self._told.free is not None

    def noise(self, seeds: NDArray[np.int64]) -> Tensor:
        """Return ``[K + 1, batch, C, h, w]``, drawn on the CPU as diffusers draws it from one generator per image."""
        shape = (1, *self.parts.latent_shape)
        samples = []
        for seed in seeds.tolist():
            generator = torch.Generator().manual_seed(seed)
            samples.append(
                torch.stack([torch.randn(shape, generator=generator) for _ in range(self.steps + 1)])
            )
        return torch.cat(samples, dim=1).to(self.parts.device)

    def conditions(self, *asked: Sequence[str]) -> Conditions:
        """Return the conditions of ``m`` lists of prompts, ``[m, batch, …]``; each text is encoded once.

        Guided, ``[1 + m, batch, …]`` with those of "" first: one for all lists.
        """
        rows = [[self._reader.of(prompt) for prompt in prompts] for prompts in asked]
        if self.guided:
            rows = [[self._reader.away()] * len(asked[0]), *rows]
        found = Conditions.joined([Conditions.joined(row, torch.cat) for row in rows], torch.stack)
        return found.each(lambda value: value.to(self.parts.device))

    def read_list(self) -> None:
        """Encode the listed texts now, after which the text encoders are not needed for them."""
        self._reader.read_list()

    def guess(
        self,
        step: int,
        state: Tensor,
        conditions: Conditions,
        *,
        prepare: Callable[[], None],
        checkpointed: bool = False,
    ) -> Tensor:
        """Return ``x̂_0`` after guidance for every list of prompts, ``[m, batch, …]``, float32.

        Args:
            step: Number of the step, from 0.
            state: ``[batch, …]``.
            conditions: Of ``conditions()``.
            prepare: Switches adapters; called before the network, again where it is computed again.
            checkpointed: Compute the network again in the backward pass, in place of keeping what it needs.
        """
        output, _ = self._output(
            self._network, step, state, conditions, prepare=prepare, checkpointed=checkpointed
        )
        return self._clean(step, state, self._guide(output))

    def pair(
        self,
        step: int,
        state: Tensor,
        conditions: Conditions,
        *,
        prepare: Callable[[], None],
        detached: bool = False,
        checkpointed: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return ``guess`` of the reference, and how far that of the policy is from it, from one call.

        Args:
            step: Number of the step, from 0.
            state: ``[batch, …]``.
            conditions: Of ``conditions()``.
            prepare: Lets the policy's adapter act as a shift.
            detached: Let no gradient through the network into the reference's guess.
            checkpointed: As in ``guess``.
        """
        both = self._output(self._pairs, step, state, conditions, prepare=prepare, checkpointed=checkpointed)
        guided = self._guide(Shifted(*both))
        output, shift = guided.base, guided.shift
        if detached:
            # Of the output, not the guess: the share of the state in it cancels between two. The policy keeps both.
            output, shift = output.detach(), shift + (output - output.detach())
        return self._clean(step, state, output), self._clean(step, torch.zeros_like(state), shift)

    def output(
        self, step: int, state: Tensor, conditions: Conditions, *, prepare: Callable[[], None]
    ) -> Tensor:
        """Return what the network predicts of ``[batch, …]`` after guidance, in its own terms, float32."""
        output, _ = self._output(self._network, step, state, conditions, prepare=prepare)
        found: Tensor = self._guide(output)[0]
        return found

    def squared_velocity(self, step: int, state: Tensor, clean: Tensor) -> Tensor:
        """Return the mean square over latents of the velocity that a guess ``x̂_0`` of a step means, ``[batch]``.

        ``ε̂ − x̂_0`` of a flow; of a diffusion ``α ε̂ − σ x̂_0`` (Salimans & Ho 2022, arXiv 2202.00512), whatever its
        network predicts.
        """
        levels = self.table.levels
        alpha, sigma = float(levels.alpha[step]), float(levels.sigma[step])
        noise = (state - alpha * clean) / sigma
        velocity = noise - clean if self.prediction == "flow" else alpha * noise - sigma * clean
        return velocity.square().flatten(1).mean(dim=1)

    def _clean(self, step: int, state: Tensor, output: Tensor) -> Tensor:
        """Return ``x̂_0`` of the network's output; it is linear in state and output."""
        levels = self.table.levels
        return clean_of(self.prediction, state, output, float(levels.alpha[step]), float(levels.sigma[step]))

    def _output(
        self,
        network: Network,
        step: int,
        state: Tensor,
        conditions: Conditions,
        *,
        prepare: Callable[[], None],
        checkpointed: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return what the network predicts and its shift, float32, ``[m, batch, …]``; guided, those of "" first."""
        call = partial(self._call, network, step, prepare=prepare)
        if checkpointed and torch.is_grad_enabled():
            # The random state need not be kept: nothing in a frozen network draws.
            output, shift = checkpoint(call, state, conditions, use_reentrant=False, preserve_rng_state=False)
            return output, shift
        return call(state, conditions)

    def _call(
        self,
        network: Network,
        step: int,
        state: Tensor,
        conditions: Conditions,
        *,
        prepare: Callable[[], None],
    ) -> tuple[Tensor, Tensor]:
        """Return the network's output and its shift, ``[1 + m, batch, …]`` each, float32; all in one call."""
        prepare()
        latents = torch.cat([on_its_own(state)] * len(conditions))
        output, shift = network(
            latents.to(self.parts.dtype, memory_format=torch.channels_last),
            torch.tensor(self.timesteps[step], device=state.device),
            conditions.each(lambda value: value.flatten(0, 1)),
        )
        shape = (len(conditions), *state.shape)
        return output.reshape(shape), shift.expand(output.shape).reshape(shape)

    def _asked(
        self, network: Any, latents: Tensor, level: Tensor, conditions: Conditions
    ) -> tuple[Tensor, Tensor]:
        """Return the network's output and its shift, float32."""
        dtype = self.parts.dtype
        with (
            torch.autocast(self.parts.device.type, dtype, enabled=dtype != torch.float32),
            remaking(self._sparing),
        ):
            output = self._family.ask(network, latents, level, conditions)
        if isinstance(output, Shifted):
            return output.base.float(), output.shift.float()
        return output.float(), output.new_zeros((), dtype=torch.float32)

    def _side_by_side(
        self, network: Any, latents: Tensor, level: Tensor, conditions: Conditions
    ) -> tuple[Tensor, Tensor]:
        """Return the reference's output and the policies' shift from it, of the rows of one call (``policy_rows``)."""
        twice = conditions.each(lambda value: torch.cat([value, value]))
        both, _ = self._asked(network, torch.cat([latents, latents]), level, twice)
        base, moved = both.chunk(2)
        return base, moved - base

    def _guide(self, output: Any) -> Any:
        """Return the network's output, a tensor or pairs, after guidance, ``[m, batch, …]``."""
        if self._told.free is None:
            return output
        return self._family.guide(output[:1], output[1:], self._told.free)

    def control(self, step: int, clean: Tensor) -> Tensor:
        """Return ``u`` of ``x̂`` ``[…, C, h, w]``, or of a difference of two, ``[…, d]``."""
        return self.table.gain(step) * clean.flatten(-3)


def on_its_own(value: Tensor) -> Tensor:
    """Return the same value with a gradient of its own.

    So that a gradient is a sum of two: of three the order would count, and it hangs on who made the graph.
    """
    return value.view_as(value)


def exact(parts: Parts) -> bool:
    """Whether the difference of two values is known well enough from the values: float32 throughout.

    Then the reference and the policy are rows of one call, faster than as pairs. GPUs round what float32 convolutions
    read to 10 bits. Rows read weights, and packed ones cannot be read.
    """
    if parts.model.quantise is not None:
        return False
    plain = torch.get_float32_matmul_precision() == "highest"
    return parts.dtype == torch.float32 and parts.device.type == "cpu" and plain


def random_seeds(count: int, seed: int) -> NDArray[np.int64]:
    """Return ``count`` seeds of noise; more of them begin with the same ones."""
    state = np.random.SeedSequence(seed).generate_state(count, np.uint64)
    return (state >> np.uint64(1)).astype(np.int64)


def shuffled(
    prompts: Sequence[str], count: int, seed: int, columns: tuple[Column, ...] = ()
) -> tuple[str, ...]:
    """Return ``count`` prompts at random, none again before all had their turn; more begin with the same ones.

    With columns of metadata any number of the first has its share of every group, as near as it can (``turns``).
    """
    rng, known = np.random.default_rng(seed), len(prompts)

    def turn() -> Sequence[int]:
        if columns:
            return turns(known, int(rng.integers(2**63)), columns)
        found: list[int] = rng.permutation(known).tolist()
        return found

    order = [place for _ in range(-(-count // known)) for place in turn()]
    return tuple(prompts[place] for place in order[:count])
