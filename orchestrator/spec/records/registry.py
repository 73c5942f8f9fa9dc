"""Names that a spec may use: what is built in, and what other packages register by entry points.

Entry points are read by name only. Their classes are loaded where a trial runs, so planning needs none of
what they import.
"""

from importlib.metadata import entry_points
from typing import get_args

from orchestrator.spec.text.problems import NO_VALUE, KeyPath, Problem, raise_problems, suggestion
from trainers.config import PRIMAL_PARAMETERS, REWARD_PARAMETERS, DualKind, Frozen, RewardConfig
from trainers.reward_parameters import IMAGE_REWARDS

REWARDS = "cdsweep.rewards"
DUAL_OPTIMIZERS = "cdsweep.dual_optimizers"
PRIMAL_ESTIMATORS = "cdsweep.primal_estimators"
SEARCHES = "cdsweep.searches"
ADAPTER_FORMS = "cdsweep.adapter_forms"

REWARD_KINDS: dict[str, type[Frozen]] = REWARD_PARAMETERS | IMAGE_REWARDS
"""Parameters of the built-in rewards; those of other packages are checked when their class is loaded."""

BUILT_IN: dict[str, tuple[str, ...]] = {
    REWARDS: tuple(REWARD_KINDS),
    DUAL_OPTIMIZERS: get_args(DualKind),
    PRIMAL_ESTIMATORS: tuple(PRIMAL_PARAMETERS),
    SEARCHES: ("grid",),
    ADAPTER_FORMS: ("price",),
}
"""Known also where the distribution's own entry points are not installed."""

_NOUN = {
    REWARDS: "reward",
    DUAL_OPTIMIZERS: "dual optimiser",
    PRIMAL_ESTIMATORS: "primal estimator",
    SEARCHES: "search",
    ADAPTER_FORMS: "form of an adapter",
}


def meant(reward: RewardConfig) -> RewardConfig:
    """Return a reward without the parameters that say how its scores are had, and not what they are."""
    how = REWARD_KINDS.get(reward.kind, Frozen).how
    parameters = {key: value for key, value in reward.parameters.items() if key not in how}
    return reward.model_copy(update={"parameters": parameters})


def registered(group: str) -> list[str]:
    """Return all names of a group, the built-in ones first."""
    return list(dict.fromkeys([*BUILT_IN[group], *sorted(entry_points(group=group).names)]))


def is_registered(group: str, name: str) -> bool:
    """Return whether a group has ``name``; installed packages are looked at only when it is not built in."""
    return name in BUILT_IN[group] or name in registered(group)


def unknown(group: str, name: str, path: KeyPath, *, at_key: bool = False) -> Problem:
    """Return the problem of a name that a group does not have."""
    hint = suggestion(name, registered(group), "registered")
    value = NO_VALUE if at_key else name
    return Problem(path=path, rule=f"unknown {_NOUN[group]} {name!r}", value=value, hint=hint, at_key=at_key)


def require(group: str, name: str, path: KeyPath) -> None:
    """Raise the problem inside a validator unless ``group`` has ``name``."""
    if not is_registered(group, name):
        raise_problems([unknown(group, name, path)])
