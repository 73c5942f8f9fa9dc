"""Commits and files of repositories: asked of the hub, or where it does not answer, commits of its cache here."""

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS = 3.0
_REFUSED = 400  # a status from here on is an answer, and no commit


def is_commit(revision: str | None) -> bool:
    """Return whether a revision is a commit, which never changes."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


@cache
def commit_of(repository: str, revision: str | None) -> str | None:
    """Return the commit that a revision stands for, by default that of ``main``; None where nothing tells it."""
    if is_commit(revision):
        return revision
    commit = _asked(repository, revision or "main").get("sha")
    if isinstance(commit, str) and is_commit(commit):
        return commit
    return _cached(repository, revision or "main")


def class_of(repository: str, revision: str | None) -> str | None:
    """Return the class of the pipeline in a repository, as the hub says, if it does."""
    config = _asked(repository, revision or "main").get("config")
    diffusers = config.get("diffusers") if isinstance(config, dict) else None
    name = diffusers.get("_class_name") if isinstance(diffusers, dict) else None
    return name if isinstance(name, str) else None


def names_of(repository: str, revision: str | None) -> frozenset[str]:
    """Return the names of a repository's files; none where the hub does not tell."""
    listed = _asked(repository, revision or "main").get("siblings")
    entries = listed if isinstance(listed, list) else []
    names = (entry.get("rfilename") for entry in entries if isinstance(entry, dict))
    return frozenset(name for name in names if isinstance(name, str))


@cache
def _asked(repository: str, revision: str) -> Mapping[str, Any]:
    """Return what the hub says of a revision; nothing where it does not answer, or refuses."""
    # The client takes a fifth of a second to import, and a spec without hub ids needs none of it.
    from huggingface_hub import constants  # noqa: PLC0415
    from huggingface_hub.utils import build_hf_headers, get_session, httpx  # type: ignore[attr-defined] # noqa: PLC0415

    if constants.HF_HUB_OFFLINE or not hub_answers():
        return {}
    url = f"{constants.ENDPOINT}/api/models/{repository}/revision/{quote(revision, safe='')}"
    try:
        answer = get_session().get(url, headers=build_hf_headers(), timeout=_SECONDS, follow_redirects=True)
        said = {} if answer.status_code >= _REFUSED else answer.json()
    except (OSError, ValueError, httpx.HTTPError):
        return {}
    return said if isinstance(said, dict) else {}


@cache
def hub_answers() -> bool:
    """Ask once whether the hub is there, so that several repositories wait for it no longer than one."""
    from huggingface_hub import constants  # noqa: PLC0415
    from huggingface_hub.utils import get_session, httpx  # type: ignore[attr-defined] # noqa: PLC0415

    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except (OSError, httpx.HTTPError):
        return False
    return True


def snapshot_of(repository: str, revision: str | None) -> Path | None:
    """Return the directory of a revision in the hub's cache here; None where it has none."""
    commit = revision if is_commit(revision) else _cached(repository, revision or "main")
    place = None if commit is None else _folder(repository) / "snapshots" / commit
    return place if place is not None and os.path.isdir(place) else None  # noqa: PTH112 - a name may be too long


def _cached(repository: str, revision: str) -> str | None:
    try:
        commit = (_folder(repository) / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return commit if is_commit(commit) else None


def _folder(repository: str) -> Path:
    """Return the directory of a repository in the hub's cache, whether there can be one or not."""
    from huggingface_hub import constants  # noqa: PLC0415

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
