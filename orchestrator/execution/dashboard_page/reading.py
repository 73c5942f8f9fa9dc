"""The reader's process, seen from the dashboard's event loop."""

import asyncio
import json
import os
import sys
from typing import Any

_ANSWER_SECONDS = 120.0
_LONGEST_LINE = 4 * 1024 * 1024
"""Bytes; documents come after their line."""


class ReadingError(Exception):
    """A question has no answer; the message can be shown."""


class ReaderProcess:
    """Starts the reader with the first question, and again after it died or hung."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def ask(self, question: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Return the answer to a question, and the document that comes with it, as bytes of JSON.

        Raises:
            ReadingError: There is none; says why.
        """
        async with self._turn:
            process = await self._started()
            assert process.stdin is not None, "started with pipes"
            assert process.stdout is not None, "started with pipes"
            try:
                process.stdin.write(json.dumps(question).encode() + b"\n")
                await process.stdin.drain()
                line = await asyncio.wait_for(process.stdout.readline(), _ANSWER_SECONDS)
                reply = json.loads(line)
                body = await asyncio.wait_for(process.stdout.readexactly(reply["bytes"]), _ANSWER_SECONDS)
            except (OSError, EOFError, ValueError, TimeoutError, asyncio.CancelledError) as error:
                # Its next line would answer this question, not the next one.
                self._end()
                if isinstance(error, asyncio.CancelledError):
                    raise
                raise ReadingError(
                    "the reader of sweeps gave no answer; the next look starts it again"
                ) from error
        if "error" in reply:
            raise ReadingError(reply["error"])
        return reply["answer"], body

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "orchestrator.report.dashboard.reader"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LONGEST_LINE,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        return self._process

    def _end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        self._process = None
