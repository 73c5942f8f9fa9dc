"""The plan of a sweep: a pure function from a spec to trials with stable ids.

The trials of a method are the product of its grids and the seeds. A trial id is a hash of the trial's config
(``orchestrator.spec.identity``), so it is the same on any machine and in any order, and trials that two methods have
in common are run once. A method ``frontier`` has one trial for each seed, whatever the grids. A plan is a base and
rows: the config that its trials have in common, which they share in memory, and for each trial what it has otherwise.
``plan.json`` is the same: resuming a sweep needs nothing else. Trials that a search chooses while others finish are
made by the same functions from thresholds or weights; a plan knows beforehand only how many there can be.

Weighted trials have fixed weights, nats per σ, where constrained ones have multipliers. Their objective is
the KL whatever the objective of the spec is, so that a trial maximises ``Σ w_i r_i / σ_i − KL``. They do not
aim at a threshold, so they carry the loosest one of every grid: a weighted trial is *feasible* when it meets
at least those. Nothing but that verdict depends on them, nor does the id. Those of a composition have the weights of
its models, on the simplex, and its objective.
"""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from pydantic import NonNegativeInt, ValidationError

from orchestrator.errors import SpecError
from orchestrator.spec.files.contents import UNKNOWN, pinned, pinned_reward
from orchestrator.spec.files.presets import preset_line, presetless_line
from orchestrator.spec.identity import trial_id
from orchestrator.spec.records.compositions import base_of, simplex_weights
from orchestrator.spec.records.constituents import PromptModel
from orchestrator.spec.records.models import FrontierSettings, ResourcesSpec, SweepSpec, WeightedSettings
from orchestrator.spec.records.rewards import Rewards, resolve_rewards
from orchestrator.spec.records.samplers import default_sampler, networks, sampled_by
from orchestrator.spec.records.searches import CERTIFIED, described, searched_count
from orchestrator.spec.records.terms import (
    UNIT_MARKS,
    KLConstraint,
    MinmaxObjective,
    RewardConstraint,
    RewardObjective,
    ScaleGrid,
    WeightGrid,
)
from orchestrator.spec.rules.prompt_warnings import prompt_warnings
from trainers.config import (
    EMBEDDED,
    INTERPOLATED,
    SHIPPED,
    BaselineStatistics,
    ConstraintConfig,
    FrontierConfig,
    Frozen,
    LoraConfig,
    ObjectiveConfig,
    RewardConfig,
    TrialConfig,
    TrialJob,
)
from trainers.reward_parameters import CLIP_MEASURE as CLIP
from trainers.reward_parameters import SIDE_MEASURES, ClipScoreParameters

PLAN_FORMAT = 2
"""Of ``plan.json``; a reader refuses what it does not know."""
_COLUMNS = 3
"""Of an adapter for a box of thresholds, for each reward that acts: its rank unless told otherwise."""
_WHOLE_FORMAT = 1
"""In which every trial had its whole config, and an id that was made of it."""

_SECONDS_PER_HOUR = 3600.0
_SURE_OF_A_MEAN = 3.0
"""Standard errors that a pretrained mean must lie from 0 before anything is written relative to it."""
_ROUNDING_OF_A_MEAN = 1e-9
"""The same for an exact mean, in σ."""


class PlannedTrial(Frozen):
    """One trial and its id."""

    trial_id: str
    config: TrialConfig
    origin: str = ""
    """The search of weights that chose it; empty for all others."""


