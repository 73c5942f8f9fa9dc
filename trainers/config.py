"""Configuration of one trial: frozen, strict, free of torch and of Ray.

The spec (``orchestrator.spec``) is made of these records, a plan hashes them into trial ids, and
``trainers.loop`` runs one. Every field says its unit; every error says the rule and the value.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from trainers.turns import turns

Unit = Literal["absolute", "relative", "sigma", "nats"]
DualKind = Literal["ascent", "nu_pi", "augmented", "reweighted"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=64)]
QuantityName = Annotated[
    str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}(\[[^\[\]=\x00-\x1f\x7f]{1,100}\])?$", max_length=166)
]
"""Of a reward or a constraint; one of a group of prompts has it in brackets, ``clip[text]``."""
Variant = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=64)]
"""Of the files of weights, such as ``fp16``."""


MISPLACED = "misplaced"
"""Type of the pydantic error of a key that does not go with others of its mapping; its context has key and rule."""


class Frozen(BaseModel):
    """Base of every configuration record: immutable, no unknown keys, no silent conversion."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    how: ClassVar[frozenset[str]] = frozenset()
    """Fields that say how something is had, not what it is: no trial is known by them."""


class MixtureConfig(Frozen):
    """An exact Gaussian mixture in ``d`` dimensions with ``C`` components."""

    weights: tuple[PositiveFloat, ...] = Field(min_length=1)
    """Component probabilities, ``[C]``; they sum to 1."""
    means: tuple[tuple[float, ...], ...] = Field(min_length=1)
    """Component means, ``[C, d]``."""
    covariances: tuple[tuple[tuple[float, ...], ...], ...] = Field(min_length=1)
    """Component covariances, ``[C, d, d]``, symmetric and positive definite."""

    @property
    def dimension(self) -> int:
        """Number of coordinates ``d`` of a sample."""
        return len(self.means[0])

    @model_validator(mode="after")
    def _check(self) -> Self:
        count, dimension = len(self.weights), self.dimension
        if not len(self.means) == len(self.covariances) == count:
            raise ValueError(
                "a mixture needs as many means and covariances as weights, got "
                f"{count} weights, {len(self.means)} means, {len(self.covariances)} covariances"
            )
        if abs(sum(self.weights) - 1.0) > 1e-6:
            raise ValueError(f"mixture weights must sum to 1, got {sum(self.weights):.6g}")
        if dimension == 0:
            raise ValueError("a mixture needs at least one dimension, got means of length 0")
        for index, (mean, covariance) in enumerate(zip(self.means, self.covariances, strict=True)):
            if len(mean) != dimension:
                raise ValueError(f"means[{index}] must have length {dimension}, got {len(mean)}")
            _check_covariance(covariance, dimension, index)
        return self


def _check_covariance(rows: tuple[tuple[float, ...], ...], dimension: int, index: int) -> None:
    """Raise ValueError unless ``rows`` is a symmetric positive definite ``[d, d]`` matrix."""
    if len(rows) != dimension or any(len(row) != dimension for row in rows):
        raise ValueError(f"covariances[{index}] must be {dimension} rows of {dimension} numbers")
    matrix = np.array(rows)
    if not np.allclose(matrix, matrix.T):
        raise ValueError(f"covariances[{index}] must be symmetric, got {matrix.tolist()}")
    smallest = float(np.linalg.eigvalsh(matrix)[0])
    if smallest <= 0:
        raise ValueError(
            f"covariances[{index}] must be positive definite, its smallest eigenvalue is {smallest:.3g}"
        )


ALL_LINEAR = "all-linear"
LAYER_GROUPS = ("attention", ALL_LINEAR)
"""What stands for layers of a network of any family, among the targets of an adapter."""


def _as_targets(value: Any) -> Any:
    """Return the name of a group as one of several, and a list as a tuple."""
    if isinstance(value, str):
        if value not in LAYER_GROUPS:
            names = " or ".join(map(repr, LAYER_GROUPS))
            raise ValueError(f"must be {names}, or a list of endings of names of layers")
        return (value,)
    return tuple(value) if isinstance(value, list) else value


class LoraConfig(Frozen):
    """Low-rank adapters on a network's attention projections (Hu et al. 2021): what is trained."""

    rank: PositiveInt = 4
    """Rank of every update."""
    alpha: PositiveFloat | None = None
    """Scale of the updates, as in peft: they are multiplied by alpha / rank. By default the rank. Files of adapters
    hold the product, with alpha equal to the rank."""
    targets: Annotated[
        tuple[str, ...],
        BeforeValidator(
            _as_targets,
            json_schema_input_type=Literal["attention", "all-linear"]
            | Annotated[tuple[str, ...], Field(min_length=1)],
        ),
    ] = Field(default=("to_q", "to_k", "to_v", "to_out.0"), min_length=1)
    """Endings of the names of the adapted layers; each must end one. ``attention`` is every projection of the blocks'
    attention, of images and of texts; ``all-linear`` every linear layer of the blocks but those that only turn the
    noise level into scales."""


