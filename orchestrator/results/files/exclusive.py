"""Files that are created only where there is none, in one step: of two who create the same file one is told so."""

from typing import TYPE_CHECKING

from orchestrator.errors import StorageError
from orchestrator.results.files.addresses import parts_of
from orchestrator.results.files.filesystems import S3_ATTEMPTS, fsspec_of, s3_options

if TYPE_CHECKING:
    import pyarrow.fs as pafs

NOT_EXCLUSIVE = (
    "this storage cannot create a file only where there is none (If-None-Match), so two drivers of one sweep could not "
    "be told apart; use a local directory, S3, or another store with conditional writes"
)
_AT_ONCE, _TAKEN, _UNKNOWN = 409, 412, 501
"""How S3 answers when another creates the same object at this moment, when it is there, and when it cannot look."""


def create(filesystem: "pafs.FileSystem", path: str, location: str, data: bytes) -> None:
    """Write a whole file of a filesystem that is not local, where there is none.

    pyarrow's filesystems have no conditional writes: on S3 botocore makes this request, elsewhere fsspec's filesystem.

    Args:
        filesystem: That of the path.
        path: On the filesystem.
        location: URI of the same file.
        data: Its content.

    Raises:
        FileExistsError: There is one.
        StorageError: The storage, or the package for it that is installed, has no such operation.
    """
    if filesystem.type_name == "s3":
        _create_on_s3(location, path, data)
        return
    from fsspec import AbstractFileSystem  # noqa: PLC0415 - slow to import, rarely needed
    from fsspec.core import url_to_fs  # noqa: PLC0415 - the same

    try:
        foreign = fsspec_of(filesystem) or url_to_fs(location)[0]
        own = getattr(foreign.pipe_file, "__func__", None) is not AbstractFileSystem.pipe_file
        if own:  # that of fsspec itself looks first, and writes then
            foreign.pipe_file(path, data, mode="create")
    except (ImportError, NotImplementedError, TypeError, ValueError) as error:
        raise StorageError(f"{location}: {NOT_EXCLUSIVE} ({error})") from error
    if not own:
        raise StorageError(f"{location}: {NOT_EXCLUSIVE}")


def _create_on_s3(location: str, path: str, data: bytes) -> None:
    import botocore.session  # noqa: PLC0415 - slow to import, rarely needed
    from botocore.config import Config  # noqa: PLC0415 - the same
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError  # noqa: PLC0415 - the same
    from botocore.exceptions import ConnectionError as NoConnection  # noqa: PLC0415 - the same

    parts = parts_of(location)
    assert parts is not None, "a file on S3 has a URI"
    options = s3_options(parts)
    bucket, _, key = path.partition("/")
    scheme, host = options["scheme"] or "https", options["endpoint_override"]
    config = Config(
        connect_timeout=5,
        request_checksum_calculation="when_required",  # not every store knows those of Amazon
        retries={"total_max_attempts": S3_ATTEMPTS, "mode": "standard"},
        s3={"addressing_style": "virtual" if options["force_virtual_addressing"] or not host else "path"},
    )
    try:
        client = botocore.session.get_session().create_client(
            "s3",
            region_name=options["region"],
            endpoint_url=f"{scheme}://{host}" if host else None,
            config=config,
        )
        client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except ClientError as error:
        said, status = error.response["Error"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == _TAKEN:
            raise FileExistsError(location) from error
        if status == _UNKNOWN:
            raise StorageError(f"{location}: {NOT_EXCLUSIVE} ({said['Code']})") from error
        kind = ConnectionError if status == _AT_ONCE else OSError
        raise kind(f"{said['Code']}: {said.get('Message')} (HTTP status {status})") from error
    except (NoConnection, HTTPClientError) as error:
        raise ConnectionError(str(error)) from error
    except BotoCoreError as error:
        raise OSError(str(error)) from error
