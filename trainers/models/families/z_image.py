"""Z-Image: a transformer of one stream, asked of lists of images and texts, of which each has its own length."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from trainers.models.families.base import CPU, Conditions
from trainers.models.families.flow import Flow
from trainers.models.shifted import Shifted
from trainers.pipelines.asking import Asked, Configs
from trainers.pipelines.families import Z_IMAGE, Family


class ZImage(Flow):
    """Asked with time in reverse, 1 less the noise level; predicts ``x_0 − ε``, the velocity negated."""

    form: ClassVar[Family] = Z_IMAGE

    def encode(self, pipeline: Any, texts: list[str], asked: Asked) -> Conditions:
        """Return the last states but one of the text encoder, as many as the text has tokens."""
        states, _ = pipeline.encode_prompt(
            texts, device=CPU, do_classifier_free_guidance=False, max_sequence_length=asked.tokens
        )
        rows = [Conditions(sequence=text[None], mask=text.new_ones(1, len(text))) for text in states]
        return Conditions.joined(rows, torch.cat)

    def told(self, configs: Configs, asked: Asked) -> dict[str, tuple[int, ...]]:
        """Return the shape of the longest text's states."""
        return {"sequence": (asked.tokens or 0, int(configs["transformer"]["cap_feat_dim"]))}

    def ask(self, network: Any, latents: Tensor, level: Tensor, conditions: Conditions) -> Tensor | Shifted:
        """Return what the transformer predicts, with the sign of the other families."""
        texts = list(conditions.sequence)
        if conditions.mask is not None:
            counts = conditions.mask.sum(dim=1).int().tolist()
            texts = [text[:count] for text, count in zip(texts, counts, strict=True)]
        images = network(
            list(latents.unsqueeze(2)),
            (1.0 - level / 1000).expand(len(latents)),
            texts,
            return_dict=False,
        )[0]
        output: Tensor | Shifted = -torch.stack(images).squeeze(2)
        return output
