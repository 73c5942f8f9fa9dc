"""Plans, frontiers and states as tables for a terminal of 80 columns; nothing is told by colour alone."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, repeat
from typing import Any, cast

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from orchestrator.frontier.problems import SAID
from orchestrator.frontier.summary import FrontierSummary, MethodSummary
from orchestrator.frontier.trials import Trial, Trials, spread
from orchestrator.report.certified import PROVEN
from orchestrator.report.units import MARKS
from trainers.config import SamplingConfig

Settings = Mapping[str, Mapping[str, int | str]]
"""By trial: ``plan.settings_apart``."""

_PLAN_ROWS = 40
_FRONT_ROWS = 24
_WIDE = 2
"""Rewards that fit side by side."""
_ONLY = "only measured"
_MARKS = {True: "yes", False: "no", None: "?"}
_MOST_FAILURES = 10
_FEASIBLE = {True: "feasible", False: "infeasible", None: "not judged"}


def plan_table(document: Mapping[str, Any]) -> RenderableType:
    """Show the document of ``cdsweep plan``: trials that differ only in their seed share a line."""
    composed = document["base"]["model"]["composition"] is not None
    table = plain_table("method", "thresholds", "weights" if composed else "weights per σ", "seeds")
    several = len({trial.get("sampler") for trial in document["trials"]}) > 1
    lines = [
        (
            ", ".join(
                [trial["method"]]
                + ([trial["sampler"]] if several else [])
                + [f"{name} {value}" for name, value in trial.get("settings", {}).items()]
            ),
            "" if trial["method"] == "weighted" else _written(trial),
            "all" if composed and trial["method"] == "frontier" else _named(trial["weights"]),
            trial["seed"],
        )
        for trial in document["trials"]
    ]
    grouped = [
        (*key, ", ".join(str(line[3]) for line in group))
        for key, group in groupby(sorted(lines, key=lambda line: line[:3]), key=lambda line: line[:3])
    ]
    for row in grouped[:_PLAN_ROWS]:
        table.add_row(*row)
    if len(grouped) > _PLAN_ROWS:
        table.add_row("…", f"{len(grouped) - _PLAN_ROWS} more lines", "", "")
    needs, hours = document["resources"], document["gpu_hours"]
    searched = document.get("searched", 0)
    count = "1 trial" if len(document["trials"]) == 1 else f"{len(document['trials'])} trials"
    if searched:
        count = f"up to {len(document['trials']) + searched} trials ({searched} chosen by searches, or further rounds)"
    total = (
        f"{count} of {_workers(needs['workers'])} worker(s) with {needs['cpus_per_worker']:g} CPU and "
        f"{needs['gpus_per_worker']:g} GPU each"
    )
    if hours is not None:
        total += f", {hours:g} GPU-hours"
    if document.get("cost") is not None:
        total += f", cost {document['cost']:g}"
    heading = Text(f"plan of {document['name']}", style="bold")
    searches = [Text(search) for search in document.get("searches", ())]
    sampling, preset = SamplingConfig.model_validate(document["base"]["sampling"]), document.get("preset")
    chain = [] if preset is None else [Text(preset)]
    if not chain and (sampling.spacing or sampling.order == 2):
        # Others are told from the pipeline's scheduler, which a plan does not read.
        chain = [Text(f"sampled in {sampling.words}")]
    return Group(heading, *([table] if lines else []), *searches, *chain, Text(total))


def _workers(written: int | Mapping[str, int]) -> str:
    return str(written) if isinstance(written, int) else f"{written['min']} to {written['max']}"


def preview_table(document: Mapping[str, Any]) -> RenderableType:
    """Show the document of ``cdsweep preview``: a line per combination of thresholds and reward."""
    table = plain_table()
    table.add_column("least KL, nats", no_wrap=True)
    table.add_column("effective", justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    table.add_column("reward", overflow="fold")
    table.add_column("threshold", justify="right", no_wrap=True)
    table.add_column("multiplier", justify="right", no_wrap=True)
    for point in document["points"][:_PLAN_ROWS]:
        kl = "" if point["kl"] is None else f"{point['kl']:.3f}"
        ends = (point["kl_low"], point["kl_high"])
        if point["kl"] is not None and None not in ends:
            kl += f"  {ends[0]:.3f} to {ends[1]:.3f}"
        effective = number(None) if point["ess"] is None else f"{point['ess']:.0f}"
        verdict = point["verdict"] + (", over budget" if point.get("over_budget") else "")
        first = (kl, effective, verdict)
        for index, (name, threshold) in enumerate(point["thresholds"].items()):
            said = ("", "", "") if index else first
            table.add_row(*said, name, number(threshold), number(point["multipliers"].get(name)))
    heading = f"predicted from {document['samples']} samples of the pretrained model, before any training"
    return Group(Text(heading, style="bold"), table)


def picked_table(document: Mapping[str, Any]) -> RenderableType:
    """Show the document of ``cdsweep pick``."""
    priced = any("multipliers" in member for member in document["mixture"])
    between = any("interpolated" in member for member in document["mixture"])
    columns = (["at multipliers"] if priced else []) + (["adapters by weight"] if between else [])
    members = plain_table("trial", "probability", *columns)
    for member in document["mixture"]:
        prices = "  ".join(f"{name} {number(value)}" for name, value in member.get("multipliers", {}).items())
        parts = "  ".join(f"{name} {share:.3g}" for name, share in member.get("interpolated", {}).items())
        cells = ([prices] if priced else []) + ([parts] if between else [])
        members.add_row(member["trial_id"], f"{member['probability']:.3f}", *cells)
    rewards = plain_table("reward", "measured", "95 % interval", "at least", "threshold")
    for name, value in document["rewards"].items():
        ends = f"{number(document['rewards_low'][name])} to {number(document['rewards_high'][name])}"
        held = document["thresholds"].get(name)
        rewards.add_row(
            name,
            number(value),
            ends,
            number(document["rewards_bound"][name]),
            "" if held is None else f"≥ {number(held)}",
        )
    kl = (
        f"KL {document['kl']:.3f} nats ({document['kl_low']:.3f} to {document['kl_high']:.3f}), at most "
        f"{document['excess']:.3f} above the least KL there: lower bound {document['lower_bound']:.3f} nats "
        f"({SAID[document['lower_bound_kind']]})"
    )
    confidence = (
        "at least: holds on the held-out prompts at 95 % confidence, all that was asked for together; KL at most "
        f"{document['kl_bound']:.3f} nats at the same"
    )
    return Group(members, rewards, Text(confidence), Text(kl, style="bold"))


def certified_table(document: Mapping[str, Any]) -> RenderableType:
    """Show the document of ``cdsweep certify``."""
    rewards = plain_table("reward", "measured", "95 % interval", "multiplier, nats per unit")
    for name, value in document["rewards"].items():
        ends = f"{number(document['rewards_low'][name])} to {number(document['rewards_high'][name])}"
        rewards.add_row(name, number(value), ends, number(document["multipliers"][name]))
    least = "no lower bound"
    if document["lower_bound"] is not None:
        how = "exactly" if document["kind"] == PROVEN else "at 95 % confidence at least"
        least = f"the least KL at these rewards is {how} {document['lower_bound']:.3f}"
    return Group(
        rewards,
        Text(
            f"KL {document['kl']:.3f} nats ({number(document['kl_low'])} to {number(document['kl_high'])}), {least}",
            style="bold",
        ),
        Text(
            f"{document['distance']:.3f} nats from the optimum of these multipliers, by {document['images']} samples "
            f"whose path weights are worth {document['ess']:.0f}"
        ),
    )


def _written(trial: Mapping[str, Any]) -> str:
    """Return thresholds as in the spec, both ends of those that move."""
    ends = trial.get("tightest", {})
    written = trial.get("written") or {
        name: {"value": value, "unit": trial["units"][name], "tightest": ends.get(name)}
        for name, value in trial["thresholds"].items()
    }

    def named(name: str, entry: Mapping[str, Any]) -> str:
        end = entry.get("tightest")
        return f"{name} {entry['value']:g}{'' if end is None else f'…{end:g}'}{MARKS[entry['unit']]}"

    return "  ".join(named(name, entry) for name, entry in written.items())


def summary_tables(
    summary: FrontierSummary, judges: Sequence[str] = (), apart: Settings | None = None
) -> RenderableType:
    """Show the front of every method (how near its models are, of a composition), the bound, and the sentence.

    Args:
        summary: Of a sweep.
        judges: Rewards that stand beside the others, though nothing is trained on them.
        apart: By trial, the settings that tell it apart from others with the same thresholds.
    """
    parts: list[RenderableType] = []
    apart = apart or {}
    for method in summary.methods:
        if summary.composed:
            table = _compositions(method, summary, apart)
        else:
            table = _front(method, summary.sought, judges, apart)
        parts += [_heading(method, composed=summary.composed), table, Text()]
        if (deployed := summary.config.evaluation.as_deployed) is not None and len(method.front):
            parts += [Text(f"under {deployed.words}"), _deployed(method, summary, judges), Text()]
    if not summary.composed:
        point = "  ".join(f"{name} {number(value)}" for name, value in summary.reference_point.items())
        ends = "  ".join(
            f"{name} {number(end)}" for name, end in summary.counted_up_to.items() if end is not None
        )
        counted = f"; rewards count up to the tightest thresholds: {ends}" if ends else ""
        if summary.trials.tightest:
            counted += "; a trial for a box counts by its row, which is at the loosest thresholds"
        parts.append(Text(f"hypervolumes up to the reference point: {point}{counted}"))
    if summary.bound is not None and summary.exact is not None:
        parts.append(
            Text(
                f"largest excess over the {summary.exact.word} of a feasible constrained trial: "
                f"{summary.bound.gap:.3f} nats ({summary.bound.trial_id})"
            )
        )
    parts.append(Text(summary.sentence(), style="bold"))
    return Group(*parts)


def _heading(method: MethodSummary, *, composed: bool) -> Text:
    planned = "" if method.planned is None else f" of {method.planned}"
    front = f", {len(method.front)} on the front, hypervolume {method.hypervolume:.4g}"
    return Text(
        f"{method.method}: {method.trials}{planned} trials, {method.feasible} feasible{'' if composed else front}",
        style="bold",
    )


def _front(
    method: MethodSummary, sought: Sequence[str], judges: Sequence[str], apart: Settings
) -> RenderableType:
    """What every trial reached, and what that is held against."""
    shown = method.front.take(spread(len(method.front), _FRONT_ROWS))
    priced = method.method != "weighted"
    layout = _wide if len(sought) + len(judges) <= _WIDE else _long
    table = layout(shown, sought, judges, apart, priced=priced)
    return _with_rest(table, len(shown), len(method.front))


def _with_rest(table: Table, shown: int, count: int) -> RenderableType:
    """The table, and below it how many trials are not in it."""
    if shown == count:
        return table
    return Group(table, Text(f"{shown} of {count} shown; --json and frontier.parquet have all"))


def _wide(
    points: Trials, sought: Sequence[str], judges: Sequence[str], apart: Settings, *, priced: bool
) -> Table:
    """Two lines per trial, rewards side by side: what was reached, and below it what that is held against."""
    table = plain_table()
    table.add_column("trial", no_wrap=True)
    table.add_column("seed")
    table.add_column("feasible")
    table.add_column("KL ±\nleast + excess", justify="right", no_wrap=True)
    for name in sought:
        price = "≥ threshold, λ" if priced else "weight"
        table.add_column(Text(f"{name} ±\n{price}"), justify="right")
    for name in judges:
        table.add_column(Text(f"{name} ±\n{_ONLY}"), justify="right")
    for point in points:
        table.add_row(
            "\n".join([point.trial_id, *_settings(point, apart)]),
            str(point.seed),
            _MARKS[point.feasible],
            f"{_kl(point)}\n{_held(point)}",
            *(_reward(point, name, priced=priced) for name in sought),
            *(_reached(point, name) for name in judges),
        )
    return table


def _long(
    points: Trials, sought: Sequence[str], judges: Sequence[str], apart: Settings, *, priced: bool
) -> Table:
    """A line per trial and reward, three or more: they do not fit side by side. Judges follow the others."""
    table = plain_table()
    table.add_column("trial", no_wrap=True)
    table.add_column("KL ±\nleast + excess", justify="right", no_wrap=True)
    table.add_column("reward", overflow="fold")
    table.add_column("reached ±", justify="right", no_wrap=True)
    for name in ("threshold", "λ") if priced else ("weight",):
        table.add_column(name, justify="right", no_wrap=True)
    for point in points:
        held = (point.thresholds, point.multipliers) if priced else (point.weights,)
        said = [
            (point.trial_id, _kl(point)),
            (f"seed {point.seed}", _held(point)),
            ("\n".join([_FEASIBLE[point.feasible], *_settings(point, apart)]), ""),
        ]
        # A row of its own for every reward: a name that is folded must not shift the figures beside it.
        for name, (who, kl) in zip((*sought, *judges), chain(said, repeat(("", ""))), strict=False):
            figures = (number(values.get(name)) for values in held)
            beside = (_ONLY,) if name in judges else figures
            table.add_row(who, kl, name, _reached(point, name), *beside)
    return table


def _deployed(method: MethodSummary, summary: FrontierSummary, judges: Sequence[str]) -> RenderableType:
    """A line per trial and reward: what it is under the sampler that will be used, and the pretrained model there."""
    table = plain_table("trial", "reward")
    for name in ("reached ±", "pretrained ±", "moved by"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = method.front.take(spread(len(method.front), _FRONT_ROWS))
    for point in shown:
        names = [name for name in (*summary.sought, *judges) if name in point.deployed]
        for name, who in zip(names, chain((point.trial_id,), repeat("")), strict=False):
            before, reached = summary.baseline.deployed.get(name), point.deployed[name]
            known = None if before is None else before.mean
            ends = (None, None) if before is None else (before.low, before.high)
            table.add_row(
                who,
                name,
                _with_half(reached, *point.deployed_intervals.get(name, (None, None))),
                _with_half(known, *ends),
                "" if known is None else f"{reached - known:+.3g}",
            )
    return _with_rest(table, len(shown), len(method.front))


def _kl(point: Trial) -> str:
    return f"{point.kl:.3f} ±{_half(point.kl_low, point.kl_high)}"


def _held(point: Trial) -> str:
    """The least KL at the rewards reached and what was paid above it, where known."""
    return "" if point.kl_least is None else f"{point.kl_least:.3f} {point.excess_kl:+.3f}"


def _settings(point: Trial, apart: Settings) -> list[str]:
    """Return a line for each setting that tells a trial apart."""
    return [f"{name} {value}" for name, value in apart.get(point.trial_id, {}).items()]


def _compositions(method: MethodSummary, summary: FrontierSummary, apart: Settings) -> RenderableType:
    """A line per trial and model: few models or many, it fits."""
    table = plain_table("trial", "seed", "feasible")
    table.add_column("largest KL ±\nleast + excess", justify="right", no_wrap=True)
    table.add_column("model", overflow="fold")
    table.add_column("KL", justify="right")
    table.add_column("weight", justify="right")
    judged = any(point.retention for method in summary.methods for point in method.front)
    if judged:
        table.add_column("kept", justify="right")
    for name in summary.sought:
        table.add_column(Text(f"{name}\n≥ threshold"), justify="right", overflow="fold")
    points = method.front.take(spread(len(method.front), _FRONT_ROWS))
    several = len(set(summary.points.samplers) - {None}) > 1
    for point in points:
        reached = (
            f"{number(point.rewards.get(name))}\n≥ {number(_threshold(summary, point, name))}"
            for name in summary.sought
        )
        table.add_row(
            "\n".join(
                [
                    point.trial_id,
                    *([point.sampler] if several and point.sampler else []),
                    *_settings(point, apart),
                ]
            ),
            str(point.seed),
            _MARKS[point.feasible],
            f"{_kl(point)}\n{_held(point)}",
            "\n".join(point.kls),
            "\n".join(number(kl) for kl in point.kls.values()),
            "\n".join(number(point.weights.get(name)) for name in point.kls),
            *(["\n".join(_percent(point.retention.get(name)) for name in point.kls)] if judged else []),
            *reached,
        )
    return _with_rest(table, len(points), len(method.front))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _threshold(summary: FrontierSummary, point: Trial, reward: str) -> float | None:
    """Return the highest threshold of a trial on a reward."""
    bounds = [
        point.thresholds[c.name]
        for c in summary.config.constraints
        if c.target == reward and c.name in point.thresholds
    ]
    return max(bounds, default=None)


def _reward(point: Trial, name: str, *, priced: bool) -> str:
    """Return the reward with its half interval, and its threshold and price, or its weight."""
    reached = _reached(point, name)
    if not priced:
        return f"{reached}\n{number(point.weights.get(name))}"
    if name not in point.thresholds:
        return f"{reached}\n"
    return f"{reached}\n≥ {number(point.thresholds[name])}, {number(point.multipliers.get(name))}"


def sweeps_table(statuses: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Show one line per sweep."""
    table = plain_table("sweep", "state", "done", "failed", "feasible", "planned", "last at work, UTC")
    for status in statuses:
        trials, last = status["trials"], (status["updated_at"] or "–")[:16].replace("T", " ")  # noqa: RUF001 - a dash
        if trials is None:
            table.add_row(status["sweep"], status["state"], "", "", "", "", last)
            continue
        done = trials["succeeded"] + trials["infeasible"] + trials["failed"]
        numbers = (done, trials["failed"], status["feasible"], trials["planned"])
        table.add_row(status["sweep"], status["state"], *(str(number) for number in numbers), last)
    return table


