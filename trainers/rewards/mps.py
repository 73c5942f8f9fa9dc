"""MPS, the multi-dimensional preference score (Zhang et al. 2024).

Patches of the image attend to the prompt's tokens, of which only those count that resemble a condition, a list of
words that says what is judged. Score = scale · cos(prompt's embedding, state of the image's class token).

What differs from the published code: the mask is relative to the largest similarity within the prompt, not within
the batch, so that a score does not depend on the other prompts (with one prompt at a time, as the authors evaluate,
the two agree).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from trainers.reward_parameters import LAION_CLIP, MPSParameters, Precision
from trainers.rewards import weights
from trainers.rewards.clip import Clip, PromptCache, processing
from trainers.rewards.images import checked_prompts
from trainers.rewards.together import once

_CONDITION: str = MPSParameters.model_fields["condition"].default


class Swish(nn.Module):
    """Gated unit: the second half of the channels gates the first."""

    def forward(self, x: Tensor) -> Tensor:
        """Halve the channels of ``[…, 2 d]``."""
        value, gate = x.chunk(2, dim=-1)
        return functional.silu(gate) * value


class CrossAttention(nn.Module):
    """``x + attention(x → prompt) + feed-forward(x)``, with many query heads on one key and value head."""

    def __init__(self, width: int, heads: int, channels: int, hidden: int) -> None:
        """Take the width, the heads with their channels, and the hidden units."""
        super().__init__()
        self.heads = heads
        self.norm = _norm(width)
        self.to_q = nn.Linear(width, heads * channels, bias=False)
        self.to_kv = nn.Linear(width, 2 * channels, bias=False)
        self.to_out = nn.Linear(heads * channels, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 2 * hidden, bias=False), Swish(), nn.Linear(hidden, width, bias=False)
        )

    def forward(self, x: Tensor, context: Tensor, keep: Tensor) -> Tensor:
        """Update ``[batch, n, width]`` from ``context`` ``[batch, m, width]``, where ``keep`` ``[batch, m]``."""
        normal = self.norm(x)
        queries = _heads(self.to_q(normal), self.heads)  # [batch, heads, n, channels]
        keys, values = self.to_kv(context)[:, None].chunk(2, dim=-1)  # [batch, 1, m, channels]
        attended = _attend(queries, keys, values, keep[:, None, None, :])
        return cast("Tensor", x + self.to_out(attended) + self.ff(normal))


class SelfAttention(nn.Module):
    """``x + attention(x) + feed-forward(x)`` from one projection, with rotary positions."""

    def __init__(self, width: int, heads: int, channels: int, hidden: int) -> None:
        """Take the width, the heads with their channels, and the hidden units."""
        super().__init__()
        self.heads, self.channels = heads, channels
        self._parts = (heads * channels, channels, channels, 2 * hidden)
        self.norm = _norm(width)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self._parts), bias=False)
        self.attn_out = nn.Linear(heads * channels, width, bias=False)
        self.ff_out = nn.Sequential(Swish(), nn.Linear(hidden, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Update ``[batch, n, width]``."""
        projected = self.fused_attn_ff_proj(self.norm(x))
        queries, keys, values, hidden = projected.split(self._parts, dim=-1)
        angles = _angles(x.shape[1], self.channels, x.device)  # [n, channels]
        queries = _rotate(_heads(queries, self.heads), angles)
        keys = _rotate(keys[:, None], angles)
        attended = _attend(queries, keys, values[:, None], None)
        return cast("Tensor", x + self.attn_out(attended) + self.ff_out(hidden))


class CrossHead(nn.Module):
    """Layers of cross-attention to the prompt and self-attention among the patches."""

    def __init__(self, width: int, layers: int, heads: int, channels: int, hidden: int) -> None:
        """Take the sizes."""
        super().__init__()
        size = (width, heads, channels, hidden)
        self.layers = nn.ModuleList(
            nn.ModuleList([CrossAttention(*size), SelfAttention(*size)]) for _ in range(layers)
        )

    def forward(self, patches: Tensor, tokens: Tensor, keep: Tensor) -> Tensor:
        """Return the patches ``[batch, n, width]`` that have read the prompts' tokens ``[batch, m, width]``."""
        for layer in self.layers:
            cross, own = cast("nn.ModuleList", layer)
            patches = own(cross(patches, tokens, keep))
        return patches


