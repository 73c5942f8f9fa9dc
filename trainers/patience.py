"""Patience with what fails for the moment, a storage or a server: how long to wait, and what to say meanwhile."""

import logging
import math
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)

VARIABLE = "CDSWEEP_STORAGE_PATIENCE"
"""Environment variable with the seconds that an operation waits for a storage, or a server of rewards, that fails."""

_QUIET_SECONDS = 2.0
"""A shorter wait is not worth a line."""
_SECONDS_BETWEEN_WARNINGS = 30.0


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Waits between attempts: doubled each time, cut to a random half of itself or more."""

    seconds: float = 300.0
    """From the first failure of an operation until its error is final."""
    first: float = 0.5
    """Longest first wait, seconds."""
    longest: float = 15.0
    """Longest wait, seconds."""
    full: float = 24 * 3600.0
    """The same as ``seconds`` for a full local disk, which waits for a person to make room."""

    @classmethod
    def of_environment(cls) -> Self:
        """Return the patience that ``CDSWEEP_STORAGE_PATIENCE`` asks for, else the default.

        Raises:
            ValueError: It is not a number of seconds.
        """
        written = os.environ.get(VARIABLE, "").strip()
        if not written:
            return cls()
        try:
            seconds = float(written)
        except ValueError:
            seconds = math.nan
        if not (seconds >= 0 and math.isfinite(seconds)):
            raise ValueError(f"{VARIABLE} must be a number of seconds, at least 0: {written!r}")
        return cls(seconds=seconds, full=seconds)


def patiently(
    operation: Callable[[], T],
    what: str,
    patience: Patience,
    *,
    passes: Callable[[BaseException], bool],
    seconds: float | None = None,
    who: str = "the storage",
) -> T:
    """Return what ``operation`` does, tried again while its errors are passing ones.

    An error with seconds ``after`` asks to be tried again no sooner than these, as long as the patience lasts.

    Args:
        operation: Harmless to repeat.
        what: What it does, for the log: a waiting program says so every half minute.
        patience: How long to try.
        passes: Which errors may be gone at the next attempt.
        seconds: In place of those of ``patience``.
        who: What is waited for, for the log.

    Raises:
        Exception: The error of the last attempt.
    """
    begun: float | None = None  # of the first failure
    told: float | None = None
    wait = patience.first
    while True:
        try:
            result = operation()
        except Exception as error:
            if not passes(error):
                raise
            now = time.monotonic()
            begun = now if begun is None else begun
            left = (patience.seconds if seconds is None else seconds) - (now - begun)
            if left <= 0:
                raise
            if now - begun >= _QUIET_SECONDS and (told is None or now - told >= _SECONDS_BETWEEN_WARNINGS):
                told = now
                logger.warning("cannot %s, trying for %.0f s more: %s", what, left, brief(error))
            pause = random.uniform(wait / 2, wait)  # noqa: S311 - to spread clients, not to hide
            time.sleep(min(left, max(pause, getattr(error, "after", 0.0))))
            wait = min(2 * wait, patience.longest)
        else:
            if told is not None and begun is not None:
                logger.warning("%s answers again, after %.0f s", who, time.monotonic() - begun)
            return result


def brief(error: BaseException) -> str:
    """First line of an error, without what only its server understands."""
    lines = str(getattr(error, "strerror", None) or error).splitlines() or [type(error).__name__]
    return re.sub(r" \(Request ID: [^)]*\)| error_info=.*", "", lines[0])