INTERPOLATED = "interpolated"
"""Method of a point that was measured between finished trials, and not trained."""

EMBEDDED = "embedded"
"""Stands for the shipped pipeline, and for its CLIP where a reward asks for one."""
SHIPPED = {EMBEDDED: "pipeline", "embedded-flow": "flow"}
"""Folders of the shipped pipelines, by what they are called in a spec."""


class BaseConfig(Frozen):
    """The pipeline that composed adapters and prompts belong to."""

    pretrained: str = Field(default=EMBEDDED, min_length=1, max_length=1024)
    """``embedded``, a hub id, or a directory in diffusers format."""
    revision: str | None = Field(default=None, min_length=1, max_length=200)
    """Branch, tag or commit of a hub id."""
    variant: Variant | None = None
    """Which files of weights are read where there are several, such as ``fp16``; by default the plain ones."""


class ConstituentConfig(Frozen):
    """One model ``q_i`` of a composition: a mixture, an adapter, a prompt, or a pipeline."""

    name: Name
    """Its name in the objective and in the columns of the results."""
    mixture: MixtureConfig | None = None
    """An exact Gaussian mixture."""
    adapter: str | None = Field(default=None, min_length=1, max_length=1024)
    """A shipped adapter, or a directory with a plain LoRA, on the base."""
    digest: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the adapter's weights and strength, which then stands for it in the trial's id, wherever it lies."""
    prompt: str | None = Field(default=None, min_length=1, max_length=2000)
    """What the base is asked to draw, in place of the trial's prompts."""
    pretrained: str | None = Field(default=None, min_length=1, max_length=1024)
    """A pipeline of its own: ``embedded``, a hub id, or a directory."""
    revision: str | None = Field(default=None, min_length=1, max_length=200)
    """Branch, tag or commit of a hub id."""
    variant: Variant | None = None
    """Which files of weights are read where there are several, such as ``fp16``; by default the plain ones."""
    rewards: tuple[Name, ...] = ()
    """What it is judged by, names of the trial's rewards: how much of each a composition retains is measured."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if [self.mixture, self.adapter, self.prompt, self.pretrained].count(None) != 3:
            raise ValueError("needs one of 'mixture', 'adapter', 'prompt' and 'pretrained'")
        return self

    @property
    def exact(self) -> MixtureConfig:
        """The mixture, where there must be one."""
        assert self.mixture is not None, "this model is a network"
        return self.mixture


class DistillationConfig(Frozen):
    """Training of one adapter that samples like the composition, at the cost of one model."""

    steps: PositiveInt = 200
    """Optimiser steps."""
    batch: PositiveInt = 16
    """Trajectories per step."""
    learning_rate: PositiveFloat = 3.0e-3
    """Of Adam, falling to zero by a cosine."""
    lora: LoraConfig = LoraConfig(rank=8)
    """The adapter."""


PARTICLES = 8
"""Samples of a composition of networks that share a prompt; where each model draws some, at least one of each."""


class CompositionConfig(Frozen):
    """``min u`` s.t. ``KL(p‖q_i) <= u + offset_i`` (reverse, AND) or ``KL(q_i‖p) <= u + offset_i`` (forward, OR)."""

    models: tuple[ConstituentConfig, ...] = Field(min_length=2)
    """At least two: mixtures of one dimension, or networks of one kind of latents."""
    base: BaseConfig | None = None
    """Of adapters and prompts; None for mixtures."""
    direction: Literal["reverse", "forward"] = "reverse"
    """``reverse`` composes by the product, ``forward`` by the mixture."""
    offsets: dict[str, float] = Field(default_factory=dict)
    """Nats by which a model may be farther than the others, by name; absent is 0."""
    sampler: str = "fkc"
    """Of the product. Of mixtures: fkc, ula, mala, uha, hmc, or score (uncorrected). Of networks: fkc, score, or the
    baselines merged (weights of the adapters added up) and joint (all prompts in one)."""
    distillation: DistillationConfig | None = None
    """Train one adapter that samples like it; None: only compose."""

    @property
    def networks(self) -> bool:
        """Whether the models are networks, not mixtures."""
        return self.models[0].mixture is None


class ModelConfig(Frozen):
    """The pretrained model ``q``: an exact mixture, or a Stable Diffusion pipeline; or several models, composed."""

    mixture: MixtureConfig | None = None
    """An exact Gaussian mixture, whose scores are analytic and whose frontier is known."""
    pretrained: str | None = Field(default=None, min_length=1, max_length=1024)
    """``embedded`` or ``embedded-flow`` (shipped), a hub id, or a directory in diffusers format, of a known family."""
    revision: str | None = Field(default=None, min_length=1, max_length=200)
    """Branch, tag or commit of a hub id."""
    lora: LoraConfig | None = None
    """What is trained on a pipeline."""
    variant: Variant | None = None
    """Which files of weights are read where there are several, such as ``fp16``; by default the plain ones."""
    height: PositiveInt | None = None
    """Of images, pixels; by default what the network is made for."""
    width: PositiveInt | None = None
    """Of images, pixels; by default what the network is made for."""
    quantise: Literal["nf4"] | None = None
    """Holds the frozen network's linear layers in 4 bits, by bitsandbytes; adapters stay in float32."""
    negative_prompt: str | None = Field(default=None, max_length=2000)
    """What guidance leads away from; by default from no prompt."""
    max_sequence_length: PositiveInt | None = None
    """Tokens that are read of a prompt, of families whose pipeline can be told; by default as many as it has."""
    composition: Annotated[CompositionConfig | None, SkipJsonSchema()] = None
    """Several models in place of one; nothing is trained. A spec has ``models`` instead."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if [self.mixture, self.pretrained, self.composition].count(None) != 2:
            raise ValueError("needs either 'mixture' or 'pretrained'")
        if self.mixture is not None and (self.lora, self.revision, self.variant) != (None, None, None):
            written = next(key for key in ("lora", "revision", "variant") if getattr(self, key) is not None)
            rule = "'lora', 'revision' and 'variant' go with 'pretrained': a mixture has no layers to adapt"
            raise PydanticCustomError(MISPLACED, "{rule}", {"rule": rule, "key": written})
        if self.pretrained is None and self.of_pipelines:
            names = ", ".join(map(repr, self.of_pipelines))
            rule = f"{names} must go with 'pretrained': nothing else draws images of prompts"
            raise PydanticCustomError(MISPLACED, "{rule}", {"rule": rule, "key": self.of_pipelines[0]})
        return self

    @property
    def asked(self) -> tuple[str, ...]:
        """The fields that are written of how a pipeline is asked."""
        fields = ("height", "width", "negative_prompt", "max_sequence_length")
        return tuple(name for name in fields if getattr(self, name) is not None)

    @property
    def of_pipelines(self) -> tuple[str, ...]:
        """The fields that are written of how a pipeline that is trained is asked and held."""
        return self.asked if self.quantise is None else (*self.asked, "quantise")

    @property
    def exact(self) -> MixtureConfig:
        """The mixture, where there must be one."""
        assert self.mixture is not None, "this model is a pipeline"
        return self.mixture

    @property
    def constituents(self) -> tuple[ConstituentConfig, ...]:
        """The models of a composition; none of one model."""
        return () if self.composition is None else self.composition.models

    @property
    def networks(self) -> bool:
        """Whether it computes with networks, not with mixtures."""
        return self.mixture is None if self.composition is None else self.composition.networks

    @property
    def parts(self) -> "Mapping[str, ModelConfig | BaseConfig | ConstituentConfig]":
        """What is loaded, by its place in a spec: ``model`` (of a composition its base) and ``models.NAME``."""
        if self.composition is None:
            return {"model": self}
        base = self.composition.base
        return ({} if base is None else {"model": base}) | {f"models.{m.name}": m for m in self.constituents}

    def mapped(self, change: Callable[[str, Any], Any]) -> "ModelConfig":
        """Return the model with every part changed.

        Args:
            change: From place and part to another part of the same kind.
        """
        composition, changed = self.composition, {place: change(place, p) for place, p in self.parts.items()}
        if composition is None:
            model: ModelConfig = changed["model"]
            return model
        base = changed.pop("model", None)
        update = {"models": tuple(changed.values()), "base": base}
        return self.model_copy(update={"composition": composition.model_copy(update=update)})


Metadata = dict[str, tuple[str | None, ...]]
"""What a file of prompts says of them: by column one value, or None, for each prompt."""
Where = dict[str, str]
"""A group of prompts: those whose metadata has all of these values, by column."""


class PromptsConfig(Frozen):
    """What a pipeline is asked to draw. Each prompt counts alike."""

    train: tuple[str, ...] = Field(min_length=1)
    """Prompts of training, and of the statistics that thresholds refer to."""
    evaluate: tuple[str, ...] = Field(min_length=1)
    """Held-out prompts of the evaluation."""
    train_metadata: Metadata = Field(default_factory=dict)
    """Of ``train``."""
    evaluate_metadata: Metadata = Field(default_factory=dict)
    """Of ``evaluate``; columns of ``evaluations/``."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of prompts and metadata, of which the trials of a sweep share one."""
        text = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def column(self, of: Literal["train", "evaluate"], name: str) -> tuple[str | None, ...]:
        """Return a column of metadata of a list; None for every prompt where there is no such column."""
        metadata: Metadata = getattr(self, f"{of}_metadata")
        return metadata.get(name, (None,) * len(getattr(self, of)))

    def group(self, where: Where) -> frozenset[str]:
        """Return the prompts of both lists that are in a group."""
        return self.members("train", where) | self.members("evaluate", where)

    def members(self, of: Literal["train", "evaluate"], where: Where) -> frozenset[str]:
        """Return the prompts of a list that are in a group."""
        rows = zip(*(self.column(of, name) for name in where), strict=True)
        wanted = tuple(where.values())
        return frozenset(text for text, row in zip(getattr(self, of), rows, strict=True) if row == wanted)

    def in_turn(self, name: Literal["train", "evaluate"], seed: int) -> tuple[str, ...]:
        """Return a list in the order in which an evaluation asks for it: any number of the first is a share of all."""
        texts: tuple[str, ...] = getattr(self, name)
        metadata: Metadata = getattr(self, f"{name}_metadata")
        return tuple(texts[place] for place in turns(len(texts), seed, tuple(metadata.values())))

    @model_validator(mode="after")
    def _as_long(self) -> Self:
        for name in ("train", "evaluate"):
            count = len(getattr(self, name))
            for column, values in getattr(self, f"{name}_metadata").items():
                if len(values) != count:
                    raise ValueError(
                        f"{name}_metadata.{column} has {len(values)} values, and there are {count} prompts"
                    )
        return self

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave metadata out where there is none: prompts are then what they are as a list."""
        written: dict[str, Any] = handler(self)
        return {name: value for name, value in written.items() if value or not name.endswith("_metadata")}


class LinearParameters(Frozen):
    """``r(x) = direction · x``."""

    direction: tuple[float, ...] = Field(min_length=1)
    """``[d]``, reward units per unit of ``x``."""


class QuadraticParameters(Frozen):
    """``r(x) = −scale · ‖x − center‖²``."""

    center: tuple[float, ...] = Field(min_length=1)
    """``[d]``, where the reward has its maximum, 0."""
    scale: PositiveFloat = 1.0
    """Reward units per squared unit of ``x``."""


class TruncatedParameters(Frozen):
    """Of ``truncated_backprop``."""

    steps: PositiveInt = 1
    """Last steps through which rewards are differentiated, K."""
    random: bool = False
    """Draw the number of steps anew for every batch, from 1 to K."""


class LowVarianceParameters(Frozen):
    """Of ``low_variance``."""

    copies: PositiveInt = 2
    """Fresh noises per sample from which the last step is done again."""


class ClippedParameters(Frozen):
    """Of ``clipped_backprop``."""

    limit: PositiveFloat = 2.0
    """Longest control that one sample may ask a step for, in units of its noise: half its square is nats."""


class ReusedParameters(Frozen):
    """Of ``reused_rollouts``."""

    steps: PositiveInt = 4
    """Optimiser steps for which a rollout serves, at most."""
    radius: PositiveFloat = 0.1
    """Path KL from the policy that drew it to the one that is trained within which it does, nats."""


PRIMAL_PARAMETERS: dict[str, type[Frozen]] = {
    "log_variance": Frozen,
    "score_and_path": Frozen,
    "reused_rollouts": ReusedParameters,
    "reward_backprop": Frozen,
    "truncated_backprop": TruncatedParameters,
    "low_variance": LowVarianceParameters,
    "clipped_backprop": ClippedParameters,
}
"""Parameters of the built-in estimators of the primal gradient."""

REWARD_PARAMETERS: dict[str, type[Frozen]] = {"linear": LinearParameters, "quadratic": QuadraticParameters}
"""Parameters of the built-in rewards; those of other packages are checked when their class is loaded."""


class RewardConfig(Frozen):
    """A score of a sample; higher is better."""

    name: QuantityName
    """Its name in constraints and in the columns of the results."""
    kind: str
    """The registered reward, such as ``linear``."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the reward's class."""
    text: str | None = Field(default=None, min_length=1, max_length=2000)
    """Scored against this text in place of the sample's prompt."""
    where: Where | None = Field(default=None, min_length=1)
    """The prompts whose samples it scores; by default all. Its mean is over these alone."""
    revisions: dict[str, str] = Field(default_factory=dict)
    """Commits of the hub ids among the parameters, by parameter: what is loaded is what the trial is known by."""

    @model_serializer(mode="wrap")
    def _of_all_unless_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the group out where there is none: a reward is then known as it was before there were groups."""
        written: dict[str, Any] = handler(self)
        return {name: value for name, value in written.items() if name != "where" or value is not None}


class ObjectiveConfig(Frozen):
    """What is optimised: the KL to a model is minimised, or a reward maximised."""

    kind: Literal["kl", "reward", "minmax_kl"] = "kl"
    target: str = "pretrained"
    """The reference model of a KL objective, or the name of the reward; ``models`` of a composition."""


class ConstraintConfig(Frozen):
    """``E[reward] >= bound`` or ``KL <= bound``, as it was written."""

    name: QuantityName
    kind: Literal["reward", "kl"]
    target: str
    """Name of the reward, or of the reference model."""
    bound: float
    """Threshold in ``unit``; where it moves, the loosest one."""
    unit: Unit
    tightest: float | None = None
    """The other end, where one adapter answers for all thresholds between; null where the threshold stands still."""


def _off_or_above_one(guidance: float | None) -> float | None:
    """Return a scale that guides, or None: the formula of guidance would take the prompt away below 1."""
    return None if guidance is None or guidance <= 1.0 else guidance


class SamplingConfig(Frozen):
    """The stochastic sampler, shared by policy and reference."""

    steps: PositiveInt = 48
    """Gaussian steps K of the chain; the KLs of chains with other K are not comparable."""
    eta: float = Field(default=1.0, ge=0.0, le=1.0)
    """Noise of a step as a fraction of the ancestral one; 0 makes the path-wise KL infinite."""
    guidance: Annotated[float | None, AfterValidator(_off_or_above_one)] = Field(default=None, ge=0.0)
    """Scale of classifier-free guidance; 1, less, or none is off, as in diffusers: the prompt counts, and the network
    is asked once. A mixture has no condition to be guided by. A model that was distilled to be told its guidance (the
    FLUX ``dev`` ones) is told this."""
    true_guidance: Annotated[float | None, AfterValidator(_off_or_above_one)] = Field(default=None, ge=0.0)
    """Scale of classifier-free guidance away from ``model.negative_prompt``, beside that which a distilled model is
    told (``true_cfg_scale`` of diffusers)."""
    rest: int = Field(default=0, ge=0)
    """Last steps in which the adapter is off: policy and reference agree there, and those steps cost no KL."""
    order: Literal[1, 2] = 1
    """Of a step: 2 extrapolates the clean guess from that of the step before (2M), for no further call of the network,
    and with fewer steps comes as near to the model's own law. The adapter then rests in the last step at least."""
    spacing: Literal["leading", "trailing", "linspace"] | None = None
    """Of the timesteps, as in diffusers: trailing begins at the last one, and wastes none. By default as the pipeline's
    scheduler says, and trailing with order 2."""

    @property
    def words(self) -> str:
        """The chain in words, such as ``5 trailing steps of second order, eta 1, adapter off in the last 1``."""
        spaced = "" if self.spacing is None else f"{self.spacing} "
        ordered = " of second order" if self.order == 2 else ""
        words = f"{self.steps} {spaced}steps{ordered}, eta {self.eta:g}"
        words += "" if self.guidance is None else f", guidance {self.guidance:g}"
        words += "" if self.true_guidance is None else f", true guidance {self.true_guidance:g}"
        return words + (f", adapter off in the last {self.rest}" if self.rest else "")


