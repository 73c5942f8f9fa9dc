"""The outcome of a sweep in words: what constraints bought, which trial to take, what remains uncertain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.frontier.comparison import Cell
from orchestrator.frontier.feasibility import joint_deviations
from orchestrator.frontier.problems import SAID, LeastKL
from orchestrator.frontier.summary import FrontierSummary
from orchestrator.frontier.trials import Measured, Trials

ADVICE = {
    "few_trials": "more trials would help most",
    "training": "more steps or more capacity would help most, and after them a finer chain",
    "rest": "more images in the evaluation would help most",
}
"""By the largest part of a gap."""
_ENOUGH_SEEDS = 3
_HARD = 50.0
"""Effective samples below which a prediction is hardly one."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """Sentences, each complete."""

    bought: str
    take: str
    taken: str | None
    """Id of the trial to take."""
    thresholds: Mapping[str, float]
    """By reward, what it is taken for, rounded down to a thousandth of σ."""
    holds: Mapping[str, float]
    """The same as far as it holds at 95 % confidence, together: for these ``cdsweep pick`` has an answer."""
    budget: float | None = None
    """KL within which it was asked to maximise a reward, nats, or more where it may have taken more."""
    uncertain: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As a part of the report's document."""
        return {
            "bought": self.bought,
            "take": self.take,
            "taken": self.taken,
            "thresholds": dict(self.thresholds),
            "holds": dict(self.holds),
            "budget": self.budget,
            "uncertain": list(self.uncertain),
        }


def words(
    summary: FrontierSummary,
    *,
    planned: int,
    bounds: pa.Table | None = None,
    preview: Mapping[str, Any] | None = None,
    certificates: Sequence[Mapping[str, Any]] | None = None,
    spent: str | None = None,
) -> Words:
    """Say what a sweep came to.

    Args:
        summary: What has finished.
        planned: Trials of the plan.
        bounds: Rows of ``bounds.parquet``.
        preview: The document of ``preview.json``.
        certificates: What path weights prove at the thresholds, see ``LeastKL.certified``.
        spent: What a budget bought, in words.
    """
    take, row = _take(summary)
    points = summary.points
    thresholds = {} if row is None else points[row].thresholds
    asked = {
        target: thresholds[name] for name, target in summary.config.targets.items() if name in thresholds
    }
    budget = None
    if summary.config.objective.kind == "reward":
        limits = [c.name for c in summary.config.constraints if c.kind == "kl"]
        budget = thresholds.get(limits[0]) if limits else None
    deviations = joint_deviations(len(asked) + (budget is not None))
    stds = {name: summary.baseline.rewards[name].std for name in asked}
    return Words(
        bought=summary.sentence() if spent is None else f"{summary.sentence()} {spent}",
        take=take,
        taken=None if row is None else points.ids[row],
        thresholds={name: _below(bound, stds[name]) for name, bound in asked.items()},
        holds={
            name: _below(min(bound, _bound(points.rewards[name], row, -deviations, bound)), stds[name])
            for name, bound in asked.items()
        },
        budget=None if budget is None else max(budget, _bound(points.kl, row, deviations, budget)),
        uncertain=tuple(_uncertain(summary, planned, bounds, preview, certificates or ())),
    )


def _bound(figure: Measured, row: int | None, deviations: float, unknown: float) -> float:
    """A figure so many standard errors off; ``unknown`` where it has none."""
    found = np.nan if row is None else float(figure.mean[row] + deviations * figure.error[row])
    return found if np.isfinite(found) else unknown


def _below(value: float, scale: float) -> float:
    """A threshold of few digits that is met wherever ``value`` is."""
    step = 10.0 ** (np.floor(np.log10(scale)) - 3)
    return float(f"{np.floor(value / step + 1e-9) * step:.10g}")


# Which trial ------------------------------------------------------------------------------------------


