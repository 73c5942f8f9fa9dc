"""A small server of rewards: any reward of this machine, behind the protocol."""

import asyncio
import hmac
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from aiohttp import web
from torch import Tensor

from trainers.rewards.base import Reward
from trainers.rewards.served.protocol import image_of

logger = logging.getLogger(__name__)

_MOST_BYTES = 1024 * 2**20
"""Of a request."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, kw_only=True)
class Served:
    """A reward and the version that it goes by."""

    reward: Reward
    version: str


class _Refused(Exception):  # noqa: N818 - says what happened
    """A request that is none of the protocol: its status and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def application(rewards: Mapping[str, Served], token: str | None = None) -> web.Application:
    """Return the server of some rewards, by name.

    Args:
        rewards: What is served. They are asked one after the other, whoever asks.
        token: What clients must bear, but for ``/health``; None for nothing.
    """
    asked = asyncio.Lock()

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        given, wanted = request.headers.get("Authorization", ""), f"Bearer {token}"
        open_to_all = token is None or request.path == "/health"
        if not (open_to_all or hmac.compare_digest(given.encode(), wanted.encode())):
            return web.json_response({"error": "the bearer token is missing or wrong"}, status=401)
        try:
            return await handler(request)
        except _Refused as error:
            return web.json_response({"error": str(error)}, status=error.status)
        except web.HTTPException:
            raise
        except Exception as error:  # of a reward, whatever it is: who asks is told it
            logger.exception("%s failed", request.path)
            return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=500)

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def offered(_: web.Request) -> web.Response:
        entries = [
            {"name": name, "version": served.version, "higher_is_better": True}
            for name, served in rewards.items()
        ]
        return web.json_response({"rewards": entries})

    async def score(request: web.Request) -> web.Response:
        name, images, prompts = _question(await request.read())
        if name not in rewards:
            raise _Refused(404, f"no reward {name!r}; there are: {', '.join(rewards)}")
        served = rewards[name]
        async with asked:
            scores, errors = await asyncio.to_thread(scored, served.reward, images, prompts)
        return web.json_response({"scores": scores, "errors": errors, "version": served.version})

    made = web.Application(middlewares=[guarded], client_max_size=_MOST_BYTES)
    made.add_routes([web.get("/health", health), web.get("/rewards", offered), web.post("/score", score)])
    return made


@torch.no_grad()
def scored(
    reward: Reward, images: Sequence[Any], prompts: Sequence[str]
) -> tuple[list[float | None], list[str | None]]:
    """Return the scores of images, base64 of PNG, and why those that are None could not be had."""
    scores: list[float | None] = [None] * len(images)
    errors: list[str | None] = [None] * len(images)
    sizes: dict[torch.Size, list[tuple[int, Tensor]]] = {}
    for row, image in enumerate(images):
        try:
            decoded = image_of(image)
            sizes.setdefault(decoded.shape, []).append((row, decoded))
        except ValueError as error:
            errors[row] = str(error)
    for alike in sizes.values():
        rows = [row for row, _ in alike]
        try:
            found = reward(
                torch.stack([image for _, image in alike]), [prompts[row] for row in rows]
            ).tolist()
        except ValueError as error:
            for row in rows:
                errors[row] = str(error)
            continue
        for row, value in zip(rows, found, strict=True):
            if abs(value) < float("inf"):
                scores[row] = value
            else:
                errors[row] = f"the score is {value}"
    return scores, errors


def _question(data: bytes) -> tuple[str, list[Any], list[str]]:
    """Return reward, images and prompts of a request.

    Raises:
        _Refused: It is none of the protocol.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _Refused(400, f"not JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("reward"), str):
        raise _Refused(400, "a question is an object with reward, images, prompts and metadata")
    images, prompts = document.get("images"), document.get("prompts")
    if not (isinstance(images, list) and isinstance(prompts, list) and len(images) == len(prompts)):
        raise _Refused(400, "images and prompts are lists of one length")
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise _Refused(400, "prompts are texts")
    return document["reward"], images, prompts


def serve(made: web.Application, listening: socket.socket) -> None:
    """Serve at a socket until the process is told to end."""
    web.run_app(made, sock=listening, print=None, access_log=None, handle_signals=True)