_AVERAGE = 0.3


Checkpointing = bool | Literal["selective", "blocks"]


class TrainingConfig(Frozen):
    """The primal side."""

    steps: PositiveInt = 600
    """Optimiser steps at most; a trial that has converged ends earlier."""
    batch_per_worker: PositiveInt = 256
    """Samples per worker and micro-batch."""
    images_per_prompt: PositiveInt = 1
    """Samples of a batch that share a prompt: the others are what ``score_and_path`` and ``reused_rollouts``
    compare each with."""
    accumulation: PositiveInt = 1
    """Micro-batches per optimiser step."""
    learning_rate: PositiveFloat = 3.0e-3
    """Of Adam, at its peak."""
    anneal: float = Field(default=0.4, gt=0.0, le=1.0)
    """Last fraction of the steps in which learning rate and dual rate fall to zero."""
    average: float = Field(default=_AVERAGE, gt=0.0, le=1.0)
    """Last fraction of the steps over which parameters and multipliers are averaged, at most ``anneal``: they are
    averaged while the rates fall. By default 0.3, or ``anneal`` where that is less."""
    ema: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Decay of an exponential moving average of parameters and multipliers, in place of the plain mean over
    ``average``."""
    width: PositiveInt = 64
    """Hidden units of the trainable residual of a mixture model."""
    gradient_clip: PositiveFloat = 5.0
    """Largest Euclidean norm of the gradient of one step."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the network; KL and multipliers stay in float32."""
    primal: str = "log_variance"
    """Registered estimator of the primal gradient."""
    primal_parameters: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the estimator's class, such as ``{steps: 2, random: true}`` of ``truncated_backprop``."""
    reference_gradient: bool = True
    """Let the reference's prediction carry its gradient to the state; without it the KL blows up."""
    optimizer: Literal["adam", "adam_8bit"] = "adam"
    """``adam_8bit`` keeps its moments in 8 bits; it needs bitsandbytes and a GPU."""
    gradient_checkpointing: Checkpointing = False
    """Compute every sampling step again in the backward pass: the memory of one step in place of K. ``blocks``: of
    that step every block of the network once more, for the memory of one block. ``selective``: in float32, only what is
    read from memory at little cost, with the same numbers to the last bit."""
    offload: bool = False
    """Keep a pipeline's autoencoder in main memory, and on the GPU only while it is needed; text encoders never are on
    the GPU."""
    compile: bool = False
    """Compile the UNet with torch.compile."""
    checkpoint_every: PositiveInt = 50
    """Optimiser steps between two checkpoints."""

    warm_start: bool = False
    """Begin with adapter and multipliers of the finished trial whose thresholds are nearest, where there is one."""

    @model_validator(mode="before")
    @classmethod
    def _no_longer_by_default(cls, given: Any) -> Any:
        anneal = given.get("anneal") if isinstance(given, dict) else None
        if isinstance(anneal, int | float) and 0 < anneal < _AVERAGE:
            return {"average": anneal} | given
        return given

    @field_validator("average")
    @classmethod
    def _while_rates_fall(cls, average: float, known: ValidationInfo) -> float:
        anneal = known.data.get("anneal", 1.0)
        if average > anneal:
            raise ValueError(
                f"averages are taken while the rates fall: at most training.anneal, which is {anneal:g}, got "
                f"{average:g}; lower it, or raise training.anneal"
            )
        return average


