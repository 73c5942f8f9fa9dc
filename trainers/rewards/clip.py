"""Rewards that read a CLIP's embeddings: CLIPScore, PickScore, HPSv2 and HPSv2.1, LAION aesthetic.

Images are preprocessed by tensors (``images.py``), so that gradients reach the pixels. Each prompt is encoded alone
and kept: its embedding does not depend on the batch it came in, to the last bit.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from trainers.reward_parameters import LAION_CLIP, OPENAI_CLIP, Precision
from trainers.rewards import weights
from trainers.rewards.conversion import from_open_clip
from trainers.rewards.head import ScoreHead
from trainers.rewards.images import Preprocess, checked, checked_prompts
from trainers.rewards.together import once


class PromptCache:
    """What a frozen text encoder says about a prompt, for the prompts used last."""

    def __init__(self, encode: Callable[[str, torch.device], Any], size: int) -> None:
        """Take the encoder of one prompt and the number of prompts to keep."""
        self._encode = encode
        self._size = size
        self._kept: OrderedDict[tuple[str, torch.device], Any] = OrderedDict()

    def __call__(self, prompt: str, device: torch.device) -> Any:
        """Return the encoding of a prompt on a device."""
        key = (prompt, device)
        if key not in self._kept:
            with torch.no_grad():
                self._kept[key] = self._encode(prompt, device)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


class Clip:
    """A frozen CLIP with its tokenizer and preprocessing: unit embeddings of images and of prompts."""

    def __init__(self, network: Any, tokenizer: Any, preprocess: Preprocess) -> None:
        """Take the parts."""
        self.network = network
        self._tokenizer = tokenizer
        self._preprocess = preprocess
        self._prompts = PromptCache(self._encode, size=4096)

    @property
    def scale(self) -> float:
        """The factor on cosines with which the model was trained."""
        return float(self.network.logit_scale.exp())

    @property
    def width(self) -> int:
        """Of an embedding."""
        return int(self.network.config.projection_dim)

    def pixels(self, samples: Tensor) -> Tensor:
        """Return the encoder's input for images ``[batch, 3, h, w]`` in [0, 1], and bring the network to them."""
        network = self.network.to(samples.device)
        return once("pixels", self, samples, lambda: self._preprocess(checked(samples)).to(network.dtype))

    def tokens(self, prompt: str, device: torch.device) -> Tensor:
        """Return a prompt's token numbers ``[1, length]``."""
        length = self.network.config.text_config.max_position_embeddings
        encoded = self._tokenizer(
            prompt, max_length=length, padding="max_length", truncation=True, return_tensors="pt"
        )
        numbers: Tensor = encoded.input_ids.to(device)
        return numbers

    def images(self, samples: Tensor) -> Tensor:
        """Return unit embeddings ``[batch, d]`` of images, with gradients."""
        return once("embeddings", self, samples, lambda: self._embedded(samples))

    def _embedded(self, samples: Tensor) -> Tensor:
        with torch.autocast(samples.device.type, enabled=False):
            features = self.network.get_image_features(pixel_values=self.pixels(samples)).pooler_output
        return functional.normalize(features.float(), dim=-1)

    def prompts(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """Return unit embeddings ``[batch, d]`` of prompts."""
        return torch.stack([self._prompts(prompt, device) for prompt in prompts])

    def _encode(self, prompt: str, device: torch.device) -> Tensor:
        network = self.network.to(device)
        with torch.autocast(device.type, enabled=False):
            features = network.get_text_features(input_ids=self.tokens(prompt, device)).pooler_output
        return functional.normalize(features[0].float(), dim=-1)


def load_clip(
    reward: str, model: str, processor: str | None, precision: str, parameter: str = "model"
) -> Clip:
    """Return a CLIP in the transformers format, shared by the rewards that read it.

    Raises:
        ValueError: it cannot be loaded.
    """
    dtype = weights.dtype_of(precision)
    model, processor = weights.located(model), processor and weights.located(processor)

    def load() -> Clip:
        network = weights.frozen(weights.pretrained(reward, parameter, CLIPModel, model, dtype=dtype), dtype)
        return Clip(network, *processing(reward, "processor" if processor else parameter, processor or model))

    return weights.shared(("clip", model, processor or model, precision), load)


def load_open_clip(reward: str, model: str, file: str, processor: str, precision: str) -> Clip:
    """Return the CLIP of an open_clip checkpoint; ``processor`` has its architecture.

    Raises:
        ValueError: it cannot be loaded.
    """
    dtype = weights.dtype_of(precision)
    stem = file.removesuffix(".pt")
    path = weights.find_file(reward, "model", model, (f"{stem}.safetensors", file, "model.safetensors"))

    def load() -> Clip:
        state = weights.below(weights.load_state(reward, "model", path), "model.")
        try:
            state = from_open_clip(state)
        except ValueError as error:
            raise weights.unavailable(reward, "model", model, error) from error
        network = CLIPModel(weights.pretrained(reward, "processor", CLIPConfig, processor))
        weights.fill(reward, "model", model, network, state)
        return Clip(weights.frozen(network, dtype), *processing(reward, "processor", processor))

    return weights.shared(("open_clip", str(path), processor, precision), load)


def processing(reward: str, parameter: str, source: str) -> tuple[Any, Preprocess]:
    """Return tokenizer and preprocessing; CLIP's own where the source has no image processor."""
    tokenizer = weights.pretrained(reward, parameter, AutoTokenizer, source)
    if not any(weights.holds(source, name) for name in ("preprocessor_config.json", "processor_config.json")):
        return tokenizer, Preprocess.clip()
    processor = weights.pretrained(reward, parameter, CLIPImageProcessorPil, source)
    return tokenizer, Preprocess.from_processor(processor)


class Embedding:
    """A reward whose CLIP also places images, for the diversity of an evaluation."""

    _clip: Clip

    def embed(self, samples: Tensor) -> Tensor:
        """Return unit embeddings ``[batch, d]`` of images ``[batch, 3, h, w]`` in [0, 1]."""
        return self._clip.images(samples)


class ClipScore(Embedding):
    """CLIPScore: the cosine of image and prompt, in [−1, 1] (Hessel et al. 2021, without its factor 2.5)."""

    def __init__(
        self, model: str = OPENAI_CLIP, processor: str | None = None, precision: Precision = "fp32"
    ) -> None:
        """Load the model."""
        self._clip = load_clip("clip_score", model, processor, precision)

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Score images ``[batch, 3, h, w]`` in [0, 1]."""
        return _cosine("clip_score", self._clip, samples, prompts)


class PickScore(Embedding):
    """PickScore (Kirstain et al. 2023): the cosine times the model's scale, about 100; usual values 18 to 24."""

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str = LAION_CLIP,
        precision: Precision = "fp32",
    ) -> None:
        """Load the model."""
        self._clip = load_clip("pick_score", model, processor, precision)

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Score images ``[batch, 3, h, w]`` in [0, 1]."""
        return self._clip.scale * _cosine("pick_score", self._clip, samples, prompts)


class HPSv2(Embedding):
    """HPSv2 (Wu et al. 2023): the cosine of a CLIP ViT-H/14 trained on preferences, without its scale."""

    _name, _file = "hpsv2", "HPS_v2_compressed.pt"

    def __init__(
        self,
        model: str = "adams-story/HPSv2-hf",
        processor: str = LAION_CLIP,
        precision: Precision = "fp32",
    ) -> None:
        """Load the model: one in the transformers format has a ``config.json``, others are open_clip checkpoints."""
        if weights.holds(weights.located(model), "config.json"):
            self._clip = load_clip(self._name, model, processor, precision)
        else:
            self._clip = load_open_clip(self._name, model, self._file, processor, precision)

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Score images ``[batch, 3, h, w]`` in [0, 1]."""
        return _cosine(self._name, self._clip, samples, prompts)


