"""Parameters of the image rewards as they are written in a spec: free of torch.

``trainers/rewards/`` has the classes that take them, ``docs/rewards.md`` the weights and their licences.
"""

from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from trainers.config import Frozen

Aim = Literal["high", "low"]
Precision = Literal["fp32", "bf16", "fp16"]
Source = Annotated[str, Field(min_length=1)]
"""A hub id, such as ``openai/clip-vit-large-patch14``, a directory, or ``embedded`` for the shipped CLIP."""

OPENAI_CLIP = "openai/clip-vit-large-patch14"
LAION_CLIP = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class AttributeParameters(Frozen):
    """Brightness, global contrast, saturation, colourfulness."""

    aim: Aim = "high"
    """``low`` negates the attribute, so that higher stays better."""


class CountedParameters(AttributeParameters):
    """Edge density, colour entropy: counts of pixels, which have no slope."""

    differentiable: ClassVar[bool] = False


class LocalContrastParameters(AttributeParameters):
    """Difference of a pixel from its surroundings."""

    sigma: PositiveFloat = 1.0
    """Standard deviation of the Gaussian surroundings, pixels."""


class PretrainedParameters(Frozen):
    """What every reward with weights takes."""

    precision: Precision = "fp32"
    """Of the weights and the arithmetic; scores are float32 in any case."""


class ClipScoreParameters(PretrainedParameters):
    """Cosine of a CLIP's image and prompt embeddings."""

    model: Source = OPENAI_CLIP
    """A CLIP in the transformers format."""
    processor: Source | None = None
    """Where tokenizer and image processor are, when not beside the model."""


class ClipParameters(PretrainedParameters):
    """``clip``: the same score, by the CLIP that belongs to the pretrained model."""

    model: Source | None = None
    """By default the twin of the shipped pipeline (``embedded``), or the CLIP of Stable Diffusion 1.x."""
    processor: Source | None = None
    """Where tokenizer and image processor are, when not beside the model."""


class PickScoreParameters(PretrainedParameters):
    """PickScore."""

    model: Source = "yuvalkirstain/PickScore_v1"
    """A CLIP in the transformers format."""
    processor: Source = LAION_CLIP
    """Where tokenizer and image processor are."""


class HPSv2Parameters(PretrainedParameters):
    """HPSv2: a CLIP in the transformers format, or an open_clip checkpoint."""

    model: Source = "adams-story/HPSv2-hf"
    """A hub id, a directory, or a checkpoint file."""
    processor: Source = LAION_CLIP
    """Where tokenizer and image processor are, and for an open_clip checkpoint the architecture."""


class HPSv21Parameters(HPSv2Parameters):
    """HPSv2.1."""

    model: Source = "xswu/HPSv2"
    """A hub id, a directory, or a checkpoint file."""


class AestheticParameters(PretrainedParameters):
    """The LAION aesthetic predictor."""

    model: Source = "trl-lib/ddpo-aesthetic-predictor"
    """The head: a hub id, a directory, or a file."""
    clip: Source = OPENAI_CLIP
    """The CLIP whose image embedding the head reads."""


class BlipItmParameters(PretrainedParameters):
    """Image-text matching by BLIP."""

    model: Source = "Salesforce/blip-itm-base-coco"
    """In the transformers format, with its processor."""
    output: Literal["probability", "logit"] = "probability"
    """The probability that image and prompt match, or its log-odds, whose slope does not vanish."""


class Blip2ItmParameters(BlipItmParameters):
    """Image-text matching by BLIP-2."""

    model: Source = "Salesforce/blip2-itm-vit-g"
    """In the transformers format, with its processor."""


class ImageRewardParameters(PretrainedParameters):
    """ImageReward."""

    model: Source = "THUDM/ImageReward"
    """A hub id or a directory with ``med_config.json`` and the checkpoint."""
    processor: Source = "google-bert/bert-base-uncased"
    """Where the tokenizer is."""


class MPSParameters(PretrainedParameters):
    """MPS, the multi-dimensional preference score."""

    model: Source = "RE-N-Y/mpsv1"
    """A hub id, a directory, or a file with the state dictionary."""
    processor: Source = LAION_CLIP
    """Where tokenizer, image processor and the architecture of the CLIP are."""
    condition: str = (
        "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, "
        "instance, texture, quantity, attributes, position, number, location, word, things."
    )
    """What is judged; by default the overall preference."""
    mask_threshold: float = Field(default=0.3, lt=1.0)
    """A prompt token counts when its similarity to the condition is above this fraction of the prompt's largest."""


