"""Addresses: which form means what, and servers on loopback that are not Ray, refuse, or never answer."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from support.tiers import exhaustive

from orchestrator.errors import CdsweepError, ClusterError, UsageError
from orchestrator.execution.cluster import address as addresses

pytestmark = pytest.mark.xdist_group("access")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        "orchestrator.execution.cluster.access.headers", lambda: {"authorization": "Bearer x"}
    )


@pytest.mark.parametrize(
    "written",
    [None, "auto", "local", "head:6379", "10.0.0.1:6379", "[::1]:6379", "ray://head:10001", "http://head:8265",
     "https://dashboard.example/"],
)  # fmt: skip
def test_forms_of_an_address(written: str | None) -> None:
    assert addresses.meant(written) == written


@pytest.mark.parametrize(
    "written",
    ["head", "head:", "head:port", ":6379", "ray://head", "s3://head:1", "head:99999999", "a b:1:2"],
)
def test_anything_else_is_refused_with_the_forms(written: str) -> None:
    with pytest.raises(UsageError, match="takes auto, local, HOST:PORT") as caught:
        addresses.meant(written)
    assert written in str(caught.value)


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="holds credentials") as caught:
        addresses.meant("http://user:geheim@head:8265")
    assert "geheim" not in str(caught.value)


def test_the_environment_speaks_where_the_command_line_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    assert addresses.meant(None) == addresses.meant("auto") == "head:6379"
    assert addresses.meant(None, jobs=True) == "http://head:8265"
    assert addresses.meant("other:1", jobs=True) == "other:1", "what is written goes first"
    with addresses.without_environment():
        assert addresses.meant(None, jobs=True) is None
    assert addresses.meant(None) == "head:6379"


def test_auto_without_a_cluster_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: str) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address_or_die", none)
    with pytest.raises(ClusterError, match="no Ray runs on this machine"):
        addresses.found("auto")
    assert addresses.found("head:6379") == "head:6379"


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield listener.getsockname()[1]


FORMS = ["127.0.0.1:{}", "ray://127.0.0.1:{}", "http://127.0.0.1:{}"]


@pytest.mark.parametrize("form", FORMS)
def test_nobody_there(form: str) -> None:
    with pytest.raises(ClusterError, match=r"cannot reach Ray at .*refused"):
        addresses.probe(form.format(1))


@pytest.mark.parametrize("form", [FORMS[0], *exhaustive(*FORMS[1:])])
def test_a_server_that_never_answers_is_waited_for_a_few_seconds(form: str, silent: int) -> None:
    """Five seconds are the promise, beyond the imports, and beyond what a busy machine takes for nothing."""
    with pytest.raises(ClusterError, match="refused"):
        addresses.probe(form.format(1))
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(ClusterError, match="cannot reach Ray"):
            addresses.probe(form.format(silent))
        seconds.append(time.monotonic() - began)
        if seconds[-1] < 5:
            return
    raise AssertionError(seconds)


@pytest.mark.parametrize(
    ("status", "said"),
    [(200, "is not Ray"), (404, "is not Ray"), (401, "token"), (403, "token")],
)
def test_a_server_that_answers_otherwise(status: int, said: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>welcome</html>")

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ClusterError, match=said):
            addresses.probe(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(ClusterError, match="is not Ray"):
            addresses.probe(f"127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


def test_this_machine_is_known_by_name_or_address() -> None:
    def here(address: str, hostname: str) -> bool:
        return addresses.Node(address=address, hostname=hostname, cpus=1, gpus=0).here

    assert here("10.255.255.254", socket.gethostname())
    assert here("127.0.0.1", "elsewhere")
    assert not here("10.255.255.254", "elsewhere")


def test_no_message_has_two_lines(silent: int) -> None:
    for form in (*FORMS, "http://nowhere.invalid:{}"):
        with pytest.raises(CdsweepError) as caught:
            addresses.probe(form.format(1))
        assert "\n" not in str(caught.value)


ABORTED = """Initialization failure from server:
Traceback (most recent call last):
  File "proxier.py", line 772, in Datapath
    raise RuntimeError(
RuntimeError: Starting Ray client server failed. See ray_client_server_23000.err for detailed logs.

"""


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ([ConnectionAbortedError(ABORTED)] * 2, None),
        ([ConnectionAbortedError(ABORTED)] * 3, "RuntimeError: Starting Ray client server failed. See ray_client_se"),
        ([RuntimeError("Version mismatch: The cluster\nwas started with")], r"\(Version mismatch: The cluster\)"),
        ([ConnectionError()], r"\(ConnectionError\)"),
    ],
)  # fmt: skip
def test_a_server_for_clients_that_starts_none_is_asked_again_and_then_one_line(
    monkeypatch: pytest.MonkeyPatch, errors: list[Exception], said: str | None
) -> None:
    answers = iter(errors)

    def ask(address: str) -> str:
        for error in answers:
            raise error
        return "http://127.0.0.1:8265"

    monkeypatch.setattr("ray.dashboard.utils.get_address_for_submission_client", ask)
    if said is None:
        assert addresses.dashboard_url("ray://127.0.0.1:10001") == "http://127.0.0.1:8265"
        return
    with pytest.raises(ClusterError, match=said) as caught:
        addresses.dashboard_url("ray://127.0.0.1:10001")
    assert "\n" not in str(caught.value)
    assert "--address http://" in str(caught.value)
    assert not list(answers), "no attempt more, no attempt less"
