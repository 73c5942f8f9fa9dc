"""What a trial changes from prompt to prompt: rewards minus those of the pretrained model on the same noise."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import stdtrit

from orchestrator.frontier.trials import real
from orchestrator.report.page.records import rounded
from orchestrator.results.store import SweepStore

FloatArray = NDArray[np.float64]

PROMPTS = 64
"""Shown at most; of more an even sample."""
TRIALS = 200
"""Trials whose changes a report holds at most."""


def prompt_changes(
    store: SweepStore, trial_ids: Iterable[str], rewards: Iterable[str]
) -> dict[str, Any] | None:
    """Return ``prompts`` and, by trial and reward, one ``[mean, low, high]`` for each; None without prompts.

    The ends are those of the two-sided 95 % interval over the samples of the prompt, null with one sample.
    """
    rewards = list(rewards)
    prompts: list[str] | None = None
    changes: dict[str, Any] = {}
    for trial_id in list(trial_ids)[:TRIALS]:
        table = store.evaluations(trial_id)
        named = table["prompt"].to_pylist() if table.num_rows else []
        if not named or named[0] is None:
            continue
        if prompts is None:
            every = list(dict.fromkeys(named))
            prompts = [every[at] for at in np.unique(np.linspace(0, len(every) - 1, PROMPTS).astype(int))]
        found = {
            name: figures
            for name in rewards
            if (figures := _changes(table, name, named, prompts)) is not None
        }
        if found:
            changes[trial_id] = found
    return {"prompts": prompts, "changes": changes} if changes else None


def shown_prompts(table: pa.Table, count: int) -> list[str]:
    """Prompts of the first ``count`` samples, which are those of the stored images; none where there are none."""
    named = table["prompt"].to_pylist()[:count] if table.num_rows else []
    return [] if any(name is None for name in named) else named


def _changes(
    table: pa.Table, reward: str, named: list[str], prompts: list[str]
) -> list[list[float | None]] | None:
    difference = real(table, f"reward_{reward}") - real(table, f"reference_{reward}")
    if not np.isfinite(difference).any():
        return None
    places: dict[str, list[int]] = {}
    for row, prompt in enumerate(named):
        places.setdefault(prompt, []).append(row)
    return [_interval(difference[places.get(prompt, [])]) for prompt in prompts]


def _interval(values: FloatArray) -> list[float | None]:
    values = values[np.isfinite(values)]
    if not len(values):
        return [None, None, None]
    mean = float(values.mean())
    if len(values) == 1:
        return [rounded(mean, 4), None, None]
    half = float(stdtrit(len(values) - 1, 0.975) * values.std(ddof=1)) / len(values) ** 0.5
    return [rounded(mean, 4), rounded(mean - half, 4), rounded(mean + half, 4)]
