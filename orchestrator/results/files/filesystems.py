"""Filesystems by URI: pyarrow's own first, else fsspec's for that protocol, where its package is installed."""

import contextlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from orchestrator.errors import StorageError
from orchestrator.results.files.addresses import masked, parts_of, refuse_secrets

# An object appears when its upload is complete, and renaming is copying: one put is all there is to do.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "r2"})

_S3_FLAGS = ("allow_bucket_creation", "force_virtual_addressing")
_S3_OPTIONS = ("endpoint_override", "region", "scheme", *_S3_FLAGS)
_HALF_URI = re.compile(r"([A-Za-z][A-Za-z0-9+]+):/(?!/)")

S3_ATTEMPTS = 3
"""Of one request inside the S3 client; longer waits are ours, and are told of."""
_GCS_SECONDS = "10"
"""The same for Google's client, which else tries for 15 minutes and says nothing."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder on a filesystem."""

    filesystem: "pafs.FileSystem"
    root: str
    """Path on the filesystem, without a slash at its end."""
    location: str
    """What names the same folder on any machine that reaches it: a path, or a URI with its options."""


def resolve(location: str) -> Place:
    """Return the filesystem and the path that a location names.

    Args:
        location: A path, or a URI. A relative path is made absolute, so that a later change of directory does no
            harm. ``s3://BUCKET/PREFIX`` takes its endpoint from ``?endpoint_override=`` or the environment
            (``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``), ``gs://`` from ``STORAGE_EMULATOR_HOST``.

    Raises:
        StorageError: The URI cannot be understood, or holds credentials.
    """
    parts = parts_of(location)
    if parts is None:
        if (half := _HALF_URI.match(location)) is not None:
            raise StorageError(
                f"the storage {masked(location)!r} is neither a path nor a URI: write {half[1]}://, or ./{half[1]}: "
                "for a directory of that name"
            )
        root = str(Path(location).expanduser().absolute())
        return Place(filesystem=pafs.LocalFileSystem(), root=root, location=root)
    refuse_secrets(location)
    try:
        filesystem, root = _s3(parts) if parts.scheme == "s3" else _other(parts, location)
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise StorageError(masked(f"cannot use the storage {location!r}: {error}")) from None
    root = root.rstrip("/")
    local = isinstance(filesystem, pafs.LocalFileSystem)
    return Place(filesystem=filesystem, root=root, location=root if local else location)


def put(filesystem: "pafs.FileSystem", path: str, data: bytes) -> None:
    """Write a whole file of a filesystem that is not local; it appears complete or not at all."""
    foreign = fsspec_of(filesystem)
    protocols = {filesystem.type_name} if foreign is None else _protocols(foreign)
    if protocols.isdisjoint(_OBJECT_STORES):
        folder, _, name = path.rpartition("/")
        filesystem.create_dir(folder, recursive=True)
        temporary = f"{folder}/.{name}.{secrets.token_hex(6)}.tmp"
        _stream(filesystem, temporary, data)
        filesystem.move(temporary, path)
    elif foreign is None:
        _stream(filesystem, path, data)
    else:
        foreign.pipe_file(path, data)


_LISTINGS = 10
"""Attempts at listing a folder that others remove and make anew."""


def entries(filesystem: "pafs.FileSystem", folder: str) -> "set[tuple[str, pafs.FileType]]":
    """Names and kinds of what lies in a folder; none if there is no such folder."""
    refresh(filesystem)
    # Google's listings of one level lack the folders that have no marker of their own: there all levels are read.
    every = filesystem.type_name == "gcs"
    selector = pafs.FileSelector(folder, allow_not_found=True, recursive=every)
    infos: list[pafs.FileInfo] = []
    for _ in range(_LISTINGS):
        try:
            infos = filesystem.get_file_info(selector)
            break
        except FileNotFoundError:
            continue  # removed by another process while it was listed: now it is there anew, or is not
    if not every:
        return {(info.base_name, info.type) for info in infos}
    found = set()
    for info in infos:
        name, below, _ = info.path[len(folder) + 1 :].partition("/")
        found.add((name, pafs.FileType.Directory if below else info.type))
    return found


