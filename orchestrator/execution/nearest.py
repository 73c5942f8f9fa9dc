"""Which optimum a policy is nearest to, from the density ratios of its own samples, and how far it is from that.

An adapter for a box of thresholds is asked for the optimum of multipliers, and is a while in training near that of
others, which costs nothing: an optimum of any multipliers is one. So the tangent that an answer puts under the least KL
may have those under which its samples weigh most alike, ``frontier.paths.OwnPaths.suited``, of all rewards or of those
that have a price at its thresholds. Of these and its own it has the ones whose tangent is highest there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

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
    tilt = np.array(list(asked.values()))
    priced = np.zeros_like(tilt)  # what has more than its threshold asks for has no price there
    if tilt.any():
        priced[tilt > 0] = replace(paths, rewards=paths.rewards[:, tilt > 0]).suited()
    found = [
        NearestOptimum(
            distance=paths.distance(each),
            multipliers=_shared(config, answer, dict(zip(asked, each.tolist(), strict=True))),
        )
        for each in (tilt, paths.suited(), priced)
    ]
    known = [each for each in found if math.isfinite(each.distance)]
    return max(known, key=lambda each: _height(config, answer, each), default=None)


def _height(config: TrialConfig, answer: Answer, optimum: NearestOptimum) -> float:
    """Return by how much the tangent at the answer's thresholds is above its KL, nats."""
    over = sum(
        price * (answer.thresholds[name] - answer.rewards[config.targets[name]].mean)
        for name, price in optimum.multipliers.items()
    )
    return over - optimum.distance


def _shared(config: TrialConfig, answer: Answer, tilt: Mapping[str, float]) -> dict[str, float]:
    """Return multipliers by constraint: of thresholds on one reward each has a part like its own, else the tightest."""
    found = dict[str, float]()
    for reward, price in tilt.items():
        own = {name: answer.multipliers[name] for name, of in config.targets.items() if of == reward}
        if not any(own.values()):
            tightest = max(own, key=lambda name: answer.thresholds[name])
            own = {name: float(name == tightest) for name in own}
        found |= {name: price * part / sum(own.values()) for name, part in own.items()}
    return found


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