def _as_before(pairing: Any) -> Any:
    """Return the words for what was a switch as that: a trial is known by how it was written then."""
    return {"noise": True, "none": False}.get(pairing, pairing) if isinstance(pairing, str) else pairing


Pairing = Annotated[bool | Literal["noise", "stored", "prompt", "none"], AfterValidator(_as_before)]


class DualConfig(Frozen):
    """The dual side."""

    kind: str = "ascent"
    """Registered dual optimiser: ascent, nu_pi, augmented, reweighted, or one of another package."""
    rate: PositiveFloat = 0.1
    """Step size η (κ_i of ν-PI), nats per σ of violation."""
    proportional: float = Field(default=1.0, ge=0.0)
    """κ_p of ν-PI."""
    nu: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Smoothing ν of ν-PI."""
    penalty: PositiveFloat = 1.0
    """Weight of the quadratic term of the augmented Lagrangian, nats per σ²."""
    window: PositiveInt = 20
    """Steps whose samples ``reweighted`` weighs."""
    steps_between: PositiveInt = 1
    """Primal optimiser steps per dual step."""
    start: Literal["preview"] | Annotated[float, Field(ge=0.0)] = "preview"
    """First multipliers: from the samples of the pretrained model, tilted within each prompt (two samples of each or
    more; else 0), or one number, nats per σ."""
    paired: Pairing = True
    """What the means of rewards that drive the multipliers are differences to: ``noise`` (or true), the pretrained
    model on the same noise, which costs a rollout without gradients; ``stored``, the same, and training
    begins with the noise and the prompts of its ``baseline_images``, each once, which costs nothing; ``prompt``, its
    stored mean for the prompt; or ``none`` (or false). A weighted trial has no multipliers to drive: where there are
    prompts it has ``prompt`` in place of ``noise``."""
    margin: float = Field(default=0.0, ge=0.0)
    """How far past every reward threshold training aims, σ, so that a held-out evaluation with its uncertainty meets
    the threshold itself. Thresholds and violations in the results stay those that are written."""


class ConvergenceConfig(Frozen):
    """When a trial has converged, and when its thresholds are out of reach."""

    window: PositiveInt = 60
    """Optimiser steps over which residuals are averaged."""
    tolerance: PositiveFloat = 0.03
    """Largest KKT residual (σ, nats, of a KL budget a share of it) that counts as converged."""
    multiplier_limit: PositiveFloat = 50.0
    """A constraint that stays violated, and would even at this multiplier (nats per σ), is infeasible."""


class DeployedConfig(Frozen):
    """The sampler that an adapter will be used with, as diffusers has it."""

    sampler: Literal["ode", "dpmsolver++"] = "ode"
    """``ode``: DDIM, or Euler's steps of a flow on the levels of its own pipeline; ``dpmsolver++``: DPM-Solver++ of
    second order, of a diffusion."""
    steps: PositiveInt = 28
    """Calls of the network."""
    guidance: Annotated[float | None, AfterValidator(_off_or_above_one)] = Field(default=None, ge=0.0)
    """Scale of classifier-free guidance, or what a distilled model is told; 1, less, or none is off."""
    true_guidance: Annotated[float | None, AfterValidator(_off_or_above_one)] = Field(default=None, ge=0.0)
    """Scale of classifier-free guidance away from ``model.negative_prompt``, as in ``sampling``."""
    eta: float = Field(default=0.0, ge=0.0, le=1.0)
    """Noise of DDIM's steps; DPM-Solver++ has none."""

    @property
    def words(self) -> str:
        """The sampler in words, such as ``dpmsolver++, 20 steps, guidance 4.5``."""
        noisy = f", eta {self.eta:g}" if self.eta else ""
        guided = "" if self.guidance is None else f", guidance {self.guidance:g}"
        guided += "" if self.true_guidance is None else f", true guidance {self.true_guidance:g}"
        return f"{self.sampler}, {self.steps} steps{guided}{noisy}"

    @property
    def asked(self) -> SamplingConfig:
        """What the pipeline is asked besides its prompts; the steps here stand for nothing."""
        return SamplingConfig(steps=2, rest=1, guidance=self.guidance, true_guidance=self.true_guidance)

    @model_validator(mode="after")
    def _without_noise(self) -> Self:
        if self.sampler != "ode" and self.eta > 0:
            raise ValueError(f"eta goes with sampler ode: {self.sampler} has no noise, got {self.eta:g}")
        return self


