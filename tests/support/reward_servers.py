"""Servers of rewards: the shipped one as a process of its own, and one in this process that answers what it is told."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from support.processes import CDSWEEP

TOKEN = "a-secret-of-the-tests"  # noqa: S105
Said = bytes | tuple[int, bytes] | tuple[int, bytes, dict[str, str]]
"""A body, or status and body, or both and headers."""
Reply = Callable[[str, dict[str, Any]], Said]
"""From path and question to an answer."""


class Process:
    """``cdsweep serve-rewards``, which can be killed and started again at the same port."""

    def __init__(self, spec: Path, port: int = 0) -> None:
        """Start it, and wait for its address."""
        self._spec = spec
        self.port = port
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "CDSWEEP_REWARD_TOKEN": TOKEN}
        self.process = subprocess.Popen(
            [CDSWEEP, "serve-rewards", str(self._spec), "--port", str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if " at http" not in line:
            raise AssertionError(self.process.communicate())
        self.url = line.split()[-1]
        self.port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@contextlib.contextmanager
def answering(reply: Reply) -> Iterator[str]:
    """Serve in this process what ``reply`` says; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(reply(self.path, {}))

        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(reply(self.path, question))

        def _send(self, answer: Said) -> None:
            status, body, *others = answer if isinstance(answer, tuple) else (200, answer)
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                headers = {"Content-Length": str(len(body))} | (others[0] if others else {})
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def offers(**entries: Any) -> bytes:
    """Return what ``/rewards`` answers for one reward called ``dots``, version 1."""
    entry = {"name": "dots", "version": "1", "higher_is_better": True} | entries
    return json.dumps({"rewards": [entry]}).encode()


def scoring(score: Callable[[dict[str, Any]], Any]) -> Reply:
    """Return a server of ``dots`` whose answers to ``/score`` are those of ``score``."""

    def reply(path: str, question: dict[str, Any]) -> Said:
        if path == "/health":
            return b"{}"
        if path == "/rewards":
            return offers()
        found = score(question)
        return found if isinstance(found, bytes | tuple) else json.dumps(found).encode()

    return reply


def slowly(seconds: float) -> Callable[[dict[str, Any]], Any]:
    """Return an answer that takes its time."""

    def score(question: dict[str, Any]) -> Any:
        time.sleep(seconds)
        return {"scores": [0.5] * len(question["images"]), "version": "1"}

    return score