class Plan(Frozen):
    """All trials of a sweep, in the order of the spec."""

    name: str
    base: TrialConfig
    """What the trials have in common: that of ``base_config``."""
    trials: tuple[PlannedTrial, ...]
    resources: ResourcesSpec
    """What each trial needs."""
    warnings: tuple[str, ...] = ()
    """What the spec allows, but can hardly mean."""
    searched: NonNegativeInt = 0
    """How many trials the searches can add to these."""
    searches: tuple[str, ...] = ()
    """What they choose, in words."""
    preset: str | None = None
    """How a pipeline of a known family is trained, in words, and in what that is not the preset of the family."""

    @property
    def most(self) -> int:
        """The greatest number of trials, those of the searches included."""
        return len(self.trials) + self.searched

    def to_json(
        self, *, baseline: BaselineStatistics | None = None, seconds_per_trial: float | None = None
    ) -> dict[str, Any]:
        """Return the plan as a JSON document.

        Args:
            baseline: With it ``thresholds`` are absolute, and ``written`` has values and units as written.
            seconds_per_trial: An estimate, from which GPU-hours and cost follow.
        """
        hours, apart = self.gpu_hours(seconds_per_trial), settings_apart(self.trials)
        document: dict[str, Any] = {
            "format": PLAN_FORMAT,
            "name": self.name,
            "base": self.base.model_dump(mode="json"),
            "trials": [
                _trial_document(trial, self.base, baseline, apart.get(trial.trial_id))
                for trial in self.trials
            ],
            "resources": {
                **self.resources.model_dump(mode="json"),
                "per_trial": {
                    "cpus": self.resources.most_workers * self.resources.cpus_per_worker,
                    "gpus": self.resources.most_workers * self.resources.gpus_per_worker,
                },
            },
            "gpu_hours": hours,
            "warnings": list(self.warnings),
            "searched": self.searched,
            "searches": list(self.searches),
            "preset": self.preset,
        }
        if self.resources.price_per_gpu_hour is not None:
            document["cost"] = None if hours is None else hours * self.resources.price_per_gpu_hour
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return the plan that ``to_json`` wrote, or that a version did which wrote every config whole.

        Raises:
            SpecError: It is no plan of these formats.
        """
        found = document.get("format")
        if found not in {PLAN_FORMAT, _WHOLE_FORMAT}:
            raise SpecError(f"the plan has format {found!r}, but this version reads format {PLAN_FORMAT}")
        try:
            rows, whole = document["trials"], found == _WHOLE_FORMAT
            if whole and not rows:
                raise SpecError(
                    "the plan is of an earlier version, and has no trial yet: give the sweep another --name"
                )
            written = rows[0]["config"] if whole else document["base"]
            base = TrialConfig.model_validate_json(json.dumps(written))
            short = base.model_dump(mode="json", exclude={"prompts"})
            return cls(
                name=document["name"],
                base=base,
                trials=tuple(
                    _from_row(row, base, short, row["config" if whole else "changes"]) for row in rows
                ),
                resources=ResourcesSpec.model_validate_json(
                    json.dumps({k: v for k, v in document["resources"].items() if k != "per_trial"})
                ),
                warnings=_lines(document["warnings"]),
                searched=document.get("searched", 0),
                searches=_lines(document.get("searches", ())),
                preset=document.get("preset"),
            )
        except (KeyError, TypeError, AttributeError, ValidationError) as error:
            raise SpecError(f"the plan is damaged: {error}") from error

    def with_trial(self, trial: PlannedTrial) -> "Plan":
        """Return the plan with a trial that a search has chosen; one that is there already changes nothing."""
        if any(known.trial_id == trial.trial_id for known in self.trials):
            return self
        return self.model_copy(
            update={"trials": (*self.trials, trial), "searched": max(0, self.searched - 1)}
        )

    def gpu_hours(self, seconds_per_trial: float | None = None) -> float | None:
        """Return the GPU-hours of all trials, searched ones included: 0 without GPUs, None without an estimate."""
        gpus = self.resources.most_workers * self.resources.gpus_per_worker
        if gpus == 0:
            return 0.0
        if seconds_per_trial is None:
            return None
        return self.most * gpus * seconds_per_trial / _SECONDS_PER_HOUR


def make_plan(spec: SweepSpec) -> Plan:
    """Return the trials of ``spec``, each once; those that searches choose are counted only."""
    base = base_config(spec)
    trials: dict[str, PlannedTrial] = {}
    for trial in _trials(spec, base):
        trials.setdefault(trial.trial_id, trial)
    return Plan(
        name=spec.name,
        base=base,
        trials=tuple(trials.values()),
        resources=spec.resources,
        warnings=tuple(_warnings(spec, base)),
        searched=searched_count(spec),
        searches=tuple(described(spec)),
        preset=preset_line(base),
    )


def base_config(spec: SweepSpec) -> TrialConfig:
    """Return the constrained trial of ``spec`` at the loosest thresholds, from which searches make theirs."""
    rewards = resolve_rewards(spec)
    objective = ObjectiveConfig()
    if isinstance(spec.objective, RewardObjective):
        objective = ObjectiveConfig(kind="reward", target=rewards.targets["objective",])
    elif isinstance(spec.objective, MinmaxObjective):
        objective = ObjectiveConfig(kind="minmax_kl", target="models")
    contents = {place: content for place, content in spec.contents.items() if content != UNKNOWN}
    return TrialConfig(
        model=pinned(spec.configured, contents),
        prompts=spec.prompts,
        sampling=spec.sampling,
        rewards=tuple(pinned_reward(reward, contents) for reward in rewards.by_name.values()),
        measured=tuple(pinned_reward(reward, contents) for reward in _measured(spec, rewards)),
        objective=objective,
        constraints=tuple(
            _constraint(constraint, rewards.targets.get(("constraints", index)))
            for index, constraint in enumerate(spec.constraints)
        ),
        method="constrained",
        weights={},
        seed=0,
        training=spec.training,
        duals=spec.duals,
        convergence=spec.convergence,
        evaluation=spec.evaluation,
        workers=spec.resources.most_workers,
        elastic=spec.resources.least_workers < spec.resources.most_workers,
        contents=contents,
    )


def _measured(spec: SweepSpec, rewards: Rewards) -> Iterator[RewardConfig]:
    """Yield judges, and what every trial on a pipeline is watched by: of these, what nothing else is called like."""
    yield from rewards.judges.values()
    if spec.models is None and spec.configured.mixture is None:
        names = {name.lower() for name in rewards.everything}
        for kind in SIDE_MEASURES:
            if kind not in names:
                yield RewardConfig(name=kind, kind=kind, parameters={"aim": "high"})
        scored = rewards.everything.values()
        known = any(r.kind in {"clip", CLIP} and r.text is None and r.where is None for r in scored)
        if spec.configured.pretrained in SHIPPED and not known and CLIP not in names:
            own = ClipScoreParameters(model=EMBEDDED)
            yield RewardConfig(name=CLIP, kind=CLIP, parameters=own.model_dump())


def constrained_trial(base: TrialConfig, thresholds: Mapping[str, float], seed: int) -> PlannedTrial:
    """Return the trial of ``base`` that has other thresholds.

    Args:
        base: Of ``base_config``.
        thresholds: By constraint name, in the unit of each constraint; those left out stay the loosest.
        seed: Of the trial.

    Raises:
        ValueError: There is no such constraint.
    """
    _check_names(thresholds, [constraint.name for constraint in base.constraints], "constraint")
    constraints = tuple(
        constraint.model_copy(update={"bound": float(thresholds.get(constraint.name, constraint.bound))})
        for constraint in base.constraints
    )
    return _planned(base, {"constraints": constraints, "seed": seed})


def frontier_trial(
    base: TrialConfig, tightest: Mapping[str, float], settings: FrontierSettings, seed: int
) -> PlannedTrial:
    """Return the trial of ``base`` that answers for all thresholds from its own, the loosest, to the tightest.

    That of a composition answers for all weights of its models.

    Args:
        base: Of ``base_config``.
        tightest: By constraint name, in the unit of each constraint; those left out stand still.
        settings: Of the method.
        seed: Of the trial.

    Raises:
        ValueError: There is no such constraint.
    """
    _check_names(tightest, [constraint.name for constraint in base.constraints], "constraint")
    constraints = tuple(
        constraint.model_copy(update={"tightest": tightest.get(constraint.name)})
        for constraint in base.constraints
    )
    changes: dict[str, Any] = {"method": "frontier", "constraints": constraints, "seed": seed}
    changes["frontier"] = FrontierConfig(points=settings.points, form=settings.form, rounds=settings.rounds)
    steps = {} if settings.steps is None else {"steps": settings.steps}
    model, composition = base.model, base.model.composition
    if composition is not None:
        assert composition.distillation is not None, "a valid spec has the adapter"
        lora = _with_columns(composition.distillation.lora, settings.rank, len(composition.models))
        one = composition.distillation.model_copy(update={"lora": lora, **steps})
        composed = composition.model_copy(update={"distillation": one})
        return _planned(base, changes | {"model": model.model_copy(update={"composition": composed})})
    if model.lora is not None:
        lora = _with_columns(model.lora, settings.rank, len(base.acting))
        changes["model"] = model.model_copy(update={"lora": lora})
    if steps:
        changes["training"] = base.training.model_copy(update=steps)
    return _planned(base, changes)


def _with_columns(lora: LoraConfig, rank: int | None, count: int) -> LoraConfig:
    """Return an adapter of a rank, by default some columns for each of ``count``, and as strong as it was."""
    rank = rank or _COLUMNS * count
    alpha = None if lora.alpha is None else lora.alpha * rank / lora.rank
    return lora.model_copy(update={"rank": rank, "alpha": alpha})


def weighted_trial(base: TrialConfig, weights: Mapping[str, float], seed: int) -> PlannedTrial:
    """Return the trial of ``base`` that has fixed weights in place of multipliers.

    Args:
        base: Of ``base_config``.
        weights: By reward, nats per σ, or by model of a composition; 0 for those left out.
        seed: Of the trial.

    Raises:
        ValueError: There is no such reward or model.
    """
    composition = base.model.composition
    fixed: dict[str, Any] = {"method": "weighted", "seed": seed}
    if composition is not None:
        names = [model.name for model in composition.models]
    else:
        names = [reward.name for reward in base.rewards]
        fixed["objective"] = ObjectiveConfig()
    _check_names(weights, names, "reward or model")
    return _planned(base, fixed | {"weights": {name: float(weights.get(name, 0.0)) for name in names}})


def interpolated_point(
    base: TrialConfig, weights: Mapping[str, float], at_least: Mapping[str, float], seed: int
) -> PlannedTrial:
    """Return the point between finished trials of ``base``; it is in no plan, and nothing is trained.

    Args:
        base: Of ``base_config``.
        weights: Of each trial's update, by its id; what is left to 1 is the pretrained model's.
        at_least: Thresholds that it is measured for, by reward, reward units.
        seed: Stands in its row.
    """
    known = {c.target: c for c in reversed(base.constraints) if c.kind == "reward"}
    constraints = tuple(
        ConstraintConfig(
            name=known[reward].name if reward in known else reward,
            kind="reward",
            target=reward,
            bound=bound,
            unit="absolute",
        )
        for reward, bound in sorted(at_least.items())
    )
    parts = {name: float(f"{weights[name]:.6g}") for name in sorted(weights)}
    return _planned(
        base, {"method": INTERPOLATED, "constraints": constraints, "interpolated": parts, "seed": seed}
    )


def settings_apart(trials: Iterable[PlannedTrial]) -> dict[str, dict[str, int | str]]:
    """Return by trial id which settings of the method ``frontier`` a trial has, of those in which trials differ."""
    known = {t.trial_id: _frontier_settings(t.config) for t in trials if t.config.frontier is not None}
    several = {
        key for key in FrontierSettings.model_fields if len({found.get(key) for found in known.values()}) > 1
    }
    return {
        name: {key: value for key, value in found.items() if key in several} for name, found in known.items()
    }


def _frontier_settings(config: TrialConfig) -> dict[str, int | str]:
    """Return what ``frontier_trial`` has made of its settings, by their names in the spec."""
    assert config.frontier is not None, "of the method frontier"
    composition, steps, lora = config.model.composition, config.training.steps, config.model.lora
    if composition is not None:
        assert composition.distillation is not None, "a valid spec has the adapter"
        steps, lora = composition.distillation.steps, composition.distillation.lora
    rank = {} if lora is None else {"rank": lora.rank}
    return {"steps": steps, **rank, **config.frontier.model_dump()}


def labels(trials: Iterable[PlannedTrial]) -> dict[str, str]:
    """Return by trial id what tells the trials of a sweep apart: see ``describe``."""
    trials = tuple(trials)
    apart = settings_apart(trials)
    return {trial.trial_id: describe(trial.config, apart.get(trial.trial_id)) for trial in trials}


def describe(config: TrialConfig, settings: Mapping[str, int | str] | None = None) -> str:
    """Return what tells a trial apart in its sweep, in a few words: method, thresholds or weights, settings, seed.

    Args:
        config: Of the trial.
        settings: See ``settings_apart``.
    """
    composition = config.model.composition
    if config.method == "weighted":
        digits = "g" if composition is None else ".2g"
        parts = [f"{name}·{weight:{digits}}" for name, weight in config.weights.items()]
    else:
        parts = []
        if composition is not None:
            word = {"reverse": "and", "forward": "or"}[composition.direction]
            parts.append(f"{word} of {', '.join(model.name for model in composition.models)}")
        parts += [
            f"{c.name}{'≤' if c.kind == 'kl' else '≥'}{c.bound:g}"
            f"{'' if c.tightest is None else f'…{c.tightest:g}'}{UNIT_MARKS[c.unit]}"
            for c in config.constraints
        ]
    if config.interpolated is not None:
        parts.append("of " + " + ".join(f"{share:.3g}·{name}" for name, share in config.interpolated.items()))
    if composition is not None and composition.direction == "reverse":
        usual = default_sampler(of_networks=composition.networks)
        parts += [] if composition.sampler == usual else [f"by {composition.sampler}"]
    parts += [f"{name} {value}" for name, value in (settings or {}).items()]
    if config.interpolated is not None:  # of no seed of its own
        return f"{config.method} {' '.join(parts)}"
    return f"{config.method} {' '.join(parts)} seed {config.seed}"


def resolve_thresholds(config: TrialConfig, baseline: BaselineStatistics) -> dict[str, float]:
    """Return the thresholds of a trial in reward units, or nats for a KL, by constraint name."""
    return {constraint.name: absolute_threshold(constraint, baseline) for constraint in config.constraints}


def resolve_tightest(config: TrialConfig, baseline: BaselineStatistics) -> dict[str, float]:
    """Return the other end of the thresholds that move, in the same units, by constraint name."""
    moving = [constraint for constraint in config.constraints if constraint.tightest is not None]
    return {
        constraint.name: absolute_threshold(
            constraint.model_copy(update={"bound": constraint.tightest}), baseline
        )
        for constraint in moving
    }


def make_job(trial: PlannedTrial, baseline: BaselineStatistics) -> TrialJob:
    """Return ``trial`` ready to run, its thresholds resolved."""
    return TrialJob(
        trial_id=trial.trial_id,
        config=trial.config,
        baseline=baseline,
        thresholds=resolve_thresholds(trial.config, baseline),
        tightest=resolve_tightest(trial.config, baseline),
    )


def written_thresholds(
    base: TrialConfig, baseline: BaselineStatistics, thresholds: Mapping[str, float]
) -> dict[str, float]:
    """Return thresholds of rewards, in reward units, in the unit of each constraint, to nine digits.

    Fewer would move the ends of a range that is written in reward units.

    Args:
        base: Of ``base_config``.
        baseline: What units refer to.
        thresholds: By constraint name.
    """
    units = {constraint.name: constraint for constraint in base.constraints}
    found = {}
    for name, value in thresholds.items():
        origin, scale = _unit(units[name], baseline)
        found[name] = float(f"{(value - origin) / scale:.9g}")
    return found


def absolute_threshold(constraint: ConstraintConfig, baseline: BaselineStatistics) -> float:
    """Return a threshold in reward units, or nats for a KL.

    Raises:
        SpecError: It is relative to a pretrained mean that cannot be told from 0.
    """
    origin, scale = _unit(constraint, baseline)
    return origin + constraint.bound * scale


def unit_of(constraint: ConstraintConfig, baseline: BaselineStatistics) -> tuple[float, float]:
    """Return where the unit of a threshold has its 0, and its size: reward units, or nats for a KL."""
    if constraint.unit in {"absolute", "nats"}:
        return 0.0, 1.0
    reward = baseline.rewards[constraint.target]
    return reward.mean, reward.std if constraint.unit == "sigma" else abs(reward.mean)


def _unit(constraint: ConstraintConfig, baseline: BaselineStatistics) -> tuple[float, float]:
    """Return the same of a unit that thresholds can be resolved in.

    Raises:
        SpecError: It is relative to a pretrained mean that cannot be told from 0.
    """
    if constraint.unit != "relative":
        return unit_of(constraint, baseline)
    reward = baseline.rewards[constraint.target]
    noise = _ROUNDING_OF_A_MEAN * reward.std
    told = "exactly"
    if baseline.samples is not None:
        error = reward.std / math.sqrt(baseline.samples)
        noise, told = _SURE_OF_A_MEAN * error, f"± {error:.2g} over {baseline.samples} samples"
    if abs(reward.mean) <= noise:
        raise SpecError(
            f"constraint {constraint.name!r}: unit relative is a share of the pretrained mean of "
            f"{constraint.target}, which cannot be told from 0 ({reward.mean:.3g}, {told}): write the threshold in "
            "unit: sigma or absolute"
        )
    return unit_of(constraint, baseline)


def _trial_document(
    trial: PlannedTrial,
    base: TrialConfig,
    baseline: BaselineStatistics | None,
    settings: Mapping[str, int | str] | None,
) -> dict[str, Any]:
    config = trial.config
    differing = {name for name in TrialConfig.model_fields if getattr(config, name) != getattr(base, name)}
    units = {constraint.name: constraint.unit for constraint in config.constraints}
    thresholds = {constraint.name: constraint.bound for constraint in config.constraints}
    document: dict[str, Any] = {
        "trial_id": trial.trial_id,
        "method": config.method,
        "seed": config.seed,
        "thresholds": thresholds,
        "units": units,
        "weights": dict(config.weights),
        "changes": config.model_dump(mode="json", include=differing),
    }
    tightest = {c.name: c.tightest for c in config.constraints if c.tightest is not None}
    if tightest:
        document["tightest"] = tightest
    if settings:
        document["settings"] = dict(settings)
    if trial.origin:
        document["origin"] = trial.origin
    if config.model.composition is not None:
        document["sampler"] = config.model.composition.sampler
    if baseline is not None:
        document["thresholds"] = resolve_thresholds(config, baseline)
        if tightest:
            document["tightest"] = resolve_tightest(config, baseline)
        document["units"] = {name: "nats" if unit == "nats" else "absolute" for name, unit in units.items()}
        document["written"] = {
            name: {"value": value, "unit": units[name]}
            | ({"tightest": tightest[name]} if name in tightest else {})
            for name, value in thresholds.items()
        }
    return document


def _from_row(
    row: Mapping[str, Any], base: TrialConfig, short: Mapping[str, Any], changes: Mapping[str, Any]
) -> PlannedTrial:
    """Return the trial that has some sections otherwise than the base, and shares the others with it.

    Args:
        row: Of the plan's document.
        base: Of the plan.
        short: The same as plain data, without its prompts.
        changes: Sections that are others.
    """
    found = TrialConfig.model_validate_json(json.dumps({**short, **changes}))
    other = {name: getattr(found, name) for name in changes if getattr(found, name) != getattr(base, name)}
    return PlannedTrial(
        trial_id=row["trial_id"], config=base.model_copy(update=other), origin=row.get("origin", "")
    )


def _lines(written: Sequence[str]) -> tuple[str, ...]:
    if isinstance(written, str):
        raise TypeError("lines must be a list")
    return tuple(written)


# Expansion of the grids ------------------------------------------------------------------------------


def _trials(spec: SweepSpec, base: TrialConfig) -> Iterator[PlannedTrial]:
    """Yield every trial that is known beforehand: methods, then grids, then seeds."""
    weightings, frontiers = dict(spec.weightings), dict(spec.frontiers)
    for index, method in enumerate(spec.methods):
        if isinstance(method, str):
            if spec.search.kind != CERTIFIED:
                names = [constraint.name for constraint in base.constraints]
                grids = [constraint.values for constraint in spec.constraints]
                for bounds, seed in itertools.product(itertools.product(*grids), spec.seeds):
                    yield constrained_trial(base, dict(zip(names, bounds, strict=True)), seed)
        elif index in frontiers:
            tightest = {c.label: c.tightest for c in spec.constraints if len(c.values) > 1}
            for seed in spec.seeds:
                yield frontier_trial(base, tightest, frontiers[index], seed)
        elif weightings[index].search is None:
            start = sampled_by(base, weightings[index].sampler)
            for weights, seed in itertools.product(_weights(weightings[index], base), spec.seeds):
                yield weighted_trial(start, weights, seed)


def _planned(base: TrialConfig, changes: dict[str, Any]) -> PlannedTrial:
    config = base.model_copy(update=changes)
    return PlannedTrial(trial_id=trial_id(config), config=config)


def _check_names(given: Mapping[str, float], known: Sequence[str], what: str) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"no {what} {unknown[0]!r} in this sweep, only {', '.join(known)}")


def _constraint(written: RewardConstraint | KLConstraint, reward: str | None) -> ConstraintConfig:
    """Return a constraint at its loosest threshold."""
    if isinstance(written, KLConstraint):
        return ConstraintConfig(
            name=written.label, kind="kl", target=written.kl, bound=written.loosest, unit="nats"
        )
    assert reward is not None, "a valid spec resolves every reward"
    return ConstraintConfig(
        name=written.label, kind="reward", target=reward, bound=written.loosest, unit=written.unit
    )


def _weights(settings: WeightedSettings, base: TrialConfig) -> Iterator[dict[str, float]]:
    """Yield the weight of each reward, nats per σ, or of each model, for every point of the grids."""
    if base.model.composition is not None:
        yield from simplex_weights(settings, [model.name for model in base.model.composition.models])
        return
    names = [reward.name for reward in base.rewards]
    written = settings.weights
    if isinstance(written, str):
        written = dict.fromkeys(names, 1.0)
    grids = [_points(written.get(name, 0.0)) for name in names]
    for *weights, scale in itertools.product(*grids, _points(settings.scale)):
        yield {name: weight * scale for name, weight in zip(names, weights, strict=True)}


def _points(swept: float | WeightGrid | ScaleGrid) -> tuple[float, ...]:
    return (swept,) if isinstance(swept, float) else swept.grid


# Warnings --------------------------------------------------------------------------------------------


def _warnings(spec: SweepSpec, base: TrialConfig) -> Iterator[str]:
    for place, content in spec.contents.items():
        if content == UNKNOWN:
            yield (
                f"{place}: the commit of the hub id is not known, because the hub does not answer and its cache here "
                "has no copy: trials are known by the id alone, and keep their results when it changes"
            )
    yield from _composition_warnings(spec)
    if spec.resources.placement == "spread" and spec.resources.most_workers == 1:
        yield (
            "resources.placement spread has no effect: trials of one worker are placed one by one, each where most is "
            "free"
        )
    if spec.models is not None:
        exact = not networks(spec.models)
    else:
        exact = spec.model is not None and spec.model.mixture is not None
    if exact:
        yield from _mixture_warnings(spec)
        return
    if (line := presetless_line(base)) is not None:
        yield line
    yield from prompt_warnings(spec.configured, spec.prompts)
    yield from _share_warnings(base)
    if spec.models is not None and spec.training.precision != "fp32":
        yield (
            f"training.precision {spec.training.precision}: the models of a composition are asked one by one, and the "
            "rounding of each adds to the KLs between them, in every step in which they differ; fp32 has none of it"
        )


def _share_warnings(config: TrialConfig) -> Iterator[str]:
    if config.model.composition is not None or config.judged is None:
        return  # groups of samples share a prompt, so a composition by default asks for some
    asked, known = config.judged
    if asked < known:
        yield (
            f"evaluation.images: {config.evaluation.images} images ask for {asked} of {known} held-out prompts, the "
            "same for every trial: a random share, spread over the list and its metadata; intervals speak of all"
        )


def _mixture_warnings(spec: SweepSpec) -> Iterator[str]:
    if spec.sampling.guidance is not None:
        yield "sampling.guidance has no effect: a mixture has no condition to be guided by"
    if spec.training.precision != "fp32":
        yield f"training.precision {spec.training.precision} has no effect: a mixture is computed in fp32"
    rewards = resolve_rewards(spec)
    for index, constraint in enumerate(spec.constraints):
        if isinstance(constraint, KLConstraint):
            continue
        reward = rewards.by_name[rewards.targets["constraints", index]]
        # A quadratic reward is negative but in its centre, and so is its mean: +100 % of it is 0.
        least = {"absolute": 0.0, "relative": 1.0}.get(constraint.unit)
        if reward.kind != "quadratic" or least is None:
            continue
        for written, value in zip(constraint.written, constraint.values, strict=True):
            if value >= least:
                yield (
                    f"constraints.{index}: {constraint.label} at_least {written} ({constraint.unit}) "
                    "cannot be reached, the mean of a quadratic reward is below 0"
                )


def _composition_warnings(spec: SweepSpec) -> Iterator[str]:
    objective = spec.objective
    if spec.models is None or not isinstance(objective, MinmaxObjective):
        return
    left_out = [name for name in spec.models if name not in objective.minmax_kl]
    if left_out:
        yield f"models: {', '.join(left_out)} has no part in the composition, objective.minmax_kl does not list it"
    of_networks = networks(spec.models)
    usual = default_sampler(of_networks=of_networks)
    sampler = objective.sampler or usual
    if objective.direction == "forward":
        if sampler != usual:
            yield f"objective.sampler {sampler} has no effect: an OR is sampled by choosing a model"
    elif sampler == "fkc" and spec.sampling.guidance is not None and _prompted(spec):
        yield (
            f"objective.sampler fkc: with sampling.guidance {spec.sampling.guidance:g} prompts are many nats "
            "apart, so few of the particles count and figures are rough (effective_samples says how rough); "
            "sampler: score has no weights, and is not the product"
        )
    if of_networks and base_of(spec) is None and resolve_rewards(spec).judged:
        yield (
            "models: how much of a reward is retained is measured from a base, and these pipelines have none; "
            "write model: {pretrained: …} beside models"
        )


def _prompted(spec: SweepSpec) -> bool:
    return any(isinstance(model, PromptModel) for model in (spec.models or {}).values())
