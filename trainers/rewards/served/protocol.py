"""The JSON that clients and servers of rewards exchange: what is asked, and which answers count.

    GET  /health   → 200
    GET  /rewards  → {"rewards": [{"name", "version", "higher_is_better": true}]}
    POST /score    {"reward", "images": [base64 of PNG], "prompts": [text], "metadata": [{…}]}
                   → {"scores": [number or null], "errors": [text or null]?, "standard_errors": [number]?, "version"}

``docs/http_rewards.md`` is the page on it.
"""

import base64
import binascii
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

TOKEN = "CDSWEEP_REWARD_TOKEN"  # noqa: S105 - the name of a variable
"""Environment variable with the bearer token, of clients and of ``cdsweep serve-rewards``."""

_LARGEST = float(np.finfo(np.float32).max)
_LONGEST_REASON = 160
_LONGEST_NAME = 200
_MOST_PIXELS = 64 * 2**20
"""Of an image that a server decodes."""


class WrongAnswer(Exception):  # noqa: N818 - says what happened
    """An answer that is not one of the protocol."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One image to be scored."""

    png: bytes
    prompt: str
    metadata: Mapping[str, str]

    def key(self, identity: Sequence[str]) -> str:
        """Return what the score depends on, as a hash: the question, and what says who is asked."""
        parts = [*identity, self.prompt, sorted(self.metadata.items())]
        return hashlib.sha256(json.dumps(parts).encode() + b"\0" + self.png).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server says of a batch."""

    scores: tuple[float | None, ...]
    """``[batch]``; None for a score that could not be had."""
    version: str
    errors: tuple[str | None, ...] = ()
    """``[batch]``, why there is no score; empty where the server does not say."""
    standard_errors: tuple[float | None, ...] = field(default=())
    """``[batch]``; empty where the server has none."""


@dataclass(frozen=True, kw_only=True)
class Offered:
    """A reward that a server has."""

    name: str
    version: str
    higher_is_better: bool


def question_body(reward: str, questions: Sequence[Question]) -> bytes:
    """Return the body of ``POST /score``."""
    document = {
        "reward": reward,
        "images": [base64.b64encode(question.png).decode() for question in questions],
        "prompts": [question.prompt for question in questions],
        "metadata": [dict(question.metadata) for question in questions],
    }
    return json.dumps(document).encode()


def read_answer(data: bytes, count: int) -> Answer:
    """Return what ``POST /score`` answered for ``count`` images.

    Raises:
        WrongAnswer: It is something else, or holds a number that is none.
    """
    document = read_object(data)
    scores = listed(document, "scores", count)
    return Answer(
        scores=tuple(read_number(value, "scores") for value in scores),
        version=_text(document, "version"),
        errors=tuple(_reason(value) for value in _optional(document, "errors", count)),
        standard_errors=tuple(_deviation(value) for value in _optional(document, "standard_errors", count)),
    )


def read_rewards(data: bytes) -> dict[str, Offered]:
    """Return what ``GET /rewards`` answered, by name.

    Raises:
        WrongAnswer: It is something else.
    """
    entries = read_object(data).get("rewards")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise WrongAnswer("'rewards' is not a list of objects")
    found: dict[str, Offered] = {}
    for entry in entries:
        higher = entry.get("higher_is_better")
        if not isinstance(higher, bool):
            raise WrongAnswer(f"higher_is_better of {entry.get('name')!r} is neither true nor false")
        name = _text(entry, "name")
        found[name] = Offered(name=name, version=_text(entry, "version"), higher_is_better=higher)
    return found


def read_error(data: bytes) -> str | None:
    """Return why an answer is no success, as it says by ``{"error": text}``, in one line; None where it does not."""
    try:
        said = read_object(data).get("error")
    except WrongAnswer:
        return None
    return shortened(said) if isinstance(said, str) and said else None


def shortened(text: str) -> str:
    """Return the beginning of a text, in one line that any terminal and file takes."""
    words = " ".join(text.split())
    line = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in words)
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}…"


def png_of(image: Tensor) -> bytes:
    """Return an image ``[3, h, w]`` in [0, 1] as a PNG of 8 bits."""
    shades = (image.detach() * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    out = io.BytesIO()
    Image.fromarray(shades).save(out, format="PNG", compress_level=1)
    return out.getvalue()


def image_of(text: Any) -> Tensor:
    """Return the image ``[3, h, w]`` in [0, 1] of the base64 of a PNG.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(text, str):
        raise ValueError("an image is the base64 of a PNG, as a string")  # noqa: TRY004 - of JSON, not of an argument
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"an image of {image.width}×{image.height} pixels is too large")
            shades = np.asarray(image.convert("RGB"))
    except (binascii.Error, OSError, SyntaxError) as error:
        raise ValueError(f"not the base64 of a PNG: {error}") from error
    return torch.from_numpy(shades.copy()).permute(2, 0, 1).float() / 255


def read_object(data: bytes) -> dict[str, Any]:
    """Return an object of JSON.

    Raises:
        WrongAnswer: It is something else, or holds NaN or an infinity.
    """

    def refuse(constant: str) -> float:
        raise WrongAnswer(f"{constant} is no number of JSON")

    try:
        document = json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise WrongAnswer(f"not JSON: {data[:40]!r}") from error
    if not isinstance(document, dict):
        raise WrongAnswer(f"not an object of JSON: {data[:40]!r}")
    return document


def listed(document: Mapping[str, Any], key: str, count: int) -> list[Any]:
    """Return the list at a key, of one value for each of ``count`` images.

    Raises:
        WrongAnswer: It is something else, or of another length.
    """
    values = document.get(key)
    if not isinstance(values, list):
        raise WrongAnswer(f"{key!r} is {'missing' if values is None else 'not a list'}")
    if len(values) != count:
        raise WrongAnswer(f"{len(values)} {key} for {count} images")
    return values


def _optional(document: Mapping[str, Any], key: str, count: int) -> list[Any]:
    return [] if document.get(key) is None else listed(document, key, count)


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    if not is_line(value):
        raise WrongAnswer(f"{key!r} is {'missing' if value is None else 'no text of one line'}")
    return str(value)


def is_line(value: Any) -> bool:
    """Return whether a name or a version is one: a text of one line, which is stored and shown as it is."""
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and value.isprintable()


def read_number(value: Any, key: str) -> float | None:
    """Return a number that float32 holds, or None.

    Raises:
        WrongAnswer: It is something else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongAnswer(f"{key} hold {json.dumps(value)[:40]}, which is no number")
    if not abs(value) <= _LARGEST:  # also of integers that no float holds, and of what overflowed to infinity
        raise WrongAnswer(f"{key} hold a number that is not finite")
    return float(value)


def _deviation(value: Any) -> float | None:
    found = read_number(value, "standard_errors")
    if found is not None and (found < 0 or math.isnan(found)):
        raise WrongAnswer(f"standard_errors hold {found:g}, below 0")
    return found


def _reason(value: Any) -> str | None:
    if not (value is None or isinstance(value, str)):
        raise WrongAnswer(f"errors hold {json.dumps(value)[:40]}, which is no text")
    return value and shortened(value)
