"""Which errors of a storage may be gone at the next attempt, and the patience with them."""

import errno
import re

from orchestrator.errors import UsageError
from trainers.patience import Patience

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


def patience_here() -> Patience:
    """Return the patience that the environment asks for.

    Raises:
        UsageError: It is not a number of seconds.
    """
    try:
        return Patience.of_environment()
    except ValueError as error:
        raise UsageError(str(error)) from error
