"""The spec of a sweep as strict, frozen records, field for field what the YAML says.

Sections that a trial takes over unchanged are records of ``trainers.config``.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from orchestrator.spec.files.pipelines import lora_targets
from orchestrator.spec.files.prompts import Prompts
from orchestrator.spec.records import registry
from orchestrator.spec.records.budgets import BudgetSpec
from orchestrator.spec.records.compositions import composition_of
from orchestrator.spec.records.constituents import ComposedModel
from orchestrator.spec.records.groups import as_written, grouped
from orchestrator.spec.records.rewards import resolve_rewards
from orchestrator.spec.records.searches import SearchSpec, WeightSearchSpec
from orchestrator.spec.records.terms import (
    Constraint,
    KLObjective,
    MeasuredReward,
    Objective,
    Sampler,
    SweptScale,
    SweptWeight,
    by_key,
    told_apart,
)
from orchestrator.spec.records.trackers import Trackers
from orchestrator.spec.rules.parts import problems_of
from orchestrator.spec.text.problems import Problem, checked_parameters, raise_problems, refuse_twice
from trainers.config import (
    PRIMAL_PARAMETERS,
    ConvergenceConfig,
    DistillationConfig,
    DualConfig,
    EvaluationConfig,
    FrontierConfig,
    Frozen,
    LoraConfig,
    ModelConfig,
    Name,
    SamplingConfig,
    TrainingConfig,
)

# Methods, resources ----------------------------------------------------------------------------------


class WeightedSettings(Frozen):
    """Fixed weights in place of multipliers: maximise ``Σ w_i r_i / σ_i − KL``, or compose models at these weights."""

    weights: Annotated[
        Annotated[Literal["equal"], Tag("<name>")] | Annotated[dict[str, SweptWeight], Tag("<weights>")],
        told_apart(
            lambda value: "<name>" if value == "equal" else "<weights>" if isinstance(value, dict) else None,
            "'equal', or a mapping from rewards (or models of a composition) to weights",
            "equal",
        ),
    ] = "equal"
    """``equal`` (1 each), or a weight or grid for each reward, nats per σ; 0 for those left out. Of a composition
    ``equal`` is 1 / m for each of m models, and the weights of the models sum to 1."""
    scale: SweptScale = 1.0
    """Factor of all weights; 1 for a composition."""
    search: WeightSearchSpec | None = None
    """Chooses the weights of rewards while the sweep runs, in place of ``weights`` and ``scale``."""
    sampler: Sampler | None = None
    """Of a composition by the product, in place of the objective's; also the baselines merged (one network with the
    weighted sum of the adapters) and joint (one prompt that asks for everything)."""

    @model_validator(mode="after")
    def _either(self) -> Self:
        if self.search is None:
            return self
        rule = "goes without 'search', which chooses the weights"
        problems = [
            Problem(path=(name,), rule=rule, at_key=True)
            for name in ("weights", "scale")
            if name in self.model_fields_set
        ]
        if problems:
            raise_problems(problems)
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what must not stand beside a search, so that what is written can be read again."""
        written: dict[str, Any] = handler(self)
        if self.search is not None:
            for name in ("weights", "scale"):
                written.pop(name, None)
        return written


class WeightedMethod(Frozen):
    """The baseline with fixed weights."""

    weighted: WeightedSettings
    """Its weights."""


class FrontierSettings(FrontierConfig):
    """One adapter for all thresholds between the ends of the ranges and grids; of a composition for all weights."""

    steps: PositiveInt | None = None
    """Optimiser steps at most; by default ``training.steps``, of a composition ``distillation.steps``."""
    rank: PositiveInt | None = None
    """Of the adapter's updates; by default three columns for every reward that acts, or every model of a composition.
    A mixture has none."""


class FrontierMethod(Frozen):
    """One trial in place of one for each threshold."""

    frontier: FrontierSettings
    """Its settings, all of which have defaults."""


Method = Annotated[
    Annotated[Literal["constrained"], Tag("<name>")]
    | Annotated[WeightedMethod, Tag("WeightedMethod")]
    | Annotated[FrontierMethod, Tag("FrontierMethod")],
    told_apart(
        lambda value: (
            "<name>"
            if value == "constrained"
            else by_key(weighted="WeightedMethod", frontier="FrontierMethod")(value)
        ),
        "'constrained', {weighted: {weights: equal, scale: 1.0}} or {frontier: {}}",
        "constrained",
        "weighted",
        "frontier",
    ),
]


def _placeable(amount: float) -> float:
    if amount > 1 and amount != int(amount):
        raise ValueError("must be a whole number when it is greater than 1, as Ray places no others")
    return amount


