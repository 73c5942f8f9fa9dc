"""What the analysis of a sweep found, in lines for a terminal: beside the fronts, and after them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.frontier.analysis import FrontierAnalysis
from orchestrator.frontier.problems import SAID
from orchestrator.frontier.trials import spread
from orchestrator.report.compared import Compared
from orchestrator.report.outcome import Outcome
from orchestrator.report.terminal.tables import failure_lines, number, plain_table
from orchestrator.report.words import ADVICE

_MET = {True: "met", False: "missed"}
_ANSWERS = 24
"""Rows of answers that are shown."""
TOLERANCE = 0.1
"""Nats, of the column that counts trials."""


def outcome_tables(outcome: Outcome) -> Iterator[RenderableType]:
    """Show failures, gap of a certified search, intervals of hypervolumes, excess over the box, prices and doubts."""
    if outcome.answers:
        yield from _answers(outcome.answers)
    yield from failure_lines(outcome.failures)
    for trial_id, lines in outcome.watched.items():
        yield from (Text(f"{trial_id}  {line}") for line in lines)
    certified = outcome.certified
    if certified is not None and certified["gap"] is not None:
        place = ", ".join(f"{name} {number(value)}" for name, value in certified["thresholds"].items())
        yield Text(
            f"certified search: after {certified['trials']} settings the least KL is known within "
            f"{certified['gap']:.3f} nats ({SAID[certified['kind']]}), worst at {place}"
        )
    if outcome.spent is not None:
        yield Text(outcome.spent)
    if outcome.certificates:
        yield from _certificates(outcome.certificates)
    if outcome.analysis is not None:
        yield from _analysis(outcome.analysis)
    if outcome.prediction is not None and (joined := outcome.prediction["joined"]):
        yield Text(f"samples of {len(joined)} trials have joined the prediction of the least KL")


def _answers(answers: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """Show what trials for a box were measured at: of the thresholds those that move, with their prices."""
    moving = list(dict.fromkeys(name for answer in answers for name in answer["moving"]))
    columns = [heading for name in moving for heading in (f"{name} ≥", "λ")]
    shown = plain_table("trial", *columns, "KL ±", "at least", "thresholds")
    rows = [answers[place] for place in spread(len(answers), _ANSWERS)]
    for row in rows:
        asked = [number(row[kind].get(name)) for name in moving for kind in ("thresholds", "multipliers")]
        paid = f"{row['kl']:.3f} ±{(row['kl_high'] - row['kl_low']) / 2:.3f}"
        shown.add_row(row["trial_id"], *asked, paid, number(row["lower_bound"]), _MET[row["feasible"]])
    yield from _titled("measured over the boxes of thresholds; cdsweep pick answers any other", shown)
    if len(rows) < len(answers):
        yield Text(f"{len(rows)} of {len(answers)} shown; --json and answers/ have all")


def _certificates(rows: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """Show both bounds and the parts of their distance; the largest part says what would help."""
    shown = plain_table("least KL at", "lower", "upper", "gap", "few trials", "training", "confidence")
    for row in rows:
        place = ", ".join(f"{name} {number(value)}" for name, value in row["thresholds"].items())
        figures = ("lower", "upper", "gap", "few_trials", "training", "rest")
        shown.add_row(place, *(number(row[name] if np.isfinite(row[name]) else None) for name in figures))
    yield from _titled(
        "bounds of the least KL, each holds at 95 %, nats, and what their distance is made of", shown
    )
    for reason in dict.fromkeys(row["reason"] for row in rows if row["reason"] is not None):
        yield Text(f"no lower bound at some thresholds: {reason}")
    parts = Counter(row["largest"] for row in rows if row["largest"] is not None)
    for part, count in parts.most_common():
        yield Text(f"at {count} of {len(rows)} {ADVICE[part]}")


def compared_table(rows: Sequence[Compared]) -> RenderableType:
    """Show the settings that two sweeps have in common: KL ± standard error, feasible seeds, and the difference."""
    if not rows:
        return Text("the sweeps have no setting in common that has succeeded in both")
    table = plain_table("setting", "sweep", "KL, nats", "feasible", "difference", "")
    for row in rows:
        for last, (name, found) in enumerate(zip(row.sweeps, (row.first, row.second), strict=True)):
            table.add_row(
                "" if last else row.setting,
                name,
                f"{number(found.kl)} ±{number(found.error)}",
                f"{found.feasible} of {found.seeds}",
                f"{'-' if row.difference < 0 else '+'}{number(abs(row.difference))} ±{number(row.error)}"
                if last
                else "",
                row.verdict if last else "",
            )
    return table


def _analysis(analysis: FrontierAnalysis) -> Iterator[RenderableType]:
    judged = analysis.judged
    shown = plain_table("method", "seeds", "hypervolume")
    if judged is not None:
        shown.add_column("worst excess", justify="right")
        shown.add_column("reached", justify="right")
        shown.add_column(f"trials to {TOLERANCE:g}", justify="right")
    for method in analysis.methods:
        volume = method.hypervolume
        cells = [
            method.method,
            str(len(method.seeds)),
            f"{number(volume.mean)} ({number(volume.low)} to {number(volume.high)})",
        ]
        if judged is not None and method.curve is not None:
            last, count = method.curve.last, method.curve.trials_to(TOLERANCE)
            worst = last.excess_where_reached
            cells += [
                number(worst if np.isfinite(worst) else None),
                f"{last.reached:.0%}",
                number(None) if count is None else str(count),
            ]
        shown.add_row(*cells)
    if analysis.methods:
        yield from _titled(
            "mixtures of each method's trials, over the box of thresholds, nats"
            + ("" if judged is None else f" (least KL {SAID[judged.kind]})"),
            shown,
        )
    if analysis.importance is not None and len(analysis.importance.rewards) > 1:
        shares = analysis.importance.share
        said = ", ".join(
            f"{name} {share:.0%}"
            for name, share in zip(analysis.importance.rewards, shares.tolist(), strict=True)
        )
        yield Text(f"what the thresholds cost: {said if np.isfinite(shares).all() else 'nothing'}")
    if analysis.prices is not None and (flagged := int(analysis.prices.flagged.sum())):
        yield Text(
            f"{flagged} of {len(analysis.prices.first)} pairs of neighbours paid other than their multipliers say, "
            "beyond noise: not converged, or paying too much (--json names them)"
        )


def _titled(title: str, shown: Table) -> Iterator[RenderableType]:
    yield Text(title, style="bold")
    yield shown


def composed_adapters_table(document: Mapping[str, Any]) -> RenderableType:
    """Show the document of ``cdsweep pick`` of a composition: what is picked, and all that was measured."""
    table = plain_table("trial", "model", "weight", "KL, nats", "95 % interval", "kept")
    rows = [document, *document["answers"]]
    for one in rows:
        names = list(one["kls"])
        kept = [one["retention"].get(name) for name in names]
        table.add_row(
            Text(f"{one['trial_id']}{' picked' if one is document else ''}"),
            "\n".join(names),
            "\n".join(f"{one['multipliers'][name]:.3g}" for name in names),
            "\n".join(number(one["kls"][name][0]) for name in names),
            "\n".join(f"{number(one['kls'][name][1])} to {number(one['kls'][name][2])}" for name in names),
            "\n".join("" if share is None else f"{share[0]:.0%}" for share in kept),
            end_section=True,
        )
    asked = "  ".join(f"{name}={weight:.6g}" for name, weight in document["multipliers"].items())
    return Group(
        table,
        Text(
            f"{document['trial_id']} at {asked}: farthest {document['farthest']}, {number(document['kl'])} nats",
            style="bold",
        ),
    )
