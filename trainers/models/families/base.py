"""What a family of pipelines is to the sampler: how its network is told of text and level, and what it answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from trainers.config import DeployedConfig, SamplingConfig
from trainers.diffusion.schedule import StepTable
from trainers.models.shifted import Shifted
from trainers.pipelines.asking import Asked, Configs
from trainers.pipelines.families import Family


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a network is told of texts. All fields have the same first dimensions, and are sliced and joined alike."""

    sequence: Tensor
    """``[…, length, d]``, a vector for each token."""
    mask: Tensor | None = None
    """``[…, length]``, 1 for the tokens of a text, 0 for what fills up shorter ones, where the family counts them."""
    pooled: Tensor | None = None
    """``[…, d]``, one for the whole text, where the family has it."""
    sizes: Tensor | None = None
    """``[…, 6]``, height and width of the original, top and left of what is cropped from it, height and width of the
    image, pixels, where the family has them."""
    guidance: Tensor | None = None
    """``[…]``, what the network is told, where it is."""

    def __len__(self) -> int:
        """Return the first dimension."""
        return len(self.sequence)

    def named(self) -> dict[str, Tensor]:
        """Return the fields that there are, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def each(self, change: Callable[[Tensor], Tensor]) -> "Conditions":
        """Return the conditions with every field changed."""
        return Conditions(**{name: change(value) for name, value in self.named().items()})

    def filled(self, length: int) -> "Conditions":
        """Return the conditions with texts of so many tokens, filled up with zeros."""
        missing = length - self.sequence.shape[-2]
        if missing == 0:
            return self
        assert self.mask is not None, "a family whose texts differ in length says which tokens count"
        sequence = nn.functional.pad(self.sequence, (0, 0, 0, missing))
        return replace(self, sequence=sequence, mask=nn.functional.pad(self.mask, (0, missing)))

    def rows(self) -> list["Conditions"]:
        """Return the conditions of each text, ``[1, …]``, without what fills it up."""
        found = []
        for place in range(len(self)):
            row = Conditions(**{name: value[place : place + 1] for name, value in self.named().items()})
            if row.mask is not None:
                length = int(row.mask.sum())
                row = replace(row, sequence=row.sequence[:, :length], mask=row.mask[:, :length])
            found.append(row)
        return found

    @staticmethod
    def joined(parts: Sequence["Conditions"], join: Callable[[list[Tensor]], Tensor]) -> "Conditions":
        """Return conditions of one family as one, by ``torch.cat`` or ``torch.stack``."""
        longest = max(part.sequence.shape[-2] for part in parts)
        rows = [part.filled(longest).named() for part in parts]
        return Conditions(**{name: join([row[name] for row in rows]) for name in rows[0]})


class NetworkFamily(Protocol):
    """One way of predicting and conditioning."""

    form: ClassVar[Family]
    """What its pipelines consist of."""

    def load(self, source: str, **options: Any) -> Any:
        """Return the pipeline of diffusers in a directory or repository.

        Args:
            source: Of it.
            options: Of ``from_pretrained``.
        """

    def steps(
        self, scheduler: Any, sampling: SamplingConfig, shape: tuple[int, int, int]
    ) -> tuple[Sequence[float], StepTable]:
        """Return what the network is told of the level at each step, ``[K]``, and the steps, noisiest first.

        Args:
            scheduler: Configuration of the pipeline's.
            sampling: Steps, noise and spacing.
            shape: Of the latents, on which levels may depend.

        Raises:
            ValueError: The model does not have such steps.
        """

    def deployed(self, scheduler: Any, used: DeployedConfig, shape: tuple[int, int, int]) -> Any:
        """Return the scheduler of diffusers that will be used, with its timesteps set as the pipeline's call sets them.

        Args:
            scheduler: Configuration of the pipeline's.
            used: Sampler and steps.
            shape: Of the latents, on which levels may depend.

        Raises:
            ValueError: The model is not sampled so.
        """

    def prediction(self, scheduler: Any) -> str:
        """Return the name of what the network predicts."""

    def encode(self, pipeline: Any, texts: list[str], asked: Asked) -> Conditions:
        """Return the conditions of texts, ``[n, …]``, on the CPU; each as alone, filled up to the longest."""

    def away(self, pipeline: Any, asked: Asked) -> Conditions:
        """Return what guidance leads away from, ``[1, …]``: the conditions of the negative prompt, or of ""."""
        return self.encode(pipeline, [asked.negative_prompt or ""], asked)

    def told(self, configs: Configs, asked: Asked) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the conditions of one prompt by name, from the configurations of the components."""

    def ask(self, network: Any, latents: Tensor, level: Tensor, conditions: Conditions) -> Tensor | Shifted:
        """Return what the network predicts, ``[batch, C, h, w]``.

        Args:
            network: Of the pipeline.
            latents: ``[batch, C, h, w]``, in the network's precision.
            level: Scalar, of ``steps``.
            conditions: ``[batch, …]``.
        """

    def guide(self, empty: Any, conditional: Any, scale: float) -> Any:
        """Return what the network predicts after guidance, ``[m, batch, C, h, w]``; takes and gives tensors, or pairs.

        Args:
            empty: Its prediction without the prompt, ``[1, batch, C, h, w]``.
            conditional: That with each prompt, ``[m, batch, C, h, w]``.
            scale: Of guidance.
        """
        return empty + scale * (conditional - empty)

    def unscaled(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents as the autoencoder decodes them."""

    def decoded(self, vae: Any, latents: Tensor) -> Tensor:
        """Return images ``[batch, 3, h, w]`` in [-1, 1] of latents without their scale."""
        images: Tensor = vae.decode(latents).sample
        return images

    def own(
        self,
        pipeline: Any,
        prompts: list[str],
        sampling: SamplingConfig,
        noise: Tensor,
        asked: Asked,
        **options: Any,
    ) -> Tensor:
        """Return what the pipeline itself makes of noise, without any in its steps, on the levels of ``steps``.

        Latents, ``[batch, C, h, w]``: what a chain must come to where its η goes to 0. Images, where the options say so
        (``output_type``).

        Args:
            pipeline: Of diffusers.
            prompts: ``[batch]``.
            sampling: Steps and spacing.
            noise: ``[batch, C, h, w]``.
            asked: What it is told besides.
            options: Of the pipeline's call.
        """

    def save_adapter(self, folder: Path, layers: dict[str, Tensor], settings: dict[str, Any]) -> None:
        """Write an adapter as ``load_lora_weights`` of the pipeline reads it."""


def clean_of(prediction: str, state: Tensor, output: Tensor, alpha: float, sigma: float) -> Tensor:
    """Return ``x̂_0`` of a network's output at ``x = α x_0 + σ ε``; linear in state and output."""
    return CLEAN[prediction](state, output, alpha, sigma)


def _from_noise(state: Tensor, noise: Tensor, alpha: float, sigma: float) -> Tensor:
    return (state - sigma * noise) / alpha


def _from_velocity(state: Tensor, velocity: Tensor, alpha: float, sigma: float) -> Tensor:
    return alpha * state - sigma * velocity


def _from_sample(state: Tensor, sample: Tensor, alpha: float, sigma: float) -> Tensor:  # noqa: ARG001 - one of four alike
    return sample


def _from_flow(state: Tensor, velocity: Tensor, alpha: float, sigma: float) -> Tensor:  # noqa: ARG001 - α is 1 − σ
    return state - sigma * velocity


CLEAN = {
    "epsilon": _from_noise,
    "v_prediction": _from_velocity,
    "sample": _from_sample,
    "flow": _from_flow,
}
"""From latents, network output, ``α`` and ``σ`` to ``x̂_0``, by what the network predicts."""


def call_of(asked: Asked, prompts: list[str]) -> dict[str, Any]:
    """Return what a pipeline's call is told of a batch of prompts, whose negative one it wants as often."""
    arguments = {"prompt": prompts, **asked.arguments}
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(prompts)
    return arguments


def clip_tokens(configs: Configs) -> int:
    """Return the tokens that a text encoder of CLIP's kind reads."""
    return int(configs.get("text_encoder", {}).get("max_position_embeddings", _CLIP_TOKENS))


_CLIP_TOKENS = 77
"""Where a configuration does not say."""
SIZES = 6
"""Numbers that ``Conditions.sizes`` has of an image."""
CPU = torch.device("cpu")
"""Where text encoders stay: every prompt is encoded once."""