def _take(summary: FrontierSummary) -> tuple[str, int | None]:
    """The cheapest feasible trial at the most demanding thresholds that any constrained trial met, as its place."""
    points = summary.points
    if not len(points):
        return "There is no trial to take yet.", None
    mine = np.flatnonzero(points.methods == "constrained")
    feasible = mine[points.feasible[mine]]
    if not len(mine):
        return _take_other(summary)
    if not len(feasible):
        row = int(mine[np.argmin(_miss(summary)[mine])])
        gaps = {name: float(gap[row]) for name, gap in points.violations.items() if gap[row] > 0}
        missed = ", ".join(f"{name} by {gap:.3g}" for name, gap in gaps.items())
        worst = f", which misses {missed}" if missed else ""
        return (
            f"No constrained trial meets its thresholds with certainty; the nearest is {points.ids[row]}{worst}.",
            row,
        )
    demand = _demand(summary)[feasible]
    # In the order of their KL.
    row = int(feasible[np.argmax(demand >= demand.max() - 1e-9)])
    trial_id, kl, thresholds = points.ids[row], points.kl.mean[row], _listed(points, row)
    if summary.composed:
        largest = f"its largest KL to a model is {kl:.3g} nats"
        return f"Take trial {trial_id}{f' ({thresholds})' if thresholds else ''}: {largest}.", row
    among = len(summary.cells)
    which = "the thresholds" if among <= 1 else "the most demanding thresholds that were met"
    text = f"For {which}{f', {thresholds},' if thresholds else ','} take trial {trial_id}: {kl:.3g} nats"
    if np.isfinite(points.ratio[row]):
        text += f", {points.ratio[row]:.2f} times the least {_known(summary)}"
    cell = _cell(summary, row)
    if cell is not None and cell.rival_kl is not None and cell.verdict == "constrained better":
        text += f"; the best weights that meet them pay {cell.rival_kl:.3g}"
    if among > 1:
        text += ". Looser thresholds cost less: move them in the frontier to see what to take"
    return text + ".", row


def _take_other(summary: FrontierSummary) -> tuple[str, int | None]:
    """What to take where no constrained trial succeeded, as a place."""
    points = summary.points
    boxed = np.flatnonzero(points.methods == "frontier")
    if not len(boxed):
        return "No constrained trial succeeded: choose among the weighted ones in the frontier below.", None
    # Those that hold at their loosest thresholds first, then by their KL.
    row = int(min(boxed, key=lambda place: (not points.feasible[place], points.kl.mean[place])))
    which = "all weights of the models" if summary.composed else "every threshold of its box"
    how = "move its sliders below to see what each costs, and give cdsweep pick those that you want"
    return f"Trial {points.ids[row]} answers for {which}: {how}.", row


def _demand(summary: FrontierSummary) -> Any:
    """How much each trial was asked for: thresholds in σ above the pretrained mean, summed; budgets count against."""
    total = np.zeros(len(summary.points))
    for constraint in summary.config.constraints:
        asked = summary.points.thresholds[constraint.name]
        if constraint.kind == "reward":
            known = summary.baseline.rewards[constraint.target]
            total += np.nan_to_num((asked - known.mean) / known.std)
        else:
            total -= np.nan_to_num(asked)
    return total


def _miss(summary: FrontierSummary) -> Any:
    """By how much each trial misses, in σ or nats, summed."""
    total = np.zeros(len(summary.points))
    for constraint in summary.config.constraints:
        unit = summary.baseline.rewards[constraint.target].std if constraint.kind == "reward" else 1.0
        total += np.maximum(np.nan_to_num(summary.points.violations[constraint.name]), 0.0) / unit
    return total


def _listed(points: Trials, row: int) -> str:
    parts = []
    for constraint in points.config.constraints:
        bound = points.thresholds[constraint.name][row]
        if np.isfinite(bound):
            sign, unit = ("≤", " nats") if constraint.kind == "kl" else ("≥", "")
            parts.append(f"{constraint.name} {sign} {bound:.3g}{unit}".replace("-", "−"))
    return ", ".join(parts)


def _cell(summary: FrontierSummary, row: int) -> Cell | None:
    for cell in summary.cells:
        asked = np.array([summary.points.thresholds[name][row] for name in cell.thresholds])
        if np.allclose(asked, list(cell.thresholds.values())):
            return cell
    return None


# What remains uncertain -------------------------------------------------------------------------------


def _uncertain(
    summary: FrontierSummary,
    planned: int,
    bounds: pa.Table | None,
    preview: Mapping[str, Any] | None,
    certificates: Sequence[Mapping[str, Any]],
) -> list[str]:
    found = [
        _unfinished(summary, planned),
        *_misses(summary),
        _share(summary),
        _seeds(summary),
        _undecided(summary.cells),
        _gap(summary, bounds),
        _certified(certificates),
        _predicted(preview),
    ]
    return [line for line in found if line]


def _unfinished(summary: FrontierSummary, planned: int) -> str:
    ended = sum(summary.statuses.values())
    if ended >= planned:
        return ""
    return f"{planned - ended} of {planned} trials have not finished; the frontier can only get better."


def _share(summary: FrontierSummary) -> str:
    asked, known = summary.config.judged or (0, 0)
    if asked == known:
        return ""
    return (
        f"Trials are judged on {asked} of {known} held-out prompts, the same for all: intervals speak of all {known}, "
        "and hold the chance of which are asked."
    )


