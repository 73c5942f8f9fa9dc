"""Rewards that read image and prompt together, by cross-attention: BLIP and BLIP-2 matching, ImageReward."""

import json
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    Blip2ForImageTextRetrieval,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
)

from trainers.reward_parameters import Precision
from trainers.rewards import weights
from trainers.rewards.conversion import from_blip_vision
from trainers.rewards.head import ScoreHead
from trainers.rewards.images import Preprocess, checked, checked_prompts
from trainers.rewards.together import once

Output = Literal["probability", "logit"]


class _Matching:
    """Image-text matching: logits ``[no, yes]`` of a frozen network for each pair."""

    _name: str
    _cls: Any

    def __init__(self, model: str, output: str, precision: str) -> None:
        if output not in ("probability", "logit"):
            raise ValueError(f"output must be probability or logit, got {output!r}")
        self._output = output
        dtype = weights.dtype_of(precision)

        def load() -> tuple[Any, Any, Preprocess]:
            network = weights.pretrained(self._name, "model", self._cls, model, dtype=dtype)
            tokenizer = weights.pretrained(self._name, "model", AutoTokenizer, model)
            processor = weights.pretrained(self._name, "model", BlipImageProcessorPil, model)
            # The library keeps some parts in float32 where the others are halved: no cast here.
            return (
                network.eval().requires_grad_(requires_grad=False),
                tokenizer,
                Preprocess.from_processor(processor),
            )

        key = (self._name, model, precision)
        self._network, self._tokenizer, self._preprocess = weights.shared(key, load)

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Score images ``[batch, 3, h, w]`` in [0, 1]."""
        texts = list(checked_prompts(self._name, samples, prompts))
        network = self._network.to(samples.device)
        pixels = once(
            "pixels", network, samples, lambda: self._preprocess(checked(samples)).to(network.dtype)
        )
        encoded = self._tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self._longest(network.config),
            return_token_type_ids=False,
            return_tensors="pt",
        ).to(samples.device)
        with torch.autocast(samples.device.type, enabled=False):
            logits = self._logits(network, pixels, encoded.input_ids, encoded.attention_mask).float()
        log_odds = logits[:, 1] - logits[:, 0]  # [batch]
        return log_odds.sigmoid() if self._output == "probability" else log_odds

    def _longest(self, config: Any) -> int:
        raise NotImplementedError

    def _logits(self, network: Any, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError


class BlipItm(_Matching):
    """The probability (or log-odds) that BLIP's matching head gives to the pair (Li et al. 2022)."""

    _name, _cls = "blip_itm", BlipForImageTextRetrieval

    def __init__(
        self,
        model: str = "Salesforce/blip-itm-base-coco",
        output: Output = "probability",
        precision: Precision = "fp32",
    ) -> None:
        """Load the model."""
        super().__init__(model, output, precision)

    def _longest(self, config: Any) -> int:
        return int(config.text_config.max_position_embeddings)

    def _logits(self, network: Any, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        # The library's forward() makes a mask of ones on the CPU; without it the same runs on any device.
        patches = once(
            "patches", network, pixels, lambda: network.vision_model(pixel_values=pixels).last_hidden_state
        )
        states = network.text_encoder(
            input_ids=tokens, attention_mask=mask, encoder_hidden_states=patches
        ).last_hidden_state
        logits: Tensor = network.itm_head(states[:, 0])
        return logits


class Blip2Itm(_Matching):
    """The probability (or log-odds) of BLIP-2's matching head, logits averaged over queries (Li et al. 2023)."""

    _name, _cls = "blip2_itm", Blip2ForImageTextRetrieval

    def __init__(
        self,
        model: str = "Salesforce/blip2-itm-vit-g",
        output: Output = "probability",
        precision: Precision = "fp32",
    ) -> None:
        """Load the model."""
        super().__init__(model, output, precision)

    def _longest(self, config: Any) -> int:
        return int(config.qformer_config.max_position_embeddings)

    def _logits(self, network: Any, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        # As the library's forward(), which would want a placeholder token for every query before the prompt.
        patches = once(
            "patches", network, pixels, lambda: network.vision_model(pixel_values=pixels).last_hidden_state
        )
        queries = network.query_tokens.expand(len(pixels), -1, -1)
        count = queries.shape[1]
        states = network.qformer(
            query_embeds=network.embeddings(input_ids=tokens, query_embeds=queries),
            query_length=count,
            attention_mask=torch.cat([mask.new_ones(len(pixels), count), mask], dim=1),
            encoder_hidden_states=patches,
        ).last_hidden_state
        logits: Tensor = network.itm_head(states[:, :count].to(network.itm_head.weight.dtype))
        return logits.mean(dim=1)


class ImageRewardNetwork(nn.Module):
    """BLIP's vision transformer, its text encoder reading the patches, and a head on the state of [CLS]."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        """Take the two architectures."""
        super().__init__()
        self.visual_encoder = BlipVisionModel(vision)
        self.text_encoder = BlipTextModel(text, add_pooling_layer=False)
        self.mlp = ScoreHead(text.hidden_size)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the raw score ``[batch]``."""
        patches = self.visual_encoder(pixel_values=pixels).last_hidden_state
        states = self.text_encoder(
            input_ids=tokens, attention_mask=mask, encoder_hidden_states=patches
        ).last_hidden_state
        return cast("Tensor", self.mlp(states[:, 0]))


class ImageReward:
    """ImageReward (Xu et al. 2023), standardised by the authors' mean and deviation."""

    MEAN, STD = 0.16717362830052426, 1.0333394966054072
    LENGTH = 35  # tokens of a prompt, as in training

    _files = ("ImageReward.safetensors", "model.safetensors", "ImageReward.pt")

    def __init__(
        self,
        model: str = "THUDM/ImageReward",
        processor: str = "google-bert/bert-base-uncased",
        precision: Precision = "fp32",
    ) -> None:
        """Load the model."""
        path = weights.find_file("image_reward", "model", model, self._files)
        dtype = weights.dtype_of(precision)

        def load() -> tuple[Any, Any]:
            state = weights.load_state("image_reward", "model", path)
            if not all(
                f"blip.visual_encoder.{name}" in state for name in ("pos_embed", "patch_embed.proj.weight")
            ):
                raise weights.unavailable("image_reward", "model", model, "it lacks blip.visual_encoder")
            text = {}
            if weights.holds(model, "med_config.json"):
                file = weights.find_file("image_reward", "model", model, ("med_config.json",))
                text = json.loads(file.read_text())
            network = image_reward_network(state, text)
            parts = {
                f"visual_encoder.{k}": v for k, v in from_blip_vision(_part(state, "visual_encoder")).items()
            }
            parts |= {f"text_encoder.{k}": v for k, v in _part(state, "text_encoder").items()}
            parts |= {name: value for name, value in state.items() if name.startswith("mlp.")}
            weights.fill("image_reward", "model", model, network, parts)
            tokenizer = weights.pretrained("image_reward", "processor", AutoTokenizer, processor)
            return weights.frozen(network, dtype), tokenizer

        key = ("image_reward", str(path), processor, precision)
        self._network, self._tokenizer = weights.shared(key, load)
        self._preprocess = Preprocess.clip(self._network.visual_encoder.config.image_size)
        self._dtype = dtype

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Score images ``[batch, 3, h, w]`` in [0, 1]."""
        texts = list(checked_prompts("image_reward", samples, prompts))
        network = self._network.to(samples.device)
        encoded = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.LENGTH, return_tensors="pt"
        ).to(samples.device)
        pixels = self._preprocess(checked(samples)).to(self._dtype)
        with torch.autocast(samples.device.type, enabled=False):
            raw = network(pixels, encoded.input_ids, encoded.attention_mask).float()
        scores: Tensor = (raw - self.MEAN) / self.STD
        return scores


def image_reward_network(state: dict[str, Tensor], text: dict[str, Any]) -> ImageRewardNetwork:
    """Return the empty network of a checkpoint: vision by its shapes, text by BLIP's ``med_config.json``."""
    positions = state["blip.visual_encoder.pos_embed"]  # [1, 1 + patches, width]
    width, patch = positions.shape[2], state["blip.visual_encoder.patch_embed.proj.weight"].shape[-1]
    blocks = [int(name.split(".")[3]) for name in state if name.startswith("blip.visual_encoder.blocks.")]
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=1 + max(blocks),
        num_attention_heads=max(1, width // 64),  # BLIP's heads have 64 channels
        image_size=patch * round((positions.shape[1] - 1) ** 0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    names = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id"),
    )
    settings = {"num_attention_heads": 12} | {name: text[name] for name in names if name in text}
    return ImageRewardNetwork(vision, BlipTextConfig(encoder_hidden_size=width, is_decoder=True, **settings))


def _part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    found = weights.below(state, f"blip.{name}.")
    return {key: value for key, value in found.items() if not key.startswith("pooler.")}