Trials = Annotated[
    Annotated[Literal["auto"], Tag("<name>")] | Annotated[PositiveInt, Tag("<number>")],
    told_apart(
        lambda value: "<name>" if value == "auto" else "<number>" if isinstance(value, int | float) else None,
        "'auto' or a number of trials",
        "auto",
    ),
]


class RetriesSpec(Frozen):
    """How often a trial is started again, from its last checkpoint."""

    errors: NonNegativeInt = 3
    """After errors of its own; then it has failed."""
    losses: NonNegativeInt = 16
    """After the loss of its process or node, each time without having got further since the loss before."""


class ElasticWorkers(Frozen):
    """As many processes as the cluster has room for; the batch of an optimiser step stays that of ``max``."""

    min: PositiveInt
    """Below this the trial waits."""
    max: PositiveInt
    """Fewer workers take more micro-batches each."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max <= self.min:
            rule = f"must be greater than min ({self.min}); for a fixed number write workers: {self.max}"
            raise_problems([Problem(path=("max",), rule=rule, value=self.max)])
        return self


class ResourcesSpec(Frozen):
    """What one trial needs, and what it costs."""

    workers: Annotated[
        Annotated[PositiveInt, Tag("<number>")] | Annotated[ElasticWorkers, Tag("ElasticWorkers")],
        told_apart(
            lambda value: (
                "<number>"
                if isinstance(value, int | float)
                else by_key(min="ElasticWorkers", max="ElasticWorkers")(value)
            ),
            "a number of workers, or {min: 1, max: 4}",
            "min",
            "max",
        ),
    ] = 1
    """Processes of a trial."""
    gpus_per_worker: Annotated[NonNegativeFloat, AfterValidator(_placeable)] = 0.0
    """A fraction shares a GPU."""
    cpus_per_worker: Annotated[PositiveFloat, AfterValidator(_placeable)] = 1.0
    """Cores."""
    concurrent_trials: Trials = "auto"
    """Trials at a time; ``auto`` is as many as the cluster holds."""
    pack: Trials = 1
    """Trials of a pipeline that share a process, and the resources of one: their network is asked once for all. Each
    is what it would be alone. ``auto`` is as many as leave no worker idle, at most 4; 1 where they cannot be packed."""
    shard: bool = False
    """Split the frozen network of a pipeline among the workers of a trial (FSDP2), for one that a GPU does not hold;
    adapters and results are as without, to rounding."""
    retries: RetriesSpec = RetriesSpec()
    """Of each trial."""
    placement: Literal["pack", "spread"] = "pack"
    """Of a trial's workers: on as few nodes as hold them, or on different ones."""
    price_per_gpu_hour: NonNegativeFloat | None = None
    """In any currency; with it the plan has a cost."""

    @property
    def least_workers(self) -> int:
        """Without which a trial cannot run."""
        return self.workers.min if isinstance(self.workers, ElasticWorkers) else self.workers

    @property
    def most_workers(self) -> int:
        """That a trial can use."""
        return self.workers.max if isinstance(self.workers, ElasticWorkers) else self.workers


# Sections taken over by trials -----------------------------------------------------------------------


def _adapted(model: ModelConfig | None, info: ValidationInfo) -> ModelConfig | None:
    """Return the model with what is trained on a pipeline written out."""
    if model is None:
        if info.data.get("models", ...) is None:
            raise ValueError("must be a mapping")
        return None
    if model.composition is not None:
        rule = "a composition is written as models: {NAME: {mixture: …}} in place of model"
        raise_problems([Problem(path=("composition",), rule=rule, at_key=True)])
    if model.pretrained is None or (model.lora is None and info.data.get("models") is not None):
        return model
    lora, targets = model.lora or LoraConfig(), lora_targets(model.pretrained, model.revision)
    if "targets" not in lora.model_fields_set and targets != lora.targets:
        lora = lora.model_copy(update={"targets": targets})
    return model if lora is model.lora else model.model_copy(update={"lora": lora})


def _samplable(sampling: SamplingConfig) -> SamplingConfig:
    if sampling.rest >= sampling.steps:
        rule = f"must be less than the {sampling.steps} steps of sampling, or none is left to train"
        raise_problems([Problem(path=("rest",), rule=rule, value=sampling.rest)])
    if sampling.eta == 0:
        rule = (
            "must be greater than 0: without noise the path-wise KL is infinite for every change of the model"
        )
        raise_problems([Problem(path=("eta",), rule=rule, value=0)])
    if sampling.order == 2 and sampling.eta != 1:
        rule = "must be 1 with sampling.order 2, whose steps have the noise of eta 1; or write order: 1"
        raise_problems([Problem(path=("eta",), rule=rule, value=sampling.eta)])
    return sampling


