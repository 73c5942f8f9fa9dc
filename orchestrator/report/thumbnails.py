"""Pictures of trials as WebP inside the report, all together within a budget of bytes."""

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, UnidentifiedImageError

from orchestrator.report.lines import Memory
from orchestrator.results import layout
from orchestrator.results.store import SweepStore

BUDGET = 7_500_000
"""Bytes of all pictures; in the page they take a third more."""
_MOST = 90_000
"""Of one picture."""
_LEAST = 10_000
"""A picture of fewer shows nothing: of more trials the first ones have theirs."""
_HEIGHT = 192
"""Of one image, pixels; that of a stored strip where it is lower."""


def thumbnails(
    store: SweepStore, trial_ids: Sequence[str], *, expected: int | None = None, memory: Memory | None = None
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the pictures of a sweep, and what was wrong with some.

    Args:
        store: The sweep.
        trial_ids: Those that come first have pictures if not all can.
        expected: Trials that there will be, so that a growing report keeps the size of its pictures.
        memory: Of an earlier report.

    Returns:
        ``pretrained`` and ``trials`` by id, each ``{"source", "width", "height"}``, and ``columns``, the number of
        images in a row; None without pictures.
    """
    memory = {} if memory is None else memory
    problems: list[str] = []
    above = _opened(store, layout.PRETRAINED_IMAGE, problems)
    count = min(max(expected or 0, len(trial_ids)) + 1, BUDGET // _LEAST)
    share = min(BUDGET // count, _MOST)
    found: dict[str, Any] = {}
    for trial_id in trial_ids[: count - 1]:
        path = layout.image(trial_id)
        key = ("picture", trial_id, share)
        if key not in memory:
            picture = _opened(store, path, problems)
            if picture is None:
                continue
            if above is not None and picture.height == 2 * above.height:
                picture = picture.crop((0, above.height, picture.width, picture.height))
            memory[key] = _encoded(picture, share)
        found[trial_id] = memory[key]
    if not found:
        return None, problems
    pretrained = None if above is None else _encoded(above, share)
    first = pretrained or next(iter(found.values()))
    columns = max(round(first["width"] / first["height"]), 1)
    return {"pretrained": pretrained, "trials": found, "columns": columns}, problems


def _opened(store: SweepStore, path: str, problems: list[str]) -> Image.Image | None:
    data = store.read_file(path)
    if data is None:
        return None
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        problems.append(f"{store.url(path)}: damaged, skipped ({str(error).splitlines()[0]})")
        return None


def _encoded(picture: Image.Image, most: int) -> dict[str, Any]:
    """The picture in at most ``most`` bytes, smaller if need be."""
    scale = min(1.0, _HEIGHT / picture.height)
    while True:
        size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
        sink = io.BytesIO()
        small = picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)
        small.save(sink, format="WEBP", quality=82, method=4)
        data = sink.getvalue()
        if len(data) <= most or max(size) <= 16:
            break
        scale *= min(0.9, (most / len(data)) ** 0.5)
    source = "data:image/webp;base64," + base64.b64encode(data).decode()
    return {"source": source, "width": size[0], "height": size[1]}
