"""What the trials of a sweep were made with, and where they differ in it."""

import json
from collections import defaultdict

import pyarrow as pa

_NAMED = 3
"""Trials of a rarer value that are called by their ids."""


def made_with(trials: pa.Table) -> dict[str, str]:
    """Return versions, commit, host, device, precision and sampler; the commonest value first where trials differ.

    Args:
        trials: Rows of ``trials/*.parquet``; those of earlier versions say nothing.
    """
    if "provenance" not in trials.column_names:
        return {}
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    rows = zip(trials["trial_id"].to_pylist(), trials["provenance"].to_pylist(), strict=True)
    known = [(trial_id, json.loads(written)) for trial_id, written in rows if written is not None]
    for name in dict.fromkeys(name for _, written in known for name in written):
        for trial_id, written in known:
            found[name][written.get(name, "none")].append(trial_id)
    return {name: _told(values) for name, values in found.items()}


def _told(values: dict[str, list[str]]) -> str:
    first, *others = sorted(values, key=lambda value: (-len(values[value]), value))
    if not others:
        return first
    return "; ".join([f"{first} ({len(values[first])} trials)", *(_rarer(v, values[v]) for v in others)])


def _rarer(value: str, ids: list[str]) -> str:
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f"{value} ({', '.join(ids[:_NAMED])}{more})"