def _misses(summary: FrontierSummary) -> list[str]:
    lines = []
    failed = summary.statuses.get("failed", 0)
    if failed:
        lines.append(
            f"{failed} {'trial' if failed == 1 else 'trials'} failed and left no figures; the table says why."
        )
    for method in summary.methods:
        missed = method.succeeded - method.feasible
        if method.method == "constrained" and missed:
            lines.append(
                f"{missed} of {method.succeeded} constrained trials do not meet their thresholds with 95 % confidence."
            )
    return lines


def _seeds(summary: FrontierSummary) -> str:
    seeds = len(np.unique(summary.points.seeds))
    if seeds == 0 or seeds >= _ENOUGH_SEEDS:
        return ""
    if seeds == 1:
        return (
            "There is one seed: how much the outcome of training varies is not known, only the noise of evaluation, so "
            "there is no verdict between methods."
        )
    return "There are two seeds: they show that outcomes vary, hardly by how much, and tell large differences only."


def _undecided(cells: Sequence[Cell]) -> str:
    undecided = sum(cell.met and cell.verdict == "undecided" and cell.paired > 1 for cell in cells)
    if not undecided:
        return ""
    at = "there" if len(cells) == 1 else f"at {undecided} of {len(cells)} threshold combinations"
    return (
        f"The best weights and the constrained trial cannot be told apart {at}, beyond the spread between seeds and "
        "the noise of evaluation."
    )


def _known(summary: FrontierSummary) -> str:
    """How the least KL is known."""
    return LeastKL.known if summary.exact is None else summary.exact.known


def _gap(summary: FrontierSummary, bounds: pa.Table | None) -> str:
    if bounds is not None and bounds.num_rows:
        last = bounds.slice(bounds.num_rows - 1, 1).to_pylist()[0]
        if last["gap"] is None:
            return "Some thresholds in question are out of reach of the finished trials and their mixtures."
        return (
            f"Over the thresholds in question the frontier is known to within {last['gap']:.3g} nats "
            f"({SAID[last['kind']]})."
        )
    if summary.composed or not len(summary.points):
        return ""
    if summary.bound is not None:
        return (
            f"Training is not exact: the worst feasible constrained trial, {summary.bound.trial_id}, pays "
            f"{summary.bound.gap:.3g} nats more than the least {_known(summary)}."
        )
    if summary.exact is not None and summary.exact.kind == "proven":
        return ""
    return (
        "The least possible KL is not known here: lower bounds rest on the multipliers that training found."
    )


def _certified(rows: Sequence[Mapping[str, Any]]) -> str:
    """The largest gap between bounds that hold, and what it is made of."""
    known = [row for row in rows if np.isfinite(row["gap"])]
    if not known:
        return _unsure(rows)
    worst = max(known, key=lambda row: float(row["gap"]))
    beyond = (
        "" if len(known) == len(rows) else f" Mixtures are sure to reach {len(known)} of {len(rows)} only."
    )
    return (
        f"At the thresholds asked for, the least KL is known to within {worst['gap']:.3g} nats at worst "
        f"({SAID[worst['kind']]}): {worst['few_trials']:.2g} for want of trials there, {worst['training']:.2g} for "
        f"training short of its optimum, {worst['rest']:.2g} for confidence. So {ADVICE[worst['largest']]}.{beyond}"
    )


def _unsure(rows: Sequence[Mapping[str, Any]]) -> str:
    """What is known where thresholds are met within noise only."""
    met = [row for row in rows if np.isfinite(row["mixture_kl"])]
    if not met:
        return ""
    worst = max(met, key=lambda row: float(row["mixture_kl"] - row["lower"]))
    below = worst["mixture_kl"] - worst["lower"]
    return (
        f"Mixtures of the finished trials meet {len(met)} of {len(rows)} threshold combinations within noise, none at "
        f"95 %. So there is a lower bound only: at most {below:.3g} nats below what they pay, an estimated "
        f"{worst['few_trials']:.2g} of them for want of trials there, {worst['training']:.2g} for training short of "
        f"its optimum. {ADVICE['rest'].capitalize()}."
    )


def _predicted(preview: Mapping[str, Any] | None) -> str:
    points = (preview or {}).get("points", ())
    weak = sum(point.get("ess") is None or point["ess"] < _HARD for point in points)
    if not weak:
        return ""
    return (
        f"The prediction from samples is unreliable at {weak} of {len(points)} threshold combinations: too few "
        "samples reach them."
    )
