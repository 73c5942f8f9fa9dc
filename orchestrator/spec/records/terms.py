"""The terms of a problem: values and grids of them, rewards, the objective, constraints.

A union is told apart by the look of the value, never by trying one form after the other, so that an error
is about the form that was meant. The tag of a form is the name of its model, or stands in angle brackets;
it is dropped from locations.
"""

from collections.abc import Callable
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PrivateAttr,
    Tag,
    WithJsonSchema,
    model_validator,
)

from orchestrator.spec.records import registry
from orchestrator.spec.text.problems import (
    CHOICE,
    Problem,
    checked_parameters,
    nearest,
    raise_problems,
    refuse_twice,
)
from trainers.config import Frozen, Name, QuantityName, Where

Number = TypeVar("Number", float, float | str)


def told_apart(tag: Callable[[Any], str | None], forms: str = "", *choices: str) -> Discriminator:
    """Return the discriminator of a union.

    Args:
        tag: Gives the tag of a plain value, or None when it has none of the forms.
        forms: The forms in words, for the error about such a value.
        choices: The keys or names that make the forms, of which the error names the nearest.
    """

    def tag_of(value: Any) -> str | None:
        # Records come here when they are written; their tag is their name.
        return type(value).__name__ if isinstance(value, BaseModel) else tag(value)

    if not forms:
        return Discriminator(tag_of)
    # Without choices there is no context: a union that is part of another must be hashable.
    context: dict[str, int | str | float] | None = {"choices": ", ".join(choices)} if choices else None
    return Discriminator(
        tag_of,
        custom_error_type=CHOICE,
        custom_error_message=f"must be {forms}",
        custom_error_context=context,
    )


def by_key(**models: str) -> Callable[[Any], str | None]:
    """Return a tagger that goes by the first of some keys that a mapping has."""

    def tag(value: Any) -> str | None:
        keys = value if isinstance(value, dict) else {}
        return next((model for key, model in models.items() if key in keys), None)

    return tag


# Values and grids of values --------------------------------------------------------------------------


UNIT_MARKS = {"absolute": "", "sigma": "σ", "relative": "×", "nats": " nats"}
"""What stands behind a threshold of each unit."""


def number(written: float | str) -> float:
    """Return a threshold as a number: ``"+50%"`` is 0.5."""
    return float(written[:-1]) / 100 if isinstance(written, str) else float(written)


