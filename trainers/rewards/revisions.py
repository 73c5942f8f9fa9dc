"""Which commit of a hub id a reward loads: that which its trial is known by, wherever the branch has gone since."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_pins: ContextVar[Mapping[str, str]] = ContextVar("revisions", default={})  # noqa: B039 - it is never changed in place


@contextmanager
def at_commits(commits: Mapping[str, str]) -> Iterator[None]:
    """Load hub ids at these commits, by id, inside the block."""
    token = _pins.set(commits)
    try:
        yield
    finally:
        _pins.reset(token)


def revision_of(source: str) -> str | None:
    """Return the commit at which a source is loaded; None for what is no hub id, or has none."""
    return _pins.get().get(source)
