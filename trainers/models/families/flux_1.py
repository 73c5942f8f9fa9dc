"""FLUX.1: a transformer of two streams and then one, asked of patches in a sequence, and told its guidance."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from trainers.models.families.base import CPU, Conditions
from trainers.models.families.flow import Flow, exactly, packed, places, unpacked
from trainers.models.shifted import Shifted
from trainers.pipelines.asking import Asked, Configs
from trainers.pipelines.families import FLUX_1, Family


class Flux1(Flow):
    """Asked with the noise level; what it is told of guidance, the models that draw in few steps are not."""

    form: ClassVar[Family] = FLUX_1
    sequence: ClassVar[bool] = True

    def encode(self, pipeline: Any, texts: list[str], asked: Asked) -> Conditions:
        """Return the states of T5, the pooled text of CLIP, and the guidance."""
        sequence, pooled, _ = pipeline.encode_prompt(
            texts, device=CPU, num_images_per_prompt=1, max_sequence_length=asked.tokens
        )
        return Conditions(
            sequence=sequence, pooled=pooled, guidance=sequence.new_full((len(texts),), asked.told or 1.0)
        )

    def told(self, configs: Configs, asked: Asked) -> dict[str, tuple[int, ...]]:
        """Return the shapes of both text encoders' states and of the guidance."""
        network = configs["transformer"]
        return {
            "sequence": (asked.tokens or 0, int(network["joint_attention_dim"])),
            "pooled": (int(network["pooled_projection_dim"]),),
            "guidance": (),
        }

    def ask(self, network: Any, latents: Tensor, level: Tensor, conditions: Conditions) -> Tensor | Shifted:
        """Return what the transformer predicts; the places of all tokens of a text are the same."""
        time = level.expand(len(latents))
        height, width = (side // 2 for side in latents.shape[-2:])
        with exactly(network.time_text_embed, time):
            output = network(
                hidden_states=packed(latents),
                timestep=time / 1000,
                guidance=conditions.guidance if network.config.guidance_embeds else None,
                encoder_hidden_states=conditions.sequence,
                pooled_projections=conditions.pooled,
                txt_ids=torch.zeros(conditions.sequence.shape[1], 3, device=latents.device),
                img_ids=places(height, width, latents.device),
                return_dict=False,
            )[0]
        found: Tensor | Shifted = unpacked(output, latents)
        return found