class Grid(Frozen, Generic[Number]):
    """Values that are swept; several grids multiply."""

    grid: tuple[Number, ...] = Field(min_length=1)
    """Distinct values."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen: set[float] = set()
        for index, value in enumerate(map(number, self.grid)):
            if value in seen:
                rule = f"{self.grid[index]} is in the grid twice"
                raise_problems([Problem(path=("grid", index), rule=rule)])
            seen.add(value)
        return self


def _form_of_threshold(grid: str) -> Callable[[Any], str]:
    def tag(value: Any) -> str:
        return grid if isinstance(value, dict) else "<percent>" if isinstance(value, str) else "<number>"

    return tag


Percent = Annotated[str, Field(pattern=r"^[+-]?[0-9]{1,9}(\.[0-9]{1,9})?%$")]
Threshold = Annotated[
    Annotated[float, Tag("<number>")] | Annotated[Percent, Tag("<percent>")],
    told_apart(_form_of_threshold("<number>")),
]


class ThresholdGrid(Grid[Threshold]):
    """Thresholds of a reward."""


def _ends(values: tuple[float | str, ...]) -> tuple[float | str, ...]:
    if len(values) != 2:
        raise ValueError(f"must be two thresholds, [low, high], got {len(values)}")
    if not number(values[0]) < number(values[1]):
        raise ValueError(
            f"must have its low end below its high end, but {values[0]} is not below {values[1]}"
        )
    return values


class ThresholdRange(Frozen):
    """Thresholds of a reward between which a search chooses."""

    # Not a pair of fixed length: a missing end would be an error without words.
    range: Annotated[
        tuple[Threshold, ...],
        AfterValidator(_ends),
        Field(json_schema_extra={"minItems": 2, "maxItems": 2}),
    ]
    """The lowest and the highest threshold, in the unit of the constraint."""

    @property
    def low(self) -> float:
        """The threshold that is met most easily, in the unit of the constraint."""
        return number(self.range[0])

    @property
    def high(self) -> float:
        """The threshold that is hardest to meet, in the unit of the constraint."""
        return number(self.range[1])


class BudgetGrid(Grid[PositiveFloat]):
    """Budgets of a KL, nats."""


class WeightGrid(Grid[NonNegativeFloat]):
    """Weights of a reward, nats per σ."""


class ScaleGrid(Grid[PositiveFloat]):
    """Factors of all weights."""


def number_or(grid: str) -> Discriminator:
    """Return a discriminator between a number and the model of its grid; a mapping of other keys is neither."""

    def tag(value: Any) -> str | None:
        if not isinstance(value, dict):
            return "<number>"
        # A misspelt key is told as that.
        return grid if any(nearest(str(key), ["grid"]) for key in value) else None

    return told_apart(tag, "a number or {grid: […]}")


def _form_of_swept_threshold(value: Any) -> str | None:
    if not isinstance(value, dict):
        return _form_of_threshold("")(value)
    return by_key(grid="ThresholdGrid", range="ThresholdRange")(value)


SweptThreshold = Annotated[
    Annotated[float, Tag("<number>")]
    | Annotated[Percent, Tag("<percent>")]
    | Annotated[ThresholdGrid, Tag("ThresholdGrid")]
    | Annotated[ThresholdRange, Tag("ThresholdRange")],
    told_apart(
        _form_of_swept_threshold,
        "a number, a percentage, {grid: […]} or {range: [low, high]}",
        "grid",
        "range",
    ),
]
SweptBudget = Annotated[
    Annotated[PositiveFloat, Tag("<number>")] | Annotated[BudgetGrid, Tag("BudgetGrid")],
    number_or("BudgetGrid"),
]
SweptWeight = Annotated[
    Annotated[NonNegativeFloat, Tag("<number>")] | Annotated[WeightGrid, Tag("WeightGrid")],
    number_or("WeightGrid"),
]
SweptScale = Annotated[
    Annotated[PositiveFloat, Tag("<number>")] | Annotated[ScaleGrid, Tag("ScaleGrid")],
    number_or("ScaleGrid"),
]


# Rewards ---------------------------------------------------------------------------------------------


def _canonical_reward(value: str | dict[str, dict[str, Any]]) -> str | dict[str, dict[str, Any]]:
    """Check kind and parameters of a definition, and write out the defaults of a built-in one."""
    if isinstance(value, str):
        return value  # a name can be resolved only beside the other names: rules.py
    if len(value) != 1:
        rule = f"must be one kind with its parameters, got {len(value)} keys"
        raise_problems([Problem(path=(), rule=rule, value=value)])
    [(kind, parameters)] = value.items()
    if not registry.is_registered(registry.REWARDS, kind):
        raise_problems([registry.unknown(registry.REWARDS, kind, (kind,), at_key=True)])
    if kind not in registry.REWARD_KINDS:
        return value
    checked = checked_parameters(registry.REWARD_KINDS[kind], parameters, (kind,))
    if kind == "linear" and not any(parameters["direction"]):
        rule = "must not be zero, or the reward is the same for every sample"
        raise_problems([Problem(path=(kind, "direction"), rule=rule, value=parameters["direction"])])
    return {kind: checked}


def _reward_schema() -> dict[str, Any]:
    parameters = {kind: model.model_json_schema() for kind, model in registry.REWARD_KINDS.items()}
    other = {"type": "object", "description": "Parameters of a reward of another package."}
    definition = {
        "type": "object",
        "properties": parameters,
        "additionalProperties": other,
        "minProperties": 1,
        "maxProperties": 1,
    }
    name = {
        "type": "string",
        "description": "A reward defined elsewhere in the spec, or one that needs no parameters.",
    }
    return {"anyOf": [name, definition]}


Reward = Annotated[
    Annotated[str, Tag("<name>")] | Annotated[dict[str, dict[str, Any]], Tag("<definition>")],
    told_apart(
        lambda value: {str: "<name>", dict: "<definition>"}.get(type(value)),
        "the name of a reward, or {KIND: {PARAMETER: value}}",
        *registry.REWARD_KINDS,
    ),
    AfterValidator(_canonical_reward),
    WithJsonSchema(_reward_schema()),
]


def reward_label(reward: str | dict[str, dict[str, Any]], name: str | None) -> str:
    """Return the name that a reward or its constraint goes by: its own, or the reward's, or its kind."""
    return name or (reward if isinstance(reward, str) else next(iter(reward)))


# Objective and constraints ---------------------------------------------------------------------------


class KLObjective(Frozen):
    """Minimise the path-wise KL to a model."""

    kl: Literal["pretrained"] = "pretrained"
    """The reference model."""


class OfReward(Frozen):
    """What is about a reward."""

    reward: Reward
    """Its name, or its kind with parameters."""
    name: Name | None = None
    """What results call it; by default the name of the reward, or its kind."""

    @property
    def label(self) -> str:
        """What results call it."""
        return reward_label(self.reward, self.name)


class RewardObjective(OfReward):
    """Maximise a reward, under a KL budget."""


class MeasuredReward(OfReward):
    """A reward that is measured and shown beside the others, and never trained on."""

    role: Literal["judge"] = "judge"
    """What it is for."""