def _address(url: str) -> str:
    """Return the address of a server without a slash at its end."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or any(character.isspace() for character in url):
        raise ValueError("must be the address of a server, such as http://127.0.0.1:8478")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must hold no credentials: a bearer token is read from CDSWEEP_REWARD_TOKEN")
    if parts.query or parts.fragment:
        raise ValueError("must have no query and no fragment: /health, /rewards and /score are put behind it")
    return url.rstrip("/")


class ServedParameters(Frozen):
    """What every reward that a server gives takes."""

    differentiable: ClassVar[bool] = False
    how: ClassVar[frozenset[str]] = frozenset({"url", "concurrency", "timeout", "missing"})

    url: Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_address)]
    """Of the server."""
    version: str | None = Field(default=None, min_length=1, max_length=200)
    """The version that is meant: a server that has another is refused. By default that which it has when a sweep
    begins."""
    concurrency: PositiveInt = 4
    """Requests to the server under way at a time, of all trials of a sweep together."""
    timeout: PositiveFloat = 60.0
    """Seconds in which a request must be answered."""
    repeats: PositiveInt = 1
    """How often each image is asked about, where scores are noisy: their mean counts. What noise is left spreads the
    scores of images, and so is in every interval and verdict; the spread of the answers about an image tells it."""
    missing: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the scores that may be missing; where it is more, a trial fails."""


class HttpParameters(ServedParameters):
    """A score that a server gives, over HTTP; ``docs/http_rewards.md`` has the protocol."""

    how: ClassVar[frozenset[str]] = ServedParameters.how | {"batch", "dialect"}

    name: str = Field(min_length=1, max_length=200)
    """What the server calls the reward; of ``unirl`` with several metrics REWARD/METRIC."""
    dialect: Literal["cdsweep", "flow_factory", "unirl"] = "cdsweep"
    """How it is asked: by the protocol of that page, as servers of Flow-Factory's template are, or as UniRL's reward
    service is. The last two say no version: ``version`` stands for it."""
    batch: PositiveInt = 16
    """Images of a request at most."""


class JudgeParameters(ServedParameters):
    """What a language model with eyes says of a picture, at a chat endpoint of OpenAI's kind."""

    model: str = Field(min_length=1, max_length=200)
    """What the server calls the model."""
    question: str = Field(
        default="Does this picture show the following? {prompt}\nAnswer with one word, yes or no.",
        min_length=1,
    )
    """What it is asked about each picture; ``{prompt}`` stands for the prompt."""
    answer: Literal["yes", "number"] = "yes"
    """``yes``: the score is the probability of that answer, against no, by the log probabilities of the first token.
    ``number``: it is the number that the answer begins with."""
    lowest: float = 1.0
    """Number below which an answer is none."""
    highest: float = 10.0
    """Number above which an answer is none."""

    @field_validator("highest")
    @classmethod
    def _above(cls, highest: float, known: ValidationInfo) -> float:
        if highest <= (lowest := known.data.get("lowest", highest - 1)):
            raise ValueError(f"must be above lowest ({lowest:g})")
        return highest


IMAGE_REWARD_PARAMETERS: dict[str, type[Frozen]] = {
    "brightness": AttributeParameters,
    "global_contrast": AttributeParameters,
    "local_contrast": LocalContrastParameters,
    "saturation": AttributeParameters,
    "colourfulness": AttributeParameters,
    "edge_density": CountedParameters,
    "colour_entropy": CountedParameters,
    "clip_score": ClipScoreParameters,
    "pick_score": PickScoreParameters,
    "hpsv2": HPSv2Parameters,
    "hpsv2_1": HPSv21Parameters,
    "aesthetic": AestheticParameters,
    "blip_itm": BlipItmParameters,
    "blip2_itm": Blip2ItmParameters,
    "image_reward": ImageRewardParameters,
    "mps": MPSParameters,
}
"""Arguments of the rewards' classes, by the name under which they are registered."""

SIDE_MEASURES = ("brightness", "global_contrast", "edge_density", "colour_entropy")
"""Attributes that every trial on a pipeline is watched by, beside what it is trained on."""

CLIP_MEASURE = "clip_score"
"""The same where a CLIP is at hand, the one that is shipped beside the shipped pipelines."""

SERVED: dict[str, type[ServedParameters]] = {"http": HttpParameters, "judge": JudgeParameters}
"""Those that a server gives."""

IMAGE_REWARDS: dict[str, type[Frozen]] = {**IMAGE_REWARD_PARAMETERS, "clip": ClipParameters, **SERVED}
"""As a spec may write them; a plan names the CLIP of ``clip``, which then is ``clip_score``."""
