"""The least KL at thresholds that a trial for a box of them was measured at, bounded from below.

Samples of all its answers are pooled: weighted by their density ratios, those at one multiplier tell of the optimum at
the next, and answers in the middle are bounded by both sides (``frontier.paths.certificate``).
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from orchestrator.frontier.problems import exact_problem
from orchestrator.report.certified import PROVEN, certifier_of, path_sources, weighable
from orchestrator.results.schema import LowerBound, evaluations_table
from trainers.config import TrialConfig, TrialJob
from trainers.types import Answer


def least_at(
    job: TrialJob, answers: Sequence[Answer], pretrained: pa.Table | None
) -> list[LowerBound | None]:
    """Return a bound for each answer, at its thresholds and away from them; None where there is none.

    Each holds at its own confidence, not all together.

    Args:
        job: Of the trial.
        answers: With their evaluations.
        pretrained: Samples of the pretrained model on the evaluation's prompts; None where it is known exactly.
    """
    config = job.config
    if config.objective.kind != "kl" or any(c.kind == "kl" for c in config.constraints):
        return [None] * len(answers)  # there the least KL is not what is sought
    if (exact := exact_problem(config)) is not None:
        found = [exact.least_kl(_asked(config, answer)) for answer in answers]
        return [
            LowerBound(kl=one.kl, kind=PROVEN, slopes=one.multipliers) if one.reachable else None
            for one in found
        ]
    tables = [evaluations_table(job, a.evaluation) for a in answers if a.evaluation is not None]
    tables = [table for table in tables if weighable(table)]
    if not tables:
        return [None] * len(answers)
    beside = [] if pretrained is None else [pretrained]
    try:
        certifier = certifier_of(path_sources([*tables, *beside], config))
    except ValueError:  # too few samples for any bound; the trial's other figures stand
        return [None] * len(answers)
    bounds: list[LowerBound | None] = []
    for answer in answers:
        asked = _asked(config, answer)
        row = np.array([asked.get(reward.name, np.nan) for reward in config.rewards])
        best = certifier.certificate(row)
        # A bound that was raised to 0 is no point of the tangent of its multipliers.
        tilt = best.tilt if best.lower > 0 else np.zeros_like(best.tilt)
        slopes = dict(zip((reward.name for reward in config.rewards), tilt.tolist(), strict=True))
        bounds.append(LowerBound(kl=best.lower, kind=best.kind, slopes=slopes) if best.carried else None)
    return bounds


def _asked(config: TrialConfig, answer: Answer) -> dict[str, float]:
    """Return thresholds by reward, reward units; of two on one reward the tighter."""
    asked: dict[str, float] = {}
    for name, target in config.targets.items():
        asked[target] = max(answer.thresholds[name], asked.get(target, -np.inf))
    return asked