class EvaluationConfig(Frozen):
    """Held-out evaluation with fixed seeds."""

    images: PositiveInt = 16384
    """Samples."""
    baseline_images: PositiveInt = 32768
    """Samples of the pretrained model, of each prompt set, from which its statistics and the first multipliers
    come; of a pipeline by default twice ``images``."""
    every: PositiveInt = 20
    """Optimiser steps between two logged rows of the history."""
    tolerance: float = Field(default=0.05, ge=0.0)
    """A trial is feasible when the one-sided 95 % bound of every violation is at most this: of a reward in σ of the
    pretrained model, of a KL as a share of its budget."""
    seed: int = Field(default=1_000_003, ge=0)
    """Seed of the evaluation noise, the same for every trial."""
    batch: PositiveInt | None = None
    """Samples that a worker draws at a time, here, of the pretrained model, and of a composition: 32 of a pipeline
    unless written. Where the memory is too small they are halved; no result depends on them, and no trial's id."""
    as_deployed: DeployedConfig | None = None
    """Judge every trial under this sampler too, on the same prompts and noise: ``deployed_NAME`` in the results."""

    def allowance(self, kind: Literal["reward", "kl"], *, bound: float, std: float) -> float:
        """Return how far above 0 the bound of a violation may lie: reward units, or nats for a KL.

        Args:
            kind: Of the constraint.
            bound: Its threshold, reward units or nats.
            std: Of the reward under the pretrained model; of no account for a KL.
        """
        return self.tolerance * (bound if kind == "kl" else std)