def tree(filesystem: "pafs.FileSystem", folder: str) -> dict[str, int]:
    """Bytes of every file below a folder, by its path in it."""
    refresh(filesystem)
    selector = pafs.FileSelector(folder, allow_not_found=True, recursive=True)
    infos = [info for info in filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
    return {info.path[len(folder) + 1 :]: int(info.size or 0) for info in infos}


def remove_folder(filesystem: "pafs.FileSystem", folder: str) -> None:
    """Remove a folder and all in it, if it is there."""
    if filesystem.type_name == "gcs":  # the same: a folder without a marker is missing to `delete_dir`
        filesystem.delete_dir_contents(folder, missing_dir_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_dir(folder)


def refresh(filesystem: "pafs.FileSystem") -> None:
    """Forget what a filesystem remembers of its folders: other machines write to them."""
    foreign = fsspec_of(filesystem)
    if foreign is not None:
        foreign.invalidate_cache()


def fsspec_of(filesystem: "pafs.FileSystem") -> Any | None:
    """Return the fsspec filesystem inside, or None if it is one of pyarrow's."""
    handler = getattr(filesystem, "handler", None)
    return handler.fs if isinstance(handler, pafs.FSSpecHandler) else None


def _stream(filesystem: "pafs.FileSystem", path: str, data: bytes) -> None:
    """Write through a stream, in parts where the file is large.

    The close publishes the object, so there is no `with`, which would publish a torn one after an error.
    """
    stream = filesystem.open_output_stream(path, compression=None)
    stream.write(data)
    stream.close()


def s3_options(parts: SplitResult) -> dict[str, Any]:
    """Return what a URI and the environment say of the server: region, scheme, endpoint, flags.

    Raises:
        ValueError: There is no such option, or no bucket.
    """
    options = dict(parse_qsl(parts.query))
    unknown = sorted(options.keys() - set(_S3_OPTIONS))
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r}; there are: {', '.join(_S3_OPTIONS)}")
    if not parts.netloc:
        raise ValueError("it names no bucket: s3://BUCKET/PREFIX")
    environment = os.environ
    endpoint = (
        options.get("endpoint_override")
        or environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
        or ""
    )
    scheme, _, host = endpoint.rpartition("://")
    region = options.get("region") or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    return {
        "region": region or (_region(parts.netloc) if not host else None),
        "scheme": options.get("scheme") or scheme or None,
        "endpoint_override": host.rstrip("/") or None,
        **{flag: options.get(flag, "").lower() in ("true", "1") for flag in _S3_FLAGS},
    }


def _s3(parts: SplitResult) -> "tuple[pafs.FileSystem, str]":
    """Return the S3 client for a URI, and the path in it.

    Not by ``from_uri``: its retries take minutes where a server hangs, and it opens three requests for one file.
    """
    filesystem = pafs.S3FileSystem(
        **s3_options(parts),
        connect_timeout=5,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        # One request for a small file, and parts in the background for a large one: there a part that fails makes
        # the close fail too, where without, a later close would publish what came through.
        allow_delayed_open=True,
        background_writes=True,
    )
    return filesystem, f"{parts.netloc}{parts.path}"


def _region(bucket: str) -> str | None:
    """Return where Amazon keeps a bucket; None, which is the client's default, if nobody tells."""
    try:
        return str(pafs.resolve_s3_region(bucket))
    except (OSError, pa.ArrowException):
        return None


def _other(parts: SplitResult, location: str) -> "tuple[pafs.FileSystem, str]":
    """Return pyarrow's filesystem for a URI, else fsspec's, and the path in it."""
    try:
        filesystem, root = pafs.FileSystem.from_uri(_tuned(parts))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        unknown = isinstance(error, pa.ArrowNotImplementedError) or "Unrecognized filesystem" in str(error)
        if not unknown:
            raise
        from fsspec.core import url_to_fs  # noqa: PLC0415 - slow to import, rarely needed

        foreign, root = url_to_fs(location, use_listings_cache=False)
        filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(foreign))
    return filesystem, str(root)


def _tuned(parts: SplitResult) -> str:
    """Return a URI for pyarrow, with what the environment and patience ask for."""
    if parts.scheme not in ("gs", "gcs"):
        return urlunsplit(parts)
    options = dict(parse_qsl(parts.query))
    options.setdefault("retry_limit_seconds", _GCS_SECONDS)
    scheme, _, host = os.environ.get("STORAGE_EMULATOR_HOST", "").rpartition("://")
    if host and "endpoint_override" not in options:
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "http"}
        parts = parts._replace(netloc=f"anonymous@{parts.hostname}")
    return urlunsplit(parts._replace(query="&".join(f"{name}={value}" for name, value in options.items())))


def _protocols(foreign: Any) -> set[str]:
    protocol = foreign.protocol
    return {protocol} if isinstance(protocol, str) else set(protocol)
