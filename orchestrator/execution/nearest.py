"""Which optimum a policy is nearest to, from the density ratios of its own samples, and how far it is from that.

An adapter for a box of thresholds is asked for the optimum of multipliers, and is a while in training near that of
others, which costs nothing: an optimum of any multipliers is one. So the tangent that an answer puts under the least KL
has the multipliers under which its samples weigh most alike, ``frontier.paths.OwnPaths.suited``.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.frontier.paths import OwnPaths
from orchestrator.report.certified import fixed_prices
from orchestrator.results.schema import NearestOptimum
from trainers.config import TrialConfig, TrialJob
from trainers.estimates import complete, over_all_prompts
from trainers.types import Answer, Evaluation, FloatArray


def nearest_of(
    job: TrialJob, answers: Sequence[Answer], looks: Sequence[Evaluation] = ()
) -> list[NearestOptimum | None]:
    """Return it for each answer; None where samples do not tell.

    Args:
        job: Of their trial.
        answers: With their evaluations.
        looks: At all held-out samples, by which those answers are told that some were drawn for.
    """
    return [_nearest(job.config, answer, looks) for answer in answers]


def _nearest(config: TrialConfig, answer: Answer, looks: Sequence[Evaluation]) -> NearestOptimum | None:
    own = {f"multiplier_{name}": price for name, price in answer.multipliers.items()}
    prices = fixed_prices(own, config)
    if prices is None or answer.evaluation is None:
        return None
    asked = {name: prices[name] for name in config.targets.values()}
    paths = paths_of(config, answer.evaluation, asked, looks)
    if paths is None:
        return None
    tilts = np.array(list(asked.values())), paths.suited()
    distances = [paths.distance(tilt) for tilt in tilts]
    if not all(map(math.isfinite, distances)):
        return None
    best = int(np.argmin(distances))
    found = dict(zip(asked, tilts[best].tolist(), strict=True))
    # Of thresholds on one reward each has a part, in the proportion of its own.
    known = config.targets.items()
    whole = {name: sum(answer.multipliers[c] for c, of in known if of == name) for name in asked}
    count = {name: sum(of == name for _, of in known) for name in asked}
    shares = {
        c: answer.multipliers[c] / whole[name] if whole[name] > 0 else 1.0 / count[name] for c, name in known
    }
    return NearestOptimum(
        distance=distances[best], multipliers={c: shares[c] * found[name] for c, name in known}
    )


def paths_of(
    config: TrialConfig, evaluation: Evaluation, prices: Mapping[str, float], looks: Sequence[Evaluation] = ()
) -> OwnPaths | None:
    """Return the paths of an evaluation, with its rewards in the order of prices; None without log ratios.

    Args:
        config: Of the trial.
        evaluation: Of all held-out samples, or of the first of them.
        prices: By reward, nats per reward unit.
        looks: At all held-out samples, for the first of which alone too little is known.
    """
    if evaluation.log_ratio is None:
        return None
    if len(evaluation.kl) < config.evaluation.images:
        return _of_first(config, evaluation, prices, looks)
    scored, prompts = complete(config, _columns(evaluation, prices), evaluation.prompts or None)
    return OwnPaths.of(np.column_stack([scored[name] for name in prices]), scored[""], prompts)


def _of_first(
    config: TrialConfig, evaluation: Evaluation, prices: Mapping[str, float], looks: Sequence[Evaluation]
) -> OwnPaths | None:
    """Return the paths of the first samples, beside those of the look whose weights at these prices are most like."""
    count, signs = len(evaluation.kl), np.array([*prices.values(), -1.0])
    best, least = None, math.inf
    for look in looks:
        if look.log_ratio is None:
            continue
        whole, first = (
            np.column_stack([found[name] for name in (*prices, "")])
            for found in (
                over_all_prompts(config, _columns(look, prices), look.prompts),
                over_all_prompts(config, _columns(look, prices, evaluation), look.prompts),
            )
        )
        apart = float(np.nanvar((first[:count] - whole[:count]) @ signs))
        if apart < least:
            best, least = OwnPaths.of_first(first[:count], whole, look.prompts), apart
    return best


def _columns(
    look: Evaluation, prices: Mapping[str, float], first: Evaluation | None = None
) -> dict[str, FloatArray]:
    """Return rewards and the log ratio of a look, those of its first samples from another."""

    def joined(values: FloatArray | None, others: FloatArray | None) -> FloatArray:
        assert values is not None, "a look with log ratios"
        return values if others is None else np.concatenate([others, values[len(others) :]])

    columns = {
        name: joined(look.rewards[name], None if first is None else first.rewards[name]) for name in prices
    }
    return columns | {"": joined(look.log_ratio, None if first is None else first.log_ratio)}
