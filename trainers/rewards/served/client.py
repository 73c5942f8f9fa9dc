"""Asks a server of rewards: some requests at a time, each within its time, patiently where it does not answer."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar

import aiohttp

from trainers.failures import Unscored
from trainers.patience import Patience, brief, patiently
from trainers.rewards.served.places import placed
from trainers.rewards.served.protocol import (
    TOKEN,
    WrongAnswer,
    read_error,
    shortened,
)

T = TypeVar("T")

_REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_FINAL = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.GONE,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.NOT_IMPLEMENTED,
    }
)
"""What the same request is answered with again; 404 may be a server that is being started behind another."""
_MOST_BYTES = 16 * 2**20
"""Of an answer."""


class _Failing(Exception):  # noqa: N818 - says what happened
    """A request that may be answered at the next attempt."""

    after = 0.0
    """Seconds that the server asks to be left alone for."""


class _Busy(WrongAnswer):
    """An answer that asks for patience."""

    def __init__(self, why: str, after: float) -> None:
        """Take what it says, and the seconds."""
        super().__init__(why)
        self.after = after


class Client:
    """Of one server."""

    def __init__(
        self, url: str, *, timeout: float, concurrency: int, patience: Patience | None = None
    ) -> None:
        """Take the address, the seconds for a request, how many are sent at a time, and how long one is tried again.

        At a time there are no more of all processes that share their places (``places.sharing``), else of this one.

        Raises:
            ValueError: the patience of the environment is no number of seconds.
        """
        self._url, self._timeout, self._concurrency = url, timeout, concurrency
        self._patience = patience or Patience.of_environment()

    def get(self, paths: Sequence[str], read: Callable[[bytes], T], what: str) -> T:
        """Get what is behind some paths, in turn; returns what ``read`` makes of the last answer.

        Args:
            paths: Behind the address.
            read: Raises WrongAnswer to refuse an answer.
            what: It is for, in the words of a message.

        Raises:
            Unscored: The server does not answer, or wrongly.
        """

        async def ask() -> T:
            async with self._session() as session:
                return read([await self._get(session, "GET", path) for path in paths][-1])

        return self._patiently(lambda: _run(ask()), what)

    def post(self, path: str, bodies: Sequence[bytes], take: Callable[[int, bytes], None], what: str) -> None:
        """Send requests, some at a time; what has been answered is not asked again where another one fails.

        Args:
            path: Behind the address.
            bodies: JSON, of each request.
            take: Hears the number of a request and its answer; raises WrongAnswer to refuse it.
            what: They are for, in the words of a message.

        Raises:
            Unscored: The server does not answer, or wrongly.
        """
        left = dict(enumerate(bodies))

        async def ask_all() -> None:
            slots = asyncio.Semaphore(self._concurrency)

            async def ask(session: aiohttp.ClientSession, number: int) -> None:
                async with slots, placed(self._url, self._concurrency, self._timeout):
                    data = await self._get(session, "POST", path, left[number])
                take(number, data)
                del left[number]

            async with self._session() as session:
                await _all(ask(session, number) for number in list(left))

        self._patiently(lambda: _run(ask_all()), what)

    def _session(self) -> aiohttp.ClientSession:
        token = os.environ.get(TOKEN, "").strip()
        return aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def _get(
        self, session: aiohttp.ClientSession, method: str, path: str, body: bytes | None = None
    ) -> bytes:
        """Return the body of an answer.

        Raises:
            Unscored: The server refuses to answer this client, or such a request.
            WrongAnswer: A status other than 200, or more than an answer can be.
        """
        headers = {} if body is None else {"Content-Type": "application/json"}
        # A redirection would take the token elsewhere.
        async with session.request(
            method, self._url + path, data=body, headers=headers, allow_redirects=False
        ) as answer:
            if answer.status in _REFUSED:
                raise Unscored(
                    f"the reward server at {self._url} refuses {path} ({answer.status}): set {TOKEN} to its "
                    "token, here and on every node that scores"
                )
            data = b""
            async for chunk in answer.content.iter_any():
                data += chunk
                if len(data) > _MOST_BYTES:
                    raise WrongAnswer(f"{path} answers with more than {_MOST_BYTES} bytes")
            if answer.status != HTTPStatus.OK:
                why = f"{path} answers {answer.status} {answer.reason or ''}".rstrip()
                why = f"{why}: {said}" if (said := read_error(data)) else why
                if answer.status in _FINAL:
                    raise Unscored(shortened(f"the reward server at {self._url} refuses a request: {why}"))
                raise _Busy(why, _seconds(answer.headers.get("Retry-After", "")))
            return data

    def _patiently(self, operation: Callable[[], T], what: str) -> T:
        """Run an operation until it succeeds, or the patience is at its end."""

        def attempt() -> T:
            try:
                return operation()
            except Unscored:
                raise
            except TimeoutError as error:
                raise _Failing(f"no answer within {self._timeout:g} s") from error
            # ValueError is what the client raises of headers and addresses that are none.
            except (WrongAnswer, aiohttp.ClientError, OSError, ValueError) as error:
                failing = _Failing(shortened(_why(error)))
                failing.after = getattr(error, "after", 0.0)
                raise failing from error

        server = f"the reward server at {self._url}"
        try:
            return patiently(
                attempt,
                f"{what} at {self._url}",
                self._patience,
                passes=lambda error: isinstance(error, _Failing),
                who=server,
            )
        except _Failing as error:
            raise Unscored(
                f"{server} cannot {what}: {error} (tried again for {self._patience.seconds:g} s)"
            ) from error


def _why(error: Exception) -> str:
    """Return what an error says; of an answer that is no HTTP without the status 400 that the client gives it."""
    messages = (getattr(each, "message", None) for each in (error, error.__cause__))
    return next((message for message in messages if isinstance(message, str) and message), brief(error))


def _seconds(written: str) -> float:
    """Return for how long a ``Retry-After`` asks, a number of seconds or a date; 0 where it is neither."""
    if written.strip().isdecimal():
        return float(written)
    try:
        return max((parsedate_to_datetime(written) - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError):
        return 0.0


def _run(asked: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asked)


async def _all(asked: Iterable[Awaitable[None]]) -> None:
    """Wait for all, and raise an error after, first of those that no attempt would change."""
    found = await asyncio.gather(*asked, return_exceptions=True)
    errors = sorted((e for e in found if e is not None), key=lambda e: not isinstance(e, Unscored))
    if errors:
        raise errors[0]