PIPELINE_DEFAULTS: dict[str, dict[str, Any]] = {
    "sampling": {"steps": 8, "rest": 2},
    "training": {
        "steps": 100,
        "batch_per_worker": 8,
        "primal": "reward_backprop",
        "gradient_clip": 1.0,
        "checkpoint_every": 25,
    },
    "duals": {"kind": "nu_pi", "rate": 0.3, "start": 1.0},
    "evaluation": {"images": 512, "every": 5, "baseline_images": 1024},
    "convergence": {"window": 30},
}
"""Defaults of a pipeline, by section of the spec, where they differ from those of a mixture."""
SECOND_ORDER: dict[str, Any] = {"rest": 1, "spacing": "trailing"}
"""Of its sampling with ``order: 2``: a rest of 1 is the least, and no other spacing will do."""


COMPOSITION_DEFAULTS: dict[str, dict[str, Any]] = {
    "sampling": {"steps": 64},
    "training": {"steps": 60, "batch_per_worker": 4096},
    "evaluation": {"images": 16384, "every": 1},
    "convergence": {"window": 10, "tolerance": 0.01},
}
"""Defaults of a composition of mixtures, where they differ from those of one: ``training.steps`` are dual steps, and
``batch_per_worker`` the samples of each."""

NETWORK_COMPOSITION_DEFAULTS: dict[str, dict[str, Any]] = {
    "sampling": {"steps": 8},
    "training": {"steps": 12, "batch_per_worker": 64},
    "evaluation": {"images": 256, "every": 1},
    "convergence": {"window": 4, "tolerance": 0.05},
}
"""Defaults of a composition of adapters, prompts or pipelines."""


