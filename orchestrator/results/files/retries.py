"""Patience with a storage that fails for the moment: which errors pass, and how long to wait for it."""

import errno
import logging
import math
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar

from orchestrator.errors import UsageError

T = TypeVar("T")

logger = logging.getLogger(__name__)

VARIABLE = "CDSWEEP_STORAGE_PATIENCE"
"""Environment variable with the seconds that an operation waits for a storage that fails for the moment."""

_QUIET_SECONDS = 2.0
"""A shorter wait is not worth a line."""
_SECONDS_BETWEEN_WARNINGS = 30.0

_PASSING_NUMBERS = frozenset(
    {
        errno.EAGAIN,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.ETIMEDOUT,
    }
)
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})

# Object stores behind pyarrow raise plain OSErrors: what went wrong is told by their text alone.
_PASSING_TEXT = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT)\b"
    rf"|HTTP status (code )?:?({'|'.join(map(str, sorted(_PASSING_STATUS)))})\b"
    r"|google::cloud::Status\((UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|RESOURCE_EXHAUSTED|ABORTED)\b"
    r"|\bcurl error \(\d+\)|\b(Could not|Couldn't) (connect to server|resolve host)"
    r"|\b[Cc]onnection (refused|reset|timed out|aborted)"
)

# Errors of the clients behind fsspec's filesystems, named, since they need not be installed.
_PASSING_KINDS = frozenset(
    {
        "aiohttp.client_exceptions.ClientConnectionError",
        "aiohttp.client_exceptions.ClientPayloadError",
        "azure.core.exceptions.ServiceRequestError",
        "azure.core.exceptions.ServiceResponseError",
        "botocore.exceptions.ConnectionError",
        "botocore.exceptions.HTTPClientError",
        "requests.exceptions.ConnectionError",
        "requests.exceptions.Timeout",
    }
)


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class TornReadError(OSError):
    """A read ended before the end of the file."""


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
            UsageError: It is not a number of seconds.
        """
        written = os.environ.get(VARIABLE, "").strip()
        if not written:
            return cls()
        try:
            seconds = float(written)
        except ValueError:
            seconds = math.nan
        if not (seconds >= 0 and math.isfinite(seconds)):
            raise UsageError(f"{VARIABLE} must be a number of seconds, at least 0: {written!r}")
        return cls(seconds=seconds, full=seconds)


def full(error: BaseException) -> bool:
    """Whether a disk has no room, or a quota is used up."""
    return isinstance(error, OSError) and error.errno in _FULL


def passing(error: BaseException) -> bool:
    """Whether an error may be gone at the next attempt: no answer, or one that asks to come again.

    A missing file, a refused access and a full disk are not such errors.
    """
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    if isinstance(error, ConnectionError | TimeoutError | TornReadError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_NUMBERS:
        return True
    if any(f"{kind.__module__}.{kind.__qualname__}" in _PASSING_KINDS for kind in type(error).__mro__):
        return True
    for name in ("status", "status_code", "code"):
        status = getattr(error, name, None)
        if isinstance(status, int | str) and str(status).isdigit() and int(status) in _PASSING_STATUS:
            return True
    return bool(_PASSING_TEXT.search(str(error)))


def patiently(
    operation: Callable[[], T],
    what: str,
    patience: Patience,
    *,
    passes: Callable[[BaseException], bool] = passing,
    seconds: float | None = None,
) -> T:
    """Return what ``operation`` does, tried again while its errors are passing ones.

    Args:
        operation: Harmless to repeat.
        what: What it does, for the log: a waiting program says so every half minute.
        patience: How long to try.
        passes: Which errors may be gone at the next attempt.
        seconds: In place of those of ``patience``.

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
            time.sleep(min(left, random.uniform(wait / 2, wait)))  # noqa: S311 - to spread clients, not to hide
            wait = min(2 * wait, patience.longest)
        else:
            if told is not None and begun is not None:
                logger.warning("the storage answers again, after %.0f s", time.monotonic() - begun)
            return result


def brief(error: BaseException) -> str:
    """First line of an error, without what only its server understands."""
    lines = str(getattr(error, "strerror", None) or error).splitlines() or [type(error).__name__]
    return re.sub(r" \(Request ID: [^)]*\)| error_info=.*", "", lines[0])
