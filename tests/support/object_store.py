"""An S3 server on loopback, behind a wire that can be cut: outages as clients see them."""

import contextlib
import logging
import os
import select
import socket
import threading
from collections.abc import Iterable, Iterator

import boto3
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    # Nothing of this machine's own, and no look-up of a cloud's metadata service.
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
"""What stands in a test's environment; the server accepts any key."""

BUCKET = "sweeps"

_CHUNK = 1 << 16


class Wire:
    """A TCP proxy in front of a server; it passes bytes on until told otherwise."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        """Listen on a free port of the loopback interface."""
        self._upstream = upstream
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._answer: bytes | None = None
        self._hanging = False
        self._cut_after: int | None = None
        self.connections = 0
        """Connections accepted so far."""
        self.answered = 0
        """Requests answered in place of the server."""
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Nobody listens, and open connections are reset."""
        self.down()
        try:
            yield
        finally:
            self.up()

    def down(self) -> None:
        """Stop listening, and reset what is open."""
        _reset(self._listener)
        self._reset_all()

    def up(self) -> None:
        """Listen again, on the same port."""
        self._listener = self._listen(self.port)

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Connections are accepted, and nothing ever comes back."""
        self._hanging = True
        self._reset_all()
        try:
            yield
        finally:
            self._hanging = False
            self._reset_all()

    @contextlib.contextmanager
    def answering(self, status: int, code: str) -> Iterator[None]:
        """Every request is answered by this error of S3."""
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as the test says</Message></Error>"
        self._answer = (
            f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
            f"Connection: close\r\n\r\n{body}"
        ).encode()
        self._reset_all()
        try:
            yield
        finally:
            self._answer = None
            self._reset_all()

    @contextlib.contextmanager
    def cutting(self, after: int) -> Iterator[None]:
        """Each connection is reset once it has sent this many bytes to the server."""
        self._cut_after = after
        self._reset_all()
        try:
            yield
        finally:
            self._cut_after = None

    def close(self) -> None:
        """End for good."""
        self.down()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        ends = [client]
        with self._lock:
            self._open.add(client)
        with contextlib.suppress(OSError, ValueError):  # ValueError: reset by another thread
            if self._answer is not None:
                self._answer_one(client, self._answer)
            elif not self._hanging:
                server = socket.create_connection(self._upstream)
                ends.append(server)
                with self._lock:
                    self._open.add(server)
                self._pump(client, server)
            else:
                while client.recv(_CHUNK):
                    pass
        with self._lock:
            self._open.difference_update(ends)
        for end in ends:
            _reset(end)

    def _answer_one(self, client: socket.socket, answer: bytes) -> None:
        """Read one request, whole, or the client sees a reset instead of the answer."""
        received = b""
        while b"\r\n\r\n" not in received and (more := client.recv(_CHUNK)):
            received += more
        head, _, body = received.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        if b"expect: 100-continue" in lines:
            length = 0  # the body waits for our word
        while len(body) < length and (more := client.recv(_CHUNK)):
            body += more
        self.answered += 1
        client.sendall(answer)
        client.shutdown(socket.SHUT_WR)
        while client.recv(_CHUNK):
            pass

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        """Pass bytes both ways until one end closes, or the wire is cut."""
        sent = 0
        other = {client: server, server: client}
        while client.fileno() >= 0 and server.fileno() >= 0:
            for end in select.select([client, server], [], [])[0]:
                data = end.recv(_CHUNK)
                if not data:
                    return
                if end is client:
                    sent += len(data)
                    if self._cut_after is not None and sent > self._cut_after:
                        return
                other[end].sendall(data)

    def _reset_all(self) -> None:
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            _reset(end)


def _reset(end: socket.socket) -> None:
    """Close at once: shut down wakes a thread that waits for it, linger 0 sends a reset."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


class ObjectStore:
    """The server, the wire, and a client of their own beside them."""

    def __init__(self) -> None:
        """Start on free ports of the loopback interface, with one empty bucket."""
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        # The server's state is this process's: a bucket of an earlier test, its versions with it, is not ours.
        s3_backends.reset()
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.wire = Wire((host, port))
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",  # noqa: S106 - the server takes any
        )
        self.client.create_bucket(Bucket=BUCKET)

    @property
    def environment(self) -> dict[str, str]:
        """What makes S3 clients come here, through the wire."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.wire.url}

    def keys(self, prefix: str = "") -> list[str]:
        """Names of the objects, sorted, seen past the wire; markers of empty folders are left out."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        found = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return sorted(key for key in found if not key.endswith("/"))

    def get(self, key: str) -> bytes:
        """Content of an object, past the wire."""
        body: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return body

    def fill(self, keys: Iterable[str]) -> None:
        """Make many small objects, behind the back of the protocol, which takes long for thousands."""
        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        for key in keys:
            backend.put_object(BUCKET, key, b"x")

    def empty(self) -> None:
        """Remove all objects."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        for page in pages:
            found = [{"Key": entry["Key"]} for entry in page.get("Contents", ())]
            if found:
                self.client.delete_objects(Bucket=BUCKET, Delete={"Objects": found})

    def close(self) -> None:
        """End server and wire."""
        self.wire.close()
        self._server.stop()
