"""Ray's token, found as Ray finds it, and tightened.

A token lets its holder run any program on the cluster. Ray looks for it in ``RAY_AUTH_TOKEN``, in the file that
``RAY_AUTH_TOKEN_PATH`` names, and in ``~/.ray/auth_token``; ``RAY_AUTH_MODE`` says whether it is used. A new local Ray
switches tokens on by itself, an explicit address does not: there a token that nobody sends is 50 seconds of silence.
"""

import importlib
import os
import secrets
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.errors import ClusterError

MODE = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 - the same

OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""Permissions that a token's file must not give."""


def default_token_file() -> Path:
    """Where Ray keeps the token that it makes."""
    return Path.home() / ".ray" / "auth_token"


def token_source() -> str | None:
    """Return where the token comes from, in Ray's order; None without one."""
    if os.environ.get(TOKEN, "").strip():
        return TOKEN
    if os.environ.get(TOKEN_PATH):
        return os.environ[TOKEN_PATH]
    file = default_token_file()
    return str(file) if file.is_file() else None


def token_file() -> Path | None:
    """Return the file that the token comes from, if it comes from one."""
    source = token_source()
    return None if source in (None, TOKEN) else Path(str(source))


def prepare(*, local: bool) -> None:
    """Set the token mode where a token is, before Ray reads it; what the user has set stands.

    Args:
        local: A new local Ray is to be started, which asks for a token: without one, one is made, readable by its
            owner only. Ray would make it readable by all.
    """
    if local and os.environ.get(MODE, "token").lower() == "token" and token_source() is None:
        _make()
    tighten()
    if MODE not in os.environ and token_source() is not None:
        os.environ[MODE] = "token"
        if "ray" in sys.modules:  # it has read its configuration already
            _raylet().Config.initialize("")


def tighten() -> None:
    """Take the token's file from everybody but its owner, where it is the one that Ray makes."""
    file = default_token_file()
    with suppress(OSError):  # not there, or not ours
        mode = file.stat().st_mode
        if mode & OTHERS:
            file.chmod(stat.S_IMODE(mode) & ~OTHERS)


def headers() -> dict[str, str]:
    """Return what a request to the cluster carries: the token, if there is one and it is to be used.

    Raises:
        ClusterError: Tokens are switched on and there is none, or its file cannot be read.
    """
    import ray

    raylet = _raylet()
    if raylet.get_authentication_mode() != raylet.AuthenticationMode.TOKEN:
        return {}
    loader = raylet.AuthenticationTokenLoader.instance()
    try:
        return dict(loader.get_token_for_http_header())
    except ray.exceptions.AuthenticationError as error:
        if (file := token_file()) is not None:
            raise ClusterError(
                f"the token's file {file} ({TOKEN_PATH}) cannot be read or is empty"
            ) from error
        raise ClusterError(f"{MODE} is 'token', and there is no token: {_advice()}") from error


def refused(address: str) -> ClusterError:
    """Return the error of a cluster that does not take our token, or asks for one."""
    source = token_source()
    if os.environ.get(MODE, "").lower() != "token" and source is not None:
        return ClusterError(
            f"Ray at {address} asks for a token, and {MODE}={os.environ.get(MODE)} forbids to send one: unset {MODE}"
        )
    if source is None:
        return ClusterError(f"Ray at {address} asks for a token, and there is none: {_advice()}")
    return ClusterError(f"Ray at {address} refuses the token from {source}: {_advice()}")


def _raylet() -> Any:
    """Ray's own reader of modes and tokens, which has no types."""
    return importlib.import_module("ray._raylet")


def _advice() -> str:
    return (
        f"`ray get-auth-token` on the head prints the right one; keep it in {default_token_file()}, in a file that "
        f"{TOKEN_PATH} names, or in {TOKEN}"
    )


def _make() -> None:
    """Make a token, complete at once and private from the start; one that another process makes meanwhile stands."""
    file = default_token_file()
    with suppress(OSError):  # then Ray says what is wrong with the place
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{secrets.token_hex(6)}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as stream:
                stream.write(secrets.token_hex(32))
            with suppress(FileExistsError):
                os.link(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