class MPS:
    """MPS: usual values of the overall score are 3 to 15."""

    _files = ("model.safetensors", "MPS_overall.safetensors", "MPS_overall_checkpoint.pth")

    def __init__(
        self,
        model: str = "RE-N-Y/mpsv1",
        processor: str = LAION_CLIP,
        condition: str = _CONDITION,
        mask_threshold: float = 0.3,
        precision: Precision = "fp32",
    ) -> None:
        """Load the model."""
        path = weights.find_file("mps", "model", model, self._files)
        dtype = weights.dtype_of(precision)

        def load() -> tuple[Clip, Any]:
            state = weights.below(weights.load_state("mps", "model", path), "mps.")
            names = {"clip": "model.", "head": "cross_model."}
            parts = {part: weights.below(state, prefix) for part, prefix in names.items()}
            network = CLIPModel(weights.pretrained("mps", "processor", CLIPConfig, processor))
            head = cross_head(parts["head"])
            if head is None:
                raise weights.unavailable("mps", "model", model, "it lacks cross_model.layers")
            weights.fill("mps", "model", model, network, parts["clip"])
            weights.fill("mps", "model", model, head, _unwrapped(parts["head"]))
            clip = Clip(weights.frozen(network, dtype), *processing("mps", "processor", processor))
            return clip, weights.frozen(head, dtype)

        self._clip, self._head = weights.shared(("mps", str(path), processor, precision), load)
        self._condition = condition
        self._threshold = mask_threshold
        self._prompts = PromptCache(self._encode, size=256)  # 77 tokens each: 80 MB at most

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Score images ``[batch, 3, h, w]`` in [0, 1]."""
        texts = checked_prompts("mps", samples, prompts)
        encoded = [self._prompts(prompt, samples.device) for prompt in texts]
        tokens, keep, whole = (torch.stack(part) for part in zip(*encoded, strict=True))
        clip, head = self._clip, self._head.to(samples.device)
        with torch.autocast(samples.device.type, enabled=False):
            patches = once("patches", clip, samples, lambda: _patches(clip, samples))
            read = head(patches, tokens, keep)[:, 0]
        cosine = functional.cosine_similarity(read.float(), whole.float(), dim=-1)
        return self._clip.scale * cosine

    def _encode(self, prompt: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return a prompt's tokens ``[m, d]``, which of them count ``[m]``, and its embedding ``[d]``."""
        tokens, whole = self._text(prompt, device)
        about, _ = self._text(self._condition, device)
        similarity = (tokens.float() @ about.float().T).amax(dim=1)  # [m]
        return tokens, similarity / similarity.max() > self._threshold, whole

    def _text(self, text: str, device: torch.device) -> tuple[Tensor, Tensor]:
        network = self._clip.network.to(device)
        with torch.autocast(device.type, enabled=False):
            states = network.text_model(input_ids=self._clip.tokens(text, device))
            tokens = network.text_projection(states.last_hidden_state)[0]
            whole = network.text_projection(states.pooler_output)[0]
        return tokens, whole


def _patches(clip: Clip, samples: Tensor) -> Tensor:
    """Return the embeddings of the patches of images, ``[batch, 1 + patches, d]``."""
    states = clip.network.vision_model(pixel_values=clip.pixels(samples)).last_hidden_state
    projected: Tensor = clip.network.visual_projection(states)
    return projected


def cross_head(state: dict[str, Tensor]) -> CrossHead | None:
    """Return the empty head of a checkpoint, its sizes read from the shapes; None when it has none."""
    first = "layers.0.0.fn."
    if f"{first}to_q.weight" not in state:
        return None
    inner, width = state[f"{first}to_q.weight"].shape
    channels = state[f"{first}to_kv.weight"].shape[0] // 2
    hidden = state[f"{first}ff.2.weight"].shape[1]
    layers = 1 + max(int(name.split(".")[1]) for name in state)
    return CrossHead(width, layers, inner // channels, channels, hidden)


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the head's weights without the residual wrapper's name and the constants of the rotation."""
    return {name.replace(".fn.", "."): v for name, v in state.items() if "rotary_emb" not in name}


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width)  # the published one has a constant bias of zeros, stored under the same name


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)  # [batch, heads, n, channels]


def _attend(queries: Tensor, keys: Tensor, values: Tensor, keep: Tensor | None) -> Tensor:
    keys, values = (part.expand(-1, queries.shape[1], -1, -1) for part in (keys, values))
    attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=keep)
    return attended.transpose(1, 2).flatten(2)  # [batch, n, heads · channels]


def _angles(length: int, channels: int, device: torch.device) -> Tensor:
    rates = 10000.0 ** (-torch.arange(0, channels, 2, device=device) / channels)
    return (torch.arange(length, device=device)[:, None] * rates).repeat(1, 2)  # [length, channels]


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x * angles.cos() + turned * angles.sin()).to(x.dtype)