class FrontierConfig(Frozen):
    """One adapter for every threshold of a box, or for all weights of a composition."""

    points: PositiveInt = 9
    """Thresholds at which it is evaluated, on the same noise: the loosest, the tightest, and others spread evenly. Of
    a composition weights: those that were found, each model alone, equal ones, and others spread evenly."""
    form: str = "price"
    """Of a LoRA's function of the multipliers; that of a mixture's control is its own."""
    rounds: PositiveInt = 1
    """How often it is trained: each round after the first draws more thresholds where what the evaluation of the one
    before paid is farthest above what is known of the least KL."""


class TrialConfig(Frozen):
    """All that defines a trial: equal configs give equal trial ids, and the same results."""

    model: ModelConfig
    prompts: PromptsConfig | None = None
    """None for a mixture."""
    sampling: SamplingConfig
    rewards: tuple[RewardConfig, ...]
    """Every reward of the problem, in the order of the spec."""
    measured: tuple[RewardConfig, ...] = ()
    """Rewards that are measured and shown, and never trained on: judges, and what every trial is watched by."""
    objective: ObjectiveConfig
    constraints: tuple[ConstraintConfig, ...]
    method: Literal["constrained", "weighted", "frontier", "interpolated"]
    weights: dict[str, float]
    """Fixed weight of each reward, nats per σ, or of each model of a composition, on the simplex; empty for
    constrained trials."""
    frontier: FrontierConfig | None = None
    """Of the method ``frontier``; null for all others."""
    interpolated: dict[str, float] | None = None
    """Of a point between finished trials, which is measured and never trained: the weight of each trial's update, by
    its id; what is left to 1 is the pretrained model's. Null for all others."""
    seed: int = Field(ge=0)
    training: TrainingConfig
    duals: DualConfig
    convergence: ConvergenceConfig
    evaluation: EvaluationConfig
    workers: PositiveInt = 1
    """Processes that share each optimiser step; the most there can be, where ``elastic``."""
    elastic: bool = False
    """Whether fewer may do the work of ``workers``; every micro-batch is then an estimate of its own."""
    contents: dict[str, str] = Field(default_factory=dict)
    """What names in the config stood for when it was planned, by place: SHA-256 of a path, commit of a hub id, version
    and SHA-256 of a package; see ``orchestrator.spec.files.contents``."""

    @property
    def scored(self) -> tuple[RewardConfig, ...]:
        """Rewards of the problem, and those that are only measured."""
        return (*self.rewards, *self.measured)

    @property
    def targets(self) -> dict[str, str]:
        """The reward of each constraint on one, by the name of the constraint."""
        return {c.name: c.target for c in self.constraints if c.kind == "reward"}

    @property
    def acting(self) -> tuple[str, ...]:
        """Rewards that an optimum is tilted by: those of the constraints and of the objective."""
        wanted = {
            *self.targets.values(),
            *([self.objective.target] if self.objective.kind == "reward" else ()),
        }
        return tuple(reward.name for reward in self.rewards if reward.name in wanted)

    @property
    def judged(self) -> tuple[int, int] | None:
        """Held-out prompts that an evaluation asks for, and how many there are; None without prompts of its own."""
        if self.prompts is None:
            return None
        composition, images = self.model.composition, self.evaluation.images
        if composition is not None:  # whose groups share a prompt
            forward = composition.direction == "forward"
            images = -(-images // (max(PARTICLES, len(composition.models)) if forward else PARTICLES))
        return min(images, len(self.prompts.evaluate)), len(self.prompts.evaluate)

    @property
    def tuned(self) -> Self:
        """The config with the one pipeline that the trial's adapter is for: of a distilled composition its base."""
        composition = self.model.composition
        if composition is None:
            return self
        base, distillation = composition.base, composition.distillation
        assert base is not None, "an adapter has a base"
        assert distillation is not None, "a composition leaves an adapter where it is distilled"
        model = ModelConfig(**base.model_dump(), lora=distillation.lora)
        prompts = self.prompts
        concepts = [model.prompt for model in composition.models if model.prompt is not None]
        if len(concepts) == len(composition.models):
            joint = (", ".join(concepts),)
            prompts = PromptsConfig(train=joint, evaluate=joint)
        return self.model_copy(update={"model": model, "prompts": prompts})


class RewardStatistics(Frozen):
    """Mean and standard deviation of a reward under the pretrained model, in reward units."""

    mean: float
    std: PositiveFloat


class MeanStatistics(Frozen):
    """A mean with its two-sided 95 % interval, in reward units; ends are null where they are not known."""

    mean: float
    low: float | None = None
    high: float | None = None


class BaselineStatistics(Frozen):
    """What thresholds in ``relative`` and ``sigma`` units refer to: the pretrained model on the training prompts."""

    rewards: dict[str, RewardStatistics]
    measured: dict[str, RewardStatistics] = Field(default_factory=dict)
    """The same of rewards that are only measured, on the held-out prompts; one without spread is left out."""
    samples: PositiveInt | None
    """Size of the sample they come from; null when they are exact."""
    diversity: float | None = None
    """Variance of unit CLIP embeddings within a prompt; null where nothing embeds."""
    diversity_std: float | None = None
    """Standard deviation of that between prompts; null of fewer than two."""
    velocity: RewardStatistics | None = None
    """Of the velocity along paths (``Evaluation.velocity``) on the held-out prompts; null where they have none."""
    kl_floor: float | None = None
    """Path-wise KL, nats, that rounding alone makes; null where no adapter is trained."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of the rewards that servers gave, by name: those of every trial are the same."""
    deployed: dict[str, MeanStatistics] = Field(default_factory=dict)
    """All rewards under ``evaluation.as_deployed``, on the held-out prompts; empty where that is not asked for."""


class TrialJob(Frozen):
    """A trial, ready to run anywhere: its config, and thresholds resolved to absolute units."""

    trial_id: str
    config: TrialConfig
    baseline: BaselineStatistics
    thresholds: dict[str, float]
    """By constraint name, in reward units, or nats for a KL."""
    tightest: dict[str, float] = Field(default_factory=dict)
    """The other end of thresholds that move, by constraint name, in the same units."""
    start: tuple[float, ...] | None = None
    """First multipliers in the order of the constraints, per scaled violation; None: the trial finds them itself. Where
    thresholds move, those of every node of their box in turn."""
    base: str | None = None
    """Id of the trial of the same sweep whose adapter it begins with."""
    rounds: PositiveInt = 1
    """How often ``training.steps`` are done, each time from the average that the round before came to."""
    density: tuple[PositiveFloat, ...] | None = None
    """Where thresholds move, and it is trained further: how densely they are drawn at every node of their box, relative
    to each other; None: evenly."""
    continuable: bool = False
    """Whether the state at the end of training is kept as a checkpoint, from which another round can go on."""
