"""From final latents to images, within bounds of memory: few at a time, by an autoencoder that may lie elsewhere."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from trainers.config import Checkpointing
from trainers.models.families.base import NetworkFamily
from trainers.models.layers.remade import remaking
from trainers.models.pipeline import Parts, in_range

PIXELS = 512 * 512
"""Of images that are decoded at a time where memory is short: one of Stable Diffusion's, or many small ones."""


def decoded(
    parts: Parts,
    latents: Tensor,
    *,
    checkpointing: Checkpointing = False,
    pixels: int = PIXELS,
) -> Tensor:
    """Return images ``[batch, 3, h, w]`` in [0, 1], with gradients.

    Args:
        parts: Of the pipeline.
        latents: Final ones, ``[batch, C, h, w]``.
        checkpointing: Decode so many pixels at a time, at least an image, and again in the backward pass: a decoder
            keeps more than ten times what a step of the network does. ``selective``: all at once, and keep less.
        pixels: That are decoded at a time then.
    """
    here = _Elsewhere(parts) if parts.offload else parts.decode

    def decode(part: Tensor) -> Tensor:
        with remaking(bool(checkpointing)):
            return here(part)

    if not again(checkpointing):
        return decode(latents)

    def once_more(part: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return decode(part)
        found: Tensor = checkpoint(decode, part, use_reentrant=False, preserve_rng_state=False)
        return found

    height, width = parts.image_size
    images = [once_more(part) for part in torch.split(latents, max(1, pixels // (height * width)))]
    return images[0] if len(images) == 1 else torch.cat(images)


def again(checkpointing: Checkpointing) -> bool:
    """Whether steps and decoder are computed again as wholes."""
    return checkpointing is True or checkpointing == "blocks"


_UNUSED = "vae.encoder."
"""Tensors of an autoencoder that do not decode."""


class _Elsewhere:
    """Decodes with copies of the autoencoder's tensors, which lie on the device as long as a gradient needs them."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._decoder = _Decoder(parts.family, parts.vae)

    def __call__(self, latents: Tensor) -> Tensor:
        here = self._parts.device
        held = (*self._decoder.named_parameters(), *self._decoder.named_buffers())
        copies = {name: tensor.to(here, copy=True) for name, tensor in held if not name.startswith(_UNUSED)}
        images: Tensor = functional_call(self._decoder, copies, (latents,))
        return images


class _Decoder(nn.Module):
    """What a family does with its autoencoder, as a module of it."""

    def __init__(self, family: NetworkFamily, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self._family = family

    def forward(self, latents: Tensor) -> Tensor:
        """Return images in [0, 1]."""
        return in_range(self._family, self.vae, latents)
