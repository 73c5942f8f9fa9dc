"""Pictures of trials as WebP inside the report, all together within a budget of bytes."""

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, UnidentifiedImageError

from orchestrator.report.page.lines import Memory
from orchestrator.results import layout
from orchestrator.results.store import SweepStore

BUDGET = 7_500_000
"""Bytes of all pictures; in the page they take a third more."""
_MOST = 90_000
"""Of one picture."""
_LEAST = 10_000
"""A picture of fewer shows nothing: of more trials the first ones have theirs."""
_HEIGHT = 160
"""Of one image, pixels; that of a stored strip where it is lower."""
_COLUMNS = 8
"""Images in a row at most."""


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
        ``pretrained`` and ``trials`` by id, each ``{"source", "width", "height"}`` of a grid of images, ``count``, the
        number of images in it, and ``columns``, that in a row; None without pictures.
    """
    memory = {} if memory is None else memory
    problems: list[str] = []
    above = _opened(store, layout.PRETRAINED_IMAGE, problems)
    count = min(max(expected or 0, len(trial_ids)) + 1, BUDGET // _LEAST)
    share = min(BUDGET // count, _MOST)
    found: dict[str, Any] = {}
    for trial_id in trial_ids[: count - 1]:
        path = layout.image(trial_id, store.beside_round(trial_id))
        key = ("picture", path, share)
        if key not in memory:
            damaged = len(problems)
            picture = _opened(store, path, problems)
            if picture is None:
                if len(problems) == damaged:
                    memory[key] = None  # of a finished trial, so none will come
                continue
            if above is not None and picture.height == 2 * above.height:
                picture = picture.crop((0, above.height, picture.width, picture.height))
            memory[key] = _encoded(_grid(picture), share)
        if memory[key] is not None:
            found[trial_id] = memory[key]
    if not found:
        return None, problems
    count = 1 if above is None else _count(above)
    return {
        "pretrained": None if above is None else _encoded(_grid(above), share),
        "trials": found,
        "count": count,
        "columns": min(count, _COLUMNS),
    }, problems


def pictures_of(
    store: SweepStore, paths: Sequence[str], memory: Memory, *, most: int
) -> tuple[list[dict[str, Any] | None], list[str]]:
    """Return stored strips as pictures of a report, None where there is none, and what was wrong with some.

    Args:
        store: The sweep.
        paths: Of the strips, each of one row.
        memory: Of an earlier report.
        most: Bytes of all of them together.
    """
    problems: list[str] = []
    share = min(most // max(len(paths), 1), _MOST)
    for path in paths:
        if ("picture", path, share) not in memory:
            picture = _opened(store, path, problems)
            memory["picture", path, share] = None if picture is None else _encoded(_grid(picture), share)
    return [memory["picture", path, share] for path in paths], problems


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


def _count(strip: Image.Image) -> int:
    """Number of square images in a row; 1 where they are not square, and the row stays as it is."""
    count, rest = divmod(strip.width, strip.height)
    return 1 if rest else max(count, 1)


def _grid(strip: Image.Image) -> Image.Image:
    """The images of one row in rows of ``_COLUMNS``."""
    count, size = _count(strip), strip.height
    if count <= _COLUMNS:
        return strip
    rows = -(-count // _COLUMNS)
    grid = Image.new("RGB", (_COLUMNS * size, rows * size), "white")
    for place in range(count):
        tile = strip.crop((place * size, 0, (place + 1) * size, size))
        grid.paste(tile, ((place % _COLUMNS) * size, (place // _COLUMNS) * size))
    return grid


def _encoded(picture: Image.Image, most: int) -> dict[str, Any]:
    """The picture in at most ``most`` bytes, smaller if need be."""
    scale = min(1.0, _COLUMNS * _HEIGHT / max(picture.size))
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