def _known_primal(training: TrainingConfig) -> TrainingConfig:
    registry.require(registry.PRIMAL_ESTIMATORS, training.primal, ("primal",))
    if training.primal not in PRIMAL_PARAMETERS:
        return training  # that package checks its own parameters
    model = PRIMAL_PARAMETERS[training.primal]
    parameters = checked_parameters(model, training.primal_parameters, ("primal_parameters",))
    return training.model_copy(update={"primal_parameters": parameters})


def _known_dual(duals: DualConfig) -> DualConfig:
    registry.require(registry.DUAL_OPTIMIZERS, duals.kind, ("kind",))
    return duals


def _distinct_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    refuse_twice(seeds, "is in the list twice")
    return seeds


def _constrained(constraints: tuple[Constraint, ...], info: ValidationInfo) -> tuple[Constraint, ...]:
    """Only a composition is a problem without constraints."""
    if not constraints and info.data.get("models", ...) is None:
        raise ValueError("must not be empty")
    if "prompts" not in info.data:
        return constraints  # they are wrong themselves
    found, problems = grouped(constraints, info.data["prompts"])
    if problems:
        raise_problems(problems)
    return found


class SweepSpec(Frozen):
    """One sweep: a problem, the methods that solve it, the grids over it, and what it may use."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Its directory in the storage: letters, digits, dots, dashes and underscores."""
    models: dict[Name, ComposedModel] | None = Field(default=None, min_length=1)
    """The models of a composition by name, in place of ``model``."""
    model: Annotated[ModelConfig | None, AfterValidator(_adapted)]
    """The pretrained model: an exact mixture or a pipeline; beside ``models`` the base of adapters and prompts, by
    default the shipped pipeline."""
    prompts: Prompts | None = None
    """What a pipeline is asked to draw: shipped sets, text files or lists."""
    sampling: Annotated[SamplingConfig, AfterValidator(_samplable)] = SamplingConfig()
    """The stochastic sampler."""
    objective: Objective = KLObjective()
    """What is optimised."""
    constraints: Annotated[tuple[Constraint, ...], AfterValidator(_constrained)]
    """Thresholds on rewards and budgets on KLs; a composition needs none."""
    rewards: tuple[MeasuredReward, ...] = ()
    """Judges: rewards that are measured and shown, and never trained on."""
    methods: tuple[Method, ...] = Field(default=("constrained",), min_length=1)
    """How the problem is solved; each method has its own trials."""
    search: SearchSpec = SearchSpec()
    """Which combinations are run."""
    budget: BudgetSpec | None = None
    """What a search may spend; by default its trials are counted."""
    seeds: Annotated[tuple[NonNegativeInt, ...], AfterValidator(_distinct_seeds)] = Field(
        default=(0,), min_length=1
    )
    """Every combination is run with each."""
    training: Annotated[TrainingConfig, AfterValidator(_known_primal)] = TrainingConfig()
    """The primal side."""
    duals: Annotated[DualConfig, AfterValidator(_known_dual)] = DualConfig()
    """The dual side."""
    distillation: DistillationConfig | None = None
    """Train one adapter that samples like a composition of networks, at the cost of one; by default none is."""
    convergence: ConvergenceConfig = ConvergenceConfig()
    """When a trial has converged, and when its thresholds are out of reach."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out evaluation with fixed seeds."""
    resources: ResourcesSpec = ResourcesSpec()
    """What one trial needs, and what it costs."""
    storage: str = Field(default="results", min_length=1, max_length=1024, pattern=r"^[^\s](.*[^\s])?$")
    """Directory or URI under which the sweep's directory is made."""
    trackers: Trackers = ()
    """Where the numbers go beside the storage: tensorboard, mlflow, wandb."""
    contents: dict[str, str] = Field(default_factory=dict)
    """What the names in the spec stand for, by place: SHA-256 of what a path holds, commit of a hub id, version and
    SHA-256 of a package with a reward. Filled in; where it is written, it must be what is here."""

    @property
    def weightings(self) -> tuple[tuple[int, WeightedSettings], ...]:
        """Settings of the weighted methods, each with its place among the methods."""
        listed = enumerate(self.methods)
        return tuple((place, m.weighted) for place, m in listed if isinstance(m, WeightedMethod))

    @property
    def frontiers(self) -> tuple[tuple[int, FrontierSettings], ...]:
        """The same of the methods that train one adapter for all thresholds."""
        listed = enumerate(self.methods)
        return tuple((place, m.frontier) for place, m in listed if isinstance(m, FrontierMethod))

    @property
    def configured(self) -> ModelConfig:
        """The model, or the composition, as a trial takes it."""
        if self.models is not None:
            return ModelConfig(composition=composition_of(self, resolve_rewards(self).judged))
        assert self.model is not None, "a spec has model or models"
        return self.model

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if problems := as_written(problems_of(self), self.constraints):
            raise_problems(problems)
        return self
