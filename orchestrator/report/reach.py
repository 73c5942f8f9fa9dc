"""Thresholds that are known to be hopeless before anything runs."""

from orchestrator.frontier.problems import LeastKL
from orchestrator.plan import Plan, describe, resolve_thresholds
from trainers.config import BaselineStatistics

_SHOWN = 3


def unreachable(plan: Plan, baseline: BaselineStatistics, exact: LeastKL) -> list[str]:
    """Return a warning if constrained trials have thresholds that no policy reaches at a finite KL."""
    hopeless: dict[tuple[tuple[str, float], ...], str] = {}
    reachable: set[tuple[tuple[str, float], ...]] = set()
    for trial in plan.trials:
        if trial.config.method != "constrained":
            continue
        absolute = resolve_thresholds(trial.config, baseline)
        rewards = {target: absolute[name] for name, target in trial.config.targets.items()}
        key = tuple(sorted(rewards.items()))
        if key in reachable or key in hopeless:
            continue
        if not rewards or exact.least_kl(rewards).reachable:
            reachable.add(key)
        else:
            hopeless[key] = f"{describe(trial.config).rsplit(' seed', 1)[0]}"
    if not hopeless:
        return []
    shown = "; ".join(list(hopeless.values())[:_SHOWN])
    more = f"; and {len(hopeless) - _SHOWN} more" if len(hopeless) > _SHOWN else ""
    return [f"no policy reaches these thresholds at a finite KL: {shown}{more}"]
