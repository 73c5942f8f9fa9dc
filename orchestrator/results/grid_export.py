"""Points of a box, or weights of models, as plain adapters in a folder that can be used from the first point on.

Each is written as it is found, into a folder named after its place in the grid, and then the index and the README,
each file in one piece: whatever ends the command, what was measured is there, and the same command goes on with it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import StorageError, UsageError
from orchestrator.results.digits import below
from orchestrator.results.export import exported, others_in, write_files
from orchestrator.results.formats import Format
from orchestrator.results.mixture_export import README
from trainers.pipelines.families import Family

GRID = "grid.json"

_GRID = """# Trial {trial_id} at {count} thresholds of its box

Each folder is what the trial is at one optimum, a plain adapter of its own, measured on the same held-out samples
before it was written. `{index}` has a list `points` with `folder`, `thresholds`, `multipliers` (nats per reward unit),
`kl` and `rewards` with 95 % intervals; `missed` are thresholds of the grid that did not hold at 95 % confidence: they
have no folder.{left}

| folder | thresholds | KL, nats |
|---|---|---|
{rows}
{after}"""
_WEIGHTS = """# Trial {trial_id} at {count} weights of its models

Each folder is what the trial is at one composition, a plain adapter of its own, measured on the same held-out samples
before it was written. `{index}` has a list `points` with `folder`, `multipliers` (the weights, which sum to 1), `kls`
to each model in nats and `retention` with 95 % intervals, and `kl`, the largest.{left}

| folder | weights | largest KL, nats |
|---|---|---|
{rows}
{after}"""
_LEFT = """

{done} of {size} points of the grid have been measured so far: the same command goes on with the others."""
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


class GridExport:
    """A folder for each point of a grid that holds, an index and a README."""

    def __init__(
        self,
        directory: str,
        trial_id: str,
        size: int,
        *,
        answer: str,
        adapter: str,
        usage: str | None,
        form: Format,
        family: Family | None,
        weights: bool = False,
    ) -> None:
        """Begin, or go on with what an interrupted export of the same has left.

        Args:
            directory: Where it goes: new, empty, or with such an export.
            trial_id: Of the trial.
            size: Points of the grid.
            answer: Name of the file among those of a point with its figures.
            adapter: Digest of the trial's own adapter.
            usage: Lines that sample with one of them in diffusers; None for what diffusers does not load.
            form: Whose names their tensors are given.
            family: Of the pipeline; None where it is not known.
            weights: Points are weights of the models of a composition, not thresholds.

        Raises:
            UsageError: The directory holds something else.
            StorageError: It cannot be read.
        """
        self.directory, self._trial_id, self._size = directory, trial_id, size
        self._answer, self._usage, self._form, self._family = answer, usage, form, family
        self._key, self._text, self._at = (
            ("multipliers", _WEIGHTS, _AT_WEIGHTS) if weights else ("thresholds", _GRID, _AT_THRESHOLDS)
        )
        self._head = {
            "format": 1,
            "trial_id": trial_id,
            "adapter": adapter,
            "size": size,
            "names": form.value,
        }
        self._points = self._left()
        self._missed: dict[int, dict[str, Any]] = {}

    @property
    def known(self) -> frozenset[int]:
        """Places in the grid of the points that are there."""
        return frozenset(self._points)

    def write(self, place: int, files: Mapping[str, bytes], *, held: bool) -> str | None:
        """Take a point, in place of what was known of it; returns the name of its folder, None where it does not hold.

        Args:
            place: In the grid.
            files: Of the plain adapter, with its figures.
            held: Whether it holds.

        Raises:
            StorageError: It cannot be exported or written.
        """
        figures = {
            name: value
            for name, value in json.loads(files[self._answer]).items()
            if name not in ("format", "trial_id")
        }
        folder = f"{place:03d}"
        if held:
            whole = exported(files, self._form, self._family)
            if not self._points:  # then it is ours, whatever comes between
                self._index()
            write_files({f"{folder}/{name}": data for name, data in whole.items()}, self.directory)
            self._points[place] = {"folder": folder, **figures}
            self._missed.pop(place, None)
        else:
            self._missed[place] = figures
        if self._points:
            self._index()
        return folder if held else None

    def paths(self) -> list[str]:
        """Return the paths of all files.

        Raises:
            StorageError: The directory cannot be read.
        """
        folders = [Path(self.directory, point["folder"]) for point in self._points.values()]
        try:
            found = [path for folder in folders for path in folder.iterdir() if path.is_file()]
        except OSError as error:
            raise StorageError(f"cannot read {self.directory}: {error.strerror or error}") from error
        return sorted(
            str(path) for path in (*found, *(Path(self.directory, name) for name in (GRID, README)))
        )

    def _left(self) -> dict[int, dict[str, Any]]:
        """Return the points that an interrupted export of the same has left."""
        if not others_in(self.directory, {}):
            return {}
        try:
            index = json.loads(Path(self.directory, GRID).read_bytes())
            if {key: index[key] for key in self._head} == self._head:
                return {
                    int(point["folder"]): point
                    for point in index["points"]
                    if Path(self.directory, point["folder"], self._answer).is_file()
                }
        except (OSError, ValueError, KeyError, TypeError):
            pass
        there = ", ".join(others_in(self.directory, {})[:5])
        raise UsageError(f"{self.directory} is not empty: it holds {there}; choose a new directory")

    def _index(self) -> None:
        points = [self._points[place] for place in sorted(self._points)]
        missed = [self._missed[place] for place in sorted(self._missed)]
        rows = "\n".join(
            f"| {point['folder']} | {', '.join(f'{name} {b:.4g}' for name, b in point[self._key].items())} "
            f"| {'' if point['kl'] is None else format(point['kl'], '.3f')} |"
            for point in points
        )
        after, done = "", len(points) + len(missed)
        if self._usage is not None and points and self._form is Format.diffusers:
            after = _SLIDER.format(
                usage=re.sub(r"\bDIRECTORY\b", points[0]["folder"], self._usage),
                index=GRID,
                at=self._at.format(example=_arguments(points[0][self._key])),
            )
        text = self._text.format(
            trial_id=self._trial_id,
            count=len(points),
            index=GRID,
            rows=rows,
            after=after,
            left="" if done == self._size else _LEFT.format(done=done, size=self._size),
        )
        index = json.dumps(self._head | {"points": points, "missed": missed}, indent=2) + "\n"
        write_files({GRID: index.encode(), README: text.encode()}, self.directory)


def _arguments(thresholds: Mapping[str, float]) -> str:
    """Return thresholds, rounded down, as arguments of a call; those of a group have names that are no keywords."""
    if all(name.isidentifier() for name in thresholds):
        return ", ".join(f"{name}={below(bound):g}" for name, bound in thresholds.items())
    return "**{" + ", ".join(f"{name!r}: {below(bound):g}" for name, bound in thresholds.items()) + "}"
