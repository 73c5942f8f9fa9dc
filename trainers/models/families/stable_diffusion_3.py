"""Stable Diffusion 3 and 3.5: a transformer of two streams, images and text, trained by flow matching."""

from typing import Any, ClassVar

from diffusers import DiffusionPipeline
from torch import Tensor

from trainers.models.families.base import CPU, Conditions, clip_tokens
from trainers.models.families.flow import Flow
from trainers.models.shifted import Shifted
from trainers.pipelines.asking import Asked, Configs
from trainers.pipelines.families import STABLE_DIFFUSION_3, Family, left_out


class StableDiffusion3(Flow):
    """Asked with 1000 times the noise level; predicts the velocity ``ε − x_0``."""

    form: ClassVar[Family] = STABLE_DIFFUSION_3
    even: ClassVar[bool] = False  # so its scheduler shifts twice

    def load(self, source: str, **options: Any) -> Any:
        """Return the pipeline; diffusers wants to be told what its index says is left out."""
        told = {key: options[key] for key in ("revision",) if options.get(key) is not None}
        index = DiffusionPipeline.load_config(source, **told)
        return super().load(source, **dict.fromkeys(left_out(self.form, index)), **options)

    def encode(self, pipeline: Any, texts: list[str], asked: Asked) -> Conditions:
        """Return the states of the text encoders in one sequence, and the pooled ones.

        Without T5 its part is left out: diffusers fills it with zeros, ``max_sequence_length=0`` does the same as here.
        """
        states, _, pooled, _ = pipeline.encode_prompt(
            texts,
            None,
            None,
            device=CPU,
            do_classifier_free_guidance=False,
            max_sequence_length=asked.tokens,
        )
        return Conditions(sequence=states, pooled=pooled)

    def told(self, configs: Configs, asked: Asked) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the text encoders' states and of the pooled text."""
        network = configs["transformer"]
        return {
            "sequence": (clip_tokens(configs) + (asked.tokens or 0), int(network["joint_attention_dim"])),
            "pooled": (int(network["pooled_projection_dim"]),),
        }

    def ask(self, network: Any, latents: Tensor, level: Tensor, conditions: Conditions) -> Tensor | Shifted:
        """Return what the transformer predicts."""
        output: Tensor | Shifted = network(
            hidden_states=latents,
            timestep=level.expand(len(latents)),
            encoder_hidden_states=conditions.sequence,
            pooled_projections=conditions.pooled,
            return_dict=False,
        )[0]
        return output