def _composed(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) < 2:
        raise ValueError(f"needs at least two models, or there is nothing to compose, got {len(names)}")
    refuse_twice(names, "is in the list twice")
    return names


Sampler = Literal["fkc", "ula", "mala", "uha", "hmc", "score", "merged", "joint"]


class MinmaxObjective(Frozen):
    """Minimise the largest KL to several models: a composition."""

    minmax_kl: Annotated[tuple[str, ...], AfterValidator(_composed)]
    """Names of the models that are composed."""
    direction: Literal["reverse", "forward"] = "reverse"
    """``reverse``, KL(p‖q), keeps to what all models have in common (AND); ``forward``, KL(q‖p), covers all (OR)."""
    offsets: dict[str, float] = Field(default_factory=dict)
    """Nats by which a model may be farther than the others; 0 for those left out."""
    sampler: Sampler | None = None
    """Of the product: Feynman-Kac correctors (fkc), annealed Langevin or Hamiltonian chains without (ula, uha) or with
    (mala, hmc) a Metropolis test, or the weighted sum of scores, uncorrected (score). Networks take fkc and score;
    merged and joint are baselines, of a weighted method. By default fkc."""


class RewardConstraint(OfReward):
    """``E[reward] >= at_least``."""

    name: QuantityName | None = None
    """What results call it; by default the name of the reward, or its kind, with the group in brackets."""
    where: Where | None = Field(default=None, min_length=1)
    """The prompts that it is about, by metadata: those that have all of these values. By default all."""
    for_each: str | None = Field(default=None, min_length=1)
    """A column of metadata: one constraint, with a multiplier of its own, for every value in it."""

    at_least: SweptThreshold
    """The threshold: a number, a percentage in relative units, a grid, or a range for a search to choose in."""
    unit: Literal["absolute", "relative", "sigma"] = "absolute"
    """Reward units; improvement over the pretrained mean; or pretrained standard deviations above it."""

    _place: int | None = PrivateAttr(None)

    @property
    def label(self) -> str:
        """What results call it."""
        plain = reward_label(self.reward, self.name)
        return f"{plain}[{', '.join(self.where.values())}]" if self.where and self.name is None else plain

    @property
    def ungrouped(self) -> OfReward:
        """The reward that it is about, of all prompts."""
        name = self.name if self.name is None else self.name.partition("[")[0]
        return OfReward(reward=self.reward, name=name)

    @property
    def written(self) -> tuple[float | str, ...]:
        """Thresholds as written; of a range its ends."""
        if isinstance(self.at_least, ThresholdRange):
            return self.at_least.range
        return self.at_least.grid if isinstance(self.at_least, ThresholdGrid) else (self.at_least,)

    @property
    def values(self) -> tuple[float, ...]:
        """Thresholds in ``unit``; of a range its ends."""
        return tuple(number(value) for value in self.written)

    @property
    def loosest(self) -> float:
        """The threshold that is met most easily."""
        return min(self.values)

    @property
    def tightest(self) -> float:
        """The threshold that is hardest to meet."""
        return max(self.values)


class KLConstraint(Frozen):
    """``KL <= at_most``, path-wise."""

    kl: Literal["pretrained"]
    """The reference model."""
    name: Name = "kl"
    """What results call it."""
    at_most: SweptBudget
    """The budget or a grid of budgets, nats."""

    @property
    def label(self) -> str:
        """Name of the constraint."""
        return self.name

    @property
    def values(self) -> tuple[float, ...]:
        """Budgets, nats."""
        return self.at_most.grid if isinstance(self.at_most, BudgetGrid) else (self.at_most,)

    @property
    def loosest(self) -> float:
        """The budget that is met most easily, nats."""
        return max(self.values)

    @property
    def tightest(self) -> float:
        """The budget that is hardest to meet, nats."""
        return min(self.values)


Objective = Annotated[
    Annotated[KLObjective, Tag("KLObjective")]
    | Annotated[RewardObjective, Tag("RewardObjective")]
    | Annotated[MinmaxObjective, Tag("MinmaxObjective")],
    told_apart(
        by_key(reward="RewardObjective", kl="KLObjective", minmax_kl="MinmaxObjective"),
        "a mapping with the key 'kl', 'reward' or 'minmax_kl'",
        "kl",
        "reward",
        "minmax_kl",
    ),
]
Constraint = Annotated[
    Annotated[RewardConstraint, Tag("RewardConstraint")] | Annotated[KLConstraint, Tag("KLConstraint")],
    told_apart(
        by_key(
            reward="RewardConstraint", kl="KLConstraint", at_least="RewardConstraint", at_most="KLConstraint"
        ),
        "a mapping with the key 'reward' (and 'at_least') or 'kl' (and 'at_most')",
        "reward",
        "kl",
    ),
]
