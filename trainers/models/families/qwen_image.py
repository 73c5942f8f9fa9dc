"""Qwen-Image: a transformer of two streams, texts in a template, an autoencoder of videos, guidance of one length."""

from typing import Any, ClassVar

from torch import Tensor

from trainers.models.families.base import CPU, Conditions
from trainers.models.families.flow import Flow, exactly, packed, unpacked
from trainers.models.shifted import Shifted
from trainers.pipelines.asking import Asked, Configs
from trainers.pipelines.families import QWEN_IMAGE, Family


class QwenImage(Flow):
    """Asked with the noise level; what it predicts with guidance is, patch by patch, as long as without."""

    form: ClassVar[Family] = QWEN_IMAGE
    sequence: ClassVar[bool] = True

    def encode(self, pipeline: Any, texts: list[str], asked: Asked) -> Conditions:
        """Return the last states of the text encoder after the template, as many as the text has tokens."""
        sequence, mask = pipeline.encode_prompt(texts, device=CPU, max_sequence_length=asked.tokens)
        whole = sequence.new_ones(sequence.shape[:2]) if mask is None else mask
        return Conditions(sequence=sequence, mask=whole.to(sequence.dtype))

    def told(self, configs: Configs, asked: Asked) -> dict[str, tuple[int, ...]]:
        """Return the shape of the longest text's states."""
        return {"sequence": (asked.tokens or 0, int(configs["transformer"]["joint_attention_dim"]))}

    def ask(self, network: Any, latents: Tensor, level: Tensor, conditions: Conditions) -> Tensor | Shifted:
        """Return what the transformer predicts."""
        time = (level / 1000).expand(len(latents))
        height, width = (side // 2 for side in latents.shape[-2:])
        with exactly(network.time_text_embed, time):
            output = network(
                hidden_states=packed(latents),
                timestep=time,
                encoder_hidden_states=conditions.sequence,
                encoder_hidden_states_mask=None if conditions.mask is None else conditions.mask > 0,
                img_shapes=[[(1, height, width)]] * len(latents),
                return_dict=False,
            )[0]
        found: Tensor | Shifted = unpacked(output, latents)
        return found

    def guide(self, empty: Any, conditional: Any, scale: float) -> Any:
        """Return the guided prediction, every patch scaled to the length of that with the prompt."""
        guided = super().guide(empty, conditional, scale)
        rows, wanted = packed(guided.flatten(0, 1)), packed(conditional.flatten(0, 1))
        lengths = [value.norm(dim=-1, keepdim=True) for value in (wanted, rows)]
        scaled = unpacked(rows * (lengths[0] / lengths[1]), guided.flatten(0, 1))
        return scaled.reshape(guided.shape)

    def unscaled(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents with mean and deviation by channel, as one frame."""
        mean, deviation = (
            latents.new_tensor(values)[:, None, None]
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return (latents * deviation + mean).unsqueeze(2)

    def decoded(self, vae: Any, latents: Tensor) -> Tensor:
        """Return the only frame."""
        return super().decoded(vae, latents)[:, :, 0]
