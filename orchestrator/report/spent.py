"""What the budget of a sweep bought, in words."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.results.schema import trained
from orchestrator.results.store import SweepStore
from orchestrator.spec import SweepSpec, asks_box, lasting


def spent(spec: SweepSpec, store: SweepStore) -> str | None:
    """Return one sentence: what was spent of what there was, on how many trials, and what they did to the gap.

    None where the spec has no budget.
    """
    if spec.budget is None:
        return None
    trials = trained(store.seen())
    answers = store.answers() if asks_box(spec) else None
    shares = list(_shares(spec, trials, store.journal() or {}))
    bought = f"{trials.num_rows} trials" + ("" if answers is None else f" and {answers.num_rows} answers")
    return f"The budget, {' and '.join(shares)}, bought {bought}{_gain(store.bounds())}."


def _shares(spec: SweepSpec, trials: pa.Table, journal: Mapping[str, Any]) -> Iterator[str]:
    assert spec.budget is not None, "of a sweep with a budget"
    known = "gpu_seconds" in trials.column_names
    hours = (pc.sum(trials["gpu_seconds"]).as_py() or 0.0) / 3600 if known else 0.0
    if (most := spec.budget.gpu_hours) is not None:
        yield f"{hours:.3g} of {most:g} GPU-hours"
    if (most := spec.budget.cost) is not None and (price := spec.resources.price_per_gpu_hour) is not None:
        yield f"{hours * price:.3g} of {most:g} to pay"
    if (most := spec.budget.wall) is not None:
        yield f"{lasting(journal.get('seconds', 0.0))} of {lasting(most)}"


def _gain(bounds: pa.Table | None) -> str:
    """How the gap of the search changed, from the first time that it was known."""
    known = [] if bounds is None else [row for row in bounds.to_pylist() if row["gap"] is not None]
    if not known:
        return ""
    first, last = known[0], known[-1]
    if len(known) == 1:
        return f", and a gap of {last['gap']:.3g} nats"
    return (
        f", and a gap of {last['gap']:.3g} nats: after {first['trials']} of them it was {first['gap']:.3g}, and the "
        f"last took {known[-2]['gap'] - last['gap']:.2g} off"
    )