def status_table(status: Mapping[str, Any]) -> RenderableType:
    """Show one sweep and its running trials."""
    trials = status["trials"]
    counts = ", ".join(f"{count} {name}" for name, count in trials.items())
    lines: list[RenderableType] = [Text(f"{status['sweep']}: {status['state']} ({counts})", style="bold")]
    if status["running"]:
        table = plain_table("trial", "what", "step", "KL")
        for trial in status["running"]:
            kl = trial.get("kl")
            table.add_row(trial["trial_id"], trial["label"], str(trial.get("step", "")), number(kl))
        lines.append(table)
    lines += [*failure_lines(status["failures"]), Text(status["path"])]
    return Group(*lines)


def failure_lines(failures: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """Yield a line per trial that failed or is infeasible, with the reason; of many the first."""
    for failure in failures[:_MOST_FAILURES]:
        yield Text(f"{failure['trial_id']}  {failure['status']}: {failure['error'] or 'no reason is known'}")
    if len(failures) > _MOST_FAILURES:
        yield Text(f"and {len(failures) - _MOST_FAILURES} more: cdsweep status --json has all")


class PlainTable(Table):
    """A table without lines, whose rows end where their last cell does: a pipe is not sent a wide cell's padding."""

    def __init__(self, *, show_header: bool = True) -> None:
        """Make one without columns."""
        super().__init__(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=show_header)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """Yield the rows, without the spaces at their ends."""
        drawn = cast("Iterable[Segment]", super().__rich_console__(console, options))
        for row in Segment.split_lines(drawn):
            while row and not row[-1].text.rstrip(" "):
                row.pop()
            if row:
                text, style, control = row.pop()
                row.append(Segment(text.rstrip(" "), style, control))
            yield from (*row, Segment.line())


def plain_table(*columns: str) -> Table:
    """Return a table without lines, which folds what is too wide."""
    table = PlainTable()
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _named(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:g}" for name, value in values.items())


def number(value: float | None) -> str:
    """Return a reward, price or KL with as many digits as it needs; a dash for None."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash stands for nothing
    # Rewards come in all sizes: a local contrast is 0.007, a PickScore 21, and its price hundreds of nats.
    if abs(value) >= 100:
        return f"{value:.1f}"
    return f"{value:.3f}" if abs(value) >= 0.02 or value == 0 else f"{value:.3g}"


def _half(low: float | None, high: float | None, digits: int = 3) -> str:
    if low is None or high is None or not math.isfinite(high - low):
        return "–"  # noqa: RUF001 - the same
    return f"{(high - low) / 2:.{digits}f}"


def _reached(point: Trial, name: str) -> str:
    """Return the reward with its half interval."""
    reward = point.rewards.get(name, point.measured.get(name))
    return _with_half(reward, *point.intervals.get(name, (None, None)))


def _with_half(value: float | None, low: float | None, high: float | None) -> str:
    """Return a reward with its half interval."""
    return f"{number(value)} ±{_half(low, high, 5 if abs(value or 0.0) < 0.02 else 3)}"
