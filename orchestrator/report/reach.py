"""Thresholds that are known to be hopeless before anything runs."""

from orchestrator.frontier.problems.composition import ExactComposition
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.plan import Plan, describe, resolve_thresholds
from trainers.config import BaselineStatistics

_SHOWN = 3


def unreachable(
    plan: Plan, baseline: BaselineStatistics, exact: ExactProblem | ExactComposition
) -> list[str]:
    """Return a warning if constrained trials have thresholds that no policy reaches at a finite KL."""
    hopeless: dict[tuple[tuple[str, float], ...], str] = {}
    reachable: set[tuple[tuple[str, float], ...]] = set()
    for trial in plan.trials:
        if trial.config.method != "constrained":
            continue
        absolute = resolve_thresholds(trial.config, baseline)
        rewards = {c.target: absolute[c.name] for c in trial.config.constraints if c.kind == "reward"}
        key = tuple(sorted(rewards.items()))
        if key in reachable or key in hopeless:
            continue
        if not rewards or _reachable(exact, rewards):
            reachable.add(key)
        else:
            hopeless[key] = f"{describe(trial.config).rsplit(' seed', 1)[0]}"
    if not hopeless:
        return []
    shown = "; ".join(list(hopeless.values())[:_SHOWN])
    more = f"; and {len(hopeless) - _SHOWN} more" if len(hopeless) > _SHOWN else ""
    return [f"no policy reaches these thresholds at a finite KL: {shown}{more}"]


def _reachable(exact: ExactProblem | ExactComposition, rewards: dict[str, float]) -> bool:
    if isinstance(exact, ExactComposition):
        try:
            return exact.optimum(rewards).reachable
        except ValueError:  # too many points of quadrature: not known to be hopeless
            return True
    return exact.least_kl(rewards).reachable
