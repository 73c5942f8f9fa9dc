"""The outcome of a sweep in one sentence, computed cell by cell."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from orchestrator.frontier.comparison.comparison import Cell, Verdict


def sentence(
    *,
    cells: Sequence[Cell],
    rivals: int,
    statuses: Counter[str],
    planned: int | None,
    objective: tuple[str, float] | None,
    ratios_to_exact: Sequence[float],
    boxes: int = 0,
) -> str:
    """Say what constraints bought over fixed weights.

    Args:
        cells: Threshold combinations with a constrained trial that succeeded.
        rivals: Number of weighted settings that succeeded.
        statuses: Number of trials by status.
        planned: Trials in the plan, where known.
        objective: Name and pretrained σ of the reward that is maximised; None for a KL objective.
        ratios_to_exact: KL divided by the exact least KL, of the constrained trials.
        boxes: Number of trials for a box of thresholds that succeeded.
    """
    finished = sum(statuses.values())
    if finished == 0:
        return "No trial has finished yet."
    progress = "" if planned is None or finished >= planned else f" (so far: {finished} of {planned} trials)"
    if boxes and not cells and not rivals:
        told = "One trial answers" if boxes == 1 else f"{boxes} trials answer"
        return f"{told} for a whole box of thresholds; there are no other trials to compare with{progress}."
    if not cells and not rivals:
        told = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()) if count)
        none = "No trial that succeeded has a finite KL" if statuses["succeeded"] else "No trial succeeded"
        return f"{none}: {told}{progress}."
    if not cells:
        return (
            f"Only weighted trials succeeded ({_count(rivals, 'setting')}), so there is no constrained trial "
            f"to compare them with{progress}."
        )
    parts = [_met(cells)]
    if rivals:
        parts += _against(cells, rivals, objective)
    else:
        parts.append(_exact(ratios_to_exact) + "there are no weighted trials to compare with")
    return "; ".join(part for part in parts if part) + progress + "."


def _met(cells: Sequence[Cell]) -> str:
    met, count = sum(cell.met for cell in cells), len(cells)
    if count == 1:
        return f"Constrained training {'met' if met else 'did not meet'} the thresholds"
    many = "all" if met == count else "none of the" if met == 0 else f"{met} of"
    return f"Constrained training met {many} {count} threshold combinations"


def _against(cells: Sequence[Cell], rivals: int, objective: tuple[str, float] | None) -> list[str]:
    """What weights did where constrained training met the thresholds, and where it did not."""
    met = [cell for cell in cells if cell.met]
    missed = [cell for cell in cells if not cell.met]

    def judged(verdict: Verdict, *, told: bool = True) -> list[Cell]:
        return [cell for cell in met if cell.verdict == verdict and (cell.paired > 1 or not told)]

    better = judged("constrained better")
    untold = [cell for cell in met if cell.verdict == "undecided" and cell.paired < 2]
    said = [
        (judged("none meets", told=False), f"no weighted setting (of {rivals} tried) met the thresholds"),
        (better, _paid(better, objective)),
        (judged("weighted better"), "weights did better"),
        (judged("undecided"), "the seeds do not tell it from weights that met the thresholds"),
        (untold, "weights met the thresholds too, and a verdict takes two seeds of both"),
    ]
    said = [(group, words) for group, words in said if group]
    parts = []
    for place, (group, words) in enumerate(said):
        where = "" if len(cells) == 1 else _place(len(group), len(met), last=0 < place == len(said) - 1)
        parts.append(where + words)
    by_weights = sum(cell.verdict != "none meets" for cell in missed)
    if by_weights:
        parts.append(
            "a weighted setting met them"
            if len(cells) == 1
            else f"weights met {by_weights} of the {len(missed)} that constrained training missed"
        )
    return parts


def _place(some: int, all_of_them: int, *, last: bool) -> str:
    """Which of the combinations that constrained training met."""
    if some == all_of_them:
        return "at each of those " if some > 1 else "there "
    if last:
        return f"at the other {some} " if some > 1 else "at the other one "
    return f"at {some} of those "


def _paid(shared: Sequence[Cell], objective: tuple[str, float] | None) -> str:
    if not shared:
        return ""
    if objective is not None:
        name, std = objective
        losses = [(cell.objective - (cell.rival_objective or 0.0)) / std for cell in shared]
        return f"the best weighted setting that met the thresholds reached {_spread(losses, f' σ less of {name}')}"
    ratios = [cell.ratio for cell in shared if cell.ratio is not None]
    if not ratios:
        return "constraints did better, at next to no KL"
    return f"the cheapest weighted setting that met the thresholds paid {_spread(ratios, ' times its KL')}"


def _exact(ratios: Sequence[float]) -> str:
    return f"it paid {_spread(ratios, ' times the least possible KL')}; " if ratios else ""


def _spread(values: Sequence[float], unit: str) -> str:
    """Median, and range if there are several."""
    median = f"{np.median(values):.2f}{unit}"
    if len(values) == 1:
        return median
    return f"{median} in the median ({min(values):.2f} to {max(values):.2f})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
