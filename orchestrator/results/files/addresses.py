"""Addresses of files, paths and URIs, as text: nothing is asked of anybody."""

import re
from urllib.parse import SplitResult, parse_qsl, urlsplit, urlunsplit

from orchestrator.errors import StorageError

_SECRET_WORDS = ("key", "secret", "token", "pass", "pwd", "cred", "sig", "sas", "auth")
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
"""How Amazon's ids of keys look."""


def join(location: str, name: str) -> str:
    """Location of ``name`` in a folder; options of a URI stay at its end."""
    parts = parts_of(location)
    if parts is None:
        return f"{location.rstrip('/') or '/'}/{name}"
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def split(location: str) -> tuple[str, str]:
    """Location of the folder that holds ``location``, which has a slash, and its name there: undoes ``join``."""
    parts = parts_of(location)
    folder, _, name = (location if parts is None else parts.path).rstrip("/").rpartition("/")
    return folder or "/" if parts is None else urlunsplit(parts._replace(path=folder)), name


def masked(text: str) -> str:
    """Return a text without the credentials of URIs in it: before ``@``, in telling options, and ids of keys."""
    text = re.sub(r"(?<=://)[^\s/@]*@", "***@", text)
    text = _KEY_ID.sub("***", text)
    words = "|".join(_SECRET_WORDS)
    return re.sub(rf"(?i)([?&][^=&\s]*(?:{words})[^=&\s]*=)[^&\s]*", r"\1***", text)


def parts_of(location: str) -> SplitResult | None:
    """Return the parts of a URI; None for a path."""
    return urlsplit(location, allow_fragments=False) if "://" in location else None


def refuse_secrets(location: str) -> None:
    """Raise StorageError if a URI holds credentials: the spec, the plan and Ray's dashboard would show them."""
    if (parts := parts_of(location)) is None:
        return
    user = parts.netloc.rpartition("@")[0]
    # A secret key may contain slashes, and then ends the host; buckets have no port, so a colon tells.
    inside = ":" in (parts.netloc if parts.scheme in ("s3", "gs", "gcs") else user)
    names = [
        name for name, _ in parse_qsl(parts.query) if any(word in name.lower() for word in _SECRET_WORDS)
    ]
    if inside or names or _KEY_ID.search(urlunsplit(parts)):
        what = f"its option {names[0]!r}" if names else "the part before '@'" if inside else "the id of a key"
        raise StorageError(
            f"the {parts.scheme}:// storage holds credentials ({what}), and a spec and Ray's dashboard show it to "
            "others: leave them out, and give them by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "GOOGLE_APPLICATION_CREDENTIALS), a profile, or the role of the machine"
        )
