"""Which rewards an estimator of the primal gradient can train on: one that differentiates them needs gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.spec.files.classes import says
from orchestrator.spec.records import registry
from orchestrator.spec.records.terms import WeightGrid
from orchestrator.spec.text.problems import Problem
from trainers.registry import needs_another

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.spec.records.models import SweepSpec
    from orchestrator.spec.records.rewards import Rewards
    from trainers.config import RewardConfig


def gradient_problems(spec: SweepSpec, rewards: Rewards) -> Iterator[Problem]:
    """Yield the problem of an estimator that differentiates what has no gradient; compositions do not train."""
    estimator = spec.training.primal
    trained = _trained_on(spec, rewards)
    opaque = [r for name, r in rewards.by_name.items() if name in trained and not differentiable(r)]
    if not opaque or not _needs_gradients(estimator):
        return
    others = [name for name in registry.registered(registry.PRIMAL_ESTIMATORS) if not _needs_gradients(name)]
    for reward in opaque:
        rule = needs_another(reward.name, reward.kind, estimator, others)
        yield Problem(path=("training", "primal"), rule=rule, value=estimator)


def differentiable(reward: RewardConfig) -> bool:
    """Return whether a reward has gradients to its samples, as its class says."""
    own = registry.REWARD_KINDS.get(reward.kind)
    said = getattr(own, "differentiable", None) if own is not None else None
    if said is None and own is None:
        said = says(registry.REWARDS, reward.kind, "differentiable")
    return said is not False


def _needs_gradients(estimator: str) -> bool:
    """Return whether an estimator differentiates rewards; one that does not say so is taken to."""
    return says(registry.PRIMAL_ESTIMATORS, estimator, "needs_gradients") is not False


def _trained_on(spec: SweepSpec, rewards: Rewards) -> set[str]:
    """Return the rewards that the primal step of some method moves."""
    found: set[str] = set()
    if "constrained" in spec.methods or spec.frontiers:
        found |= {name for path, name in rewards.targets.items() if path[0] in {"objective", "constraints"}}
    for _, settings in spec.weightings:
        if settings.search is not None or isinstance(settings.weights, str):
            found |= set(rewards.by_name)
        else:
            weights = settings.weights.items()
            found |= {n for n, w in weights if (max(w.grid) if isinstance(w, WeightGrid) else w) > 0}
    return found