class HPSv21(HPSv2):
    """HPSv2.1: HPSv2 on more preferences; another checkpoint."""

    _name, _file = "hpsv2_1", "HPS_v2.1_compressed.pt"

    def __init__(
        self, model: str = "xswu/HPSv2", processor: str = LAION_CLIP, precision: Precision = "fp32"
    ) -> None:
        """Load the model."""
        super().__init__(model, processor, precision)


class Aesthetic(Embedding):
    """The LAION aesthetic predictor: a head on the unit image embedding of CLIP ViT-L/14, from about 1 to 10."""

    _files = ("model.safetensors", "aesthetic-model.pth", "sac+logos+ava1-l14-linearMSE.pth")

    def __init__(
        self,
        model: str = "trl-lib/ddpo-aesthetic-predictor",
        clip: str = OPENAI_CLIP,
        precision: Precision = "fp32",
    ) -> None:
        """Load head and CLIP."""
        path = weights.find_file("aesthetic", "model", model, self._files)

        def load() -> ScoreHead:
            state = weights.load_state("aesthetic", "model", path)
            state = weights.below(
                {k: v for k, v in state.items() if "layers" in k and "clip." not in k}, "mlp."
            )
            first = state.get("layers.0.weight")
            if first is None:
                raise weights.unavailable("aesthetic", "model", model, "it lacks layers.0.weight")
            head = ScoreHead(first.shape[1])
            weights.fill("aesthetic", "model", model, head, state)
            weights.frozen(head, torch.float32)
            return head

        self._head = weights.shared(("aesthetic", str(path)), load)
        self._clip = load_clip("aesthetic", clip, None, precision, parameter="clip")
        taken, given = self._head.width, self._clip.width
        if taken != given:
            raise ValueError(
                f"reward 'aesthetic': the head in {model!r} reads embeddings of width {taken}, and the clip {clip!r} "
                f"gives {given}: they belong to different CLIPs"
            )

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:  # noqa: ARG002 - reads no prompt
        """Score images ``[batch, 3, h, w]`` in [0, 1]."""
        embedding = self._clip.images(samples)
        with torch.autocast(samples.device.type, enabled=False):
            scores: Tensor = self._head.to(samples.device)(embedding)
        return scores


def _cosine(reward: str, clip: Clip, samples: Tensor, prompts: Sequence[str] | None) -> Tensor:
    texts = clip.prompts(checked_prompts(reward, samples, prompts), samples.device)
    return (clip.images(samples) * texts).sum(dim=-1)
