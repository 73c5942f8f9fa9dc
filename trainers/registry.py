"""Extension points: classes found by entry point, the built-in ones among them.

A package of the user's own adds ``NAME = "package.module:Class"`` to a group and names it in the spec.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

REWARDS = "cdsweep.rewards"
DUAL_OPTIMIZERS = "cdsweep.dual_optimizers"
PRIMAL_ESTIMATORS = "cdsweep.primal_estimators"
ADAPTER_FORMS = "cdsweep.adapter_forms"


def registered(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, without loading them.

    Raises:
        ValueError: two packages registered different classes under one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        known = found.setdefault(entry.name, entry)
        if known.value != entry.value:
            raise ValueError(
                f"{group}: {entry.name!r} is registered twice, as {known.value} and {entry.value}"
            )
    return found


def load(group: str, name: str) -> Any:
    """Import and return the class registered as ``name``.

    Raises:
        ValueError: the name is unknown; the message lists the known ones and the nearest.
    """
    known = registered(group)
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{group}: unknown name {name!r}{hint}; known: {', '.join(sorted(known)) or 'none'}")
    return known[name].load()


def needs_another(reward: str, kind: str, estimator: str, choices: Sequence[str]) -> str:
    """Say that an estimator cannot train on a reward without gradients, and which ones can."""
    return (
        f"{estimator} differentiates rewards, and the reward {reward!r} ({kind}) has no gradient (its class says "
        f"differentiable = False): set training.primal to one that needs none: {', '.join(choices) or 'none is known'}"
    )
