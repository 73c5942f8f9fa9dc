"""Whole looks at the held-out samples as a file, and back: what later answers of a residual begin with."""

import itertools
import json
from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
import safetensors
import safetensors.numpy

from trainers.adapters.files import LOOKS
from trainers.adapters.header import read_header
from trainers.adapters.writing import ordered
from trainers.config import TrialConfig
from trainers.types import Evaluation, FloatArray

_FORMAT = "1"


def looks_file(looks: Sequence[tuple[FloatArray, Evaluation]]) -> dict[str, bytes]:
    """Return the file of whole looks at held-out samples, at multipliers ``[m]`` each; nothing without any."""
    if not looks:
        return {}
    first = looks[0][1]
    columns: dict[str, list[FloatArray]] = {"multipliers": [place for place, _ in looks]}
    columns["kl"] = [found.kl for _, found in looks]
    ratios = [found.log_ratio for _, found in looks if found.log_ratio is not None]
    if len(ratios) == len(looks):
        columns["log_ratio"] = ratios
    for name in first.rewards:
        columns[f"reward.{name}"] = [found.rewards[name] for _, found in looks]
    for name in frozenset(first.noise).intersection(*(found.noise for _, found in looks)):
        columns[f"noise.{name}"] = [found.noise[name] for _, found in looks]
    gaps = sorted(frozenset().union(*(found.gaps for _, found in looks)))
    known = {"format": _FORMAT, "gaps": json.dumps(gaps), "paired": json.dumps(first.paired)}
    tensors = {name: np.stack(values).astype(np.float64) for name, values in columns.items()}
    return {LOOKS: ordered(safetensors.numpy.save(tensors, known))}


def stored_looks(config: TrialConfig, files: Mapping[str, bytes]) -> list[tuple[FloatArray, Evaluation]]:
    """Return the looks among the files of a trial; none where there is no file of them, as beside a mixture's control.

    Raises:
        ValueError: It cannot be read, or is of another trial.
    """
    if LOOKS not in files:
        return []
    try:
        tensors = safetensors.numpy.load(files[LOOKS])
        known = read_header(BytesIO(files[LOOKS])).metadata
        gaps, paired = frozenset(json.loads(known["gaps"])), bool(json.loads(known["paired"]))
        places, kl, ratios = tensors["multipliers"], tensors["kl"], tensors.get("log_ratio")
        parts = {
            kind: {n.removeprefix(kind): v for n, v in tensors.items() if n.startswith(kind)}
            for kind in ("reward.", "noise.")
        }
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{LOOKS} cannot be read: {error!r}") from error
    images = config.evaluation.images
    shapes = {values.shape for part in parts.values() for values in part.values()} | {kl.shape}
    shapes |= set() if ratios is None else {ratios.shape}
    names = {reward.name for reward in (*config.rewards, *config.measured)}
    if (
        known.get("format") != _FORMAT
        or places.shape != (len(places), len(config.constraints))
        or shapes != {(len(places), images)}
        or not set(config.acting) <= set(parts["reward."]) <= names
    ):
        raise ValueError(
            f"{LOOKS} is of another trial: format {known.get('format')!r} with {places.shape[-1]} multipliers of "
            f"{kl.shape[-1]} samples of {', '.join(parts['reward.'])}, not {_FORMAT!r} with "
            f"{len(config.constraints)} of {images} of {', '.join(sorted(names))}"
        )
    prompts = config.prompts
    turns = () if prompts is None else prompts.in_turn("evaluate", config.evaluation.seed)
    asked = tuple(itertools.islice(itertools.cycle(turns), images)) or None
    return [
        (
            place,
            Evaluation(
                kl=kl[row],
                log_ratio=None if ratios is None else ratios[row],
                rewards={name: values[row] for name, values in parts["reward."].items()},
                noise={name: values[row] for name, values in parts["noise."].items()},
                seeds=np.arange(images),
                prompts=asked,
                paired=paired,
                gaps=gaps,
            ),
        )
        for row, place in enumerate(places)
    ]
