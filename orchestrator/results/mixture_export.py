"""Several adapters as plain files with an index: members of a picked mixture, points of a box, weights of models."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.results.digits import below
from orchestrator.results.export import exported
from orchestrator.results.formats import Format
from trainers.pipelines.families import Family

INDEX = "mixture.json"
GRID = "grid.json"
README = "README.md"

_FIGURES = ("kl", "kl_low", "kl_high", "kl_bound", "rewards", "rewards_bound")

_TEXT = """# A mixture of adapters

Draw a member for every image with its probability, then sample it: that distribution has the expected rewards and at
most the KL below. `pretrained` is the model without an adapter.

| member | probability | adapter |
|---|---|---|
{rows}

KL at most {kl:.4g} nats ({low:.4g} to {high:.4g}); the least possible is at least {bound:.4g} nats ({kind}).

`mixture.json` has the same figures: `members` is a list of `trial_id`, `probability` and `adapter` (a folder beside it,
a LoRA with the names of {form}, or null), `rewards` the measured means by name, `rewards_bound` and `kl_bound` what
holds at 95 % confidence.
"""


def mixture_files(
    document: Mapping[str, Any],
    adapters: Mapping[str, Mapping[str, bytes]],
    form: Format,
    family: Family | None,
) -> dict[str, bytes]:
    """Return the files of an export by path.

    Args:
        document: Of ``cdsweep pick``.
        adapters: Files of each member's adapter, by trial id; none for the pretrained model.
        form: Whose names their tensors are given.
        family: Of the pipeline; None where it is not known.

    Raises:
        StorageError: An adapter cannot be exported.
    """
    members = [
        {**member, "adapter": member["trial_id"] if member["trial_id"] in adapters else None}
        for member in document["mixture"]
    ]
    rows = "\n".join(
        f"| {m['trial_id']} | {m['probability']:.4f} | {m['adapter'] or 'none'} |" for m in members
    )
    text = _TEXT.format(
        rows=rows,
        kl=document["kl"],
        low=document["kl_low"],
        high=document["kl_high"],
        bound=document["lower_bound"],
        kind=document["lower_bound_kind"],
        form=form,
    )
    index = {"format": 1, "members": members} | {
        key: document[key] for key in (*_FIGURES, "thresholds", "lower_bound", "lower_bound_kind")
    }
    files = {INDEX: (json.dumps(index, indent=2) + "\n").encode(), README: text.encode()}
    for trial_id, parts in adapters.items():
        files |= {f"{trial_id}/{name}": data for name, data in exported(parts, form, family).items()}
    return files


_GRID = """# Trial {trial_id} at {count} thresholds of its box

Each folder is what the trial is at one optimum, a plain adapter of its own, measured on the same held-out samples
before it was written. `{index}` has a list `points` with `folder`, `thresholds`, `multipliers` (nats per reward unit),
`kl` and `rewards` with 95 % intervals; `missed` are thresholds of the grid that did not hold at 95 % confidence: they
have no folder.

| folder | thresholds | KL, nats |
|---|---|---|
{rows}
{after}"""
_WEIGHTS = """# Trial {trial_id} at {count} weights of its models

Each folder is what the trial is at one composition, a plain adapter of its own, measured on the same held-out samples
before it was written. `{index}` has a list `points` with `folder`, `multipliers` (the weights, which sum to 1), `kls`
to each model in nats and `retention` with 95 % intervals, and `kl`, the largest.

| folder | weights | largest KL, nats |
|---|---|---|
{rows}
{after}"""
_SLIDER = """
## A slider

```python
import json

{usage}
points = json.load(open("{index}"))["points"]


{at}```
"""
_AT_THRESHOLDS = """\
def at(**thresholds):
    \"\"\"Load the cheapest adapter that holds these thresholds, such as at({example}).\"\"\"
    held = [p for p in points if all(p["thresholds"][name] >= b for name, b in thresholds.items())]
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(min(held, key=lambda point: point["kl"])["folder"])
"""
_AT_WEIGHTS = """\
def at(**weights):
    \"\"\"Load the adapter at the nearest weights, such as at({example}).\"\"\"

    def apart(point):
        return sum((weights.get(name, 0.0) - w) ** 2 for name, w in point["multipliers"].items())

    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(min(points, key=apart)["folder"])
"""


def grid_files(
    trial_id: str,
    answers: Sequence[tuple[bool, Mapping[str, bytes]]],
    answer: str,
    usage: str | None,
    form: Format,
    family: Family | None,
    *,
    weights: bool = False,
) -> dict[str, bytes]:
    """Return the files of an export of points of a box by path: a folder for each that holds, an index, a README.

    Args:
        trial_id: Of the trial.
        answers: Whether each point holds, and its files.
        answer: Name of the one among these with its figures.
        usage: Lines that sample with one of them in diffusers; None for what diffusers does not load.
        form: Whose names their tensors are given.
        family: Of the pipeline; None where it is not known.
        weights: Points are weights of the models of a composition, not thresholds.

    Raises:
        StorageError: An adapter cannot be exported.
    """
    key, what, at = (
        ("multipliers", _WEIGHTS, _AT_WEIGHTS) if weights else ("thresholds", _GRID, _AT_THRESHOLDS)
    )
    files: dict[str, bytes] = {}
    points: list[dict[str, Any]] = []
    missed: list[dict[str, Any]] = []
    for held, parts in answers:
        figures = {
            name: value
            for name, value in json.loads(parts[answer]).items()
            if name not in ("format", "trial_id")
        }
        if not held:
            missed.append(figures)
            continue
        folder = f"{len(points):03d}"
        points.append({"folder": folder, **figures})
        files |= {f"{folder}/{name}": data for name, data in exported(parts, form, family).items()}
    rows = "\n".join(
        f"| {point['folder']} | {', '.join(f'{name} {bound:.4g}' for name, bound in point[key].items())} "
        f"| {'' if point['kl'] is None else format(point['kl'], '.3f')} |"
        for point in points
    )
    after = ""
    if usage is not None and points and form is Format.diffusers:
        after = _SLIDER.format(
            usage=usage.replace("DIRECTORY", points[0]["folder"]),
            index=GRID,
            at=at.format(example=_arguments(points[0][key])),
        )
    text = what.format(trial_id=trial_id, count=len(points), index=GRID, rows=rows, after=after)
    index = {"format": 1, "trial_id": trial_id, "points": points, "missed": missed}
    return files | {GRID: (json.dumps(index, indent=2) + "\n").encode(), README: text.encode()}


def _arguments(thresholds: Mapping[str, float]) -> str:
    """Return thresholds, rounded down, as arguments of a call; those of a group have names that are no keywords."""
    if all(name.isidentifier() for name in thresholds):
        return ", ".join(f"{name}={below(bound):g}" for name, bound in thresholds.items())
    return "**{" + ", ".join(f"{name!r}: {below(bound):g}" for name, bound in thresholds.items()) + "}"
